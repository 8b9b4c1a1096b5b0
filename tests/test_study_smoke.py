"""A small study through all notebooks: with the program, and with plain papermill."""

import shlex
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
from faults import small_study
from faults.small_study import PROFILE, finish, overrides, params, start

from cfdistill import files, pipeline
from cfdistill.evaluate import metrics
from cfdistill.params import Params
from cfdistill.study import results, run

pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
MORE = {"methods": "ft,ft-cot,cf-distill", "test_datasets": "weasel-commonsense,weasel-science"}
FIGURES = "fig1_weasel table1 headline fig5_ood fig7_qualitative funnel cost"
PAPERMILL = Path(sys.executable).parent / "papermill"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """Run the study once with the program and return the folder that all of it is in."""
    folder = tmp_path_factory.mktemp("study")
    told = finish(start(folder, **MORE))
    assert not any(word in told for word in ("arning", "nknown parameter", "Traceback"))
    return folder


def stamps(folder):
    return {p: p.stat().st_mtime_ns for p in folder.glob("runs/*/*/manifest.json")}


def papermill(cwd, *words):
    return subprocess.run([PAPERMILL, *words], capture_output=True, text=True, cwd=cwd)


def test_all_tables_and_figures_are_there_and_the_manifest_tells_what_was_read(made):
    folder = results.folder(params(made, **MORE))
    measured = pd.read_csv(folder / "metrics.csv")
    assert list(measured.columns) == metrics.METRIC_COLUMNS
    assert set(measured["method"]) == {"ft", "ft-cot", "cf-distill"}
    assert {"id", "shift", "shift_reachable", "shift_heldout", "new"} <= set(measured["test_split"])
    comparisons = pd.read_csv(folder / "comparisons.csv")
    assert set(comparisons["method_a"]) == {"cf-distill"}
    assert comparisons["p_holm"].between(0, 1).all()
    assert [name for name in FIGURES.split() if not list(folder.glob(f"figures/{name}.*"))] == []
    manifest = results.read_manifest(folder)
    assert results.is_whole(folder)
    assert manifest["params"]["precision"] in ("fp32", "bf16")
    for place, facts in manifest["stages"].items():
        assert files.sha256(made / "runs" / place / "manifest.json") == facts["manifest"]
    assert {place.partition("/")[0] for place in manifest["stages"]} == set(pipeline.STAGES)


def test_second_run_recomputes_nothing_and_makes_again_what_was_lost(made):
    before, began = stamps(made), time.perf_counter()
    finish(start(made, **MORE))
    assert stamps(made) == before
    assert time.perf_counter() - began < 30
    hashes, stage = small_study.made(made), pipeline.find("training", params(made, **MORE), method="ft")
    shutil.rmtree(stage.path)
    finish(start(made, only="04", **MORE))
    assert small_study.made(made) == hashes
    assert any(name.startswith(f"runs/{stage.place}/model/") for name in hashes)
    # What took other seconds, and gave the same numbers, leaves every file of the results as it was.
    folder = results.folder(params(made, **MORE))
    files_before = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    run.run(PROFILE, overrides(made, **MORE), ["07"], force=True)
    assert {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()} == files_before


def test_plain_papermill_from_anywhere_finds_the_same_stages_and_has_results_of_its_own(made, tmp_path):
    """The commands are those that `run` prints, with a profile's name that looks like a number."""
    given = overrides(made, **MORE, profile="2026")
    own, other = (results.folder(params(made, **MORE, **more)) for more in ({}, {"profile": "2026"}))
    run.executed_folder(Params.from_yaml(PROFILE, given)).mkdir(parents=True)
    before = stamps(made), {path: path.stat().st_mtime_ns for path in own.rglob("*")}
    for line in run.commands(PROFILE, given, ["01", "07"]):
        done = papermill(tmp_path, *shlex.split(line)[1:])
        assert done.returncode == 0, done.stderr[-2000:]
    assert other.name.startswith("2026-")
    assert [f for f in metrics.FILES if (other / f).read_bytes() != (own / f).read_bytes()] == []
    # No parameter arrived as another one, and the first study's results are untouched.
    assert (stamps(made), {path: path.stat().st_mtime_ns for path in own.rglob("*")}) == before


def test_a_misspelt_parameter_is_refused_by_the_notebook_itself(tmp_path):
    words = [run.source_path(run.NOTEBOOKS[0]), "out.ipynb", "-f", PROFILE, "-r", "run_root", tmp_path]
    done = papermill(tmp_path, *words, "-p", "spurious_rat", "0.2")
    assert done.returncode != 0
    assert "unknown parameter spurious_rat; did you mean spurious_rate?" in done.stderr
    assert not list(tmp_path.glob("data/*"))
