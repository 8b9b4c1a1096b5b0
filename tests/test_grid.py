"""Grids: cells by content, shared between grids, and none trained twice whatever happens."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from cfdistill import data, grid, runs
from cfdistill.errors import ParamsError, StageError
from cfdistill.params import Params
from cfdistill.schema import Prediction

GRIDS = runs.project_root() / "params" / "grids"
SNAKEMAKE = shutil.which("snakemake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
needs_snakemake = pytest.mark.skipif(SNAKEMAKE is None, reason="Snakemake is not installed: docs/clusters.md")


def write_grid(folder, *blocks, name="small", **base):
    profile = yaml.safe_load((runs.project_root() / "params" / "smoke.yaml").read_text())
    profile |= {"run_root": str(folder / "runs"), "results_root": str(folder / "results"), **base}
    (folder / "base.yaml").write_text(yaml.safe_dump(profile))
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"base": "base.yaml", "cells": list(blocks)}))
    return path


def fake_evaluations(params, run_root=None):
    """Complete the stages `training` and `evaluation` of a cell without a student."""
    params = params.model_copy(update={"run_root": str(run_root)}) if run_root else params
    method = params.methods[0]
    trained = runs.stage("training", params, method=method)
    if not trained.is_complete():
        with trained.draft(params) as draft:
            draft.notes = {"steps": 3}
    scoring = "label" if method == "ft" else "direct"
    tested = [runs.stage("evaluation", params, method=method, dataset=d) for d in params.test_datasets]
    for dataset, stage in zip(params.test_datasets, tested, strict=True):
        if stage.is_complete():
            continue
        with stage.draft(params, [trained]) as draft:
            for split in data.test_splits(dataset, params):
                rng = random.Random(f"{method} {dataset} {split} {params.seed}")
                answers = [
                    Prediction(f"s{i}.f2.v0.c0", dataset, split, "", f"s{i}", method, scoring, 1, 0,
                               rng.randrange(4), "text")
                    for i in range(8)
                ]  # fmt: skip
                draft.write(f"predictions.{split}.{scoring}.jsonl", answers)
    return [stage.path for stage in tested]


def make_cells(made, names):
    for name in names:
        grid.write_cell(made.folder / name, fake_evaluations(made.cells[name]))


def test_blocks_are_crossed_and_names_tell_what_differs(tmp_path):
    path = write_grid(
        tmp_path,
        {"method": ["ft-cot", "cf-distill"], "seed": [0, 1], "spurious_rate": [0.5, 0.9]},
        {"method": "ft", "test_datasets": ["weasel-science"]},
    )
    made = grid.read(path)
    assert made.varied == ["spurious_rate"]
    assert len(made.cells) == 9
    cell = made.cells["weasel-commonsense-cf-distill-tiny-random-seed1-spurious_rate0.5"]
    assert (cell.methods, cell.seed, cell.spurious_rate) == (["cf-distill"], 1, 0.5)
    last = made.cells["weasel-commonsense-ft-tiny-random-seed0-spurious_rate0.9"]
    assert last.test_datasets == ["weasel-science"]


@pytest.mark.parametrize(
    ("block", "said"),
    [
        ({"method": []}, "the blocks make no cell"),
        ({"seed": 0}, "every block needs `method`"),
        ({"method": "ft", "sead": 0}, "unknown parameter sead"),
        ({"method": "magic"}, "unknown magic"),
    ],
)
def test_wrong_grid_is_one_sentence(tmp_path, block, said):
    with pytest.raises(ParamsError, match=said):
        grid.read(write_grid(tmp_path, block))


def test_two_blocks_must_not_make_one_cell(tmp_path):
    tests = [{"method": "ft", "test_datasets": [name]} for name in ("weasel-commonsense", "weasel-science")]
    with pytest.raises(ParamsError, match="two blocks make the cell weasel-commonsense-ft-tiny-random-seed0"):
        grid.read(write_grid(tmp_path, *tests))
    assert len(grid.read(write_grid(tmp_path, tests[0], tests[0])).cells) == 1
    (tmp_path / "wrong.yaml").write_text("base: 3\ncells: []\n")
    with pytest.raises(ParamsError, match=r"a grid has `base: PROFILE\.yaml` and `cells:`"):
        grid.read(tmp_path / "wrong.yaml")


CELLS = {
    "offline_full": 18,
    "spurious": 10,
    "data_size": 6,
    "ablation": 8,
    "joint": 10,
    "smoke": 24,
    "csqa_smollm2": 2,
    "../paper/table1": 36,
    "../paper/fig5": 36,
    "../paper/fig6": 36,
    "../paper/ablation": 24,
}


@pytest.mark.parametrize("name", CELLS)
def test_shipped_grids_are_valid(name):
    """All of them are here, and every cell's parameters are sound; counted for one student."""
    assert {f.stem for folder in ("grids", "paper") for f in GRIDS.parent.glob(f"{folder}/*.yaml")} == {
        "base",
        *(Path(name).name for name in CELLS),
    }
    assert len(grid.read(GRIDS / f"{name}.yaml", {"student": "tiny-random"}).cells) == CELLS[name]


