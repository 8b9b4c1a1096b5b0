"""Stopped between any two of its steps, nothing half made passes for finished, and all is made anew."""

import os
import shutil
from contextlib import suppress
from functools import partial
from pathlib import Path
from unittest.mock import DEFAULT, Mock

import pytest
from studies import make_upstream
from test_grid import FT, make_cells, read

from cfdistill import pipeline, store
from cfdistill.schema import Rationale
from cfdistill.study import grid

STEPS = ("fsync", "rename", "replace", "unlink", "rmdir", "mkdir")


class Crash(BaseException):
    """What a killed process looks like from inside."""


def crash_at_every_step(make, monkeypatch, check):
    """Run `make` again and again, each time stopped one step later, until it ends; returns how often."""
    for last in range(1, 1000):
        left = iter([*[DEFAULT] * (last - 1), Crash])
        with monkeypatch.context() as patch, suppress(Crash):
            for name in STEPS:
                patch.setattr(os, name, Mock(wraps=getattr(os, name), side_effect=left))
            make()
            return last
        check()
    return pytest.fail("never ends")


def write(stage, params, **options):
    with stage.draft(params, **options) as draft:
        draft.write("a.jsonl", [Rationale("q", "positive", "text")])


@pytest.mark.parametrize("resume", [True, False])
def test_a_stage_is_made_whole_by_the_next_attempt(small_params, monkeypatch, resume):
    stage = store.stage("training", ["x"], small_params, {})
    left = stage.path.with_name(f"{stage.path.name}.partial") / "left.jsonl"

    def check():
        if stage.is_complete():  # stopped after the rename: there is nothing left to make
            shutil.rmtree(stage.path)
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_text("of an attempt before")

    check()
    assert crash_at_every_step(partial(write, stage, small_params, resume=resume), monkeypatch, check) > 4
    assert stage.is_complete()
    assert list(stage.manifest()["outputs"]) == ["a.jsonl", *(["left.jsonl"] if resume else [])]


def test_a_cell_and_the_tables_of_a_grid_are_made_whole_by_the_next_attempt(tmp_path, monkeypatch):
    made = read(tmp_path, {"method": "ft", "test_datasets": ["weasel-science"]})
    make_cells(made)
    table = made.folder / "metrics.csv"

    def make():
        grid.write_cell(made.folder / FT, made.cells[FT])
        grid.write_tables(made, grid.finished(made))

    def check():
        assert set(grid.finished(made).values()) <= {made.folder / FT}
        if table.is_file():
            table.write_text("half")

    assert crash_at_every_step(make, monkeypatch, check) > 4
    assert list(grid.finished(made)) == [FT]
    assert table.read_text() != "half"


def test_training_stopped_while_its_checkpoints_are_deleted_trains_again(small_params, monkeypatch):
    make_upstream(small_params)

    def stop(folder, **more):
        for weights in Path(folder).rglob("*.safetensors"):
            weights.unlink()
        if Path(folder).name == "checkpoints":  # and not one of them, which a later one replaces
            raise Crash

    with monkeypatch.context() as patch:
        patch.setattr(shutil, "rmtree", stop)
        with pytest.raises(Crash):
            pipeline.build("training", small_params, method="ft")
    assert pipeline.build("training", small_params, method="ft").is_complete()


def test_a_clock_that_jumps_leaves_manifests_in_order(small_params, monkeypatch):
    monkeypatch.setattr("time.time", iter(range(100_000, 0, -1000)).__next__)
    stage = store.stage("rationales", ["x"], small_params, {})
    write(stage, small_params)
    assert stage.manifest()["seconds"] >= 0
