"""After a power cut at any moment, no manifest names a file that is not whole on the disk."""

import hashlib
import json
import os
import shutil
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from studies import make_upstream
from test_grid import fake_evaluations, write_grid

from cfdistill import grid, metrics, results, runs, training
from cfdistill.schema import Rationale
from cfdistill.teacher.cache import Cache

EVENTS = ("fsync", "rename", "replace", "unlink", "rmdir")


class Disk:
    """What a disk holds for certain: the content that files and folders had when they were last synced.

    At every sync, rename and removal, `lost` collects the files that a manifest names and that a power
    cut would lose, were it now. Names may reach a disk before they are synced, in any order, so each
    folder is looked at as it is and as it was synced, and so is each manifest.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.synced, self.lost, self.events = root, {}, [], []
        self.held = []  # open, so that no new file gets the number of one that was removed
        for name in EVENTS:
            monkeypatch.setattr(os, name, self._recorded(getattr(os, name), name))

    def _recorded(self, call, name):
        def record(*arguments, **more):
            call(*arguments, **more)
            at = arguments[1 if name in ("rename", "replace") else 0]
            path = Path(f"/proc/self/fd/{at}").resolve() if name == "fsync" else Path(at)
            self.events.append((name, path.name))
            if name == "fsync":
                self.held.append(os.dup(at))
                self.synced[path.stat().st_ino] = self._content(path)
            self._check()

        return record

    @staticmethod
    def _content(path):
        return (
            {child.name: child.stat().st_ino for child in path.iterdir()}
            if path.is_dir()
            else path.read_bytes()
        )

    def _check(self):
        by_inode = {path.stat().st_ino: path for path in [self.root, *self.root.rglob("*")]}
        for inode, path in by_inode.items():
            if path.is_dir():
                views = [self._files(inode, by_inode, as_synced) for as_synced in (False, True)]
                for manifest in (view["manifest.json"] for view in views if "manifest.json" in view):
                    self._compare(manifest, views)

    def _compare(self, manifest, views):
        """Look for what a manifest names in every view of its folder."""
        named = json.loads(manifest or "{}")
        hashes = named.get("files") or {k: v["sha256"] for k, v in named.get("outputs", {}).items()}
        self.lost += ["manifest.json"] if not hashes else []
        for files in views:
            self.lost += [k for k, v in hashes.items() if hashlib.sha256(files.get(k, b"")).hexdigest() != v]

    def _names(self, inode, by_inode, names_as_synced):
        if names_as_synced or inode not in by_inode:
            return self.synced.get(inode, {})
        return self._content(by_inode[inode])

    def _files(self, inode, by_inode, names_as_synced, prefix=""):
        found = {}
        for name, child in self._names(inode, by_inode, names_as_synced).items():
            if child in by_inode and by_inode[child].is_dir():
                found |= self._files(child, by_inode, names_as_synced, f"{prefix}{name}/")
            else:
                found[prefix + name] = self.synced.get(child, b"")
        return found


@pytest.fixture
def watch(monkeypatch):
    """Return a function that watches a folder's disk."""
    disks = []
    yield lambda root: disks.append(Disk(root, monkeypatch)) or disks[-1]
    for descriptor in (d for disk in disks for d in disk.held):
        os.close(descriptor)


@pytest.fixture
def disk(tmp_path, watch):
    return watch(tmp_path)


def make_stage(params, name="rationales"):
    made = runs.stage(name, params)
    with made.draft(params) as draft:
        draft.write("a.jsonl", [Rationale("q", "positive", "text")])
        (draft.path / "model").mkdir()
        (draft.path / "model" / "weights").write_bytes(b"0" * 10_000)
        for table in metrics.FILES if name == "metrics" else ():
            (draft.path / table).write_text("a,b\n1,2\n")
    return made


@pytest.fixture
def collect(small_params, monkeypatch):
    """Return a function that collects made-up results."""
    make_stage(small_params, "metrics")
    table = pd.DataFrame({"step": ["all"], "left": [3]})
    monkeypatch.setattr(results, "stories", lambda params: {"fig1_weasel": table})
    monkeypatch.setattr(results, "funnel", lambda params: table)
    monkeypatch.setattr(results.counterfactual, "funnel_counts", lambda rows, params: rows)
    monkeypatch.setattr(results, "cost", lambda params: table)
    monkeypatch.setattr(results.audit, "table", lambda params: table)
    monkeypatch.setattr(results, "_origin", lambda params: {"status": "complete"})
    return partial(results.collect, small_params)


@pytest.fixture
def cell(tmp_path):
    """Return a grid of one cell, and a function that writes the cell from a finished evaluation."""
    tested = {"method": "ft", "test_datasets": ["weasel-science"]}
    made = grid.read(write_grid(tmp_path, tested))
    ((name, params),) = made.cells.items()
    return made, partial(grid.write_cell, made.folder / name, fake_evaluations(params))


def test_a_power_cut_loses_nothing_that_a_stage_names(small_params, disk):
    make_stage(small_params)
    assert disk.lost == []
    synced = [name for event, name in disk.events if event == "fsync"]
    assert synced.index("weights") < synced.index("manifest.json.new") < len(synced) - 1
    assert synced[-1] == "rationales"  # the folder that holds the new name