def test_cell_is_complete_by_content_whatever_grid_made_it(tmp_path):
    everywhere = {"method": ["ft", "ft-cot"], "test_datasets": ["weasel-commonsense", "weasel-science"]}
    made = grid.read(write_grid(tmp_path, everywhere, name="first"))
    make_cells(made, made.cells)
    fewer_tests = {"method": ["ft", "cf-distill"], "test_datasets": ["weasel-commonsense"]}
    other = grid.read(write_grid(tmp_path, fewer_tests, name="second", data_root="elsewhere"))
    name = "weasel-commonsense-ft-tiny-random-seed0"
    assert grid.finished(other) == {name: made.folder / name}
    assert set(grid.make_plan(other, {n: p for n, p in other.cells.items() if n != name})["cells"]) == {
        "weasel-commonsense-cf-distill-tiny-random-seed0"
    }
    changed = grid.read(write_grid(tmp_path, everywhere, name="third", learning_rate=0.1))
    assert grid.finished(changed) == {}


def test_parameter_younger_than_a_manifest_counts_as_its_default(tmp_path):
    path = write_grid(tmp_path, {"method": "ft"}, round_trip_check=Params().round_trip_check)
    made = grid.read(path)
    make_cells(made, made.cells)
    (manifest,) = made.folder.glob("*/manifest.json")
    stored = json.loads(manifest.read_text())
    del stored["params"]["round_trip_check"]
    manifest.write_text(json.dumps(stored))
    assert grid.finished(made).keys() == made.cells.keys()
    assert grid.finished(grid.read(path, {"round_trip_check": True})) == {}


def test_changed_predictions_and_broken_manifests_are_refused(tmp_path):
    made = grid.read(write_grid(tmp_path, {"method": "ft"}))
    make_cells(made, made.cells)
    (predictions,) = made.folder.glob("*/predictions.csv")
    whole = predictions.read_text()
    predictions.write_text(whole[:-20])
    with pytest.raises(StageError, match=r"predictions.csv was changed after the cell was made"):
        grid.finished(made)
    predictions.write_text(whole)
    (predictions.parent / "manifest.json").write_text("{")
    with pytest.raises(StageError, match="is not a cell's manifest"):
        grid.finished(made)


def test_finished_stages_of_another_run_root_become_cells(tmp_path):
    made = grid.read(write_grid(tmp_path, {"method": ["ft", "ft-cot"], "seed": [0, 1]}))
    first, second, *_ = made.cells
    for name in (first, second):
        fake_evaluations(made.cells[name], tmp_path / "other")
    (unfinished,) = (tmp_path / "other" / "evaluation").glob("*-seed1-weasel-science-*/manifest.json")
    shutil.rmtree(unfinished.parent)
    assert grid.import_runs(made, tmp_path / "other") == [first]
    assert list(grid.finished(made)) == [first]
    with pytest.raises(StageError, match="holds no folder `evaluation`"):
        grid.import_runs(made, tmp_path / "nowhere")


def test_tables_hold_the_varied_parameters_and_one_family_of_p_values(tmp_path):
    import pandas as pd

    block = {"method": ["ft-cot", "cf-distill"], "seed": [0, 1], "spurious_rate": [0.5, 0.9]}
    made = grid.read(write_grid(tmp_path, block))
    make_cells(made, made.cells)
    grid.write_tables(made, grid.finished(made))
    metrics, comparisons = (pd.read_csv(made.folder / f"{n}.csv") for n in ("metrics", "comparisons"))
    assert metrics.columns[0] == comparisons.columns[0] == "spurious_rate"
    assert metrics.groupby(["spurious_rate", "method", "seed"]).ngroups == 8
    smallest = comparisons["p_mcnemar"].min()
    assert comparisons["p_holm"].min() == pytest.approx(min(1, smallest * len(comparisons)), rel=1e-4)
    before = (made.folder / "metrics.csv").stat().st_mtime_ns
    grid.write_tables(made, grid.finished(made))
    assert (made.folder / "metrics.csv").stat().st_mtime_ns == before


# What the jobs of the tests below do instead of training: they log every complete training, take a
# moment, and fail once where the test asks for it. Python imports a `sitecustomize` on its path.
FAKE_TRAINING = """
import sys
if "job" in sys.orig_argv:
    import os, pathlib, time
    from cfdistill import evaluation, runs, training
    import test_grid
    place = pathlib.Path(os.environ["GRID_TEST"])
    def build(method, params):
        made = runs.stage("training", params, method=method)
        if made.is_complete():
            return made
        once = place / f"failed-{made.path.name}"
        if method == os.environ.get("GRID_TEST_FAILS") and not once.exists():
            once.touch()
            raise RuntimeError("injected failure")
        with made.draft(params) as draft:
            time.sleep(0.1)
        with (place / "trained.log").open("a") as log:
            log.write(made.path.name + chr(10))
        return made
    def build_all(method, params):
        test_grid.fake_evaluations(params)
        return [runs.stage("evaluation", params, method=method, dataset=d) for d in params.test_datasets]
    training.build, evaluation.build_all = build, build_all
"""


