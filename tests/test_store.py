"""Stage folders: complete or not there, never in between; other folders: emptied only if they are ours."""

import errno
import json

import pytest

from cfdistill import files, store
from cfdistill.errors import StageError
from cfdistill.schema import Rationale


def stage(params, name="rationales", inputs=(), **values):
    return store.stage(name, [name], params, values, inputs)


def make(params, name="rationales", inputs=(), text="text"):
    made = stage(params, name, inputs)
    with made.draft(params) as draft:
        draft.write("a.jsonl", [Rationale("q", "positive", text)])
        draft.drops["too short"] += 2
    return made


def test_manifest_says_what_was_made_from_what(small_params):
    first = make(small_params)
    second = make(small_params, "training", [first.reads("a.jsonl")])
    manifest = json.loads((second.path / "manifest.json").read_text())
    assert {name: output["rows"] for name, output in manifest["outputs"].items()} == {"a.jsonl": 1}
    assert manifest["drops"] == {"too short": 2}
    assert manifest["params"] == small_params.model_dump()
    assert manifest["inputs"] == {first.place: {"a.jsonl": files.sha256(first.path / "a.jsonl")}}
    assert manifest["versions"]["torch"].startswith("2.")


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EROFS])
def test_full_or_read_only_disk_is_one_sentence(small_params, code):
    made = stage(small_params)
    with pytest.raises(StageError, match=r"cannot write .*; make room"), made.draft(small_params):
        raise OSError(code, "No space left on device")
    assert not made.is_complete()


def test_whoever_comes_second_is_told_who_is_first_or_that_the_stage_is_there(small_params):
    made = stage(small_params)
    with made.draft(small_params):
        told = r"is being made by process \d+ on .*; wait for it"
        with pytest.raises(StageError, match=told), made.draft(small_params):
            pytest.fail("both wrote")
    with pytest.raises(StageError, match="has just made"), made.draft(small_params):
        pytest.fail("wrote it again")
    assert made.is_complete()


@pytest.mark.parametrize(("file", "text"), [("manifest.json", "{"), ("a.jsonl", "other"), ("a.jsonl", None)])
def test_damage_is_noticed(small_params, file, text):
    made = make(small_params)
    assert made.is_complete()
    if text:
        (made.path / file).write_text(text)
    else:
        (made.path / file).unlink()
    with pytest.raises(StageError, match="delete"):
        made.is_complete()


def test_the_key_is_what_is_read_not_where_it_lies(small_params, tmp_path):
    moved = small_params.model_copy(update={"run_root": str(tmp_path / "elsewhere")})
    here, there = make(small_params), make(moved)
    other = make(small_params.model_copy(update={"run_root": str(tmp_path / "third")}), text="other")
    keys = [stage(small_params, "training", [made.reads("a.jsonl")]).key for made in (here, there, other)]
    assert keys[0] == keys[1] != keys[2]
    assert stage(small_params, "training", [here.reads("b.*")]).key != keys[0]
    assert stage(small_params, "training", [here.reads("a.jsonl")], seed=1).key != keys[0]


def test_a_hash_is_remembered_only_while_nothing_touches_the_file(tmp_path):
    file = tmp_path / "f"
    file.write_text("one")
    first = files.sha256(file)
    file.write_text("two")  # as long, within the clock's grain
    assert files.sha256(file) != first


def test_a_folder_of_ours_is_emptied_for_the_same_purpose_only(tmp_path):
    folder = tmp_path / "results"
    files.empty(folder, "results", "mine")
    (folder / "old.csv").write_text("old")
    for kind, what in (("results", "yours"), ("site", "mine")):
        with pytest.raises(StageError, match="which would be deleted"):
            files.empty(folder, kind, what)
    assert (folder / "old.csv").exists()
    files.empty(folder, "results", "mine")
    assert [path.name for path in folder.iterdir()] == [files.MARKER]


def test_cores_are_those_this_process_may_use(tmp_path, monkeypatch):
    monkeypatch.setattr("os.sched_getaffinity", lambda _: {0, 1, 2, 3}, raising=False)
    quota = tmp_path / "cpu.max"
    monkeypatch.setattr(files, "CGROUP_QUOTA", quota)
    for text, cores in (("max 100000", 4), ("150000 100000", 2), ("10000 100000", 1), ("900000 100000", 4)):
        quota.write_text(text)
        assert files.cores() == cores
    quota.unlink()
    assert files.cores() == 4
