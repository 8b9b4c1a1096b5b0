"""Records survive the trip to disk, and answers are read from text or not at all."""

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
