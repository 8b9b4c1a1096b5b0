"""Stopped between any two of its steps, nothing half made passes for finished, and all is made anew."""

import os
import shutil
from contextlib import closing, suppress
from functools import partial
from pathlib import Path

import pandas as pd
import pytest
from studies import make_upstream
from test_grid import FT, make_cells, read

from cfdistill import files, pipeline, store
from cfdistill.evaluate import metrics
from cfdistill.schema import Rationale
from cfdistill.study import grid, results
from cfdistill.teacher.cache import Cache

STEPS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir")


class Crash(BaseException):
    """What a killed process looks like from inside."""


def crash_at_every_step(make, monkeypatch, check):
    """Run `make` again and again, each time stopped one step later, until it ends; returns how often."""

    def until_last(call, left):
        def maybe(*arguments, **more):
            if not next(left):
                raise Crash
            return call(*arguments, **more)

        return maybe

    for last in range(1, 1000):
        left = iter(range(last - 1, -1, -1))
        with monkeypatch.context() as patch, suppress(Crash):
            for name in STEPS:
                patch.setattr(os, name, until_last(getattr(os, name), left))
            make()
            return last
        check()
    return pytest.fail("never ends")


def write(stage, params, **options):
    with stage.draft(params, **options) as draft:
        draft.write("a.jsonl", [Rationale("q", "positive", "text")])


def test_a_stage_is_made_whole_by_the_next_attempt(small_params, monkeypatch):
    stage = store.stage("training", ["x"], small_params, {})

    def check():
        if stage.is_complete():  # stopped after the rename: there is nothing left to make
            shutil.rmtree(stage.path)

    make = partial(write, stage, small_params, resume=True)
    assert crash_at_every_step(make, monkeypatch, check) > 4
    assert stage.is_complete()
    assert list(stage.manifest()["outputs"]) == ["a.jsonl"]


def test_results_never_pass_for_finished(small_params, monkeypatch):
    table, source = pd.DataFrame({"step": ["all"], "value": [3]}), files.resolve(small_params.run_root)
    source.mkdir()
    for name in metrics.FILES:
        (source / name).write_text("a,b\n1,2\n")
    monkeypatch.setattr(pipeline, "find", lambda *_, **__: store.Stage("metrics", {}, source))
    monkeypatch.setattr(pipeline, "audits", lambda params: table)
    monkeypatch.setattr(results.counterfactual, "funnel_counts", lambda rows, params: table)
    of_study = {"_steps": [], "_stories": {"fig1_weasel": table}, "_origin": {"status": "complete"}}
    for name, found in of_study.items():
        monkeypatch.setattr(results, name, lambda *_, found=found: found)

    def make():
        results.finish(results.collect(small_params))

    make()
    folder, whole = results.folder(small_params), []

    def check():
        whole.append(results.is_whole(folder))
        if (folder / "manifest.json").is_file() and not whole[-1]:
            assert "files" not in results.read_manifest(folder) or not (folder / "metrics.csv").is_file()

    assert crash_at_every_step(make, monkeypatch, check) > 10
    assert set(whole) == {True, False}  # True: stopped before it began
    assert results.is_whole(folder)


def test_a_cell_and_the_tables_of_a_grid_are_made_whole_by_the_next_attempt(tmp_path, monkeypatch):
    made = read(tmp_path, {"method": "ft", "test_datasets": ["weasel-science"]})
    make_cells(made)
    table = made.folder / "metrics.csv"

    def make():
        grid.write_cell(made.folder / FT, made.cells[FT])
        grid.write_tables(made, grid.finished(made))

    def check():
        assert set(grid.finished(made).values()) <= {made.folder / FT}
        if table.is_file() and '"cells"' not in (made.folder / grid.TABLES).read_text():
            table.write_text("half")  # stopped before the tables were all there

    assert crash_at_every_step(make, monkeypatch, check) > 4
    assert list(grid.finished(made)) == [FT]
    assert table.read_text() != "half"


def test_training_stopped_while_its_checkpoints_are_deleted_trains_again(small_params, monkeypatch):
    make_upstream(small_params)
    remove = shutil.rmtree

    def stop(folder, **more):
        if Path(folder).name != "checkpoints":
            return remove(folder, **more)
        for weights in folder.rglob("*.safetensors"):
            weights.unlink()
        raise Crash

    monkeypatch.setattr(shutil, "rmtree", stop)
    with pytest.raises(Crash):
        pipeline.build("training", small_params, method="ft")
    monkeypatch.undo()
    assert pipeline.build("training", small_params, method="ft").is_complete()


def test_what_a_teacher_was_paid_for_is_on_the_disk_before_it_is_used(tmp_path):
    with closing(Cache(tmp_path / "cache.sqlite")) as cache:
        for setting, value in (("synchronous", 2), ("journal_mode", "wal")):  # 2: sync at each commit
            assert cache._db.execute(f"PRAGMA {setting}").fetchone() == (value,)


def test_a_clock_that_jumps_leaves_manifests_in_order(small_params, monkeypatch):
    monkeypatch.setattr("time.time", iter(range(100_000, 0, -1000)).__next__)
    stage = store.stage("rationales", ["x"], small_params, {})
    write(stage, small_params)
    assert stage.manifest()["seconds"] >= 0
