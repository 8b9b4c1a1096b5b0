"""The official benchmarks, and your own questions (all in `benchmarks.yaml`), read one row at a time."""

import heapq
import json
import re
import unicodedata
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice
from pathlib import Path
from typing import Any

from cfdistill.data.weasel import hashed
from cfdistill.errors import DataError
from cfdistill.files import resolve, sha256
from cfdistill.methods import METHODS
from cfdistill.params import BENCHMARKS, Params
from cfdistill.schema import LETTERS, UNWRITABLE, Question, jsonl_lines, option_key

REACHING = {  # the parameters that change a split, beside data_seed; the first one limits it
    "train": "train_questions",
    "validation": "validation_questions",
    "test": "test_questions",
    "more": "train_questions counterfactuals_per_question",
    "siblings": "train_questions",
    "unused": "new_questions train_questions counterfactuals_per_question",
    "development": "new_questions validation_questions train_questions counterfactuals_per_question",
}
OF_SETS = ("siblings", "unused", "development")  # splits of a data set whose rows name their concepts
MOST_CHARACTERS = 8000  # stem and options; ten times what the longest row of the official files has


def load(name: str, split: str, params: Params) -> list[Question]:
    """Return the first questions of a split, or with a `data_seed` over 0 as many drawn ones."""
    if split not in REACHING or (split in OF_SETS and "pool" not in BENCHMARKS[name]):
        told = "; tested: development needs csqa or the testbed" if split == "development" else ""
        raise DataError(f"{name} has no split {split!r}; it has train, validation, test, more{told}")
    if split == "siblings":
        return _siblings(name, params)
    sources, after, wanted = BENCHMARKS[name]["sources"], 0, getattr(params, REACHING[split].split()[0])
    if split == "more":  # the rows after those that are trained on anyway
        after, wanted = wanted, wanted * (1 + params.counterfactuals_per_question)
    rows = _rows(name, split, sources.get(split, sources["train"]), params)
    if "validation" not in sources and split != "test":  # a fixed tenth of train is held out for it
        held_out = split in ("validation", "development")
        rows = (question for question in rows if _is_held_out(question) == held_out)
    if split in OF_SETS:
        rows = _of_new_concepts(name, split, rows, params)
    if not params.data_seed:
        return list(islice(rows, after, wanted))
    drawn = heapq.nsmallest(wanted, enumerate(rows), lambda item: hashed(f"{params.data_seed}/{item[1].id}"))
    return [question for _, question in sorted(drawn[after:], key=lambda item: item[0])]


def _trained(params: Params) -> list[str]:
    return sorted({"train", *(split for method in params.methods for split in METHODS[method].splits)})


def _is_held_out(question: Question) -> bool:
    return hashed(question.id) % 10 == 0


def _of_new_concepts(name: str, split: str, rows: Iterator[Question], params: Params) -> Iterator[Question]:
    """Yield the rows of concepts that no training row has, nor its pool, nor (`unused`) validation."""
    every = list(_rows(name, split, BENCHMARKS[name]["sources"]["train"], params))
    pool = [question for question in every if not _is_held_out(question)][: BENCHMARKS[name]["pool"]]
    known = {question.scene for question in pool}
    known |= {question.scene for used in _trained(params) for question in load(name, used, params)}
    if split == "unused":
        known |= {question.scene for question in every if _is_held_out(question)}
    validating = {q.id for q in load(name, "validation", params)} if split == "development" else ()
    yield from (q for q in rows if q.scene not in known and q.id not in validating)


def _siblings(name: str, params: Params) -> list[Question]:
    """Return for each training question, where there is one, the first row that is its counterfactual.

    Such rows share the concept and three options; either's right answer is a wrong option of the other.
    """
    originals = load(name, "train", params)
    source, by_concept = BENCHMARKS[name]["sources"]["train"], dict[str, list[Question]]()
    known = {question.id for question in originals}
    for row in _rows(name, "siblings", source, params):
        if not _is_held_out(row) and row.id not in known:
            by_concept.setdefault(row.scene, []).append(row)
    found: dict[str, Question] = {}
    for original in originals:
        fit = (row for row in by_concept.get(original.scene, []) if _is_sibling(original, row))
        if sibling := next((row for row in fit if row.id not in found), None):
            found[sibling.id] = sibling
    return list(found.values())


def _is_sibling(one: Question, other: Question) -> bool:
    (mine, right), (theirs, wrong) = (
        ([option_key(option) for option in q.options], option_key(q.options[q.answer])) for q in (one, other)
    )
    return len({*mine} & {*theirs}) >= 3 and right in theirs and wrong in mine and right != wrong


def facts(name: str, splits: Sequence[str], params: Params) -> dict[str, Any]:
    """Return what reaches these splits: parameters, and the files' hashes or the hub's pinned revision."""
    reaching = {parameter for split in splits for parameter in REACHING[split].split()}
    found = params.model_dump(include={"data_source", "data_seed", *reaching})
    if not {*OF_SETS}.isdisjoint(splits):
        found |= {"pool": BENCHMARKS[name].get("pool"), "trained": _trained(params)}
    if params.data_source == "files":
        sources = BENCHMARKS[name]["sources"]
        files = sorted({sources.get(split, sources["train"])[0] for split in splits})
        return found | {"files": {file: sha256(_path(name, file, params)) for file in files}}
    return found | {part: BENCHMARKS[name][part] for part in ("hub", "configuration")}


