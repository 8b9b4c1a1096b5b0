"""A grid of trainings: many cells, each a training method with all its parameters, made once.

A finished cell is a small folder `results/<grid>/<cell>/` with `predictions.csv` and `manifest.json`. It is
complete for any grid that would train and test the same now, by `identity`.
"""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import pandas as pd
from filelock import FileLock

from cfdistill import files, pipeline, store
from cfdistill.errors import CfdistillError, ParamsError, StageError
from cfdistill.evaluate import metrics
from cfdistill.params import Params, read_yaml
from cfdistill.student import models
from cfdistill.study import results

NAMED = ("train_dataset", "methods", "student", "seed", "test_datasets")  # no columns of their own
UPSTREAM = ("data", "counterfactuals", "rationales")  # stages that cells share
PREDICTIONS = "predictions.csv"
TABLES = "tables.json"  # the number format of a grid, and the cells that its tables were made from
# What is complete was decided before, by content; Snakemake's own memory must not add to it.
SNAKEMAKE = "--forceall --nolock --rerun-incomplete --keep-going --quiet rules reason host"


@dataclass(frozen=True)
class Grid:
    """The cells of a grid file, and the folders of its results and of its logs."""

    name: str
    folder: Path
    workplace: Path
    precision: str
    cells: dict[str, Params]  # by the cell's name; `methods` holds exactly one
    varied: list[str]  # further parameters in which cells differ; columns of the grid's tables


def read(path: Path, overrides: Mapping[str, Any] | None = None) -> Grid:
    """Read a grid file: `base`, a profile beside it, and `cells`, blocks of lists to cross (`_combinations`).

    `precision: auto` is resolved once: as when the grid was begun, else for this machine.
    """
    chosen = _combinations(path, overrides or {})
    base, values = chosen[0], [params.results_values(paths=True) for params in chosen]
    ours = path.resolve().is_relative_to(files.project_root() / "params")
    plain = ours and not set(overrides or {}) - {"run_root", "results_root"}
    name = results.named(path.stem, values, plain=plain)
    folder = files.resolve(base.results_root) / name
    varied = [key for key in values[0] if key not in NAMED and len({str(value[key]) for value in values}) > 1]
    precision = _facts(folder).get("precision") or models.precision(base)
    cells: dict[str, Params] = {}
    for params in chosen:
        parts = [params.train_dataset, params.methods[0], models.label(params), f"seed{params.seed}"]
        parts += [f"{key}{getattr(params, key)}" for key in varied]
        cell = "".join(c if c.isalnum() or c in "-_." else "_" for c in "-".join(parts))
        if params.precision == "auto":
            params = params.model_copy(update={"precision": precision})
        if cells.setdefault(cell, params) != params:
            raise ParamsError(f"{path}: two blocks make the cell {cell}, with different test_datasets")
    return Grid(name, folder, files.resolve(base.run_root) / "grid" / name, precision, cells, varied)


def command(grid: Path, overrides: Mapping[str, Any], cores: int, profile: str, *, dry_run: bool) -> str:
    """Make what is missing of a grid file; tell where its tables are."""
    wanted = read(grid, overrides)
    run(wanted, cores or files.cores(), profile, dry_run=dry_run)
    return "" if dry_run else f"Tables: {wanted.folder}"


def _combinations(path: Path, overrides: Mapping[str, Any]) -> list[Params]:
    """Return the cells of all blocks, whose values are crossed; what is a list anyway is one value."""
    values = read_yaml(path)
    blocks, profile = values.get("cells"), values.get("base")
    if set(values) != {"base", "cells"} or not isinstance(profile, str) or not isinstance(blocks, list):
        raise ParamsError(f"{path}: a grid has `base: PROFILE.yaml` and `cells:`, a list of blocks")
    base = {**read_yaml(path.parent / profile), "profile": path.stem}
    lists = [name for name, value in Params() if isinstance(value, list)]
    chosen = []
    for block in blocks:
        if not isinstance(block, dict) or "method" not in block or "methods" in block:
            raise ParamsError(f"{path}: every block needs `method` (one, or a list), and no `methods`")
        choices = [v if isinstance(v, list) and key not in lists else [v] for key, v in block.items()]
        for combination in product(*choices):
            own = dict(zip(block, combination, strict=True))
            own["methods"] = [own.pop("method")]
            chosen.append(Params.build({**base, **own, **overrides}, str(path)))
    if not chosen:
        raise ParamsError(f"{path}: the blocks make no cell; every list needs a value")
    return chosen