def fake_training(folder, monkeypatch, fails=""):
    (folder / "fake").mkdir(parents=True)
    (folder / "fake" / "sitecustomize.py").write_text(FAKE_TRAINING)
    paths = [folder / "fake", Path(__file__).parent, runs.project_root()]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setenv("GRID_TEST", str(folder))
    monkeypatch.setenv("GRID_TEST_FAILS", fails)


def command(path, *more):
    return [sys.executable, "-m", "cfdistill", "grid", str(path), "--cores", "2", *more]


def tables_of(folder):
    return {path.name: path.read_text() for path in sorted(folder.glob("results/small/*.csv"))}


def cells_of(folder):
    return {path.parent.name: path.read_text() for path in folder.glob("results/small/*/predictions.csv")}


@pytest.mark.slow
@needs_snakemake
def test_24_cells_survive_failures_and_kills_with_the_same_results(tmp_path, monkeypatch):
    block = yaml.safe_load((GRIDS / "smoke.yaml").read_text())["cells"][0]
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    fake_training(calm, monkeypatch)
    subprocess.run(command(write_grid(calm, block)), check=True, capture_output=True)
    fake_training(rough, monkeypatch, fails="ft-cot")
    path, rng = write_grid(rough, block), random.Random(5)
    for attempt in range(10):
        running = subprocess.Popen(
            command(path), start_new_session=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        time.sleep(rng.uniform(2, 12))
        if attempt % 2:  # with all its jobs, or only the grid itself, whose jobs then go on alone
            os.killpg(running.pid, signal.SIGKILL)
        else:
            for pid in [running.pid, *_children(running.pid)]:
                os.kill(pid, signal.SIGKILL)
        running.wait()
    subprocess.run(command(path), check=True, capture_output=True)
    assert len(cells_of(calm)) == 24
    assert cells_of(rough) == cells_of(calm)
    assert tables_of(rough) == tables_of(calm)
    assert sorted(tables_of(calm)) == ["comparisons.csv", "metrics.csv", "settings.csv"]
    trained = (rough / "trained.log").read_text().split()
    assert len(list(rough.glob("failed-*"))) == 6  # every ft-cot cell failed once
    assert len(trained) == len(set(trained))  # no complete training was made again
    assert len(trained) > 24 - 10 * 2  # a kill may come between a training and its line


@pytest.mark.slow
@needs_snakemake
def test_a_cell_that_keeps_failing_harms_no_other_and_is_named(tmp_path, monkeypatch):
    fake_training(tmp_path, monkeypatch)
    path = write_grid(tmp_path, {"method": ["ft", "ft-cot-long"]}, {"method": "cf-distill"})
    name = "weasel-commonsense-ft-cot-long-tiny-random-seed0"
    made = grid.read(path)
    trained = runs.stage("training", made.cells[name], method="ft-cot-long").path
    trained.mkdir(parents=True)  # a stage without its manifest is damaged
    done = subprocess.run(command(path), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"error: 1 of 3 cells are not made; the same command tries them again:\n  {name}: " in done.stderr
    assert f"{trained} is not complete: it has no manifest.json" in done.stderr
    assert len(grid.finished(made)) == 2
    trained.rmdir()
    before = {p: p.stat().st_mtime_ns for p in made.folder.glob("*/manifest.json")}
    subprocess.run(command(path), capture_output=True, check=True)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in before.items())
    assert len(grid.finished(made)) == 3


def _children(pid):
    """Return the direct children of a process (on Linux)."""
    return [int(p) for p in Path(f"/proc/{pid}/task/{pid}/children").read_text().split()]


@pytest.mark.slow
@needs_snakemake
@pytest.mark.parametrize("profile", ["", "slurm"])
def test_dry_run_prints_the_plan_and_makes_nothing(tmp_path, profile):
    path = write_grid(tmp_path, {"method": ["ft", "cf-distill"]})
    more = ["--profile", profile] if profile else []
    done = subprocess.run(command(path, "--dry-run", *more), capture_output=True, text=True, check=False)
    if profile and "snakemake-executor-plugin-slurm" in done.stderr:
        pytest.skip("the SLURM executor plugin is not installed: docs/clusters.md")
    assert done.returncode == 0, done.stderr
    assert "small: 2 cells, 0 complete, 2 to make" in done.stdout
    assert "  weasel-commonsense-cf-distill-tiny-random-seed0  (after weasel-commonsense-" in done.stdout
    assert not (tmp_path / "results").exists()
