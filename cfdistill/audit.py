"""Three audits of a trained student: does it read the question, heed its token, follow its rationale?

Each changes one thing of the input and leaves the rest, for a few questions of the test split on which
the shortcut is broken:

- *input*: what it answers at once, from everything, from the options alone, and from the question alone;
- *strategy*: what it writes under its own strategy token, another one, none, and one it never saw;
- *rationale*: what it concludes from its own rationale, the first half of it, another question's, and what
  it writes about the same question from the opposite view.

Source: our choice; the rationale audit follows Lanham et al. (2023), "Measuring Faithfulness in
Chain-of-Thought Reasoning".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from cfdistill import answering, data, evaluation, runs, stats, training
from cfdistill.methods import METHODS
from cfdistill.params import Params
from cfdistill.schema import DIRECT, ELIMINATION, Prediction, Question, options_text, prompt_text
from cfdistill.students import Student

if TYPE_CHECKING:
    import pandas as pd

CONDITIONS = {  # of every audit; the first one changes nothing
    "input": ("everything", "options alone", "question alone"),
    "strategy": ("right token", "missing", "novel", "swapped"),
    "rationale": ("its own", "truncated", "another question's", "opposite view"),
}
NOVEL = "[Third opinion]"  # a strategy token that no training example holds
COLUMNS = [
    "train_dataset", "method", "student", "seed", "test_split", "audit", "condition", "n", "accuracy",
    "ci_low", "ci_high", "same_answer", "same_low", "same_high", "unparsed_rate",
]  # fmt: skip


def build(method: str, params: Params) -> runs.Stage:
    """Reuse or make the stage `audits` of one method: `predictions.jsonl`, `scoring` is audit/condition.

    Args:
        method: a trained method.
        params: audit_questions (0: no audits), max_new_tokens, max_new_tokens_elimination.

    Raises:
        StageError: the training or data stage is missing.
    """
    made = runs.stage("audits", params, method=method)
    if made.is_complete():
        return made
    inputs = [
        runs.require(runs.stage("training", params, method=method)),
        runs.require(data.stage(params.train_dataset, params)),
    ]
    questions = choose_questions(params)
    with made.draft(params, inputs) as draft:
        answers = audit(training.load_trained(method, params), questions, method, params) if questions else []
        draft.write("predictions.jsonl", answers)
    return made


def split(params: Params) -> str:
    """Return the test split that is audited: `shift`, or the last one of a real benchmark."""
    splits = data.test_splits(params.train_dataset, params)
    return "shift" if "shift" in splits else splits[-1]


def choose_questions(params: Params) -> list[Question]:
    """Return `params.audit_questions` questions of the split, spread evenly over it."""
    questions = data.questions(params.train_dataset, split(params), params)
    count = min(params.audit_questions, len(questions))
    return [questions[i * len(questions) // count] for i in range(count)]


def audit(student: Student, questions: Sequence[Question], method: str, params: Params) -> list[Prediction]:
    """Return a student's answers under every condition; one that learned only labels has one audit."""
    if METHODS[method].views == ("label",):
        return read_input(student, questions, method, "", params)
    heeded = heed_strategy(student, questions, method, params)
    count = len(questions)
    own, opposite = heeded[:count], heeded[-count:]
    return [
        *read_input(student, questions, method, DIRECT, params),
        *heeded,
        *follow_rationale(student, questions, own, opposite, params),
    ]


def read_input(
    student: Student, questions: Sequence[Question], method: str, token: str, params: Params
) -> list[Prediction]:
    """Let a student name its answer at once: from everything, from the options, from the question."""
    whole = [prompt_text(question, token) for question in questions]
    stems = [f"{question.stem}\n" for question in questions]
    options = [f"{options_text(question.options)}\n" for question in questions]
    prompts = {
        "everything": whole,
        "options alone": [p.removeprefix(stem) for p, stem in zip(whole, stems, strict=True)],
        "question alone": [p.replace(own, "") for p, own in zip(whole, options, strict=True)],
    }
    said = {name: [(p, answering.concluding("")) for p in own] for name, own in prompts.items()}
    return _chosen(student, questions, method, "input", said, params)


