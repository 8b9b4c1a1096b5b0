"""A grid of trainings: many cells, each a training method with all its parameters, made once.

A finished cell is a small folder `results/<grid>/<cell>/` with `predictions.csv` and `manifest.json`,
meant to be committed. A cell is complete when any folder `results/*/*/` holds its parameters, so grids
share cells and nothing is trained twice. Snakemake runs what is missing (`workflow/Snakefile`).
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from cfdistill import runs
from cfdistill.errors import ParamsError, StageError
from cfdistill.params import Params, read_yaml

if TYPE_CHECKING:
    import pandas as pd

NAMED = ("train_dataset", "method", "student", "seed")  # always part of a cell's name
PREDICTIONS = "predictions.csv"
Found = dict[str, Path]  # finished cells: the folder by the cell's name


@dataclass(frozen=True)
class Grid:
    """The cells of a grid file."""

    name: str
    cells: dict[str, Params]  # by the cell's name; `methods` holds exactly one
    varied: list[str]  # further parameters in which cells differ; columns of the grid's tables

    @property
    def base(self) -> Params:
        """Return parameters that say where things are, the same in every cell."""
        return next(iter(self.cells.values()))

    @property
    def folder(self) -> Path:
        """Return `results/<grid>/`."""
        return runs.resolve(self.base.results_root) / self.name

    @property
    def workplace(self) -> Path:
        """Return where logs, locks and Snakemake's own files go."""
        return runs.resolve(self.base.run_root) / "grid" / self.name


def read(path: Path, overrides: Mapping[str, Any] | None = None) -> Grid:
    """Read a grid file: `base`, a profile beside it, and `cells`, blocks of lists to cross.

    A block maps `method` and any parameters to a value or to a list of values; each of its
    combinations is a cell. What is a list anyway, such as `test_datasets`, is one value.

    Raises:
        ParamsError: the file is missing, or a block holds something that is no parameter.
    """
    values = read_yaml(path)
    blocks, profile = values.get("cells"), values.get("base")
    if set(values) != {"base", "cells"} or not isinstance(profile, str) or not isinstance(blocks, list):
        raise ParamsError(f"{path}: a grid has `base: PROFILE.yaml` and `cells:`, a list of blocks")
    base = {**read_yaml(path.parent / profile), "profile": path.stem}
    chosen = []
    for block in blocks:
        if not isinstance(block, dict) or "method" not in block or "methods" in block:
            raise ParamsError(f"{path}: every block needs `method` (one, or a list), and no `methods`")
        for combination in product(*(_choices(name, block[name]) for name in block)):
            given = dict(zip(block, combination, strict=True))
            own = {name: value for name, value in given.items() if name != "method"}
            merged = {**base, **own, **(overrides or {}), "methods": [given["method"]]}
            chosen.append((given, Params.build(merged, str(path))))
    names = dict.fromkeys(name for given, _ in chosen for name in given)
    varied = [
        name
        for name in names
        if name not in (*NAMED, "test_datasets") and len({str(getattr(p, name)) for _, p in chosen}) > 1
    ]
    cells: dict[str, Params] = {}
    for _, params in chosen:
        name = _cell_name(params, varied)
        if cells.setdefault(name, params) != params:
            raise ParamsError(f"{path}: two blocks make the cell {name}, with different test_datasets")
    if not cells:
        raise ParamsError(f"{path}: the blocks make no cell; every list needs a value")
    return Grid(path.stem, cells, varied)


def _choices(name: str, value: Any) -> list[Any]:
    is_list_anyway = name in Params.model_fields and isinstance(getattr(Params(), name), list)
    return value if isinstance(value, list) and not is_list_anyway else [value]


def _cell_name(params: Params, varied: Sequence[str]) -> str:
    parts = [params.train_dataset, params.methods[0], params.student_name, f"seed{params.seed}"]
    parts += [f"{name}{getattr(params, name)}" for name in varied]
    return "".join(c if c.isalnum() or c in "-_." else "_" for c in "-".join(parts))


def identity(params: Params, method: str) -> str:
    """Return what makes two cells the same: every parameter that can change an answer.

    Where the benchmarks' files lie is none of them. A parameter that a manifest does not know,
    because it is younger, counts as its default.
    """
    key = {name: value for name, value in params.key("evaluation").items() if name != "data_root"}
    return json.dumps({**key, "method": method}, sort_keys=True)


