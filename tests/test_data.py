"""Loading of benchmarks from files, and the `data` stage."""

import json

import pytest

from cfdistill import data
from cfdistill.errors import DataError, StageError
from cfdistill.params import Params
from cfdistill.schema import Question


def csqa_row(number, answer="B"):
    labels = "EDCBA"  # out of order, as a file may have them
    return {
        "id": f"row{number}",
        "answerKey": answer,
        "question": {
            "stem": f"Question {number}?",
            "choices": [{"label": x, "text": f"text {x}"} for x in labels],
        },
    }


def csqa_root(folder, rows):
    (folder / "csqa").mkdir(parents=True)
    for name in ("train_rand_split.jsonl", "dev_rand_split.jsonl"):
        (folder / "csqa" / name).write_text("".join(json.dumps(row) + "\n" for row in rows))
    return Params(
        data_root=str(folder), run_root=str(folder / "runs"), train_dataset="csqa", test_datasets=["csqa"]
    )


def test_csqa_rows_become_questions(tmp_path):
    params = csqa_root(tmp_path, [csqa_row(i) for i in range(200)])
    question = data.load("csqa", "test", params)[0]
    assert question.options == ("text A", "text B", "text C", "text D", "text E")
    assert question.options[question.answer] == "text B"
    assert len(data.load("csqa", "test", params)) == params.test_questions
    train, validation = (data.load("csqa", split, params) for split in ("train", "validation"))
    assert {q.id for q in train}.isdisjoint(q.id for q in validation)
    assert len(train) == params.train_questions


def test_missing_file_and_empty_split_are_one_sentence(tmp_path):
    with pytest.raises(DataError, match="is missing; put the official CommonsenseQA release files there"):
        data.load("csqa", "train", Params(data_root=str(tmp_path / "none")))
    with pytest.raises(DataError, match="split 'test' is empty"):
        data.load("csqa", "test", csqa_root(tmp_path, []))


def test_stage_holds_every_split_and_is_reused(small_params):
    made = data.build("weasel-commonsense", small_params)
    manifest = made.manifest()
    assert manifest["status"] == "complete"
    assert manifest["outputs"]["questions.train.jsonl"]["rows"] == small_params.train_questions
    assert data.questions("weasel-commonsense", "shift", small_params) == data.load(
        "weasel-commonsense", "shift", small_params
    )
    before = (made.path / "manifest.json").stat().st_mtime_ns
    assert data.build("weasel-commonsense", small_params).path == made.path
    assert (made.path / "manifest.json").stat().st_mtime_ns == before


def test_corrupted_stage_is_refused(small_params):
    made = data.build("weasel-commonsense", small_params)
    file = made.path / "questions.id.jsonl"
    file.write_text(file.read_text()[:-30])
    with pytest.raises(StageError, match=r"questions.id.jsonl was changed or lost after the stage finished"):
        data.build("weasel-commonsense", small_params)
    with pytest.raises(DataError, match=r"questions.id.jsonl, line 8: no valid Question"):
        made.read("questions.id.jsonl", Question)


def test_foreign_testbeds_are_tested_on_new_scenes_only():
    params = Params()
    assert data.test_splits("weasel-commonsense", params) == ("id", "shift", "new")
    assert data.test_splits("weasel-science", params) == ("new",)
    assert data.test_splits("csqa", params) == ("test",)


@pytest.mark.parametrize("answer", [-1, 3])
def test_answer_outside_the_options_is_refused(answer):
    with pytest.raises(DataError, match="needs 2 to 10 options and an answer among them"):
        Question(id="q", dataset="d", split="train", stem="?", options=("a", "b", "c"), answer=answer)