def _facts(folder: Path) -> dict[str, Any]:
    """Return what a grid's results folder records of its number format and cells."""
    path = folder / TABLES
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path.is_file() else {}


def identity(params: Params) -> dict[str, Any]:
    """Return what makes two cells the same: the training's key, and what is asked how of its student."""
    tested = {}
    for name in params.test_datasets:
        asked = pipeline.find("data", params, dataset=name).reads("*.jsonl").files
        tested[name] = store.key_hash({**params.reaching("evaluation"), "asked": dict(asked)})
    training = pipeline.locate("training", params, method=params.methods[0])
    shown = pipeline.shown(params).files if params.has_counterfactuals else {}  # by which novelty is told
    return {"training": store.key_hash(training.key), "tested": tested, "shown": dict(shown)}


def prepare(grid: Grid) -> None:
    """Make the data, counterfactuals and rationales of all cells, which tell what cells are complete."""
    for params in grid.cells.values():
        for stage in UPSTREAM:
            for part in pipeline.parts(stage, params):
                pipeline.build(stage, params, **part)


def finished(grid: Grid) -> dict[str, Path]:
    """Return the folders of the grid's complete cells, wherever under `results_root` they are."""
    stored = list(_stored(grid.folder.parent))
    complete: dict[str, Path] = {}
    for name, params in grid.cells.items():
        try:
            wanted = identity(params)
        except CfdistillError:  # earlier stages are missing: see `prepare`
            continue
        for made, folder in stored:
            same = made["training"] == wanted["training"]
            if same and made["tested"].items() >= wanted["tested"].items():
                complete.setdefault(name, folder)
    return complete


def _stored(results_root: Path) -> Iterator[tuple[dict[str, Any], Path]]:
    """Yield the manifest and the folder of every cell; raises StageError at one that was changed since."""
    for path in sorted(results_root.glob("*/*/manifest.json")):
        try:
            made = json.loads(path.read_text(encoding="utf-8"))
            digest, _ = made["files"][PREDICTIONS], {made["training"]: made["tested"].items()}
        except (OSError, ValueError, LookupError, TypeError, AttributeError) as error:
            raise StageError(f"{path} is not a cell's manifest ({error}); restore or delete it") from error
        if changed := files.first_changed(path.parent, {PREDICTIONS: digest}):
            raise StageError(f"{changed} was changed since the cell was made; restore or delete the cell")
        yield made, path.parent


def run(grid: Grid, cores: int, profile: str = "", *, dry_run: bool = False) -> None:
    """Make the cells that are missing, as many at once as `cores` or a cluster's profile says, then tables.

    Raises StageError when cells failed; the others are kept.
    """
    if not dry_run:
        prepare(grid)
    complete = finished(grid)
    missing = [name for name in grid.cells if name not in complete]
    counts = f"{len(grid.cells)} cells, {len(complete)} complete, {len(missing)} to make"
    sys.stdout.write("\n  ".join([f"{grid.name}: {counts}", *missing]) + "\n")
    sys.stdout.flush()  # before the jobs write
    if dry_run:
        return
    if missing:
        _make(grid, missing, cores, profile)
        complete = finished(grid)
    if complete:
        write_tables(grid, complete)
    if failed := [name for name in grid.cells if name not in complete]:
        told = f"{len(failed)} of {len(grid.cells)} cells are not made: {', '.join(failed)}"
        raise StageError(f"{told}; {grid.workplace / 'logs'} tells why, the same command tries them again")


def _make(grid: Grid, missing: Sequence[str], cores: int, profile: str) -> None:
    """Start the jobs of cells; which of them were made shows in their folders."""
    plan, logs = grid.workplace / "plan.json", grid.workplace / "logs"
    jobs = {name: {"folder": str(grid.folder / name), "params": dict(grid.cells[name])} for name in missing}
    with files.held(grid.workplace / "grid.lock", f"grid {grid.name}"):
        if not _facts(grid.folder):
            grid.folder.mkdir(parents=True, exist_ok=True)
            files.write_json(grid.folder / TABLES, {"precision": grid.precision})
        files.write_json(plan, jobs)
        shutil.rmtree(logs, ignore_errors=True)
        logs.mkdir()
        if profile:
            _snakemake(plan, profile)
            return
        with ThreadPoolExecutor(cores) as pool:
            list(pool.map(lambda name: _try_job(plan, name, logs / f"{name}.log"), missing))