def finished(grid: Grid) -> Found:
    """Return the grid's complete cells, in its order, wherever under `results_root` they are.

    Raises:
        StageError: a cell's manifest cannot be read, or its predictions were changed since.
    """
    stored: dict[str, list[tuple[set[str], Path]]] = {}
    for path in sorted(runs.resolve(grid.base.results_root).glob(f"*/[!.]*/{PREDICTIONS}")):
        manifest, params = _read_manifest(path.parent)
        if runs.sha256(path) != manifest["files"][PREDICTIONS]:
            raise StageError(f"{path} was changed after the cell was made; restore it or delete its folder")
        found = (set(params.test_datasets), path.parent)
        stored.setdefault(identity(params, params.methods[0]), []).append(found)
    complete: Found = {}
    for name, params in grid.cells.items():
        for tested, folder in stored.get(identity(params, params.methods[0]), []):
            if tested.issuperset(params.test_datasets):
                complete.setdefault(name, folder)
    return complete


def _read_manifest(folder: Path) -> tuple[dict[str, Any], Params]:
    path = folder / "manifest.json"
    try:
        manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        return manifest, Params.build(manifest["params"], str(path))
    except (OSError, ValueError, KeyError, ParamsError) as error:
        raise StageError(
            f"{path} is not a cell's manifest ({error}); restore it or delete {folder}"
        ) from error


def describe(grid: Grid, complete: Found) -> str:
    """Return how much of a grid is complete, and which cells are to be made after which shared stages."""
    missing = {name: params for name, params in grid.cells.items() if name not in complete}
    lines = [f"{grid.name}: {len(grid.cells)} cells, {len(complete)} complete, {len(missing)} to make"]
    return "\n  ".join(lines + [f"{name}  (after {_shared_name(p)})" for name, p in missing.items()])


def run(grid: Grid, complete: Found, cores: int, profile: str = "", *, dry_run: bool = False) -> None:
    """Make the cells that are missing, then the tables `metrics.csv` and `comparisons.csv`.

    Args:
        grid: what to make.
        complete: its finished cells.
        cores: jobs at once on this machine; on a cluster the profile decides.
        profile: a folder of `workflow/profiles/`, or a Snakemake profile of your own.
        dry_run: let Snakemake only print its plan.

    Raises:
        StageError: cells failed (the others are kept), or Snakemake is missing.
    """
    missing = {name: params for name, params in grid.cells.items() if name not in complete}
    if missing:
        _snakemake(grid, make_plan(grid, missing), cores, profile, dry_run)
        complete = finished(grid)
    if dry_run:
        return
    if complete:
        write_tables(grid, complete)
    if failed := [f"\n  {name}: {_last_words(grid, name)}" for name in grid.cells if name not in complete]:
        raise StageError(
            f"{len(failed)} of {len(grid.cells)} cells are not made; the same command tries them again:"
            + "".join(failed)
        )


def _last_words(grid: Grid, name: str) -> str:
    shared = _shared_name(grid.cells[name])
    for job in (name, shared):
        log = grid.workplace / "logs" / f"{job}.log"
        lines = log.read_text(encoding="utf-8", errors="replace").split("\n") if log.is_file() else []
        if said := [line for line in lines if line.strip()]:
            return f"{said[-1][:300]} ({log})"
    return "was not started"


def make_plan(grid: Grid, missing: Mapping[str, Params]) -> dict[str, Any]:
    """Return the jobs that make the missing cells: first `shared` ones, up to the rationales."""
    shared: dict[str, dict[str, Any]] = {}
    cells = {}
    for name, params in missing.items():
        before = _shared_name(params)
        cells[name] = {"params": params.model_dump(), "shared": before, "folder": str(grid.folder / name)}
        wanted = shared.setdefault(before, params.model_dump())
        for field in ("methods", "test_datasets"):
            wanted[field] = list(dict.fromkeys([*wanted[field], *getattr(params, field)]))
    return {"cells": cells, "shared": shared}


def _shared_name(params: Params) -> str:
    return runs.stage("rationales", params).path.name


