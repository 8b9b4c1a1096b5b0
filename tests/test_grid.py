"""Grids: a cell is its training's stage, shared between grids, and none is trained twice whatever happens."""

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pandas as pd
import pytest
import yaml
from studies import write_user_files

from cfdistill import data, files, pipeline
from cfdistill.errors import ParamsError, StageError
from cfdistill.evaluate import predict
from cfdistill.methods import METHODS
from cfdistill.study import grid

PARAMS = files.project_root() / "params"
SHIPPED = [path for path in PARAMS.glob("*/*.yaml") if path.stem != "base"]
SNAKEMAKE = shutil.which("snakemake", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
NEEDED = pytest.mark.skipif(SNAKEMAKE is None, reason="Snakemake is not installed: docs/clusters.md")
FT = "weasel-commonsense-ft-tiny-random-seed0"


def write_grid(folder, *blocks, name="small", **base):
    places = {"run_root": str(folder / "runs"), "results_root": str(folder / "results")}
    profile = yaml.safe_load((PARAMS / "smoke.yaml").read_text()) | places | base
    (folder / "base.yaml").write_text(yaml.safe_dump(profile))
    path = folder / f"{name}.yaml"
    path.write_text(yaml.safe_dump({"base": "base.yaml", "cells": list(blocks)}))
    return path


def read(folder, *blocks, **base):
    """Read a grid whose data, counterfactuals and rationales are there."""
    made = grid.read(write_grid(folder, *blocks, **base))
    grid.prepare(made)
    return made


def pretend(draft, params, method):
    (draft.path / "model").mkdir(exist_ok=True)
    (draft.path / "model" / "weights").write_text(draft.path.stem)


def answer_all(draft, params, method, dataset):
    how = METHODS[method].scoring
    for split in data.test_splits(dataset, params):
        rng = random.Random(f"{method} {dataset} {split} {params.seed}")
        asked = pipeline.questions(dataset, split, params)
        answers = [predict.answered(q, method, how, rng.randrange(len(q.options)), "", True) for q in asked]
        draft.write(f"predictions.{split}.{how}.jsonl", answers)


def make_cells(made, names=None):
    """Complete the stages `training` and `evaluation` of cells without a student, and write the cells."""
    for name, params in ((name, made.cells[name]) for name in names or made.cells):
        for stage_name, make in (("training", pretend), ("evaluation", answer_all)):
            for part in pipeline.parts(stage_name, params):
                stage = pipeline.locate(stage_name, params, **part)
                if not stage.is_complete():
                    with stage.draft(params) as draft:
                        make(draft, params, **part)
        grid.write_cell(made.folder / name, params)


def test_blocks_are_crossed_and_names_tell_what_differs(tmp_path):
    crossed = {"method": ["ft-cot", "cf-distill"], "seed": [0, 1], "spurious_rate": [0.5, 0.9]}
    made = grid.read(write_grid(tmp_path, crossed, {"method": "ft", "test_datasets": ["weasel-science"]}))
    assert made.varied == ["spurious_rate"]
    assert len(made.cells) == 9
    cell = made.cells["weasel-commonsense-cf-distill-tiny-random-seed1-spurious_rate0.5"]
    assert (cell.methods, cell.seed, cell.spurious_rate) == (["cf-distill"], 1, 0.5)
    assert made.cells[f"{FT}-spurious_rate0.9"].test_datasets == ["weasel-science"]


WRONG = [([{"method": []}], "the blocks make no cell"), ([{"seed": 0}], "every block needs `method`")]
SAME = [{"method": "ft", "test_datasets": name} for name in ("csqa", "qasc")]
WRONG += [([{"method": "ft", "sead": 0}], "unknown parameter sead"), (SAME, f"two blocks make the cell {FT}")]


@pytest.mark.parametrize(("blocks", "said"), WRONG)
def test_wrong_grid_is_one_sentence(tmp_path, blocks, said):
    with pytest.raises(ParamsError, match=said):
        grid.read(write_grid(tmp_path, *blocks))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: f"{path.parent.name}-{path.stem}")
def test_shipped_grids_are_valid(path):
    made = grid.read(path, {"student": "tiny-random"})
    assert len(made.cells) > 1
    assert made.name.startswith(f"{path.stem}-")  # another student's grid has results of its own
    assert grid.read(path).name == path.stem


def test_a_cell_is_complete_by_what_it_was_made_from_whatever_grid_made_it(tmp_path):
    everywhere = {"method": ["ft", "ft-cot"], "test_datasets": ["weasel-commonsense", "weasel-science"]}
    made = read(tmp_path, everywhere, name="first")
    make_cells(made)
    fewer = {"method": ["ft", "cf-distill"], "test_datasets": ["weasel-commonsense"]}
    other = read(tmp_path, fewer, name="second", data_root="elsewhere", run_root=str(tmp_path / "others"))
    assert grid.finished(other) == {FT: made.folder / FT}
    changes = {"learning_rate": 0.1, "spurious_rate": 0.2, "max_new_tokens": 9, "test_questions": 9}
    for change in ({name: value} for name, value in changes.items()):
        assert grid.finished(read(tmp_path, everywhere, name="third", **change)) == {}, change