def test_a_power_cut_loses_nothing_that_results_name(collect, tmp_path, watch):
    (tmp_path / "results").mkdir()
    disk = watch(tmp_path / "results")
    for _ in range(2):  # the second time over the first
        folder = collect()
    assert disk.lost == []
    assert (folder / "manifest.json").is_file()
    assert disk.events[-1] == ("fsync", folder.name)  # holds the manifest's name


def test_a_power_cut_loses_nothing_that_a_cell_of_a_grid_or_its_tables_name(cell, watch):
    made, write_cell = cell
    made.folder.mkdir(parents=True)
    disk = watch(made.folder)
    write_cell()
    assert disk.lost == []
    assert disk.events[-1] == ("fsync", made.folder.name)  # holds the cell's name
    grid.write_tables(made, grid.finished(made))
    synced = [name for event, name in disk.events if event == "fsync"]
    tables = [synced.index(name) for name in metrics.FILES[:2]]
    assert max(tables) < synced.index("tables.json.new")
    written = len(disk.events)
    write_cell()  # replaces a cell, which without its predictions is none
    removed = disk.events.index(("unlink", grid.PREDICTIONS), written)
    assert disk.events[removed + 1] == ("fsync", *made.cells)


def test_without_syncing_the_files_the_power_cut_is_noticed(small_params, disk, monkeypatch):
    monkeypatch.setattr(runs, "sync_tree", lambda folder: None)
    make_stage(small_params)
    assert "model/weights" in disk.lost


def test_a_manifest_renamed_before_it_is_synced_is_noticed(small_params, disk, monkeypatch):
    monkeypatch.setattr(runs, "sync", lambda path: None)
    make_stage(small_params)
    assert "manifest.json" in disk.lost


class Crash(BaseException):
    """What a killed process looks like from inside."""


def crash_at_every_event(make, monkeypatch, check):
    """Run `make` again and again, each time stopped one sync, rename or removal later, until it ends."""
    for last in range(1, 1000):
        left = iter(range(last - 1, -1, -1))

        def until_last(call, left=left):
            def maybe(*arguments, **more):
                if not next(left):
                    raise Crash
                return call(*arguments, **more)

            return maybe

        with monkeypatch.context() as patch, suppress(Crash):
            for name in EVENTS:
                patch.setattr(os, name, until_last(getattr(os, name)))
            make()
            return last
        check()
    return pytest.fail("never ends")


def test_a_stage_stopped_between_any_two_steps_is_made_whole_by_the_next_attempt(small_params, monkeypatch):
    stage = runs.stage("training", small_params, method="ft")

    def make():
        with stage.draft(small_params, resume=True) as draft:
            draft.write("a.jsonl", [Rationale("q", "positive", "text")])

    def check():
        if stage.is_complete():  # stopped after the rename: there is nothing left to make
            shutil.rmtree(stage.path)

    assert crash_at_every_event(make, monkeypatch, check) > 5
    assert stage.is_complete()
    assert list(stage.manifest()["outputs"]) == ["a.jsonl"]


def test_results_stopped_between_any_two_steps_never_pass_for_finished(collect, monkeypatch):
    folder = collect()

    def check():
        if (folder / "manifest.json").exists():
            assert runs.first_changed(folder, results.read_manifest(folder)["files"]) is None

    assert crash_at_every_event(collect, monkeypatch, check) > 5
    check()


def test_a_cell_stopped_between_any_two_steps_is_made_whole_by_the_next_attempt(cell, monkeypatch):
    made, write_cell = cell
    write_cell()  # which every attempt replaces

    def check():
        assert set(grid.finished(made).values()) <= {made.folder / name for name in made.cells}

    assert crash_at_every_event(write_cell, monkeypatch, check) > 3
    assert list(grid.finished(made)) == list(made.cells)


def test_tables_of_a_grid_stopped_half_way_are_made_again(cell, monkeypatch):
    made, write_cell = cell
    write_cell()
    grid.write_tables(made, grid.finished(made))
    whole = (made.folder / "metrics.csv").read_bytes()

    def stop(*_):
        (made.folder / "metrics.csv").write_text("half")
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(metrics, "write_csv", stop)
        patch.setattr(runs, "sha256", lambda path: "of other cells")
        with pytest.raises(Crash):
            grid.write_tables(made, {name: made.folder / name for name in made.cells})
    grid.write_tables(made, grid.finished(made))
    assert (made.folder / "metrics.csv").read_bytes() == whole


def test_training_stopped_while_its_checkpoints_are_deleted_trains_again(small_params, monkeypatch):
    make_upstream(small_params)
    remove = shutil.rmtree

    def stop(folder, **more):
        if Path(folder).name != "checkpoints":
            return remove(folder, **more)
        for weights in folder.rglob("*.safetensors"):
            weights.unlink()
        raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(Crash):
            training.build("ft", small_params)
    assert training.build("ft", small_params).is_complete()


def test_what_a_teacher_was_paid_for_is_on_the_disk_before_it_is_used(tmp_path):
    with closing(Cache(tmp_path / "cache.sqlite")) as cache:
        assert cache._db.execute("PRAGMA synchronous").fetchone() == (2,)  # FULL: sync at each commit
        assert cache._db.execute("PRAGMA journal_mode").fetchone() == ("wal",)


def test_a_clock_that_jumps_leaves_manifests_in_order(small_params, monkeypatch):
    monkeypatch.setattr("time.time", iter(range(10_000, 0, -1000)).__next__)
    assert make_stage(small_params).manifest()["seconds"] >= 0
