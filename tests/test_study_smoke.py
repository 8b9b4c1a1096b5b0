"""The whole study at small scale: all notebooks, by the runner and by plain papermill."""

import os
import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest

from cfdistill import files, pipeline
from cfdistill.evaluate import metrics
from cfdistill.params import Params
from cfdistill.study import results, run

SMOKE = files.project_root() / "params" / "smoke.yaml"
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
FIGURES = "fig1_weasel table1 headline fig5_ood fig7_qualitative funnel cost audits"
BIN = Path(sys.executable).parent


def study(overrides, *more):
    """Run the study with the program."""
    given = [word for key, value in overrides.items() for word in ("-p", key, value)]
    command = [BIN / "cfdistill", "run", str(SMOKE), *given, *more]
    done = subprocess.run(command, capture_output=True, text=True, cwd=files.project_root())
    assert done.returncode == 0, done.stderr
    return done


@pytest.fixture(scope="module")
def roots(tmp_path_factory):
    """Run the smoke study once with the runner and return the overrides it ran with."""
    folder = tmp_path_factory.mktemp("runner")
    overrides = {"run_root": str(folder / "runs"), "results_root": str(folder / "results")}
    done = study(overrides)
    assert "cf-distill" in done.stdout
    assert not any(word in done.stderr for word in ("arning", "nknown parameter", "Traceback"))
    return overrides


def folder(overrides):
    return results.folder(Params.from_yaml(SMOKE, overrides))


def manifests(overrides):
    return {p: p.stat().st_mtime_ns for p in Path(overrides["run_root"]).glob("*/*/manifest.json")}


def test_all_tables_and_figures_are_there(roots):
    measured = pd.read_csv(folder(roots) / "metrics.csv")
    assert list(measured.columns) == metrics.METRIC_COLUMNS
    assert set(measured["method"]) == {"ft", "ft-cot", "ft-cot-long", "cf-distill"}
    assert {"id", "shift", "shift_reachable", "shift_heldout", "new"} <= set(measured["test_split"])
    comparisons = pd.read_csv(folder(roots) / "comparisons.csv")
    assert set(comparisons["method_a"]) == {"cf-distill"}
    assert comparisons["p_holm"].between(0, 1).all()
    figures = folder(roots) / "figures"
    assert [name for name in FIGURES.split() if not list(figures.glob(f"{name}.*"))] == []
    for picture in figures.glob("*.png"):
        assert picture.with_suffix(".pdf").is_file()
        assert picture.with_suffix(".csv").is_file()


def test_the_manifest_tells_what_was_read(roots):
    manifest = results.read_manifest(folder(roots))
    assert results.is_whole(folder(roots))
    assert manifest["params"]["precision"] in ("fp32", "bf16")
    root = Path(roots["run_root"])
    for place, facts in manifest["stages"].items():
        assert files.sha256(root / place / "manifest.json") == facts["manifest"]
    assert {place.partition("/")[0] for place in manifest["stages"]} == set(pipeline.STAGES)


def test_second_run_recomputes_nothing(roots):
    before, began = manifests(roots), time.perf_counter()
    study(roots)
    assert manifests(roots) == before
    assert time.perf_counter() - began < 30


def test_another_seed_trains_anew_but_keeps_the_teacher(roots):
    before = manifests(roots)
    study({**roots, "seed": "1", "methods": "ft"}, "--only", "01,02,03,04")
    added = {path.parts[-3] for path in manifests(roots).keys() - before.keys()}
    assert added == {"training"}


def test_plain_papermill_from_anywhere_gives_the_same_numbers_in_a_folder_of_its_own(roots, tmp_path):
    """The commands are those that `run` prints, with a profile's name that looks like a number."""
    overrides = {**roots, "run_root": str(tmp_path / "runs"), "profile": "2026"}
    run.executed_folder(Params.from_yaml(SMOKE, overrides)).mkdir(parents=True)
    before = {path: path.stat().st_mtime_ns for path in folder(roots).rglob("*")}
    for line in run.commands(SMOKE, overrides):
        words = shlex.split(line)
        words[1], words[words.index("-f") + 1] = files.project_root() / words[1], SMOKE
        environment = os.environ | {"OMP_NUM_THREADS": str(files.cores())}  # as the runner sets it
        command = [BIN / words[0], *words[1:]]
        done = subprocess.run(command, capture_output=True, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr[-2000:]
    assert folder(overrides).name.startswith("2026-")
    for file in metrics.FILES:
        assert (folder(overrides) / file).read_bytes() == (folder(roots) / file).read_bytes()
    assert {path: path.stat().st_mtime_ns for path in folder(roots).rglob("*")} == before


def test_a_stage_lost_between_two_runs_is_made_again(roots):
    stage = pipeline.find("training", Params.from_yaml(SMOKE, roots), method="ft")
    weights = {f.name: files.sha256(f) for f in (stage.path / "model").glob("*.safetensors")}
    assert weights
    shutil.rmtree(stage.path)
    study(roots)
    assert {f.name: files.sha256(f) for f in (stage.path / "model").glob("*.safetensors")} == weights


def test_a_misspelt_parameter_is_refused_by_the_notebook_itself(tmp_path):
    notebook, words = run.source_path(run.NOTEBOOKS[0]), ["-p", "spurious_rat", "0.2"]
    command = [BIN / "papermill", notebook, "out.ipynb", "-f", SMOKE, *words, "-r", "run_root", tmp_path]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode != 0
    assert "unknown parameter spurious_rat; did you mean spurious_rate?" in done.stderr
    assert not list(tmp_path.glob("data/*"))