def survey(name: str, splits: Sequence[str], params: Params) -> list[dict[str, Any]]:
    """Count the rows of each file behind these splits, and those in which two options are one."""
    records = []
    for split, source in BENCHMARKS.get(name, {"sources": {}})["sources"].items():  # the testbed has no files
        if split in splits:
            kinds: Counter[str] = Counter()
            for question in _rows(name, split, source, params):
                options = [option_key(option) for option in question.options]
                kinds["rows"] += 1
                kinds["two equal options"] += len(set(options)) < len(options)
                kinds["right option twice"] += options.count(options[question.answer]) > 1
            records.append({"file": source[0], "official": source[2], **kinds})
    return records


def text_of(question: Question) -> tuple[str, ...]:
    """Return stem and options in the form in which two questions are one: whatever case, spacing, order."""
    texts = (question.stem, *question.options)
    stem, *options = (" ".join(unicodedata.normalize("NFKC", text).casefold().split()) for text in texts)
    return (stem, *sorted(options))


def _rows(name: str, split: str, source: list[Any], params: Params) -> Iterator[Question]:
    """Yield sound rows; DataError at the end tells of all others."""
    file, hub_split, _ = source
    if params.data_source == "hub":
        where, rows = f"hub split {hub_split}", _hub_rows(name, hub_split)
    else:
        where = str(_path(name, file, params))
        rows = jsonl_lines(Path(where))
    bad: dict[str, list[int]] = {}
    for number, content in rows:
        try:
            row = json.loads(content.decode()) if isinstance(content, bytes) else content
            question = _question(name, split, row, f"{Path(file).stem}-{number}")
        except (DataError, ValueError, LookupError, TypeError, AttributeError, RecursionError) as error:
            told = {DataError: str(error), UnicodeDecodeError: "not UTF-8"}
            bad.setdefault(told.get(type(error), "malformed"), []).append(number)
            continue
        yield question
    if bad:
        found = "; ".join(f"{len(lines)} {reason} (first: line {lines[0]})" for reason, lines in bad.items())
        raise DataError(f"{where}: no rows of {name}: {found}; mend or delete them")


def _question(name: str, split: str, row: dict[str, Any], spare_id: str) -> Question:
    """Check a row and put its options in the order of their labels; DataError says what is wrong."""
    stem, labels, options, key, *concept = READERS[BENCHMARKS[name]["rows"]](row)
    if key in (None, ""):
        raise DataError("unlabeled")
    labels, texts = [str(label) if type(label) is int else label for label in labels], [stem, *options]
    if not isinstance(options, list) or not all(isinstance(text, str) and text.strip() for text in texts):
        raise DataError("malformed")
    if not 2 <= len(options) <= len(LETTERS) or not len(options) == len(labels) == len(set(labels)):
        raise DataError("malformed")
    if sum(map(len, texts)) > MOST_CHARACTERS:
        raise DataError(f"longer than {MOST_CHARACTERS} characters")
    own_id = spare_id if row.get("id") in (None, "") else str(row["id"])
    if UNWRITABLE.search("".join([own_id, *texts])):
        raise DataError("with NUL or half a character")
    choices = dict(sorted(zip(labels, options, strict=True), key=lambda choice: (len(choice[0]), choice[0])))
    ordered = tuple(text.strip() for text in choices.values())
    answer = list(choices).index(str(key))
    return Question(own_id, name, split, stem.strip(), ordered, answer, scene="".join(concept))


def _read_nested(row: dict[str, Any]) -> tuple[Any, ...]:
    """Read the layout that the files of CSQA, QASC, ARC and OpenBookQA share, or the hub's flat one."""
    question = row["question"] if "question" in row else row["question_stem"]
    if not isinstance(question, dict):
        concept = str(row.get("question_concept") or "")
        return question, row["choices"]["label"], row["choices"]["text"], row.get("answerKey"), concept
    labels, options = ([choice[part] for choice in question["choices"]] for part in ("label", "text"))
    concept = str(question.get("question_concept") or "")
    return question["stem"], labels, options, row.get("answerKey"), concept


def _read_quarel(row: dict[str, Any]) -> tuple[Any, ...]:
    """Take the options "(A) … (B) …" out of the text."""
    found = re.fullmatch(r"(.+?)\s*\(A\)\s*(.+?)\s*\(B\)\s*(.+)", row["question"].strip(), re.DOTALL)
    if found is None:
        raise DataError("without options in the text")
    return found[1], [0, 1], [found[2], found[3]], row.get("answer_index")


def _read_user(row: dict[str, Any]) -> tuple[Any, ...]:
    answer, options = row.get("answer"), row["options"]
    if answer is not None and (type(answer) is not int or not 0 <= answer < len(options)):
        raise DataError("with an answer that is no option's index")
    return row["stem"], list(range(len(options))), options, answer


# by `rows` of the table: what returns a row's stem, labels, options, and the right option's label
READERS = {"nested": _read_nested, "quarel": _read_quarel, "user": _read_user}


def _path(name: str, file: str, params: Params) -> Path:
    path = Path(resolve(params.data_root), BENCHMARKS[name]["folder"], file)
    if not path.is_file():
        raise DataError(f"{path} is missing; put the official release files of {name} there (docs/data.md)")
    return path


def _hub_rows(name: str, split: str) -> Iterator[tuple[int, Any]]:
    import datasets

    where, _, revision = BENCHMARKS[name]["hub"].partition("@")
    if not where:
        raise DataError(f"questions of {name} come from files; set data_source: files")
    try:
        asked = (where, BENCHMARKS[name]["configuration"])
        yield from enumerate(datasets.load_dataset(*asked, split=split, revision=revision), 1)
    except (OSError, ValueError, RuntimeError, datasets.exceptions.DatasetsError) as error:
        why = " ".join(str(error)[:200].split())
        raise DataError(f"{where} cannot be loaded ({why}); see docs/data.md") from error
