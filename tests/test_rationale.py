"""Rationales: reading a view, the ledger, and the stage."""

import csv
import json

import httpx2
import pytest

from cfdistill import counterfactual, data, rationale
from cfdistill.errors import StageError
from cfdistill.params import Params
from cfdistill.rationale import read_view
from cfdistill.schema import Counterfactual, Question, Rationale, answer_text, read_answer
from cfdistill.teacher import Teacher

LAMP = Question("q1", "toy", "train", "Eli needs a lamp to read. What is it?", ("day", "night", "noon"), 1)
NEGATIVE = "Not day: it is light then. Not noon: the sun is up."


@pytest.mark.parametrize(
    ("view", "text", "kept"),
    [
        ("positive", "It is dark.\nSo the answer is night.", "It is dark. So the answer is night."),
        ("positive", "It is dark. So the answer is (B) night", "It is dark. So the answer is night."),
        ("negative", f"{NEGATIVE} So the answer is night.", f"{NEGATIVE} So the answer is night."),
    ],
)
def test_a_fit_view_ends_in_the_answer_sentence(view: str, text: str, kept: str) -> None:
    assert read_view(LAMP, view, text) == kept


@pytest.mark.parametrize(
    ("view", "text", "reason"),
    [
        ("positive", "", "no answer sentence"),
        ("positive", "It is night.", "no answer sentence"),
        ("positive", "It is light. So the answer is day.", "wrong answer"),
        ("positive", "So the answer is night.", "no argument"),
        ("negative", "Not day: it is light. So the answer is night.", "passes over a wrong option"),
    ],
)
def test_an_unfit_view_is_refused_with_the_reason(view: str, text: str, reason: str) -> None:
    with pytest.raises(ValueError, match=reason):
        read_view(LAMP, view, text)


def test_a_wrong_view_is_asked_again_once_and_then_dropped(
    small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        positive = "why the right answer" in body["messages"][0]["content"]
        text = (
            "Dark. So the answer is night." if positive and body["seed"] else "Light. So the answer is day."
        )
        return httpx2.Response(200, json={"model": "m", "choices": [{"message": {"content": text}}]})

    monkeypatch.setenv("OPENAI_API_KEY", "none")
    with Teacher(small_params.model_copy(update={"teacher": "live"}), handler=handler) as teacher:
        rationales, ledger = rationale.views([LAMP], teacher)
        assert teacher.usage.requests == 4
    assert rationales == [Rationale("q1", "positive", "Dark. So the answer is night.")]
    assert [tuple(row.values()) for row in ledger] == [
        ("q1", "positive", 2, "kept", ""),
        ("q1", "negative", 2, "dropped", "wrong answer"),
    ]


def test_the_stage_covers_originals_and_counterfactuals_in_both_views(small_params: Params) -> None:
    params = small_params.model_copy(update={"teacher_noise": 0.3})
    data.build(params.train_dataset, params)
    made = counterfactual.build(params)
    stage = rationale.build(params)
    rationales = stage.read("rationales.train.jsonl", Rationale)
    with (stage.path / "ledger.csv").open(encoding="utf-8") as file:
        ledger = list(csv.DictReader(file))

    questions = {q.id: q for q in data.questions(params.train_dataset, "train", params)}
    questions |= {c.question.id: c.question for c in made.read("counterfactuals.train.jsonl", Counterfactual)}
    assert len(questions) > params.train_questions
    assert {(row["question_id"], row["view"]) for row in ledger} == {
        (question_id, view) for question_id in questions for view in rationale.VIEWS
    }
    kept = [(row["question_id"], row["view"]) for row in ledger if row["verdict"] == "kept"]
    assert kept == [(r.question_id, r.view) for r in rationales]
    assert {row["attempts"] for row in ledger} == {"1", "2"}  # the noise made some be asked again
    for r in rationales:
        question = questions[r.question_id]
        assert read_answer(r.text, question.options) == question.answer
        assert r.text.endswith(answer_text(question.options, question.answer))
        assert "\n" not in r.text
    assert sum(stage.manifest()["drops"].values()) == len(ledger) - len(kept)
    assert rationale.build(params).manifest() == stage.manifest()


def test_views_work_for_any_questions(small_params: Params) -> None:
    params = small_params.model_copy(update={"teacher_noise": 0.0})
    questions = data.load("weasel-science", "new", params)
    with Teacher(params) as teacher:
        rationales, ledger = rationale.views(questions, teacher)
    assert len(rationales) == len(ledger) == 2 * len(questions)
    assert {row["verdict"] for row in ledger} == {"kept"}


def test_the_stage_needs_counterfactuals(small_params: Params) -> None:
    data.build(small_params.train_dataset, small_params)
    with pytest.raises(StageError, match="stage counterfactuals is missing"):
        rationale.build(small_params)
