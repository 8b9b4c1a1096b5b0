"""Whatever stands in a file or an answer, it is read or refused with one of our own errors.

`FUZZ_EXAMPLES=10000` (as `make test-long` sets it) looks a hundred times longer.
"""

import json
import os
import re
from contextlib import closing, suppress
from dataclasses import replace

import pytest
import yaml
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from cfdistill import data, files, schema
from cfdistill.errors import CfdistillError, ParamsError, TeacherError
from cfdistill.generate.rationale import published, read_view
from cfdistill.params import Params
from cfdistill.schema import Counterfactual, Example, Prediction, Question, Rationale, read_jsonl, write_jsonl
from cfdistill.study import grid
from cfdistill.teacher import batch, budget
from cfdistill.teacher.cache import Answer, Cache
from cfdistill.teacher.prompts import render

EXAMPLES = int(os.environ.get("FUZZ_EXAMPLES", "100"))
pytestmark = pytest.mark.timeout(60 + EXAMPLES)
ALLOWED = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture]
SAME = settings(max_examples=EXAMPLES, deadline=None, derandomize=True, suppress_health_check=ALLOWED)


def fuzz(**drawn):
    """Draw the same examples every time: a failure is found again."""
    return lambda test: SAME(given(**drawn)(test))


# Values as hostile files hold them: of the wrong type, too large, too deep, not Unicode.
SCALARS = st.none() | st.booleans() | st.integers() | st.integers(2**62, 2**70) | st.floats()
SCALARS |= st.text(st.characters(), max_size=8)
SCALARS |= st.sampled_from(["\0", "\ud800", "\u2028", '"', "\\", "{}", "1e999", "", "A", "a" * 10_000])
VALUES = st.recursive(
    SCALARS,
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner, max_size=3),
    max_leaves=4,
)
DEEP = st.sampled_from(["[" * 9_000, '{"a":' * 5_000, "[" * 500 + "]" * 500, "9" * 5_000, "-" * 99])


def rows(valid):
    """Rows that are valid but for a few fields: replaced, left out, or added."""
    changes = st.dictionaries(st.sampled_from([*valid, "surplus"]), VALUES, max_size=3)
    lost = st.sets(st.sampled_from(list(valid)), max_size=1)
    return st.builds(lambda new, out: {k: v for k, v in (valid | new).items() if k not in out}, changes, lost)


def lines(valid):
    """Lines of a file: nearly valid rows, any JSON, text that is none, and bytes that are no text."""
    as_json = (rows(valid) | VALUES).map(lambda row: json.dumps(row).encode())
    as_text = (st.text(max_size=30) | DEEP).map(lambda text: text.encode("utf-8", "replace"))
    return as_json | as_text | st.binary(max_size=30)


ASKED = Question("q", "d", "train", "Where?", ("barn", "sea"), 1)
REWRITE = Counterfactual(ASKED, "o", "Where, [MASK]?", 5, 5, 0.5)
VALID = [ASKED, REWRITE, Rationale("q", "positive", "So."), Example("q", "label", "?", "!", True)]
VALID += [Prediction("q", "d", "id", "", "", "ft", "direct", 0, 2, 1, 0, "barn")]


@fuzz(case=st.one_of(st.tuples(st.just(type(one)), lines(one.to_json())) for one in VALID))
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
        if not re.match(f"{re.escape(str(file))}(, line \\d+)?: ", str(error)):
            raise
        return []


CHOICES = [{"label": "A", "text": "barn"}, {"label": "B", "text": "sea"}]
BENCHMARK_ROWS = {
    "csqa": {"id": "q", "answerKey": "B", "question": {"stem": "Where?", "choices": CHOICES}},
    "quarel": {"id": "q", "answer_index": 1, "question": "Where? (A) barn (B) sea"},
    "user": {"id": "q", "stem": "Where?", "options": ["barn", "sea"], "answer": 1},
}


def benchmark_lines(name):
    valid = BENCHMARK_ROWS[name]
    choice = st.fixed_dictionaries({"label": st.sampled_from("ABC") | VALUES, "text": st.text() | VALUES})
    asked = st.lists(choice, max_size=4).map(lambda choices: {"stem": "Where?", "choices": choices})
    return lines(valid) | asked.map(lambda question: json.dumps(valid | {"question": question}).encode())


