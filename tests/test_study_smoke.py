"""The whole study at small scale: all notebooks, by the runner and by plain papermill."""

import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from cfdistill import runner, runs
from cfdistill.params import Params

SMOKE = runs.project_root() / "params" / "smoke.yaml"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
METRIC_COLUMNS = [
    "train_dataset",
    "method",
    "student",
    "seed",
    "test_dataset",
    "test_split",
    "scoring",
    "n",
    "accuracy",
    "ci_low",
    "ci_high",
    "lure_rate",
    "pair_consistency",
    "unparsed_rate",
]
BIN = Path(sys.executable).parent


def cfdistill(*arguments):
    command = [BIN / "cfdistill", *arguments]
    return subprocess.run(command, capture_output=True, text=True, cwd=runs.project_root())


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Run the smoke study once with the runner and return the overrides it ran with."""
    folder = tmp_path_factory.mktemp("runner")
    overrides = {"run_root": str(folder / "runs"), "results_root": str(folder / "results")}
    done = cfdistill("run", str(SMOKE), *flags(overrides))
    assert done.returncode == 0, done.stderr
    assert "cf-distill" in done.stdout
    return overrides


def flags(overrides):
    return [word for key, value in overrides.items() for word in ("-p", key, value)]


def results(overrides):
    return runs.results_folder(Params.from_yaml(SMOKE, overrides))


def manifests(overrides):
    return {p: p.stat().st_mtime_ns for p in Path(overrides["run_root"]).glob("*/*/manifest.json")}


def test_all_tables_and_figures_are_there(roots):
    metrics = pd.read_csv(results(roots) / "metrics.csv")
    assert list(metrics.columns) == METRIC_COLUMNS
    assert set(metrics["method"]) == {"ft", "ft-cot", "ft-cot-long", "cf-distill"}
    assert {"id", "shift", "shift_reachable", "shift_heldout", "new"} <= set(metrics["test_split"])
    comparisons = pd.read_csv(results(roots) / "comparisons.csv")
    assert set(comparisons["method_a"]) == {"cf-distill"}
    assert comparisons["p_holm"].between(0, 1).all()
    figures = results(roots) / "figures"
    for name in (
        "fig1_weasel",
        "table1",
        "headline",
        "fig5_ood",
        "fig5_matrix",
        "fig6_architectures",
        "fig7_qualitative",
        "funnel",
        "cost",
    ):
        assert list(figures.glob(f"{name}.*")), name
    for picture in figures.glob("*.png"):
        assert picture.with_suffix(".pdf").is_file()
        assert picture.with_suffix(".csv").is_file()


def test_second_run_recomputes_nothing(roots):
    before, began = manifests(roots), time.perf_counter()
    assert cfdistill("run", str(SMOKE), *flags(roots)).returncode == 0
    assert manifests(roots) == before
    assert time.perf_counter() - began < 30


def test_another_seed_trains_anew_but_keeps_the_teacher(roots):
    before = manifests(roots)
    done = cfdistill(
        "run", str(SMOKE), *flags({**roots, "seed": "1", "methods": "ft"}), "--only", "01,02,03,04"
    )
    assert done.returncode == 0, done.stderr
    added = {path.parts[-3] for path in manifests(roots).keys() - before.keys()}
    assert added == {"training"}


def test_plain_papermill_from_anywhere_gives_the_same_numbers(roots, tmp_path):
    overrides = {"run_root": str(tmp_path / "runs"), "results_root": str(tmp_path / "results")}
    environment = os.environ | {"OMP_NUM_THREADS": str(os.cpu_count())}  # as the runner sets it
    for name in runner.NOTEBOOKS:
        command = [BIN / "papermill", runner.source_path(name), "out.ipynb", "-f", SMOKE, *flags(overrides)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    for file in ("metrics.csv", "comparisons.csv", "predictions.csv"):
        assert (results(overrides) / file).read_bytes() == (results(roots) / file).read_bytes()


def test_a_stage_lost_between_two_runs_is_made_again(roots):
    stage = runs.stage("training", Params.from_yaml(SMOKE, roots), method="ft")
    weights = {f.name: runs.sha256(f) for f in (stage.path / "model").glob("*.safetensors")}
    assert weights
    shutil.rmtree(stage.path)
    assert cfdistill("run", str(SMOKE), *flags(roots)).returncode == 0
    assert {f.name: runs.sha256(f) for f in (stage.path / "model").glob("*.safetensors")} == weights
