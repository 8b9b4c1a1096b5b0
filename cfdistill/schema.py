"""The records that flow through a study, and the one definition of a question's prompt text."""

import codecs
import dataclasses
import json
import re
import unicodedata
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cfdistill.errors import DataError, first_fault

LETTERS = "ABCDEFGHIJ"
UNWRITABLE = re.compile("[\0\ud800-\udfff]")  # what no text file or tokenizer takes
DIRECT = "[Direct election]"  # strategy token that asks for the positive view (paper, "Training")
ELIMINATION = "[Elimination method]"  # strategy token that asks for the negative view
STRATEGY = {"label": "", "positive": DIRECT, "negative": ELIMINATION}  # by what an example teaches
STRATEGY |= {"direct": DIRECT, "elimination": ELIMINATION, "likelihood": ""}  # and by scoring
ENDING = "So the answer is"  # begins the sentence that ends every rationale (our choice of wording)
LETTERED = re.compile(r"\(?[A-J](?:[).:*]+\s+|\))(.+)")  # "A. barn", "(A) barn", "A.** barn"
QUOTES = dict.fromkeys("‘’‚‛`", "'") | dict.fromkeys("“”„‟«»", '"')
POWERS = {power: f"^{i}" for i, power in enumerate("⁰¹²³⁴⁵⁶⁷⁸⁹")}  # NFKC would make 102 of 10²
LOOKALIKES = str.maketrans(QUOTES | POWERS)


class Record:
    """What the frozen dataclasses below share: a line of JSON each, read back only if every type is right."""

    __pydantic_config__ = ConfigDict(extra="forbid", strict=True)

    def to_json(self) -> dict[str, Any]:
        """Return a plain dictionary."""
        return dataclasses.asdict(self)  # type: ignore[call-overload, no-any-return]


@dataclass(frozen=True)
class Question(Record):
    """A multiple-choice question; the last five fields are what only the testbed knows."""

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
            wanted = f"needs 2 to {len(LETTERS)} options and an answer among them"
            raise DataError(f"question {self.id}: {wanted}, has {len(self.options)} and index {self.answer}")
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
    scoring: str  # one of params.SCORINGS
    gold: int
    options: int  # how many there were
    stereotype: int | None
    predicted: int  # index of the option answered
    text: str
    parsed: bool = True  # False: the text settles on no option, so the likeliest one was taken for it


R = TypeVar("R", bound=Record)


def options_text(options: Iterable[str]) -> str:
    """Return "Options: first; second; …", the one way options are written."""
    # without letters: small students that name the right text still choose its letter at chance (our runs)
    return f"Options: {'; '.join(options)}"


def prompt_text(question: Question, strategy: str = "") -> str:
    """Return the student's input q, o, st: the stem, the options, the strategy token if any."""
    # no space at the end: targets begin with it, so that both give the same tokens together and apart
    return "\n".join([question.stem, options_text(question.options), strategy or "Answer:"])


def answer_text(options: tuple[str, ...], answer: int) -> str:
    """Return the sentence that ends every rationale."""
    return f"{ENDING} {options[answer]}."


def read_answer(text: str, options: Sequence[str]) -> int | None:
    """Return the option that a text names after its last "answer is", by its words or its letter, or None."""
    if "answer is" not in text:
        return None
    lines = text.rpartition("answer is")[2].split("\n")
    most = max(len(option.split("\n")) for option in options)
    for count in range(most, 0, -1):  # an option with line breaks may be copied with them
        if (option := _named("\n".join(lines[:count]), options)) is not None:
            return option
    line = _open(lines[0])
    if lettered := LETTERED.fullmatch(line):
        return _named(lettered[1], options)
    return next((i for i in range(len(options)) if LETTERS[i] == line), None)


def _named(stated: str, options: Sequence[str]) -> int | None:
    """Return the option that is stated: undressed, else also without open quotes, else in whatever case."""
    keys = [option_key(option) for option in options]
    for form in (bare, _open, lambda text: _open(text).casefold()):
        said = {form(stated), form(stated.rstrip().removesuffix("."))} - {""}
        fits = {key for option, key in zip(options, keys, strict=True) if form(option) in said}
        if fits:
            return keys.index(fits.pop()) if len(fits) == 1 else None
    return None


def bare(text: str) -> str:
    """Return a text in Unicode's form NFKC, with single spaces, without the punctuation around it."""
    text = " ".join(unicodedata.normalize("NFKC", text.translate(LOOKALIKES)).split())
    while (inner := _undressed(text)) != text and any(map(str.isalnum, inner)):
        text = inner
    return text


def _undressed(text: str) -> str:
    """Return a text without one mark or pair of marks at its ends; ".5", "5!" and "5'" keep theirs."""
    ends = text[:1] + text[-1:]
    if ends in ('""', "''", "$$") or (ends in ("()", "[]") and ends[0] not in text[1:]):
        return text[1:-1]
    if text.endswith(tuple(".,;:?*_ ")) or (text.endswith("!") and not text.rstrip("!")[-1:].isdigit()):
        return text[:-1]
    if text.startswith(tuple(":*_ ")) or (text.startswith(".") and not text.lstrip(".")[:1].isdigit()):
        return text[1:]
    return text


def _open(text: str) -> str:
    """Return a text, `bare`, without quotes at its ends whose partners may stand before "answer is"."""
    return bare(bare(text).strip("\"' "))


def same_option(one: str, other: str) -> bool:
    """Tell whether two options are equal, so that either of them answers for both."""
    return option_key(one) == option_key(other)


def option_key(option: str) -> str:
    """Return what equal options share: their `bare` text, in lower case if longer than three characters."""
    text = bare(option)  # short words keep their case, which tells genotypes apart: "WW only", "Ww only"
    return text if len(text) <= 3 else " ".join(w if len(w) < 3 else w.casefold() for w in text.split())


def jsonl_lines(path: Path) -> Iterator[tuple[int, bytes]]:
    """Yield the lines of a file that hold something, numbered from 1, without byte order marks."""
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if row := line.removeprefix(codecs.BOM_UTF8).strip():
                yield number, row


def read_jsonl(path: Path, kind: type[R]) -> list[R]:
    """Read a JSON Lines file of `kind` records; a DataError says which line is none, and why."""
    if not path.is_file():
        raise DataError(f"{path} is missing; run the stage that makes it")
    records: list[R] = []
    read = TypeAdapter(kind).validate_json
    for number, line in jsonl_lines(path):
        try:
            records.append(read(line))
        except (ValidationError, DataError) as error:
            reason = first_fault(error) if isinstance(error, ValidationError) else error
            fault = f"no valid {kind.__name__} ({reason}); mend or delete the line"
            raise DataError(f"{path}, line {number}: {fault}") from error
    return records


def write_jsonl(path: Path, records: Iterable[Record]) -> None:
    """Write records as JSON Lines."""
    lines = [json.dumps(record.to_json(), ensure_ascii=False, sort_keys=True) + "\n" for record in records]
    path.write_text("".join(lines), encoding="utf-8")
