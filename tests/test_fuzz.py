"""Whatever stands in a file or an answer, it is read or refused with one of our own errors.

`FUZZ_EXAMPLES=10000` (as `make test-faults` sets it) looks a hundred times longer.
"""

import json
import os
import re
import sqlite3
from contextlib import closing, suppress

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfdistill import data, grid, runs
from cfdistill.counterfactual import MASK, mask_spans
from cfdistill.errors import CfdistillError, ParamsError, TeacherError
from cfdistill.params import Params
from cfdistill.rationale import Published, read_published, read_view
from cfdistill.schema import (
    LETTERS,
    Counterfactual,
    Example,
    Prediction,
    Question,
    Rationale,
    read_answer,
    read_jsonl,
    write_jsonl,
)
from cfdistill.teacher import batch, exchange, prices
from cfdistill.teacher.answers import read_strings
from cfdistill.teacher.cache import LAYOUT, Answer, Cache

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
pytestmark = pytest.mark.timeout(60 + EXAMPLES)
fuzz = settings(
    max_examples=EXAMPLES,
    deadline=None,
    derandomize=True,  # the same examples every time: a failure is found again
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.function_scoped_fixture],
)

# Values as hostile files hold them: of the wrong type, too large, too deep, not Unicode.
SCALARS = (
    st.none()
    | st.booleans()
    | st.integers()
    | st.integers(2**62, 2**70)
    | st.floats()
    | st.text(st.characters(), max_size=8)
    | st.sampled_from(["\0", "\ud800", "\u2028", '"', "\\", "{}", "1e999", "", "A", "a" * 10_000])
)
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
DEEP = st.sampled_from(["[" * 9_000, '{"a":' * 5_000, "[" * 500 + "]" * 500, "9" * 5_000, "-" * 99])


def rows(valid: dict[str, object]) -> st.SearchStrategy[dict[str, object]]:
    """Rows that are valid but for a few fields: replaced, left out, or added."""
    changes = st.dictionaries(st.sampled_from([*valid, "surplus"]), VALUES, max_size=3)
    lost = st.sets(st.sampled_from(list(valid)), max_size=1)
    return st.builds(
        lambda new, gone: {k: v for k, v in (valid | new).items() if k not in gone}, changes, lost
    )


def lines(valid: dict[str, object]) -> st.SearchStrategy[bytes]:
    """Lines of a file: nearly valid rows, any JSON, text that is none, and bytes that are no text."""
    as_json = (rows(valid) | VALUES).map(lambda row: json.dumps(row).encode())
    as_text = (st.text(max_size=30) | DEEP).map(lambda text: text.encode("utf-8", "replace"))
    return as_json | as_text | st.binary(max_size=30)


QUESTION = {
    "id": "q",
    "dataset": "csqa",
    "split": "train",
    "stem": "Where?",
    "options": ["barn", "sea"],
    "answer": 1,
    "targets": [0],
    "scene": "",
    "cue": "",
    "stereotype": None,
    "subset": "",
}
RECORDS: dict[type, dict[str, object]] = {
    Question: QUESTION,
    Counterfactual: {
        "question": QUESTION,
        "original_id": "o",
        "masked_stem": "Where, [MASK]?",
        "votes": 5,
        "paths": 5,
        "edit_ratio": 0.5,
    },
    Rationale: {"question_id": "q", "view": "positive", "text": "So."},
    Example: {"question_id": "q", "kind": "label", "prompt": "?", "target": "!", "counterfactual": True},
    Prediction: {
        "question_id": "q",
        "dataset": "d",
        "split": "id",
        "subset": "",
        "scene": "",
        "method": "ft",
        "scoring": "direct",
        "gold": 0,
        "stereotype": 1,
        "predicted": 0,
        "text": "barn",
        "parsed": True,
    },
}


@fuzz
@given(case=st.one_of(st.tuples(st.just(kind), lines(valid)) for kind, valid in RECORDS.items()))
def test_record_files_are_read_as_they_are_or_refused(case, tmp_path):
    kind, line = case
    (tmp_path / "a.jsonl").write_bytes(line)
    records = read_or_refuse(read_jsonl, tmp_path / "a.jsonl", kind)
    write_jsonl(tmp_path / "b.jsonl", records)
    assert read_jsonl(tmp_path / "b.jsonl", kind) == records


