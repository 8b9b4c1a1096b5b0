"""Multi-view rationales (paper, "Multi-view CoT"): the teacher's, or positive ones from a file."""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from cfdistill import schema
from cfdistill.errors import DataError
from cfdistill.files import resolve
from cfdistill.generate.replies import Reply, ask, attempted
from cfdistill.methods import VIEWS
from cfdistill.schema import Question, Rationale
from cfdistill.teacher import Teacher
from cfdistill.teacher.prompts import render

LEDGER_COLUMNS = ("question_id", "view", "attempts", "verdict", "reason")
OWN_ENDING = re.compile(r"(.*)\bso,? the answer is\b.*", re.IGNORECASE | re.DOTALL)
Made = tuple[list[Rationale], list[dict[str, Any]]]  # and a ledger: one row per question and view


@dataclass(frozen=True)
class Published(schema.Record):
    """One row of a file of rationales, such as those of Hsieh et al. (2023) for CommonsenseQA."""

    id: str  # of a question of the official release
    rationale: str
    predicted: str | None  # letter of the option it reached, in the official order; None: no answer


def views(questions: Sequence[Question], teacher: Teacher) -> Made:
    """Ask for both views of every question: why the right option is right, why each other one is wrong."""
    wanted = [(question, view) for question in questions for view in VIEWS]
    asked = [((q, view), [render(view, q.stem, q.options, q.answer)]) for q, view in wanted]
    return _made(wanted, ask(teacher, asked, lambda one, text: read_view(one[0], one[1], text)))


def read_view(question: Question, view: str, text: str) -> str:
    """Return a teacher's rationale, ended by our answer sentence; raises ValueError if it is unfit."""
    text = " ".join(text.split())
    answer, ending = schema.read_answer(text, question.options), OWN_ENDING.fullmatch(text)
    made = _concluded(question, answer, ending[1] if ending else "")
    for option in question.options if view == "negative" else ():
        passed_over = f"not {' '.join(option.split())}:".lower() not in made.lower()
        if passed_over and not schema.same_option(option, question.options[question.answer]):
            raise ValueError("passes over a wrong option")
    return made


def published_file(name: str) -> Path:
    """Return the path of the parameter `rationale_file`; raises DataError when there is no such file."""
    path = resolve(name)
    if not path.is_file():
        raise DataError(f"{path} is missing; set rationale_file to a file of published rationales")
    return path


def published(questions: Sequence[Question], path: Path) -> Made:
    """Take the positive views of original questions from a file; raises DataError if it explains none."""
    found: dict[str, Published] = {}
    for row in schema.read_jsonl(path, Published):
        if found.setdefault(row.id, row) is not row:
            raise DataError(f"{path}: id {row.id} stands in it twice; keep one rationale per question")
    replies = [attempted(read_case, question, found.get(question.id)) for question in questions]
    made = _made([(question, "positive") for question in questions], replies)
    if not made[0]:
        reasons = dict(Counter(reply.reason for reply in replies))
        raise DataError(f"{path} explains no training question; dropped: {reasons}")
    return made


def read_case(question: Question, row: Published | None) -> str:
    """Return a published rationale, ended by our answer sentence; raises ValueError if it is unfit."""
    if row is None:
        raise ValueError("not in the file")
    letters = schema.LETTERS[: len(question.options)]
    answer = letters.index(row.predicted) if row.predicted in list(letters) else None
    return _concluded(question, answer, OWN_ENDING.sub(r"\1", row.rationale))


def _concluded(question: Question, answer: int | None, case: str) -> str:
    """Return a case for the right answer on one line, our answer sentence behind it."""
    if answer is None:
        raise ValueError("no answer")
    if not schema.same_option(question.options[answer], question.options[question.answer]):
        raise ValueError("wrong answer")
    if not case.strip():
        raise ValueError("no argument before the answer sentence")
    return f"{' '.join(case.split())} {schema.answer_text(question.options, question.answer)}"


def _made(asked: Sequence[tuple[Question, str]], replies: Sequence[Reply]) -> Made:
    pairs = [(question.id, view, reply) for (question, view), reply in zip(asked, replies, strict=True)]
    kept = [Rationale(name, view, reply.value) for name, view, reply in pairs if reply.value is not None]
    rows = [(name, view, r.attempts, "dropped" if r.reason else "kept", r.reason) for name, view, r in pairs]
    return kept, [dict(zip(LEDGER_COLUMNS, row, strict=True)) for row in rows]
