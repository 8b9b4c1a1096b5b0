"""Rationales: reading a view, the ledger, and the stage."""

import csv
import json
from pathlib import Path
from typing import Any

import httpx2
import pytest
from studies import TEST_DATA, write_csqa

from cfdistill import counterfactual, data, rationale, runs, training
from cfdistill.errors import DataError, StageError
from cfdistill.params import Params
from cfdistill.rationale import Published, read_case, read_view
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


# published rationales


@pytest.mark.parametrize(
    ("rationale", "kept"),
    [
        ("It is dark then.", "It is dark then. So the answer is night."),
        ("It is dark.\nSo the answer is (B) night.", "It is dark. So the answer is night."),
        ("It is dark. so, the answer is b!  ", "It is dark. So the answer is night."),
        (
            "Of these, the closest answer is (b) night.",
            "Of these, the closest answer is (b) night. So the answer is night.",
        ),
    ],
)
def test_a_published_rationale_gets_our_answer_sentence_for_its_own(rationale: str, kept: str) -> None:
    assert read_case(LAMP, Published("q1", rationale, "B")) == kept


@pytest.mark.parametrize(
    ("found", "reason"),
    [
        (None, "not in the file"),
        (Published("q1", "It is light.", "A"), "wrong answer"),
        (Published("q1", "Only day and night are times.", None), "no answer"),
        (Published("q1", "It is dark.", "D"), "no answer"),
        (Published("q1", "It is dark.", "AB"), "no answer"),
        (Published("q1", " So the answer is (B).", "B"), "no argument"),
    ],
)
def test_an_unfit_published_rationale_is_refused_with_the_reason(
    found: Published | None, reason: str
) -> None:
    with pytest.raises(ValueError, match=reason):
        read_case(LAMP, found)


def file_study(folder: Path, rows: list[Any], **changes: Any) -> Params:
    """Return parameters of a CommonsenseQA study of four questions, all with the answer B."""
    write_csqa(folder / "csqa", 100)
    file = folder / "rationales.jsonl"
    file.write_text("".join(row if isinstance(row, str) else json.dumps(row) + "\n" for row in rows))
    return Params(
        train_dataset="csqa",
        test_datasets=["csqa"],
        methods=["ft", "ft-cot"],
        student="tiny-random",
        data_root=str(folder),
        run_root=str(folder / "runs"),
        rationale_source="file",
        rationale_file=str(file),
        **{"train_questions": 4, "frozen_layers": 0, "epochs": 1.0} | changes,
    )


def published(number: int, predicted: str | None = "B") -> dict[str, Any]:
    return {"id": f"q{number}", "rationale": f"Lamp {number} is lit at night.", "predicted": predicted}


def test_a_study_from_a_file_needs_neither_teacher_nor_counterfactuals(tmp_path: Path) -> None:
    numbers = [q.id[1:] for q in data.load("csqa", "train", file_study(tmp_path, []))]
    rows = [published(int(n), p) for n, p in zip(numbers, ("B", "A", None), strict=False)]
    params = file_study(tmp_path, [*rows, published(1000)])
    data.build("csqa", params)
    stage = rationale.build(params)
    (kept,) = stage.read("rationales.train.jsonl", Rationale)
    assert (kept.question_id, kept.view) == (f"q{numbers[0]}", "positive")
    assert kept.text == f"Lamp {numbers[0]} is lit at night. So the answer is night."
    manifest = stage.manifest()
    dropped = {"positive: wrong answer": 1, "positive: no answer": 1, "positive: not in the file": 1}
    assert manifest["drops"] == dict(sorted(dropped.items()))
    assert manifest["notes"]["file"]["rows"] == 4
    assert manifest["notes"]["file"]["sha256"] == runs.sha256(Path(params.rationale_file))
    with (stage.path / "ledger.csv").open(encoding="utf-8") as file:
        verdicts = [(row["verdict"], row["reason"]) for row in csv.DictReader(file)]
    assert verdicts == [
        ("kept", ""),
        ("dropped", "wrong answer"),
        ("dropped", "no answer"),
        ("dropped", "not in the file"),
    ]
    examples = {
        method: training.build(method, params).manifest()["notes"]["examples"] for method in params.methods
    }
    assert examples == {"ft": 4, "ft-cot": 1}
    assert {path.name for path in (tmp_path / "runs").iterdir()} == {"data", "rationales", "training"}


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ([published(0), "{\n"], r"rationales\.jsonl, line 2: no valid Published"),
        ([{"id": "q0", "rationale": "It is."}], "line 1: no valid Published .*predicted"),
        ([published(0) | {"predicted": 1}], "line 1: .*predicted: Input should be a valid string"),
        ([published(0) | {"rationale": None}], "line 1: .*rationale: Input should be a valid string"),
        ([published(0), published(0)], "id q0 stands in it twice"),
        ([], r"explains no training question of csqa; dropped: \{'not in the file': 4\}"),
    ],
)
def test_a_bad_file_of_rationales_is_one_sentence(tmp_path: Path, rows: list[Any], message: str) -> None:
    params = file_study(tmp_path, rows)
    data.build("csqa", params)
    with pytest.raises(DataError, match=message) as caught:
        rationale.build(params)
    assert "\n" not in str(caught.value)
    assert not runs.stage("rationales", params).is_complete()


def test_a_missing_or_binary_file_of_rationales_is_one_sentence(tmp_path: Path) -> None:
    params = file_study(tmp_path, [])
    data.build("csqa", params)
    Path(params.rationale_file).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(DataError, match="line 1: no valid Published"):
        rationale.build(params)
    Path(params.rationale_file).unlink()
    with pytest.raises(DataError, match="is missing; set rationale_file"):
        rationale.build(params)


def test_real_published_rationales_of_commonsenseqa(tmp_path: Path) -> None:
    file = TEST_DATA / "rationales" / "csqa_train_palm540b.jsonl"
    if not file.is_file():
        pytest.skip(
            f"{file} is not there; CFDISTILL_TEST_DATA names the folder with benchmarks and rationales"
        )
    params = file_study(tmp_path, [], train_questions=10_000).model_copy(
        update={"data_root": str(TEST_DATA / "benchmarks"), "rationale_file": str(file)}
    )
    data.build("csqa", params)
    stage = rationale.build(params)
    questions = {q.id: q for q in data.questions("csqa", "train", params)}
    kept = stage.read("rationales.train.jsonl", Rationale)
    drops = stage.manifest()["drops"]
    assert len(questions) > 8_000
    assert len(kept) + sum(drops.values()) == len(questions)
    assert 0.7 < len(kept) / len(questions) < 0.8
    assert set(drops) == {"positive: wrong answer", "positive: no answer"}
    for r in kept:
        question = questions[r.question_id]
        assert r.text.endswith(answer_text(question.options, question.answer))