def _snakemake(grid: Grid, plan: dict[str, Any], cores: int, profile: str, dry_run: bool) -> None:
    """Let Snakemake run a plan; which cells it made shows in their folders."""
    places = f"{Path(sys.executable).parent}{os.pathsep}{os.environ.get('PATH', '')}"
    program = shutil.which("snakemake", path=places)
    if program is None:
        raise StageError("a grid needs Snakemake: pip install 'cfdistill[grid]', or pipx install snakemake")
    workflow = runs.project_root() / "workflow"
    ready_made = workflow / "profiles" / profile
    command = [
        program,
        *("--snakefile", str(workflow / "Snakefile"), "--directory", str(grid.workplace)),
        *("--config", f"plan={grid.workplace / 'plan.json'}", f"python={sys.executable}"),
        # What is complete was decided before, by content; Snakemake's own memory must not add to it.
        *("--forceall", "--nolock", "--rerun-incomplete", "--keep-going"),
        *("--quiet", "rules", "reason", "host"),
        *(["--profile", str(ready_made if ready_made.is_dir() else profile)] if profile else []),
        *([] if profile else ["--cores", str(cores)]),
        *(["--dry-run"] if dry_run else []),
    ]  # fmt: skip
    grid.workplace.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(grid.workplace / "grid.lock", timeout=0):
            (grid.workplace / "plan.json").write_text(json.dumps(plan, indent=1), encoding="utf-8")
            shutil.rmtree(grid.workplace / "logs", ignore_errors=True)
            subprocess.run(command, check=False)
    except Timeout as error:
        raise StageError(f"grid {grid.name} is running already; wait for it or stop it") from error


def run_job(plan_file: Path, name: str) -> None:
    """Run one job of a plan: a cell, or the stages that cells share. Waits for a twin still at it."""
    from cfdistill import counterfactual, data, evaluation, rationale, training

    plan = json.loads(plan_file.read_text(encoding="utf-8"))
    cell = plan["cells"].get(name)
    params = Params.build(cell["params"] if cell else plan["shared"][name], str(plan_file))
    locks = runs.resolve(params.run_root) / "grid"
    if cell is None:
        # One at a time, because data stages are shared even where rationales are not.
        with FileLock(locks / "shared.lock"):
            for dataset in dict.fromkeys([params.train_dataset, *params.test_datasets]):
                data.build(dataset, params)
            for variant in params.variants():
                if variant.has_counterfactuals:
                    counterfactual.build(variant)
                rationale.build(variant)
        return
    method = params.methods[0]
    trained = runs.stage("training", params, method=method).path.name
    with FileLock(locks / f"{trained}.lock"):
        training.build(method, params)
        tested = evaluation.build_all(method, params)
        write_cell(Path(cell["folder"]), [stage.path for stage in tested])


def write_cell(folder: Path, evaluations: Sequence[Path]) -> None:
    """Write a finished cell from its `evaluation` stage directories; all of the folder or nothing.

    Args:
        folder: `results/<grid>/<cell>`; replaced if it is there.
        evaluations: one directory per test data set, all of one trained student.

    Raises:
        StageError: a directory is not complete, or the disk is full.
        DataError: predictions are missing or malformed.
    """
    from cfdistill import metrics
    from cfdistill.schema import Prediction, read_jsonl

    stages = [runs.Stage("evaluation", {}, path) for path in evaluations]
    manifests = [stage.manifest() for stage in stages if runs.require(stage)]
    (trained,) = {name for m in manifests for name in m["inputs"] if name.startswith("training/")}
    training = runs.Stage("training", {}, evaluations[0].parents[1] / trained).manifest()
    method, tested = manifests[0]["key"]["method"], [m["key"]["dataset"] for m in manifests]
    params = Params.build(manifests[0]["params"], str(evaluations[0]))
    files = [file for path in evaluations for file in sorted(path.glob("predictions.*.jsonl"))]
    predictions = [p for file in files for p in read_jsonl(file, Prediction)]
    table = metrics.predictions_table(predictions, params.train_dataset, params.student_name, params.seed)
    partial = folder.with_name(f".{folder.name}.partial")
    with runs.writing(folder):
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        metrics.write_csv(table, partial / PREDICTIONS)
        key = {name: value for name, value in params.key("evaluation").items() if name != "data_root"}
        manifest = {
            "status": "complete",
            "params": {**key, "methods": [method], "test_datasets": tested},
            "seconds": {"training": training["seconds"], "evaluation": sum(m["seconds"] for m in manifests)},
            "training": training["notes"],
            **{name: training[name] for name in ("git", "versions", "machine", "started")},
            "stages": {path.name: runs.sha256(path / "manifest.json") for path in evaluations},
            "files": {PREDICTIONS: runs.sha256(partial / PREDICTIONS)},
        }
        runs.sync_tree(partial)
        runs.write_text(partial / "manifest.json", json.dumps(manifest, indent=1) + "\n")
        if folder.exists():
            (folder / PREDICTIONS).unlink(missing_ok=True)  # first: what is left is no cell to `finished`
            runs.sync(folder)
            shutil.rmtree(folder)
        runs.publish(partial, folder)


