"""The results folder of a study: small tables, figures, and a manifest of what they came from."""

from __future__ import annotations

import json
import os
import platform
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfdistill import counterfactual, figures, metrics, qualitative, runs, tables
from cfdistill.errors import StageError
from cfdistill.params import Params

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


class Album:
    """Saves figures into one folder and remembers their names."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.names: list[str] = []

    def add(self, name: str, figure: Figure, table: pd.DataFrame, alt: str) -> Figure:
        """Save a figure with its table and alternative text, and return it to be shown."""
        figures.save(figure, table, self.folder, name, alt)
        self.names.append(name)
        return figure


def collect(params: Params) -> Path:
    """Copy the tables of the stage `metrics` into the results folder, emptied before, and return it.

    Raises:
        StageError: the stage is missing, or the folder cannot be written.
    """
    source = runs.require(runs.stage("metrics", params))
    folder = runs.results_folder(params)
    with runs.writing(folder):
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        for name in metrics.FILES:
            shutil.copyfile(source.path / name, folder / name)
    return folder


def stories(params: Params) -> dict[str, pd.DataFrame]:
    """Return the answers that `fig1_weasel` and `fig7_qualitative` show, of the last two methods."""
    baseline, ours = params.methods[-2:]
    table = qualitative.answers(params, [baseline, ours])
    return {
        "fig1_weasel": qualitative.pick(table, baseline, ours, ("lured", "right"), 1),
        "fig7_qualitative": qualitative.pick(table, baseline, ours, ("right", "right"), 2),
    }


def funnel(params: Params) -> pd.DataFrame:
    """Return the ledger of counterfactual candidates, empty for a study without counterfactuals."""
    import pandas as pd

    ledgers = [stage.path / "funnel.csv" for stage in counterfactual.finished(params)]
    empty = pd.DataFrame(columns=counterfactual.FUNNEL_COLUMNS)
    return pd.concat([empty, *(pd.read_csv(path, keep_default_na=False) for path in ledgers)])


def cost(params: Params) -> pd.DataFrame:
    """Return the seconds of every stage behind the study, evaluations summed per method."""
    import pandas as pd

    rows = [(_step(stage), stage.manifest()["seconds"]) for stage in _stages(params)]
    table = pd.DataFrame(rows, columns=["step", "value"])
    return table.groupby("step", sort=False, as_index=False).sum()


def finish(params: Params) -> dict[str, Any]:
    """Write the manifest of the results folder and return it.

    It holds parameters, code, versions and machine, each stage with its seconds and its manifest's hash,
    and the hash of every file in the folder.
    """
    folder = runs.results_folder(params)
    stages = {
        str(stage.path.relative_to(stage.path.parents[1])): {
            "seconds": stage.manifest()["seconds"],
            "manifest": runs.sha256(stage.path / "manifest.json"),
        }
        for stage in _stages(params)
    }
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    training = [s.manifest()["notes"] for s in _stages(params) if s.name == "training"]
    manifest = {
        "status": "complete",
        "params": params.model_dump(),
        "git": runs.git_state(),
        "versions": runs.versions(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "precision": training[0]["precision"],
            "threads": training[0]["threads"],
        },
        "stages": stages,
        "seconds": round(sum(facts["seconds"] for facts in stages.values()), 1),
        "files": {str(path.relative_to(folder)): runs.sha256(path) for path in files},
    }
    with runs.writing(folder):
        (folder / "manifest.json").write_text(json.dumps(manifest, indent=1) + "\n", encoding="utf-8")
    return manifest


def readme_blocks(folder: Path, control: Path) -> dict[str, str]:
    """Return the README's results in markdown, from the finished results folders of study and control.

    Raises:
        StageError: a table or the manifest is missing.
    """
    path = folder / "manifest.json"
    if not path.is_file():
        raise StageError(f"{path} is missing; make it with notebook 07_paper_figures")
    manifest = json.loads(path.read_text(encoding="utf-8"))
    measured, comparisons = (metrics.read_csv(folder, name) for name in metrics.FILES[:2])
    controlled, control_comparisons = (metrics.read_csv(control, name) for name in metrics.FILES[:2])
    return {
        "results": tables.readme_block(measured, comparisons, manifest),
        "control": tables.control_block(controlled, control_comparisons),
    }


def _stages(params: Params) -> list[runs.Stage]:
    """Return every stage the study's numbers come from, in order, by following the manifests."""
    root = runs.resolve(params.run_root)
    found: dict[str, runs.Stage] = {}

    def follow(stage: runs.Stage) -> None:
        for name in stage.manifest()["inputs"]:
            follow(runs.Stage(name.partition("/")[0], {}, root / name))
        found.setdefault(str(stage.path), runs.Stage(stage.name, stage.manifest()["key"], stage.path))

    follow(runs.require(runs.stage("metrics", params)))
    return list(found.values())


def _step(stage: runs.Stage) -> str:
    method = stage.key.get("method")
    return f"{stage.name} {method}" if method else stage.name