def heed_strategy(
    student: Student, questions: Sequence[Question], method: str, params: Params
) -> list[Prediction]:
    """Let a student write under its own strategy token, the other one, none, and one it never saw."""
    right = [prompt_text(question, DIRECT) for question in questions]
    prompts = {
        "right token": right,
        "missing": [prompt.removesuffix(f"\n{DIRECT}") for prompt in right],
        "novel": [prompt_text(question, NOVEL) for question in questions],
        "swapped": [prompt_text(question, ELIMINATION) for question in questions],
    }
    short = [prompt for name, own in prompts.items() if name != "swapped" for prompt in own]
    texts = [  # what may be equally long is written together, which takes hardly longer than one of them
        *answering.generate(student, short, params.max_new_tokens, params.eval_batch_size),
        *answering.generate(
            student, prompts["swapped"], params.max_new_tokens_elimination, params.eval_batch_size
        ),
    ]
    said = [prompt for own in prompts.values() for prompt in own]
    everyone = [*questions] * len(prompts)
    names = [f"strategy/{name}" for name in prompts for _ in questions]
    read = answering.read_answers(student, everyone, said, texts, params.eval_batch_size)
    return [
        evaluation.answered(question, method, name, text=text, option=option, parsed=parsed)
        for question, name, text, (option, parsed) in zip(everyone, names, texts, read, strict=True)
    ]


def follow_rationale(
    student: Student,
    questions: Sequence[Question],
    own: Sequence[Prediction],
    opposite: Sequence[Prediction],
    params: Params,
) -> list[Prediction]:
    """Put a rationale into a student's mouth and see which option it finds likeliest after it."""
    rationales = [answering.rationale_of(answer.text) for answer in own]
    texts = {
        "its own": rationales,
        "truncated": [" ".join(r.split()[: len(r.split()) // 2]) for r in rationales],
        "another question's": [rationales[i] for i in _others(questions)],
        "opposite view": [answering.rationale_of(answer.text) for answer in opposite],
    }
    prompts = [prompt_text(question, DIRECT) for question in questions]
    said = {
        name: [(prompt, answering.concluding(text)) for prompt, text in zip(prompts, own_texts, strict=True)]
        for name, own_texts in texts.items()
    }
    return _chosen(student, questions, own[0].method, "rationale", said, params)


def table(params: Params) -> pd.DataFrame:
    """Return the audits of all methods, one row per method, audit and condition (`COLUMNS`).

    `same_answer` is the share of questions answered as under the audit's first condition. Rates are
    shares with Wilson intervals. No rows if no questions are audited.

    Raises:
        StageError: the audits of a method are missing.
    """
    import pandas as pd

    rows: list[list[object]] = []
    for method in params.methods:
        done = runs.require(runs.stage("audits", params, method=method))
        answers: dict[str, list[Prediction]] = {}
        for prediction in done.read("predictions.jsonl", Prediction):
            answers.setdefault(prediction.scoring, []).append(prediction)
        run = [params.train_dataset, method, params.student, params.seed, split(params)]
        rows += [[*run, *_measure(answers, name)] for name in answers]
    return pd.DataFrame(rows, columns=COLUMNS)


def _measure(answers: Mapping[str, Sequence[Prediction]], name: str) -> list[object]:
    audited, condition = name.split("/")
    own, untouched = answers[name], answers[f"{audited}/{CONDITIONS[audited][0]}"]
    right = sum(p.predicted == p.gold for p in own)
    same = sum(p.predicted == q.predicted for p, q in zip(own, untouched, strict=True))
    n = len(own)
    rates = [right / n, *stats.proportion_interval(right, n), same / n, *stats.proportion_interval(same, n)]
    return [audited, condition, n, *rates, sum(not p.parsed for p in own) / n]


def _chosen(
    student: Student,
    questions: Sequence[Question],
    method: str,
    name: str,
    begun: Mapping[str, Sequence[tuple[str, str]]],
    params: Params,
) -> list[Prediction]:
    """Let a student choose after each prompt and what it is made to have said."""
    asked = [
        (f"{name}/{condition}", question, prompt, said)
        for condition, own in begun.items()
        for question, (prompt, said) in zip(questions, own, strict=True)
    ]
    chosen = answering.choose(
        student,
        [prompt for _, _, prompt, _ in asked],
        [said for *_, said in asked],
        [question for _, question, _, _ in asked],
        params.eval_batch_size,
    )
    return [
        evaluation.answered(question, method, scoring, option, question.options[option], True)
        for (scoring, question, _, _), option in zip(asked, chosen, strict=True)
    ]


def _others(questions: Sequence[Question]) -> list[int]:
    """Return for each question the place of the next one of another scene (its own if there is none)."""
    count = len(questions)
    places = []
    for i, question in enumerate(questions):
        following = ((i + step) % count for step in range(1, count))
        other = (j for j in following if not question.scene or questions[j].scene != question.scene)
        places.append(next(other, i))
    return places