@fuzz(case=st.one_of(st.tuples(st.just(name), benchmark_lines(name)) for name in BENCHMARK_ROWS))
def test_a_benchmarks_questions_are_usable_or_refused(case, tmp_path):
    name, line = case
    (tmp_path / name).mkdir(exist_ok=True)
    (tmp_path / name / data.benchmarks.BENCHMARKS[name]["sources"]["test"][0]).write_bytes(line)
    with suppress(CfdistillError):
        questions = data.load(name, "test", Params(data_root=str(tmp_path), train_dataset=name))
        write_jsonl(tmp_path / "q.jsonl", questions)
        assert read_jsonl(tmp_path / "q.jsonl", Question) == questions


@fuzz(line=lines({"id": "q", "rationale": "It is. So the answer is (B).", "predicted": "B"}))
def test_published_rationales_are_read_or_refused(line, tmp_path):
    (tmp_path / "r.jsonl").write_bytes(line)
    with suppress(CfdistillError):
        kept, ledger = published([ASKED], tmp_path / "r.jsonl")
        assert len(ledger) == 1
        assert all(schema.read_answer(one.text, ASKED.options) == ASKED.answer for one in kept)


PROMPT = render("reason", "Where?", ("barn", "sea"))
BODY = {"model": "m", "choices": [{"message": {"content": "barn"}}], "usage": {"prompt_tokens": 7}}
BODIES = rows(BODY) | VALUES.map(lambda content: BODY | {"choices": [{"message": {"content": content}}]})
BODIES |= VALUES.map(lambda usage: BODY | {"usage": {"prompt_tokens": usage, "completion_tokens": usage}})


@pytest.fixture
def cache(tmp_path):
    with closing(Cache(tmp_path / "cache.sqlite")) as opened:
        yield opened


@fuzz(response=BODIES.map(json.dumps) | DEEP | st.text(max_size=30), key=st.integers(0, 2**64))
def test_a_response_is_stored_as_it_came_or_refused(response, key, cache):
    with suppress(ValueError):
        read = Answer.to(replace(PROMPT, sample=key), response, "u", "m")
        cache.put_all([read])
        stored = cache.get([read.key])[read.key]
        assert stored.text.encode() == stored.text.encode("utf-8")
        assert isinstance(stored.prompt_tokens, int)


STORED = st.none() | st.integers(-(2**63), 2**63 - 1) | st.floats() | st.binary(max_size=8) | DEEP
STORED |= BODIES.map(json.dumps) | st.text(st.characters(exclude_categories=["Cs"]), max_size=8)


@fuzz(changes=st.dictionaries(st.sampled_from([*Answer._fields, "response"]), STORED, max_size=3))
def test_a_row_of_a_cache_is_read_or_refused(changes, cache):
    sound = Answer.to(PROMPT, json.dumps(BODY), "u", "m")._replace(key="k")
    row = sound._asdict() | changes
    cache._db.execute("DROP TABLE answers")
    cache._db.execute(f"CREATE TABLE answers ({', '.join(row)})")  # as others make it: it takes any value
    cache._db.execute(f"INSERT INTO answers VALUES ({', '.join('?' * len(row))})", (*row.values(),))
    for read in (lambda: cache.get(["k"]).values(), cache.answers, cache.totals):
        with suppress(TeacherError):
            found = list(read())
            assert all(isinstance(row.text, str) for row in found if isinstance(row, Answer))
    assert changes or list(cache.answers()) == [sound]


MARKS = [*" .\"'*\n\t\r\u2028ſİ", "(A)", "(B)", "(C)", "(J)"]
WORDS = ["So the answer is", "answer is", "barn", "sea", "Barn", "BARN.", "not sea:", "Not sea: no."]
TALK = st.lists(st.sampled_from(MARKS + WORDS) | st.text(max_size=4), max_size=9).map("".join)
SOME = st.sampled_from(["barn", "sea", "Barn", "barn.", "*", "", "x", ".5", "50", "A", "(B)"])
TYPED = st.text(max_size=4) | st.text("ab .\"()$!?\n5*\u00a0'A", max_size=6)
OPTIONS = st.lists(SOME | TYPED, min_size=2, max_size=10).map(tuple)


@fuzz(text=TALK, view=st.sampled_from(["positive", "negative"]))
def test_a_rationale_ends_in_the_right_answer_or_is_refused(text, view):
    with suppress(ValueError):
        fit = read_view(ASKED, view, text)
        assert fit.endswith("So the answer is sea.")
        assert schema.read_answer(fit, ASKED.options) == ASKED.answer


