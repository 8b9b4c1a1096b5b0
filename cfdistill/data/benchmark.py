"""What all real benchmarks share: reading rows of official files or of the hub, one at a time.

A benchmark says where its splits are and how a row is told apart (`Raw`); everything else is here. Rows
that are no questions are counted and named in one message; odd but sound rows are kept and counted by
`survey`.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

from cfdistill.errors import DataError
from cfdistill.params import Params
from cfdistill.runs import resolve
from cfdistill.schema import LETTERS, Question

LIMITS = {"train": "train_questions", "validation": "validation_questions", "test": "test_questions"}
MOST_CHARACTERS = 8000  # stem and options; ten times what the longest row of the official files has
ROW_KINDS = ("labels 1, 2, …", "3 options", "5 options", "two equal options", "asked twice", "also in train")


class Raw(NamedTuple):
    """A row as its publisher wrote it."""

    id: str
    stem: str
    labels: list[str]
    options: list[str]
    key: str  # label of the right option


@dataclass(frozen=True)
class Source:
    """One official file, and the same rows on the hub."""

    file: str  # under `<data_root>/<folder>/`
    hub_split: str
    rows: int | None  # official number; None: there is none


@dataclass(frozen=True)
class Benchmark:
    """A benchmark: where its splits are, and how one row is read."""

    title: str
    folder: str  # under data_root
    hub: tuple[str, str, str | None] | None  # repository, revision, configuration; None: files only
    sources: Mapping[str, Source]  # by split; without `validation`, a tenth of `train` is held out
    read: Callable[[dict[str, Any], str], Raw]  # from a row, and a name for it if it has no id


def read_nested(row: dict[str, Any], name: str) -> Raw:
    """Read the layout that the files of CSQA, QASC, ARC and OpenBookQA share, or the hub's flat one."""
    question = row["question"] if "question" in row else row["question_stem"]
    if isinstance(question, dict):
        stem, choices = question["stem"], question["choices"]
        labels, options = [c["label"] for c in choices], [c["text"] for c in choices]
    else:
        stem, labels, options = question, row["choices"]["label"], row["choices"]["text"]
    return Raw(str(row.get("id", name)), stem, list(labels), list(options), row.get("answerKey") or "")


def load(benchmark: Benchmark, name: str, split: str, params: Params) -> list[Question]:
    """Return the first questions of a split, as many as its parameter allows.

    Raises:
        DataError: the file is missing, the split is unknown, or rows are no questions.
    """
    if split not in LIMITS:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(LIMITS)}")
    limit = getattr(params, LIMITS[split])
    questions: list[Question] = []
    for question in stream(benchmark, name, split, params):
        questions.append(question)
        if len(questions) == limit:
            break
    return questions


def stream(benchmark: Benchmark, name: str, split: str, params: Params) -> Iterator[Question]:
    """Yield the questions of a split in constant memory; DataError at its end if rows were bad."""
    source = benchmark.sources.get(split, benchmark.sources["train"])
    holds_out = "validation" not in benchmark.sources and split != "test"
    for raw in _raw_rows(benchmark, source, params):
        if not holds_out or _is_validation(raw.id) == (split == "validation"):
            yield _question(raw, name, split)


def survey(benchmark: Benchmark, params: Params) -> list[dict[str, Any]]:
    """Count a benchmark's rows and the odd ones among them, file by file.

    Returns:
        One record per file that is there: file, rows, official rows, missing rows, and ROW_KINDS:
        questions asked twice in the same file (same stem and options), and those whose stem also
        stands in the training file.
    """
    records, trained = [], set[str]()
    for split, source in benchmark.sources.items():
        if params.data_source == "files" and not _path(benchmark, source, params).is_file():
            continue
        kinds: Counter[str] = Counter()
        seen = set[tuple[str, ...]]()
        for raw in _raw_rows(benchmark, source, params):
            kinds["rows"] += 1
            whole = (_plain(raw.stem), *sorted(map(_plain, raw.options)))
            kinds["labels 1, 2, …"] += raw.labels[0].isdigit()
            kinds[f"{len(raw.options)} options"] += 1
            kinds["two equal options"] += len(set(whole[1:])) < len(raw.options)
            kinds["asked twice"] += whole in seen
            kinds["also in train"] += whole[0] in trained
            seen.add(whole)
        if split == "train":
            trained = {stem for stem, *_ in seen}
        missing = source.rows - kinds["rows"] if source.rows else None
        facts = {"file": source.file, "rows": kinds["rows"], "official": source.rows, "missing": missing}
        records.append(facts | {kind: kinds[kind] for kind in ROW_KINDS})
    return records


