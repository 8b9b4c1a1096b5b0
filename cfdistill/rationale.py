"""Multi-view rationales (paper, "Multi-view CoT"): why the right option is right, why the others are wrong.

Both views of originals and counterfactuals alike, each ending in the same answer sentence.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any

from cfdistill import data, runs
from cfdistill.params import Params
from cfdistill.schema import Counterfactual, Question, Rationale, answer_text, read_answer
from cfdistill.teacher import Teacher
from cfdistill.teacher.answers import ask_twice
from cfdistill.teacher.prompts import render

VIEWS = ("positive", "negative")
LEDGER_COLUMNS = ("question_id", "view", "attempts", "verdict", "reason")


def views(questions: Sequence[Question], teacher: Teacher) -> tuple[list[Rationale], list[dict[str, Any]]]:
    """Ask for both views of every question.

    The teacher is told the right answer. A rationale that does not end in it, or a negative view that
    passes over a wrong option, is asked for once more and then dropped.

    Returns:
        The rationales that are fit, and a ledger with one row per question and view (LEDGER_COLUMNS).
    """
    asked = [(question, view) for question in questions for view in VIEWS]
    replies = ask_twice(
        teacher,
        [render(view, question.stem, question.options, question.answer) for question, view in asked],
        [partial(read_view, question, view) for question, view in asked],
    )
    rationales: list[Rationale] = []
    ledger: list[dict[str, Any]] = []
    for (question, view), reply in zip(asked, replies, strict=True):
        if reply.value is not None:
            rationales.append(Rationale(question.id, view, reply.value))
        verdict = "dropped" if reply.value is None else "kept"
        row = (question.id, view, reply.attempts, verdict, reply.reason)
        ledger.append(dict(zip(LEDGER_COLUMNS, row, strict=True)))
    return rationales, ledger


def read_view(question: Question, view: str, text: str) -> str:
    """Return a teacher's rationale on one line, its last sentence in the one wording of `answer_text`.

    Raises:
        ValueError: it reaches no answer or a wrong one, argues nothing, or passes over an option.
    """
    text = " ".join(text.split())
    answer = read_answer(text, question.options)
    if answer is None:
        raise ValueError("no answer sentence")
    if answer != question.answer:
        raise ValueError("wrong answer")
    case = text.rpartition("So the answer is")[0].strip()
    if not case:
        raise ValueError("no argument before the answer sentence")
    wrong = [option for i, option in enumerate(question.options) if i != question.answer]
    if view == "negative" and not all(f"not {option}:".lower() in case.lower() for option in wrong):
        raise ValueError("passes over a wrong option")
    return f"{case} {answer_text(question.options, question.answer)}"


def build(params: Params) -> runs.Stage:
    """Reuse or make the stage `rationales`.

    Makes `rationales.train.jsonl` and `ledger.csv` (one row per question and view).

    Raises:
        StageError: the questions or the counterfactuals are not there yet.
        TeacherError: the teacher cannot answer.
    """
    import pandas as pd

    made = runs.stage("rationales", params)
    if made.is_complete():
        return made
    source = runs.require(runs.stage("counterfactuals", params))
    originals = data.questions(params.train_dataset, "train", params)
    counterfactuals = source.read("counterfactuals.train.jsonl", Counterfactual)
    inputs = [data.stage(params.train_dataset, params), source]
    with Teacher(params) as teacher, made.draft(params, inputs=inputs) as draft:
        rationales, ledger = views([*originals, *(c.question for c in counterfactuals)], teacher)
        draft.drops.update(f"{row['view']}: {row['reason']}" for row in ledger if row["reason"])
        draft.notes["teacher"] = teacher.summary()
        draft.write("rationales.train.jsonl", rationales)
        pd.DataFrame(ledger, columns=LEDGER_COLUMNS).to_csv(draft.path / "ledger.csv", index=False)
    return made