def import_runs(grid: Grid, run_root: Path) -> list[str]:
    """Write the missing cells whose evaluations are complete under another `run_root`, found by content.

    Returns:
        The names of the cells written.

    Raises:
        StageError: there is no such folder, or a stage in it is damaged.
    """
    if not (run_root / "evaluation").is_dir():
        raise StageError(f"{run_root} holds no folder `evaluation` of finished stages")
    stored: dict[str, dict[str, Path]] = {}
    for path in sorted((run_root / "evaluation").glob("*/manifest.json")):
        manifest = json.loads(path.read_text(encoding="utf-8"))
        if not path.parent.name.endswith(".partial"):
            same = identity(Params.build(manifest["params"], str(path)), manifest["key"]["method"])
            stored.setdefault(same, {})[manifest["key"]["dataset"]] = path.parent
    complete, written = finished(grid), []
    for name, params in grid.cells.items():
        tested = stored.get(identity(params, params.methods[0]), {})
        if name not in complete and tested.keys() >= set(params.test_datasets):
            write_cell(grid.folder / name, [tested[dataset] for dataset in params.test_datasets])
            written.append(name)
    return written


def write_tables(grid: Grid, complete: Found) -> None:
    """Write `metrics.csv`, `comparisons.csv` and `settings.csv` over all complete cells, unless current.

    The parameters in `Grid.varied` are the first columns of the first two. Holm's correction is taken over
    the whole of `comparisons.csv`. `settings.csv` compares what was varied, if something was: parameters,
    or else the training data.
    """
    sources = {str(folder.relative_to(grid.folder.parent)): runs.sha256(folder / PREDICTIONS)
               for folder in complete.values()}  # fmt: skip
    code = {
        name: runs.sha256(Path(__file__).with_name(name)) for name in ("metrics.py", "stats.py", "grid.py")
    }
    facts = {"cells": sources, "code": code}
    record = grid.folder / "tables.json"
    if record.is_file() and json.loads(record.read_text(encoding="utf-8")) == facts:
        return
    from cfdistill import metrics, stats

    by_values: dict[tuple[Any, ...], list[pd.DataFrame]] = {}
    by_setting: dict[str, list[pd.DataFrame]] = {}
    for name, folder in complete.items():
        params = grid.cells[name]
        table = metrics.read_csv(folder, PREDICTIONS)
        values = tuple(getattr(params, field) for field in grid.varied)
        tested = table[table["dataset"].isin(params.test_datasets)]
        by_values.setdefault(values, []).append(tested)
        varied = [f"{field} {value}" for field, value in zip(grid.varied, values, strict=True)]
        by_setting.setdefault(", ".join(varied) or params.train_dataset, []).append(tested)
    joined = {values: _concat(tables) for values, tables in by_values.items()}
    with runs.writing(grid.folder):
        grid.folder.mkdir(parents=True, exist_ok=True)
        record.unlink(missing_ok=True)
        measured = {values: metrics.metrics_table(table) for values, table in joined.items()}
        metrics.write_csv(_stacked(measured, grid.varied), grid.folder / "metrics.csv")
        samples = grid.base.bootstrap_samples
        compared = _stacked(
            {v: metrics.comparisons_table(t, samples) for v, t in joined.items()}, grid.varied
        )
        compared["p_holm"] = stats.holm(compared["p_mcnemar"].tolist())
        metrics.write_csv(compared, grid.folder / "comparisons.csv")
        if len(by_setting) > 1:
            settings = {name: _concat(tables) for name, tables in by_setting.items()}
            metrics.write_csv(metrics.settings_table(settings, samples), grid.folder / metrics.SETTINGS)
        runs.sync_tree(grid.folder)
        runs.write_text(record, json.dumps(facts, indent=1) + "\n")


def _stacked(tables: Mapping[tuple[Any, ...], pd.DataFrame], columns: Sequence[str]) -> pd.DataFrame:
    for values, table in tables.items():
        for position, (name, value) in enumerate(zip(columns, values, strict=True)):
            table.insert(position, name, str(value) if isinstance(value, list) else value)
    return _concat(tables.values())


def _concat(tables: Any) -> pd.DataFrame:
    import pandas as pd

    joined: pd.DataFrame = pd.concat(list(tables), ignore_index=True)
    return joined