def test_a_cell_of_other_files_is_never_complete(tmp_path):
    """Only their content counts: the same files elsewhere are the same, another byte is not."""
    given, block = write_user_files(tmp_path / "a"), {"method": "ft", "test_datasets": ["user"]}

    def read_with(place):
        places = {"data_root": place, "rationale_file": f"{place}/rationales.jsonl"}
        return read(tmp_path, block, **given | {name: str(tmp_path / path) for name, path in places.items()})

    made = read_with("a")
    make_cells(made)
    shutil.copytree(tmp_path / "a", tmp_path / "b")
    assert list(grid.finished(read_with("b"))) == list(made.cells)
    for file in ("user/train.jsonl", "user/test.jsonl", "rationales.jsonl"):
        changed = shutil.copytree(tmp_path / "a", tmp_path / Path(file).stem) / file
        changed.write_text(changed.read_text().replace("is", "was"))
        assert grid.finished(read_with(changed.stem)) == {}, file


def test_one_grid_has_one_number_format_which_later_runs_keep(tmp_path, monkeypatch):
    formats = iter(("bf16", "fp32"))
    own = {"auto": lambda: next(formats), "fp32": lambda: "fp32", "bf16": lambda: "bf16"}
    monkeypatch.setattr(grid.models, "precision", lambda params: own[params.precision]())
    made = read(tmp_path, {"method": ["ft", "ft-cot"]}, precision="auto")
    make_cells(made, [FT])
    grid.write_tables(made, grid.finished(made))
    again = grid.read(tmp_path / "small.yaml")  # on another machine
    assert {params.precision for grids in (made, again) for params in grids.cells.values()} == {"bf16"}
    assert json.loads((made.folder / FT / "manifest.json").read_text())["params"]["precision"] == "bf16"
    assert grid.finished(grid.read(tmp_path / "small.yaml", {"precision": "fp32"})) == {}


def test_changed_predictions_and_broken_manifests_and_other_folders_are_refused(tmp_path):
    made = read(tmp_path, {"method": "ft"})
    make_cells(made)
    make_cells(made)  # a cell replaces a cell, and nothing else
    predictions = made.folder / FT / "predictions.csv"
    whole = predictions.read_text()
    predictions.write_text(whole[:-20])
    with pytest.raises(StageError, match=r"predictions.csv was changed since"):
        grid.finished(made)
    predictions.write_text(whole)
    (predictions.parent / "manifest.json").write_text("{}")
    with pytest.raises(StageError, match="is not a cell's manifest"):
        grid.finished(made)
    (made.folder / FT / files.MARKER).rename(made.folder / FT / "notes.txt")
    with pytest.raises(StageError, match="holds something else"):
        make_cells(made)
    assert (made.folder / FT / "notes.txt").is_file()


def test_tables_hold_the_varied_parameters_and_tell_their_cells(tmp_path):
    made = read(tmp_path, {"method": ["ft-cot", "cf-distill"], "seed": [0, 1], "spurious_rate": [0.5, 0.9]})
    make_cells(made)
    grid.write_tables(made, grid.finished(made))
    metrics, comparisons = (pd.read_csv(made.folder / f"{n}.csv") for n in ("metrics", "comparisons"))
    assert metrics.columns[0] == comparisons.columns[0] == "spurious_rate"
    assert metrics.groupby(["spurious_rate", "method", "seed"]).ngroups == 8
    expected = min(1, comparisons["p_mcnemar"].min() * len(comparisons))
    assert comparisons["p_holm"].min() == pytest.approx(expected, rel=1e-4)
    told = json.loads((made.folder / grid.TABLES).read_text())
    assert told == {"precision": "fp32", "cells": [f"{made.name}/{name}" for name in made.cells]}


# What the jobs of the tests below do instead of training: they log every complete training, take a
# moment, and fail once where the test asks for it. Python imports a `sitecustomize` on its path.
FAKE_TRAINING = """
import sys
if "job" in sys.orig_argv:
    import os, pathlib, time
    from dataclasses import replace
    from cfdistill import pipeline
    import test_grid
    place = pathlib.Path(os.environ["GRID_TEST"])
    def make_training(draft, params, method):
        name = draft.path.stem
        once = place / f"failed-{name}"
        if method == os.environ.get("GRID_TEST_FAILS") and not once.exists():
            once.touch()
            raise RuntimeError("injected failure")
        time.sleep(0.1)
        test_grid.pretend(draft, params, method)
        with (place / "trained.log").open("a") as log:
            log.write(name + chr(10))
    for name, make in (("training", make_training), ("evaluation", test_grid.answer_all)):
        pipeline.STAGES[name] = replace(pipeline.STAGES[name], make=make)
"""