def read_or_refuse(read, file, *arguments):
    """Return what is read, or nothing when the file is refused with its name and line."""
    try:
        return read(file, *arguments)
    except CfdistillError as error:
        if not re.match(f"{re.escape(str(file))}(, line 1)?: ", str(error)):
            raise
        return []


CHOICES = [{"label": "A", "text": "barn"}, {"label": "B", "text": "sea"}]
BENCHMARK_ROWS: dict[str, dict[str, object]] = {
    "csqa": {"id": "q", "answerKey": "B", "question": {"stem": "Where?", "choices": CHOICES}},
    "quarel": {"id": "q", "answer_index": 1, "question": "Where? (A) barn (B) sea"},
    "user": {"id": "q", "stem": "Where?", "options": ["barn", "sea"], "answer": 1},
}


def benchmark_lines(name):
    """Lines of a benchmark's file, some of them with hostile labels and texts of the options."""
    valid = BENCHMARK_ROWS[name]
    choice = st.fixed_dictionaries({"label": st.sampled_from("ABC") | VALUES, "text": st.text() | VALUES})
    questions = st.builds(
        lambda choices: {"stem": "Where?", "choices": choices}, st.lists(choice, max_size=4)
    )
    return lines(valid) | questions.map(lambda asked: json.dumps(valid | {"question": asked}).encode())


@fuzz
@given(case=st.one_of(st.tuples(st.just(name), benchmark_lines(name)) for name in BENCHMARK_ROWS))
def test_a_benchmarks_questions_are_usable_or_refused(case, tmp_path):
    name, line = case
    source = data.BENCHMARKS[name].sources["test"]
    (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / name / source.file).write_bytes(line)
    try:
        questions = data.load(name, "test", Params(data_root=str(tmp_path), train_dataset=name))
    except CfdistillError:
        return
    for question in questions:
        write_jsonl(tmp_path / "questions.jsonl", [question])
        assert read_jsonl(tmp_path / "questions.jsonl", Question) == [question]


@fuzz
@given(line=lines({"id": "q", "rationale": "It is. So the answer is (B).", "predicted": "B"}))
def test_published_rationales_are_read_or_refused(line, tmp_path):
    (tmp_path / "r.jsonl").write_bytes(line)
    published = read_or_refuse(read_published, tmp_path / "r.jsonl")
    assert all(isinstance(published[key], Published) for key in published)


# the teacher

BODY = {"model": "m", "choices": [{"message": {"content": "barn"}}], "usage": {"prompt_tokens": 7}}
BODIES = (
    rows(BODY)
    | VALUES.map(lambda usage: BODY | {"usage": {"prompt_tokens": usage, "completion_tokens": usage}})
    | VALUES.map(lambda content: BODY | {"choices": [{"message": {"content": content}}]})
)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    opened = Cache(tmp_path_factory.mktemp("cache") / "cache.sqlite", durable=False)
    yield opened
    opened.close()


@fuzz
@given(response=BODIES.map(json.dumps) | DEEP | st.text(max_size=30), key=st.integers(0, 2**64))
def test_a_response_is_stored_as_it_came_or_refused(response, key, cache):
    try:
        answer = Answer.read(response, key=str(key), task="reason", base_url="u", model="m")
    except ValueError:
        return
    cache.put(answer)
    stored = cache.get([str(key)])[str(key)]
    assert stored.text.encode() == stored.text.encode("utf-8")
    assert isinstance(stored.prompt_tokens, int)


STORED = (
    st.none()
    | st.integers(-(2**63), 2**63 - 1)
    | st.floats()
    | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)
    | st.binary(max_size=8)
    | BODIES.map(json.dumps)
    | DEEP
)


