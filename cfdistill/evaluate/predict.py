"""A student's answers to test questions: generated, or chosen by the likelihood of the options."""

from collections.abc import Sequence

from cfdistill.methods import METHODS
from cfdistill.params import SCORINGS, Params
from cfdistill.schema import STRATEGY, Prediction, Question, prompt_text, same_option
from cfdistill.student.decode import choose, concluding, generate, option_scores, read_answers
from cfdistill.student.models import Student

Questions = Sequence[Question]
Answers = list[Prediction]


def scorings(method: str, params: Params) -> tuple[str, ...]:
    """Return how a method is scored, its main scoring first; one that learned only labels has no views."""
    if METHODS[method].views == ("label",):
        return ("label", *(name for name in params.scorings if name == "likelihood"))
    return tuple(name for name in SCORINGS if name in params.scorings)


def predict_all(student: Student, questions: Questions, method: str, params: Params) -> dict[str, Answers]:
    """Return predictions by scoring."""
    found: dict[str, Answers] = {}
    for scoring in scorings(method, params):
        if scoring == "vote":
            found["vote"] = vote(student, questions, found["direct"], found["elimination"], params)
        else:
            found[scoring] = predict(student, questions, method, scoring, params)
    return found


def predict(student: Student, questions: Questions, method: str, scoring: str, params: Params) -> Answers:
    """Ask every question: under a strategy token, or "Answer:" for a label or the likeliest option."""
    prompts, size = [prompt_text(q, STRATEGY[scoring]) for q in questions], params.eval_batch_size
    if scoring == "likelihood":
        best = choose(student, prompts, [""] * len(prompts), questions, size)
        texts = [question.options[option] for question, option in zip(questions, best, strict=True)]
        chosen = [(option, True) for option in best]
    else:
        limit = params.max_new_tokens_elimination if scoring == "elimination" else params.max_new_tokens
        texts = generate(student, prompts, limit, size)
        chosen = read_answers(student, questions, prompts, texts, size)
    return [
        answered(question, method, scoring, option, text, parsed)
        for question, text, (option, parsed) in zip(questions, texts, chosen, strict=True)
    ]


def vote(
    student: Student, questions: Questions, direct: Answers, elimination: Answers, params: Params
) -> Answers:
    """Let two views vote (our rule): the option that they name counts; if torn, the likeliest after both."""
    pairs = list(zip(direct, elimination, strict=True))
    named = [{view.predicted for view in pair if view.parsed} for pair in pairs]
    torn = [i for i, options in enumerate(named) if len(options) != 1]
    chosen = {i: options.pop() for i, options in enumerate(named) if len(options) == 1}
    if torn:
        asked = [questions[i].options for i in torn]
        scores = []
        for scoring, view in (("direct", direct), ("elimination", elimination)):
            prompts = [prompt_text(questions[i], STRATEGY[scoring]) for i in torn]
            said = [concluding(view[i].text) for i in torn]
            scores.append(option_scores(student, prompts, asked, params.eval_batch_size, said))
        chosen |= zip(torn, (scores[0] + scores[1]).argmax(axis=1).tolist(), strict=True)
    return [
        answered(question, one.method, "vote", chosen[i], f"{one.text}\n{other.text}", i not in torn)
        for i, (question, (one, other)) in enumerate(zip(questions, pairs, strict=True))
    ]


def answered(
    question: Question, method: str, scoring: str, option: int, text: str, parsed: bool
) -> Prediction:
    """Return the record of one answer; equal options count as one, as the right one if it is among them."""
    q, count = question, len(question.options)
    same = next(i for i in (q.answer, *range(count)) if same_option(q.options[i], q.options[option]))
    return Prediction(
        *(q.id, q.dataset, q.split, q.subset, q.scene, method, scoring),
        *(q.answer, count, q.stereotype, same, text, parsed),
    )
