"""After a power cut at any moment, no manifest names a file that is not whole on the disk."""

import hashlib
import json
import os
import shutil
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from test_grid import fake_evaluations, write_grid

from cfdistill import grid, metrics, results, runs
from cfdistill.schema import Rationale


class Disk:
    """What a disk holds for certain: the content that files and folders had when they were last synced.

    At every sync and rename, `lost` collects the files that a manifest names and that a power cut would
    lose, were it now. Names may reach a disk before they are synced, so each folder is looked at as it
    is and as it was synced.
    """

    def __init__(self, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.root, self.synced, self.lost, self.events = root, {}, [], []
        for name in ("fsync", "rename", "replace"):
            monkeypatch.setattr(os, name, self._recorded(getattr(os, name), name))

    def _recorded(self, call, name):
        def record(*arguments, **more):
            call(*arguments, **more)
            path = Path(f"/proc/self/fd/{arguments[0]}").resolve() if name == "fsync" else Path(arguments[1])
            self.events.append((name, path.name))
            if name == "fsync":
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
        for names_as_synced in (False, True):
            self._walk(self.root.stat().st_ino, by_inode, names_as_synced)

    def _walk(self, inode, by_inode, names_as_synced):
        """Look at a folder: at its manifest's files, if it has one, and at the folders below."""
        files = self._files(inode, by_inode, names_as_synced)
        if (manifest := files.get("manifest.json")) is not None:
            named = json.loads(manifest or "{}")
            hashes = named.get("files") or {k: v["sha256"] for k, v in named.get("outputs", {}).items()}
            self.lost += ["manifest.json"] if not hashes else []
            self.lost += [k for k, v in hashes.items() if hashlib.sha256(files.get(k, b"")).hexdigest() != v]
        for child in self._names(inode, by_inode, names_as_synced).values():
            if child in by_inode and by_inode[child].is_dir():
                self._walk(child, by_inode, names_as_synced)

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
def disk(tmp_path, monkeypatch):
    return Disk(tmp_path, monkeypatch)


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


def test_a_power_cut_loses_nothing_that_results_name(collect, tmp_path, monkeypatch):
    (tmp_path / "results").mkdir()
    disk = Disk(tmp_path / "results", monkeypatch)
    for _ in range(2):  # the second time over the first
        folder = collect()
    assert disk.lost == []
    assert (folder / "manifest.json").is_file()


def test_a_power_cut_loses_nothing_that_a_cell_of_a_grid_or_its_tables_name(cell, tmp_path, monkeypatch):
    made, write_cell = cell
    made.folder.mkdir(parents=True)
    disk = Disk(made.folder, monkeypatch)
    for _ in range(2):
        write_cell()
    assert disk.lost == []
    assert disk.events[-1] == ("fsync", made.folder.name)  # holds the cell's name
    grid.write_tables(made, grid.finished(made))
    synced = [name for event, name in disk.events if event == "fsync"]
    tables = [synced.index(name) for name in metrics.FILES[:2]]
    assert max(tables) < synced.index("tables.json.new")


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
    """Run `make` again and again, each time stopped one sync or rename later, until it ends."""
    for last in range(1, 1000):
        left = iter(range(last - 1, -1, -1))

        def until_last(call, left=left):
            def maybe(*arguments, **more):
                if not next(left):
                    raise Crash
                return call(*arguments, **more)

            return maybe

        with monkeypatch.context() as patch:
            for name in ("fsync", "rename", "replace"):
                patch.setattr(os, name, until_last(getattr(os, name)))
            try:
                make()
            except Crash:
                check()
            else:
                return last
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

    def check():
        assert set(grid.finished(made).values()) <= {made.folder / name for name in made.cells}

    assert crash_at_every_event(write_cell, monkeypatch, check) > 3
    assert list(grid.finished(made)) == list(made.cells)


def test_a_clock_that_jumps_leaves_manifests_in_order(small_params, monkeypatch):
    monkeypatch.setattr("time.time", iter(range(10_000, 0, -1000)).__next__)
    assert make_stage(small_params).manifest()["seconds"] >= 0
