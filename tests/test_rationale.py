"""Rationales: reading a view, both views of all questions, and published ones."""

import json
from dataclasses import replace

import pytest
from studies import TEST_DATA
from test_counterfactual import LAMP, Scripted

from cfdistill import data
from cfdistill.errors import DataError
from cfdistill.generate import rationale
from cfdistill.methods import VIEWS
from cfdistill.params import Params
from cfdistill.schema import Rationale

TWINS = replace(LAMP, options=("day", "night", "Night", "high\u00a0 noon"))
NEGATIVE = "Not day: it is light then. Not noon: the sun is up."
TWIN = "Not day: it is light. Not high noon: the sun is up. So the answer is"


def outcome(read, *given):
    try:
        return read(*given)
    except ValueError as error:
        return f"refused: {error}"


@pytest.mark.parametrize(
    ("view", "text", "expected"),
    [
        # of two equal options either is right, and none is argued against
        ("negative of 1", f"{TWIN} night.", f"{TWIN} night."),
        ("negative of 1", f"{TWIN} NIGHT.", f"{TWIN} night."),
        ("negative of 2", f"{TWIN} night.", f"{TWIN} Night."),
        ("negative of 2", "Not day: no. So the answer is night.", "refused: passes over a wrong option"),
        ("positive", "It is dark.\nSo the answer is night.", "It is dark. So the answer is night."),
        ("positive", "It is dark. So the answer is: (B) **night**!", "It is dark. So the answer is night."),
        ("negative", f"{NEGATIVE} So the answer is night", f"{NEGATIVE} So the answer is night."),
        ("positive", "It is night.", "refused: no answer"),
        ("positive", "It is light. So the answer is day.", "refused: wrong answer"),
        ("positive", "So the answer is night.", "refused: no argument before the answer sentence"),
        ("negative", "Not day: no. So the answer is night.", "refused: passes over a wrong option"),
    ],
)
def test_a_view_ends_in_the_answer_sentence_or_is_refused_with_the_reason(view, text, expected):
    view, _, answer = view.partition(" of ")
    question = replace(TWINS, answer=int(answer)) if answer else LAMP
    assert outcome(rationale.read_view, question, view, text) == expected


def test_a_wrong_view_is_asked_again_once_and_then_dropped():
    order = [(view, sample) for sample in (0, 1) for view in VIEWS]
    right = {("positive", 1): "Dark. So the answer is night."}
    teacher = Scripted(dict.fromkeys(order, "So the answer is day.") | right)
    rationales, ledger = rationale.views([LAMP], teacher)
    assert [(prompt.task, prompt.sample) for prompt in teacher.asked] == order
    assert rationales == [Rationale("q1", "positive", "Dark. So the answer is night.")]
    found = [("q1", "positive", 2, "kept", ""), ("q1", "negative", 2, "dropped", "wrong answer")]
    assert ledger == [dict(zip(rationale.LEDGER_COLUMNS, row, strict=True)) for row in found]


@pytest.mark.parametrize(
    ("text", "predicted", "expected"),
    [
        ("It is dark then.", "B", "It is dark then. So the answer is night."),
        ("It is dark.\nSo the answer is (B) night.", "B", "It is dark. So the answer is night."),
        ("It is dark. so, the answer is b!  ", "B", "It is dark. So the answer is night."),
        ("The closest answer is (b).", "B", "The closest answer is (b). So the answer is night."),
        ("It is light.", "A", "refused: wrong answer"),
        ("Only day and night are times.", None, "refused: no answer"),
        *[("It is dark.", letters, "refused: no answer") for letters in ("D", "AB")],
        (" So the answer is (B).", "B", "refused: no argument before the answer sentence"),
    ],
)
def test_a_published_rationale_gets_our_answer_sentence_for_its_own(text, predicted, expected):
    assert outcome(rationale.read_case, LAMP, rationale.Published("q1", text, predicted)) == expected
    assert rationale.read_case(TWINS, rationale.Published("q1", "It is dark.", "C")).startswith(
        "It is dark. So"
    )


QUESTIONS = [replace(LAMP, id=f"q{number}") for number in range(4)]


def published(number, predicted="B"):
    return {"id": f"q{number}", "rationale": f"Lamp {number} is lit at night.", "predicted": predicted}


def written(folder, rows):
    file = folder / "rationales.jsonl"
    file.write_text("".join(r if isinstance(r, str) else json.dumps(r) + "\n" for r in rows), "utf-8")
    return file


def test_the_file_explains_the_positive_view_of_what_stands_in_it(tmp_path):
    rows = ["\ufeff", published(0), "\r\n", published(1, "A"), published(2, None), "  \n", published(1000)]
    (kept,), ledger = rationale.published(QUESTIONS, written(tmp_path, rows))
    assert kept == Rationale("q0", "positive", "Lamp 0 is lit at night. So the answer is night.")
    assert [row["verdict"] for row in ledger] == ["kept", *["dropped"] * 3]
    assert [row["reason"] for row in ledger] == ["", "wrong answer", "no answer", "not in the file"]


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([published(0), "{\n"], r"rationales\.jsonl, line 2: no valid Published"),
        ([{"id": "q0", "rationale": "It is."}], "line 1: no valid Published .*predicted"),
        ([published(0) | {"predicted": 1}], "line 1: .*predicted: Input should be a valid string"),
        ([published(0), published(0)], "id q0 stands in it twice"),
        ([], r"explains no training question; dropped: \{'not in the file': 4\}"),
    ],
)
def test_a_bad_file_of_rationales_is_one_sentence(tmp_path, rows, message):
    file = written(tmp_path, rows)
    assert rationale.published_file(str(file)) == file
    with pytest.raises(DataError, match=message) as caught:
        rationale.published(QUESTIONS, file)
    assert "\n" not in str(caught.value)
    file.unlink()
    with pytest.raises(DataError, match="is missing; set rationale_file"):
        rationale.published_file(str(file))


def test_real_published_rationales_of_commonsenseqa():
    file = TEST_DATA / "rationales" / "csqa_train_palm540b.jsonl"
    if not file.is_file():
        pytest.skip(f"{file} is not there; CFDISTILL_TEST_DATA names the folder with it")
    params = Params(train_questions=10_000, data_root=str(TEST_DATA / "benchmarks"))
    questions = data.load("csqa", "train", params)
    kept, ledger = rationale.published(questions, file)
    assert len(ledger) == len(questions) > 8_000
    assert 0.7 < len(kept) / len(questions) < 0.8
    assert {row["reason"] for row in ledger} == {"", "wrong answer", "no answer"}