@fuzz(text=TALK, options=OPTIONS)
def test_an_answer_is_an_option_or_none_and_an_options_own_words_are_read_as_it(text, options):
    assert schema.read_answer(text, options) in (None, *range(len(options)))
    for i, option in enumerate(options):
        found = schema.read_answer(f"{text}\n{schema.answer_text(options, i)}", options)
        if any(map(str.isalnum, option)):
            assert found is not None
            assert schema.same_option(options[found], option)


LINE = {"schema_version": 1, **Answer.to(PROMPT, json.dumps(BODY), "u", "m")._asdict()}
ROW = {"id": "r", "custom_id": "0" * 64, "response": {"status_code": 200, "body": BODY}, "error": None}
ROWS = BODIES.map(lambda body: json.dumps(ROW | {"response": {"status_code": 200, "body": body}}).encode())


@fuzz(line=lines(LINE) | BODIES.map(lambda b: json.dumps(LINE | {"response": json.dumps(b)}).encode()))
def test_a_line_of_answers_is_imported_or_refused(line, cache, tmp_path):
    (tmp_path / "a.jsonl").write_bytes(line)
    counts = read_or_refuse(batch.import_cache, tmp_path / "a.jsonl", cache)
    assert not counts or counts.total() <= 1 + line.count(b"\n")


@fuzz(line=lines(ROW) | ROWS)
def test_a_result_row_of_a_batch_is_an_answer_a_failure_or_refused(line, tmp_path):
    (tmp_path / "r.jsonl").write_bytes(line)
    read = read_or_refuse(lambda path: list(batch._read(path, batch._read_result, "x")), tmp_path / "r.jsonl")
    assert len(read) <= 1 + line.count(b"\n")


NAMES = st.sampled_from([*Params.model_fields, "surplus", "~", "1"])
ODD = st.sampled_from(["2001-99-99", "!!python/object:os.system x", "&a [*a]", "0x", "1:99:99", "? a"])
YAML = st.dictionaries(NAMES, VALUES, max_size=4).map(lambda v: yaml.safe_dump(v, allow_unicode=True))
YAML |= st.lists(st.builds("{}: {}".format, NAMES, st.text(max_size=12) | ODD), max_size=4).map("\n".join)
YAML |= st.text(max_size=30)
YAML |= st.sampled_from(["[" * 2_000, "a: " + "9" * 5_000, "&a [*a, *a]", "a: &a {b: *a}"])


@fuzz(content=YAML.map(lambda text: text.encode("utf-8", "replace")) | st.binary(max_size=30))
def test_parameters_are_valid_or_refused_in_one_sentence(content, tmp_path):
    (tmp_path / "p.yaml").write_bytes(content)
    with suppress(ParamsError):
        params = Params.from_yaml(tmp_path / "p.yaml")
        assert Params.model_validate_json(params.model_dump_json()) == params


METHODS = st.sampled_from(["ft", ["ft", "cf-distill"], 0])
BLOCK = st.dictionaries(NAMES | st.just("method"), VALUES | METHODS, max_size=4)


@fuzz(base=VALUES | st.just("smoke.yaml"), blocks=st.lists(BLOCK | VALUES, max_size=3) | VALUES)
def test_grids_are_read_or_refused(base, blocks, tmp_path):
    (tmp_path / "smoke.yaml").write_bytes((files.project_root() / "params" / "smoke.yaml").read_bytes())
    (tmp_path / "g.yaml").write_text(yaml.safe_dump({"base": base, "cells": blocks}), errors="replace")
    with suppress(CfdistillError):
        assert grid.read(tmp_path / "g.yaml").cells


PRICES = VALUES | rows({"input": 1.5, "output": 6.0, "recorded": "2026-01-31"})


@fuzz(table=st.dictionaries(st.just("gpt") | st.text(max_size=3), PRICES, max_size=2))
def test_prices_are_read_or_refused(table, tmp_path):
    (tmp_path / "p.yaml").write_text(yaml.safe_dump(table), errors="replace")
    with suppress(ParamsError):
        price = budget.find_price("gpt", Params(teacher_prices=str(tmp_path / "p.yaml")))
        assert price is None or price.usd(1, 1) >= 0