def fake_training(folder, monkeypatch, fails=""):
    (folder / "fake").mkdir(parents=True)
    (folder / "fake" / "sitecustomize.py").write_text(FAKE_TRAINING)
    paths = [folder / "fake", Path(__file__).parent, files.project_root()]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(map(str, paths)))
    monkeypatch.setenv("GRID_TEST", str(folder))
    monkeypatch.setenv("GRID_TEST_FAILS", fails)


def command(path, *more):
    return [sys.executable, "-m", "cfdistill.cli", "grid", str(path), *more]


def made_in(folder, files):
    """Return the texts of a grid's tables (`*.csv`) or of its cells' predictions, by name."""
    paths = sorted(folder.glob(f"results/small-*/{files}"))
    return {path.name if files == "*.csv" else path.parent.name: path.read_text() for path in paths}


@pytest.mark.long
@pytest.mark.timeout(900)
def test_24_cells_survive_failures_and_kills_with_the_same_results(tmp_path, monkeypatch):
    block = yaml.safe_load((PARAMS / "grids" / "smoke.yaml").read_text())["cells"][0]
    calm, rough = tmp_path / "calm", tmp_path / "rough"
    fake_training(calm, monkeypatch)
    subprocess.run(command(write_grid(calm, block)), check=True, capture_output=True)
    fake_training(rough, monkeypatch, fails="ft-cot")
    path, rng = write_grid(rough, block), random.Random(5)
    for attempt in range(8):
        quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
        running = subprocess.Popen(command(path), start_new_session=True, **quiet)
        time.sleep(rng.uniform(4, 15))
        if attempt % 2:  # with all its jobs, or only the grid itself, whose jobs then go on alone
            os.killpg(running.pid, signal.SIGKILL)
        else:
            children = Path(f"/proc/{running.pid}/task/{running.pid}/children").read_text()  # on Linux
            for pid in [running.pid, *map(int, children.split())]:
                os.kill(pid, signal.SIGKILL)
        running.wait()
    subprocess.run(command(path), check=True, capture_output=True)
    assert len(made_in(calm, "*/predictions.csv")) == 24
    assert made_in(rough, "*/predictions.csv") == made_in(calm, "*/predictions.csv")
    assert made_in(rough, "*.csv") == made_in(calm, "*.csv")
    assert list(made_in(calm, "*.csv")) == ["comparisons.csv", "metrics.csv"]
    trained = (rough / "trained.log").read_text().split()
    assert len(list(rough.glob("failed-*"))) == 6  # every ft-cot cell failed once
    assert len(trained) - len(set(trained)) <= 8 * 2  # again only what a kill caught at its last step
    assert len(set(trained)) == 24


@pytest.mark.slow
@pytest.mark.parametrize("where", ["--cores", pytest.param("--profile", marks=NEEDED)])
def test_a_failing_cell_harms_no_other_and_is_named_and_a_dry_run_makes_nothing(tmp_path, monkeypatch, where):
    fake_training(tmp_path, monkeypatch)
    (tmp_path / "config.yaml").write_text("cores: 2")  # of a Snakemake profile
    how = [where, {"--cores": "2"}.get(where, str(tmp_path))]
    blocks = {"method": ["ft", "ft-cot-long"]}, {"method": "cf-distill"}
    path = write_grid(tmp_path, *blocks)
    done = subprocess.run(command(path, *how, "--dry-run"), capture_output=True, text=True, check=True)
    assert f": 3 cells, 0 complete, 3 to make\n  {FT}" in done.stdout
    assert not (tmp_path / "results").exists()
    made = read(tmp_path, *blocks)
    name = FT.replace("ft", "ft-cot-long")
    trained = pipeline.locate("training", made.cells[name], method="ft-cot-long").path
    trained.mkdir(parents=True)  # a stage without its manifest is damaged
    done = subprocess.run(command(path, *how), capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert f"error: 1 of 3 cells are not made: {name}; {made.workplace}/logs tells why" in done.stderr
    log = (made.workplace / "logs" / f"{name}.log").read_text()
    assert f"{trained} is not complete: it has no manifest.json" in log
    assert len(grid.finished(made)) == 2
    trained.rmdir()
    before = {p: p.stat().st_mtime_ns for p in made.folder.glob("*/manifest.json")}
    subprocess.run(command(path, *how), capture_output=True, check=True)
    assert all(p.stat().st_mtime_ns == stamp for p, stamp in before.items())
    assert len(grid.finished(made)) == 3
