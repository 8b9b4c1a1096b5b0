"""Stage directories: complete or not there, never in between."""

import errno
import json
import shutil

import pytest

from cfdistill import runs
from cfdistill.errors import BusyError, StageError
from cfdistill.params import Params
from cfdistill.schema import Rationale


class Crash(RuntimeError):
    """What a killed process looks like from inside."""


def fill_and_crash(stage, params, name, *, resume):
    with stage.draft(params, resume=resume) as draft:
        (draft.path / name).write_text("step 3")
        raise Crash


def make(params, name="rationales", inputs=()):
    stage = runs.stage(name, params)
    with stage.draft(params, inputs) as draft:
        draft.write("a.jsonl", [Rationale("q", "positive", "text")])
        draft.drops["too short"] += 2
    return stage


def test_manifest_says_what_was_made_from_what(small_params):
    first = make(small_params)
    second = make(small_params, "training", [first])
    manifest = json.loads((second.path / "manifest.json").read_text())
    assert manifest["outputs"]["a.jsonl"]["rows"] == 1
    assert manifest["drops"] == {"too short": 2}
    assert manifest["params"] == small_params.model_dump()
    assert list(manifest["inputs"]) == [f"rationales/{first.path.name}"]
    assert manifest["versions"]["torch"].startswith("2.")


def test_nothing_half_written_counts(small_params):
    stage = runs.stage("rationales", small_params)
    with pytest.raises(Crash):
        fill_and_crash(stage, small_params, "a.jsonl", resume=False)
    assert not stage.is_complete()
    with stage.draft(small_params) as draft:
        assert not list(draft.path.iterdir())  # the next attempt starts clean
    assert stage.is_complete()


def test_resume_keeps_what_an_attempt_left(small_params):
    stage = runs.stage("training", small_params, method="ft")
    with pytest.raises(Crash):
        fill_and_crash(stage, small_params, "checkpoint", resume=True)
    with stage.draft(small_params, resume=True) as draft:
        assert (draft.path / "checkpoint").read_text() == "step 3"


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_full_or_read_only_disk_is_one_sentence(small_params, code):
    stage = runs.stage("rationales", small_params)
    with pytest.raises(StageError, match=r"cannot write .*; make room"), stage.draft(small_params):
        raise OSError(code, "No space left on device")
    assert not stage.is_complete()


def test_a_second_writer_is_turned_away(small_params):
    stage = runs.stage("rationales", small_params)
    with (
        stage.draft(small_params),
        pytest.raises(StageError, match="another process is making"),
        stage.draft(small_params),
    ):
        pytest.fail("both wrote")


def test_whoever_comes_second_is_told_that_the_stage_is_there(small_params):
    stage = make(small_params)
    with pytest.raises(BusyError, match="has just finished"), stage.draft(small_params):
        pytest.fail("wrote it again")
    assert stage.is_complete()


def test_files_of_an_attempt_that_cannot_be_removed_are_not_taken_over(small_params, monkeypatch):
    stage = runs.stage("rationales", small_params)
    with pytest.raises(Crash):
        fill_and_crash(stage, small_params, "old.jsonl", resume=False)

    def refuse(path):
        raise PermissionError(errno.EACCES, "Permission denied", str(path))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(StageError, match="cannot write"), stage.draft(small_params):
        pytest.fail("wrote beside it")


def test_missing_upstream_names_the_command(small_params):
    with pytest.raises(StageError, match=r"stage rationales is missing .* --only 03"):
        runs.require(runs.stage("rationales", small_params))


@pytest.mark.parametrize("damage", ["manifest", "output", "lost"])
def test_damage_is_noticed(small_params, damage):
    stage = make(small_params)
    if damage == "manifest":
        (stage.path / "manifest.json").write_text("{")
    elif damage == "output":
        (stage.path / "a.jsonl").write_text("other")
    else:
        (stage.path / "a.jsonl").unlink()
    with pytest.raises(StageError, match="delete"):
        stage.is_complete()


def test_seed_changes_training_but_not_teacher_stages(small_params):
    other = small_params.model_copy(update={"seed": 1})
    assert runs.stage("rationales", small_params) == runs.stage("rationales", other)
    assert runs.stage("training", small_params, method="ft") != runs.stage("training", other, method="ft")


def test_changed_parameters_get_their_own_results_folder(tmp_path):
    default = Params(results_root=str(tmp_path))
    assert runs.results_folder(default) == tmp_path / "offline"
    other = default.model_copy(update={"seed": 1})
    assert runs.results_folder(other).name.startswith("offline-")
    moved = default.model_copy(update={"run_root": "elsewhere", "teacher_concurrency": 2})
    assert runs.results_folder(moved) == tmp_path / "offline"