@pytest.fixture(scope="module")
def untyped(tmp_path_factory):
    """A cache file of somebody else's making, whose columns take any value."""
    file = tmp_path_factory.mktemp("cache") / "untyped.sqlite"
    with closing(sqlite3.connect(file)) as db:
        db.execute(f"CREATE TABLE answers ({', '.join(Answer._fields)})")
        db.execute(f"PRAGMA user_version = {LAYOUT}")
    opened = Cache(file, durable=False)
    yield opened
    opened.close()


@fuzz
@given(changes=st.dictionaries(st.sampled_from([*Answer._fields, "response"]), STORED, max_size=3))
def test_a_row_of_a_cache_is_read_or_refused(changes, untyped):
    sound = Answer.read(json.dumps(BODY), key="k")
    row = sound._asdict() | changes
    untyped._db.execute("DELETE FROM answers")
    untyped._db.execute(f"INSERT INTO answers VALUES ({', '.join('?' * len(row))})", (*row.values(),))
    for read in (lambda: untyped.get(["k"]).values(), untyped.answers, untyped.totals, untyped.sources):
        with suppress(TeacherError):
            found = list(read())
            assert all(isinstance(value, str | int | float) for row in found for value in row)
            assert all(isinstance(row.text, str) for row in found if isinstance(row, Answer))
    assert changes or list(untyped.answers()) == [sound]


@fuzz
@given(
    text=st.text(max_size=60)
    | DEEP
    | st.builds(
        "{} {} {}".format,
        st.text(max_size=9),
        st.builds(lambda name, value: json.dumps({name: value}), st.sampled_from(["spans", "fills"]), VALUES),
        st.text(max_size=9),
    )
)
def test_an_answer_in_json_gives_clean_strings_or_a_reason(text):
    try:
        strings = read_strings(text, "spans")
    except ValueError:
        return
    assert strings
    assert all(string == " ".join(string.split()) != "" for string in strings)


@fuzz
@given(stem=st.text(max_size=40), spans=st.lists(st.text(max_size=6), max_size=3), cut=st.slices(40))
def test_masking_touches_nothing_but_the_spans(stem, spans, cut):
    try:
        masked = mask_spans(stem, [*spans, stem[cut]])
    except ValueError:
        return
    left = masked.split(MASK)
    assert len(left) > 1
    assert stem.startswith(left[0])
    assert stem.endswith(left[-1])


ASKED = Question("q", "d", "train", "Where?", ("barn", "sea"), 0)
MARKS = [*" .\"'*\n\t\r\u2028ſİ", "(A)", "(B)", "(C)", "(J)"]
WORDS = ["So the answer is", "answer is", "barn", "sea", "Barn", "BARN.", "not sea:", "Not sea: no."]
PIECES = st.sampled_from(MARKS + WORDS)
TALK = st.lists(PIECES | st.text(max_size=4), max_size=9).map("".join)


@fuzz
@given(text=TALK, view=st.sampled_from(["positive", "negative"]))
def test_a_rationale_ends_in_the_right_answer_or_is_refused(text, view):
    try:
        fit = read_view(ASKED, view, text)
    except ValueError:
        return
    assert fit.endswith("So the answer is barn.")
    assert read_answer(fit, ASKED.options) == ASKED.answer


LINE = {
    "schema_version": 1,
    "key": "0" * 64,
    "task": "reason",
    "base_url": "u",
    "model": "m",
    "response": json.dumps(BODY),
    "served_model": "m",
    "prompt_tokens": 7,
    "completion_tokens": 1,
    "latency_s": 0.5,
    "created": "2026-01-01T00:00:00+00:00",
    "batched": 0,
}


