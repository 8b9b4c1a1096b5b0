"""A student's answers to test questions: generated, or chosen by the likelihood of the options."""

from collections.abc import Sequence

from cfdistill.methods import METHODS
from cfdistill.params import SCORINGS, Params
from cfdistill.schema import DIRECT, STRATEGY, Prediction, Question, cloze_text, prompt_text, same_option
from cfdistill.student.decode import choose, concluding, generate, read_answers
from cfdistill.student.models import Student

Questions = Sequence[Question]
Answers = list[Prediction]


def scorings(method: str, params: Params) -> tuple[str, ...]:
    """Return how a method is scored, its main scoring first; one that learned only labels has no views."""
    if METHODS[method].views == ("label",):
        return ("label", *(name for name in params.scorings if name in ("cloze", "likelihood")))
    return tuple(name for name in SCORINGS if name in params.scorings)


def predict_all(student: Student, questions: Questions, method: str, params: Params) -> dict[str, Answers]:
    """Return predictions by scoring."""
    found: dict[str, Answers] = {}
    for scoring in scorings(method, params):
        if scoring == "rationale":
            found[scoring] = conclude(student, questions, found["direct"], params)
        else:
            found[scoring] = predict(student, questions, method, scoring, params)
    return found


def predict(student: Student, questions: Questions, method: str, scoring: str, params: Params) -> Answers:
    """Ask every question: under a strategy token, or "Answer:" for a label or the likeliest option."""
    asked = [cloze_text(q) if scoring == "cloze" else prompt_text(q, STRATEGY[scoring]) for q in questions]
    prompts, size = asked, params.eval_batch_size
    if scoring in ("cloze", "likelihood"):
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


def conclude(student: Student, questions: Questions, direct: Answers, params: Params) -> Answers:
    """Let a student choose the likeliest option after its own rationale, whatever that named."""
    prompts, said = [prompt_text(q, DIRECT) for q in questions], [concluding(own.text) for own in direct]
    best = choose(student, prompts, said, questions, params.eval_batch_size)
    asked = zip(questions, direct, best, strict=True)
    return [answered(q, own.method, "rationale", option, own.text, True) for q, own, option in asked]


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