def _raw_rows(benchmark: Benchmark, source: Source, params: Params) -> Iterator[Raw]:
    """Yield sound rows; count the others by what is wrong, and tell of all of them at the end."""
    bad: Counter[str] = Counter()
    first: dict[str, str] = {}
    read, file = _hub_rows if params.data_source == "hub" else _file_rows, Path(source.file).stem
    for number, row in read(benchmark, source, params):
        try:
            if isinstance(row, ValueError):
                raise row
            raw = benchmark.read(row, f"{file}-{number}")
            _check(raw)
        except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
            reason = str(error) if type(error) is ValueError else "malformed"
            bad[reason] += 1
            first.setdefault(reason, f"line {number}")
            continue
        yield raw
    if bad:
        found = "; ".join(f"{count} {reason} (first: {first[reason]})" for reason, count in bad.items())
        where = (
            _path(benchmark, source, params)
            if params.data_source == "files"
            else f"hub split {source.hub_split}"
        )
        raise DataError(f"{where}: no {benchmark.title} rows: {found}; mend or delete them")


def _file_rows(benchmark: Benchmark, source: Source, params: Params) -> Iterator[tuple[int, Any]]:
    path = _path(benchmark, source, params)
    if not path.is_file():
        raise DataError(
            f"{path} is missing; put the official {benchmark.title} release files there (docs/data.md)"
        )
    with path.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            if line.strip():
                yield number, _parse(line)


def _parse(line: bytes) -> Any:
    try:
        return json.loads(line.decode("utf-8-sig"))
    except UnicodeDecodeError:
        return ValueError("not UTF-8")
    except (ValueError, RecursionError):
        return ValueError("malformed" if line.endswith(b"\n") else "truncated")


def _hub_rows(benchmark: Benchmark, source: Source, params: Params) -> Iterator[tuple[int, Any]]:
    from datasets import load_dataset

    if benchmark.hub is None:
        raise DataError(f"{benchmark.title} questions come from files; set data_source: files")
    repository, revision, configuration = benchmark.hub
    local = resolve(params.data_root) / "hub" / repository  # a clone, for machines without network
    try:
        rows = load_dataset(
            str(local) if local.is_dir() else repository,
            configuration,
            split=source.hub_split,
            revision=None if local.is_dir() else revision,
        )
    except (OSError, ValueError) as error:
        reason = " ".join(str(error).split())[:200]
        raise DataError(f"{repository} cannot be loaded from the hub ({reason}); see docs/data.md") from error
    yield from enumerate(rows, 1)


def _check(raw: Raw) -> None:
    """Raise ValueError with what is wrong with a row, in two or three words."""
    if not raw.key:
        raise ValueError("unlabeled")
    texts = [raw.stem, *raw.options]
    if raw.key not in raw.labels or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError("malformed")
    if not 2 <= len(raw.options) <= len(LETTERS) or len(set(raw.labels)) < len(raw.options):
        raise ValueError("malformed")
    if sum(map(len, texts)) > MOST_CHARACTERS:
        raise ValueError(f"longer than {MOST_CHARACTERS} characters")


def _question(raw: Raw, name: str, split: str) -> Question:
    """Return the question of a row, its options in the order of their labels."""
    choices = sorted(zip(raw.labels, raw.options, strict=True))
    return Question(
        id=raw.id,
        dataset=name,
        split=split,
        stem=raw.stem.strip(),
        options=tuple(text.strip() for _, text in choices),
        answer=[label for label, _ in choices].index(raw.key),
    )


def _path(benchmark: Benchmark, source: Source, params: Params) -> Path:
    return resolve(params.data_root) / benchmark.folder / source.file


def _is_validation(question_id: str) -> bool:
    return int(hashlib.sha256(question_id.encode()).hexdigest(), 16) % 10 == 0


def _plain(text: str) -> str:
    return " ".join(text.lower().split())
