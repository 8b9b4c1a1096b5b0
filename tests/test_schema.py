"""Records survive the trip to disk, and answers are read from text or not at all."""

import json
from collections import Counter
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cfdistill.errors import DataError
from cfdistill.schema import (
    Counterfactual,
    Question,
    answer_text,
    prompt_text,
    read_answer,
    read_jsonl,
    write_jsonl,
)

OPTIONS = ("barn", "freezer", "hen house")
QUESTION = Question(
    id="q", dataset="d", split="train", stem="Where, [MASK] \u202e?", options=OPTIONS, answer=2, targets=(0,)
)


def test_records_round_trip(tmp_path):
    counterfactual = Counterfactual(QUESTION, "o", "Where, [MASK]?", votes=5, paths=5, edit_ratio=0.25)
    assert write_jsonl(tmp_path / "a.jsonl", [counterfactual]) == 1
    assert read_jsonl(tmp_path / "a.jsonl", Counterfactual) == [counterfactual]


@pytest.mark.parametrize("line", ["{", "[]", '{"id": 1}', "null"])
def test_bad_line_is_named(tmp_path, line):
    write_jsonl(tmp_path / "a.jsonl", [QUESTION])
    with (tmp_path / "a.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(DataError, match=r"a.jsonl, line 2: no valid Question"):
        read_jsonl(tmp_path / "a.jsonl", Question)


def test_prompt_is_question_options_strategy():
    assert prompt_text(QUESTION, "[Direct election]") == (
        "Where, [MASK] \u202e?\nOptions: barn; freezer; hen house\n[Direct election]"
    )


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("So the answer is hen house.", 2),
        ("the answer is (C) Hen house", 2),
        ("The answer is (C).", 2),
        ("The answer is barn. No: the answer is freezer.", 1),
        ("The answer is (J).", None),
        ("The answer is a hen house.", None),
        ("The barn is best.", None),
        ("The answer is", None),
        ("", None),
    ],
)
def test_only_a_whole_option_after_the_answer_sentence_counts(text, answer):
    assert read_answer(text, OPTIONS) == answer


@given(st.integers(0, 2), st.text(max_size=40))
def test_every_answer_sentence_is_read_back(answer, before):
    assert read_answer(before + " " + answer_text(OPTIONS, answer), OPTIONS) == answer


@given(st.text())
def test_any_text_is_parsed_without_error(text):
    assert read_answer(text, OPTIONS) in (None, 0, 1, 2)


@pytest.fixture(scope="module")
def outputs():
    """Return 200 answers of each headline method to test questions: method, options, text, option read.

    From the students of the default study and its control, spread evenly over all their test sets.
    """
    lines = (Path(__file__).parent / "student_outputs.jsonl").read_text(encoding="utf-8").splitlines()
    rows = [json.loads(line) for line in lines]
    return [(method, tuple(options.split("; ")), text, read) for method, options, text, read in rows]


def read_by_words(text, options):
    """Another reader, which compares words: what comes after the last "answer is" on its line."""
    words = text.lower().replace("\n", " \n ").split(" ")
    ends = [i for i in range(len(words) - 1) if words[i : i + 2] == ["answer", "is"]]
    if not ends:
        return None
    said = words[ends[-1] + 2 :]
    said = said[: said.index("\n")] if "\n" in said else said
    bare = [[w.strip(".\"'*") for w in option.lower().split()] for option in options]
    found = [i for i, option in enumerate(bare) if option == [w.strip(".\"'*") for w in said if w]]
    return found[0] if len(found) == 1 else None


def test_real_outputs_are_read_as_another_reader_reads_them(outputs):
    assert Counter(method for method, *_ in outputs) == dict.fromkeys(
        ("ft", "ft-cot", "ft-cot-long", "cf-distill"), 200
    )
    for _, options, text, read in outputs:
        assert read_answer(text, options) == read == read_by_words(text, options), text


def test_real_outputs_hold_what_a_reader_must_tell_apart(outputs):
    """An option that is only mentioned, or named in other words, is not what the text settles on."""
    unread = [(options, text) for _, options, text, read in outputs if read is None]
    assert {method for method, *_, read in outputs if read is None} == {method for method, *_ in outputs}
    assert sum(any(o.lower() in text.lower() for o in options) for options, text in unread) > 20
    assert sum(text.count("answer is") == 1 for _, text in unread) > 100
