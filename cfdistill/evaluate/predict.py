"""A student's answers to test questions: generated, or chosen by the likelihood of the options."""

from cfdistill.methods import METHODS
from cfdistill.params import SCORINGS, Params
from cfdistill.schema import DIRECT, STRATEGY, Prediction, Question, prompt_text, same_option
from cfdistill.student.decode import Questions, choose, concluding, generate, read_answers
from cfdistill.student.models import Student

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
        if scoring != "rationale":
            found[scoring] = predict(student, questions, method, scoring, params)
            continue
        # the likeliest option after the student's own rationale, whatever that named
        prompts, texts = [prompt_text(q, DIRECT) for q in questions], [own.text for own in found["direct"]]
        best = choose(student, prompts, list(map(concluding, texts)), questions, params.eval_batch_size)
        asked = zip(questions, best, texts, strict=True)
        found[scoring] = [answered(q, method, scoring, option, text, True) for q, option, text in asked]
    return found


def predict(student: Student, questions: Questions, method: str, scoring: str, params: Params) -> Answers:
    """Ask every question: under a strategy token, or "Answer:" for a label or the likeliest option."""
    size = params.eval_batch_size
    if scoring == "cloze":  # without the options, as lm-evaluation-harness asks ARC
        prompts = [f"Question: {question.stem}\nAnswer:" for question in questions]
    else:
        prompts = [prompt_text(question, STRATEGY[scoring]) for question in questions]
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
