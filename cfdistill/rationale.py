"""Multi-view rationales (paper, "Multi-view CoT"): why the right option is right, why the others are wrong.

Both views of originals and counterfactuals alike, each ending in the same answer sentence. Or, for
`ft-cot` alone, rationales that somebody published: the positive view of the originals, from a file.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

from cfdistill import counterfactual, data, runs
from cfdistill.errors import DataError
from cfdistill.params import Params
from cfdistill.schema import LETTERS, Question, Rationale, Record, answer_text, read_answer, read_jsonl
from cfdistill.teacher import Teacher, spending
from cfdistill.teacher.answers import ask_twice
from cfdistill.teacher.prompts import render
from cfdistill.teacher.spending import Meter

VIEWS = ("positive", "negative")
LEDGER_COLUMNS = ("question_id", "view", "attempts", "verdict", "reason")
OWN_ENDING = re.compile(r"(.*)\bso,? the answer is\b.*", re.IGNORECASE | re.DOTALL)


class Explained(NamedTuple):
    """What a source gave: rationales, a ledger, and facts for the manifest."""

    rationales: list[Rationale]
    ledger: list[dict[str, Any]]  # one row per question and view, keyed by LEDGER_COLUMNS
    notes: dict[str, Any]
    costs: list[tuple[str, str, int, int]]  # tokens by step, for `cost.csv`


@dataclass(frozen=True)
class Published(Record):
    """One row of a file of rationales, such as those of Hsieh et al. (2023) for CommonsenseQA."""

    id: str  # of a question of the official release
    rationale: str
    predicted: str | None  # letter of the option it reached, in the official order; None: no answer


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


def read_published(path: Path) -> dict[str, Published]:
    """Read a file of published rationales, by question id.

    Raises:
        DataError: it is missing, a row is malformed, or an id stands in it twice.
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; set rationale_file to a file of published rationales")
    rows = read_jsonl(path, Published)
    found = {row.id: row for row in rows}
    if len(found) < len(rows):
        first = next(row.id for i, row in enumerate(rows) if found[row.id] is not rows[i])
        raise DataError(f"{path}: id {first} stands in it twice; keep one rationale per question")
    return found


def published_views(
    questions: Sequence[Question], published: Mapping[str, Published]
) -> tuple[list[Rationale], list[dict[str, Any]]]:
    """Take the positive views of original questions from published rationales.

    Returns:
        The rationales that are fit, and a ledger with one row per question (LEDGER_COLUMNS).
    """
    rationales: list[Rationale] = []
    ledger: list[dict[str, Any]] = []
    for question in questions:
        try:
            text, reason = read_case(question, published.get(question.id)), ""
            rationales.append(Rationale(question.id, "positive", text))
        except ValueError as error:
            reason = str(error)
        row = (question.id, "positive", 1, "dropped" if reason else "kept", reason)
        ledger.append(dict(zip(LEDGER_COLUMNS, row, strict=True)))
    return rationales, ledger


def read_case(question: Question, found: Published | None) -> str:
    """Return a published rationale on one line, with our answer sentence instead of its own.

    Raises:
        ValueError: there is none, it reached no answer or a wrong one, or it argues nothing.
    """
    if found is None:
        raise ValueError("not in the file")
    letters = list(LETTERS[: len(question.options)])
    if found.predicted not in letters:
        raise ValueError("no answer")
    if letters.index(found.predicted) != question.answer:
        raise ValueError("wrong answer")
    case = " ".join(OWN_ENDING.sub(r"\1", found.rationale).split())
    if not case:
        raise ValueError("no argument before the answer sentence")
    return f"{case} {answer_text(question.options, question.answer)}"


def build(params: Params) -> runs.Stage:
    """Reuse or make the stage `rationales`.

    Makes `rationales.train.jsonl`, `ledger.csv` (one row per question and view) and `cost.csv` (tokens).

    Raises:
        StageError: the questions or the counterfactuals are not there yet.
        TeacherError: the teacher cannot answer.
        DataError: the file of published rationales is missing, malformed, or fits no question.
    """
    import pandas as pd

    made = runs.stage("rationales", params)
    if made.is_complete():
        return made
    originals = data.questions(params.train_dataset, "train", params)
    inputs = [data.stage(params.train_dataset, params), *counterfactual.finished(params)]
    with made.draft(params, inputs=inputs) as draft:
        explain = _ask_teacher if params.rationale_source == "teacher" else _read_file
        rationales, ledger, draft.notes, costs = explain(originals, params)
        draft.drops.update(f"{row['view']}: {row['reason']}" for row in ledger if row["reason"])
        draft.write("rationales.train.jsonl", rationales)
        pd.DataFrame(ledger, columns=LEDGER_COLUMNS).to_csv(draft.path / "ledger.csv", index=False)
        spending.write(draft.path, costs)
    return made


def _ask_teacher(originals: Sequence[Question], params: Params) -> Explained:
    rewrites = [c.question for c in counterfactual.read(params)]
    with Teacher(params) as teacher:
        meter = Meter(teacher)
        rationales, ledger = views([*originals, *rewrites], teacher)
        meter.note("both views")
        return Explained(rationales, ledger, {"teacher": teacher.summary()}, meter.rows)


def _read_file(originals: Sequence[Question], params: Params) -> Explained:
    path = runs.resolve(params.rationale_file)
    published = read_published(path)
    rationales, ledger = published_views(originals, published)
    if not rationales:
        reasons = dict(Counter(row["reason"] for row in ledger))
        raise DataError(f"{path} explains no training question of {params.train_dataset}; dropped: {reasons}")
    facts = {"path": params.rationale_file, "sha256": runs.sha256(path), "rows": len(published)}
    return Explained(rationales, ledger, {"file": facts}, costs=[])
