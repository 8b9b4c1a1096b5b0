"""The records that flow through a study, and the one definition of a question's prompt text."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cfdistill.errors import DataError, first_fault

LETTERS = "ABCDEFGHIJ"
UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # what no text file or tokenizer takes
DIRECT = "[Direct election]"  # strategy token that asks for the positive view (paper, "Training")
ELIMINATION = "[Elimination method]"  # strategy token that asks for the negative view
ENDING = "So the answer is"  # begins the sentence that ends every rationale (our choice of wording)


class Record:
    """What the frozen dataclasses below share: a line of JSON each, read back only if every type is right."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary, which `read_jsonl` turns back into an equal record."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Question(Record):
    """A multiple-choice question.

    The last five fields are what only a testbed knows; real benchmarks leave them empty.
    """

    id: str
    dataset: str
    split: str
    stem: str
    options: tuple[str, ...]
    answer: int  # index of the gold option
    targets: tuple[int, ...] = ()  # options a counterfactual may make right; empty: every wrong one
    scene: str = ""  # questions of one scene differ in their causal words only
    cue: str = ""  # the causal words
    stereotype: int | None = None  # the option that the topic alone suggests
    subset: str = ""  # kind of answer: "stereotype", "reachable" or "heldout"

    def __post_init__(self) -> None:
        if not 2 <= len(self.options) <= len(LETTERS) or not 0 <= self.answer < len(self.options):
            raise DataError(
                f"question {self.id}: needs 2 to {len(LETTERS)} options and an answer among them, "
                f"has {len(self.options)} options and answer index {self.answer}"
            )
        if UNWRITABLE.search("".join((self.stem, *self.options))):
            raise DataError(f"question {self.id}: holds NUL or half a character; mend or delete its row")


@dataclass(frozen=True)
class Counterfactual(Record):
    """A rewritten question, and how it came about."""

    question: Question
    original_id: str
    masked_stem: str
    votes: int  # reasoning paths that reached the target answer
    paths: int  # reasoning paths asked for
    edit_ratio: float  # share of tokens changed, 0 to 1


@dataclass(frozen=True)
class Rationale(Record):
    """One view of one question, ending in the answer sentence."""

    question_id: str
    view: str  # "positive" or "negative"
    text: str


@dataclass(frozen=True)
class Example(Record):
    """One training example: the loss is taken on `target` only."""

    question_id: str
    kind: str  # "label", "positive" or "negative"
    prompt: str
    target: str
    counterfactual: bool = False


@dataclass(frozen=True)
class Prediction(Record):
    """What a student answered to one test question."""

    question_id: str
    dataset: str
    split: str
    subset: str
    scene: str
    method: str
    scoring: str  # one of params.SCORINGS, "acc", "acc_bytes", or the condition of an audit
    gold: int
    stereotype: int | None
    predicted: int  # index of the option answered
    text: str
    parsed: bool = True  # False: the text settles on no option, so the likeliest one was taken for it


R = TypeVar("R", bound=Record)


def options_text(options: Iterable[str]) -> str:
    """Return "Options: first; second; …", the one way options are written.

    They carry no letters: in our runs a 135M student that named the right option's text almost
    always still chose its letter at chance after the few hundred steps of a study.
    """
    return f"Options: {'; '.join(options)}"


def prompt_text(question: Question, strategy: str = "") -> str:
    """Return the student's input q, o, st: the stem, the options, the strategy token if any.

    The text ends without a space; every target begins with one, so that byte-pair tokenizers
    see the same tokens whether prompt and target are encoded together or apart.
    """
    return "\n".join([question.stem, options_text(question.options), strategy or "Answer:"])


def answer_text(options: tuple[str, ...], answer: int) -> str:
    """Return the sentence that ends every rationale."""
    return f"{ENDING} {options[answer]}."


def read_answer(text: str, options: tuple[str, ...]) -> int | None:
    """Return the option that a generated text settles on, or None if none can be read.

    Only what follows the last "answer is" counts, and it must be an option's text, whole. A
    teacher may put a letter before it, "(B) barn", or write the letter alone. Nothing else is
    searched, so a rationale that merely mentions an option is unparsed.
    """
    said = re.match(r"\s*(?:\(([A-J])\))?\s*(.*)", text.rpartition("answer is")[2].partition("\n")[0])
    if "answer is" not in text or said is None:
        return None
    letter, stated = said[1], said[2].strip(" .\"'*").lower()
    named = [i for i, option in enumerate(options) if option.strip(" .\"'*").lower() == stated]
    if not named and letter and not stated and LETTERS.index(letter) < len(options):
        return LETTERS.index(letter)
    return named[0] if len(named) == 1 else None


def read_jsonl(path: Path, kind: type[R]) -> list[R]:
    """Read a JSON Lines file of `kind` records.

    Raises:
        DataError: the file is missing, or a line is no valid record (says which line and why).
    """
    if not path.is_file():
        raise DataError(f"{path} is missing; run the stage that makes it")
    records: list[R] = []
    read = TypeAdapter(kind).validate_json
    with path.open("rb") as lines:  # so that bytes that are no text are told with their line, too
        for number, line in enumerate(lines, 1):
            try:
                records.append(read(line))
            except (ValidationError, DataError) as error:
                reason = first_fault(error) if isinstance(error, ValidationError) else error
                raise DataError(
                    f"{path}, line {number}: no valid {kind.__name__} ({reason}); mend or delete the line"
                ) from error
    return records


def write_jsonl(path: Path, records: Iterable[Record]) -> int:
    """Write records as JSON Lines and return how many there were."""
    count = 0
    with path.open("w", encoding="utf-8") as out:
        for record in records:
            out.write(json.dumps(record.to_json(), ensure_ascii=False, sort_keys=True) + "\n")
            count += 1
    return count