def _try_job(plan: Path, name: str, log: Path) -> None:
    """Make one cell in a process of its own, on one core, in at most three attempts."""
    command = [sys.executable, "-m", "cfdistill.cli", "job", str(plan), name]
    where = {**os.environ, "OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
    with log.open("a", encoding="utf-8") as told:
        for _ in range(3):
            if subprocess.run(command, stdout=told, stderr=told, env=where, check=False).returncode != 1:
                return  # it is done, or was stopped


def _snakemake(plan: Path, profile: str) -> None:
    """Let Snakemake start a plan's jobs on a cluster."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    if (program := shutil.which("snakemake", path=places)) is None:
        raise StageError("a cluster needs Snakemake: pipx install snakemake (docs/clusters.md)")
    workflow = files.project_root() / "workflow"
    ready_made = workflow / "profiles" / profile
    command = [program, "--snakefile", str(workflow / "Snakefile"), "--directory", str(plan.parent)]
    command += ["--config", f"plan={plan}", f"python={sys.executable}", *SNAKEMAKE.split()]
    subprocess.run([*command, "--profile", str(ready_made if ready_made.is_dir() else profile)], check=False)


def run_job(plan: Path, name: str) -> None:
    """Make one cell of a plan. Waits for the same job if a killed grid has left it behind, still at work."""
    cell = json.loads(plan.read_text(encoding="utf-8"))[name]
    params = Params.build(cell["params"], str(plan))
    trained = pipeline.locate("training", params, method=params.methods[0])
    with FileLock(files.resolve(params.run_root) / "grid" / f"{trained.path.name}.lock"):
        for stage in ("training", "evaluation"):
            for part in pipeline.parts(stage, params):
                pipeline.build(stage, params, **part)
        write_cell(Path(cell["folder"]), params)


def write_cell(folder: Path, params: Params) -> None:
    """Write a finished cell from its complete stages, the manifest last; an earlier cell is replaced."""
    (method,) = params.methods
    trained, tested = (
        [pipeline.find(stage, params, **part).manifest() for part in pipeline.parts(stage, params)]
        for stage in ("training", "evaluation")
    )
    first = (trained + tested)[0]  # the untrained student has no training
    answers = [p for name in params.test_datasets for p in pipeline.predictions(params, method, name)]
    run = (params.train_dataset, models.label(params), params.seed)
    table = metrics.predictions_table(answers, *run, pipeline.steps(params))
    manifest = {"status": "complete", **identity(params), "params": params.results_values()}
    spent = {"training": trained, "evaluation": tested}
    manifest["seconds"] = {name: sum(made["seconds"] for made in stages) for name, stages in spent.items()}
    manifest |= {name: first[name] for name in ("notes", "git", "versions", "machine", "started")}
    with files.writing(folder):
        files.empty(folder, "cell", folder.name)
        metrics.write_csv(table, folder / PREDICTIONS)
        manifest["files"] = {PREDICTIONS: files.sha256(folder / PREDICTIONS)}
        files.write_json(folder / "manifest.json", manifest)


def write_tables(grid: Grid, complete: dict[str, Path]) -> None:
    """Write the tables over all complete cells; `Grid.varied` are the first columns."""
    answers = []
    for name, folder in complete.items():
        params, table = grid.cells[name], metrics.read_csv(folder, PREDICTIONS)
        values = ((key, getattr(params, key)) for key in grid.varied)
        shown = {key: str(value) if isinstance(value, list) else value for key, value in values}
        answers.append(table[table["dataset"].isin(params.test_datasets)].assign(**shown))
    together = pd.concat(answers, ignore_index=True)
    cells = [f"{folder.parent.name}/{folder.name}" for folder in complete.values()]
    with files.writing(grid.folder):
        grid.folder.mkdir(parents=True, exist_ok=True)
        metrics.write_csv(metrics.metrics_table(together), grid.folder / metrics.FILES[0])
        metrics.write_csv(metrics.comparisons_table(together), grid.folder / metrics.FILES[1])
        files.write_json(grid.folder / TABLES, {"precision": grid.precision, "cells": cells})