@fuzz
@given(line=lines(LINE) | BODIES.map(lambda b: json.dumps(LINE | {"response": json.dumps(b)}).encode()))
def test_a_line_of_answers_is_imported_or_refused(line, cache, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(line)
    counts = read_or_refuse(exchange.import_cache, tmp_path / "a.jsonl", cache)
    assert not counts or counts.total() <= 1 + line.count(b"\n")


ROW = {"id": "r", "custom_id": "0" * 64, "response": {"status_code": 200, "body": BODY}, "error": None}


@fuzz
@given(
    line=lines(ROW)
    | BODIES.map(lambda b: json.dumps(ROW | {"response": {"status_code": 200, "body": b}}).encode())
)
def test_a_result_row_of_a_batch_is_an_answer_a_failure_or_refused(line, tmp_path):
    (tmp_path / "r.jsonl").write_bytes(line)
    for row in read_or_refuse(batch._read_rows, tmp_path / "r.jsonl"):
        assert "\n" not in row.failure()


# parameters

NAMES = st.sampled_from([*Params.model_fields, "surplus", "~", "1"])
YAML = (
    st.dictionaries(NAMES, VALUES, max_size=4).map(lambda v: yaml.safe_dump(v, allow_unicode=True))
    | st.lists(
        st.builds(
            "{}: {}".format,
            NAMES,
            st.text(max_size=12)
            | st.sampled_from(
                ["2001-99-99", "!!python/object:os.system x", "&a [*a]", "0x", "1:99:99", "? a"]
            ),
        ),
        max_size=4,
    ).map("\n".join)
    | st.text(max_size=30)
    | st.sampled_from(["[" * 2_000, "a: " + "9" * 5_000, "&a [*a, *a]", "a: &a {b: *a}"])
)


@fuzz
@given(content=YAML.map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=30))
def test_parameters_are_valid_or_refused_in_one_sentence(content, tmp_path):
    (tmp_path / "p.yaml").write_bytes(content)
    try:
        params = Params.from_yaml(tmp_path / "p.yaml")
    except ParamsError:
        return
    assert Params.model_validate_json(params.model_dump_json()) == params


BLOCKS = st.lists(
    st.dictionaries(
        NAMES | st.just("method"), VALUES | st.sampled_from(["ft", ["ft", "cf-distill"], 0]), max_size=4
    )
    | VALUES,
    max_size=3,
)


@fuzz
@given(base=VALUES | st.just("smoke.yaml"), blocks=BLOCKS | VALUES)
def test_grids_are_read_or_refused(base, blocks, tmp_path):
    (tmp_path / "smoke.yaml").write_bytes((runs.project_root() / "params" / "smoke.yaml").read_bytes())
    (tmp_path / "g.yaml").write_text(yaml.safe_dump({"base": base, "cells": blocks}), errors="replace")
    with suppress(ParamsError):
        assert grid.read(tmp_path / "g.yaml").cells


@fuzz
@given(
    table=st.dictionaries(
        st.just("gpt") | st.text(max_size=3),
        VALUES | rows({"input": 1.5, "output": 6.0, "recorded": "2026-01-31"}),
        max_size=2,
    )
)
def test_prices_are_read_or_refused(table, tmp_path):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(table), errors="replace")
    with suppress(ParamsError):
        price = prices.find("gpt", Params(teacher_prices=str(tmp_path / "p.yaml")))
        assert price is None or price.usd(1, 1) >= 0


# predictions


def oracle(text: str, options: tuple[str, ...]) -> int | None:
    """Read an answer as the words of `read_answer` tell, step by step and without its code."""
    at = text.rfind("answer is")
    if at < 0:
        return None
    line = text[at + len("answer is") :].split("\n")[0].lstrip()
    letter = None
    if line[:1] == "(" and line[2:3] == ")" and line[1:2] in tuple("ABCDEFGHIJ"):
        letter, line = line[1], line[3:].lstrip()
    while line and line[-1] in " .\"'*":
        line = line[:-1]
    while line and line[0] in " .\"'*":
        line = line[1:]
    same = [i for i in range(len(options)) if options[i].strip(" .\"'*").lower() == line.lower()]
    if len(same) == 1:
        return same[0]
    if not same and letter and not line and LETTERS.find(letter) < len(options):
        return LETTERS.find(letter)
    return None


@fuzz
@given(
    text=TALK,
    options=st.lists(
        st.sampled_from(["barn", "sea", "Barn", "barn.", "*", "", "x"]) | st.text(max_size=4),
        min_size=2,
        max_size=10,
    ).map(tuple),
)
def test_the_parser_agrees_with_the_oracle(text, options):
    assert read_answer(text, options) == oracle(text, options)
