"""The results folder of a study: small tables, figures, and a manifest of what they came from."""

import json
import platform
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

import pandas as pd
from IPython.display import Image, Markdown
from matplotlib.figure import Figure

from cfdistill import data, files, pipeline, store
from cfdistill.errors import StageError
from cfdistill.evaluate import metrics
from cfdistill.generate import counterfactual
from cfdistill.params import Params, read_yaml
from cfdistill.show import figures, stories, style, tables

FIGURES = figures.WORDS["figures"]


def folder(params: Params) -> Path:
    """Return `<results_root>/<profile>` for a profile of the project, `<profile>-<hash8>` for all others."""
    values = params.results_values(paths=True)
    profiles = (files.project_root() / "params").rglob(f"{params.profile}.yaml")
    shipped = [Params.from_yaml(path) for path in profiles if "cells" not in read_yaml(path)]  # no grids
    plain = values in [profile.results_values(paths=True) for profile in shipped]
    return files.resolve(params.results_root) / named(params.profile, values, plain=plain)


def named(name: str, values: Any, *, plain: bool) -> str:
    """Return a folder's name: the plain one, or with the hash of the values that it is for."""
    return name if plain else f"{name}-{store.key_hash({'': values})[:8]}"


def collect(params: Params) -> Path:
    """Write a study's tables, those behind figures, and its manifest into its emptied results folder."""
    target, parts = folder(params), [(n, part) for n in pipeline.STAGES for part in pipeline.parts(n, params)]
    stages = [pipeline.find(name, params, **part) for name, part in parts]
    cost = pd.DataFrame({"step": [f"{name} {part.get('method', '')}".strip() for name, part in parts]})
    cost["value"] = [stage.manifest()["seconds"] for stage in stages]
    cost = cost.groupby("step", sort=False, as_index=False).sum()
    ledgers = [stage.path / "funnel.csv" for stage in stages if stage.name == "counterfactuals"]
    read = [pd.read_csv(ledger, keep_default_na=False) for ledger in ledgers]
    funnel = counterfactual.funnel_counts(pd.concat([counterfactual.funnel_table([]), *read]), params)
    small = {**_stories(params), "funnel": funnel, "cost": cost}
    source, origin = pipeline.find("metrics", params).path, _origin(params, stages)
    known = read_manifest(target) if is_whole(target) else {}
    same = known and known["params"] == origin["params"] and known["stages"].keys() == origin["stages"].keys()
    if same and (target / metrics.FILES[2]).read_bytes() == (source / metrics.FILES[2]).read_bytes():
        small["cost"], origin = metrics.read_csv(target / "figures", "cost.csv"), known  # of the first run
    with files.writing(target):
        files.empty(target, "results", target.name)
        (target / "figures").mkdir()
        for name in metrics.FILES:
            (target / name).write_bytes((source / name).read_bytes())
        for name, table in small.items():
            metrics.write_csv(table, target / "figures" / f"{name}.csv")
        files.write_json(target / "manifest.json", origin)
    return target


def keep(results: Path, name: str, figure: Figure, table: pd.DataFrame) -> Image | Markdown:
    """Save a figure with the table behind it, and show it; one with nothing to draw only says so."""
    if words := figure.get_label():
        return Markdown(f"*Not drawn: {words}.*")
    with files.writing(results):
        style.save(figure, table, results / "figures" / name, figures.words(name, table))
    return picture(results, name)


def picture(results: Path, name: str) -> Image | Markdown:
    """Return a figure of a results folder for a notebook, or a sentence if there is none."""
    path = results / "figures" / f"{name}.png"
    if not path.is_file():
        return Markdown(f"*Not drawn: no results folder `{results.name}` with `{name}` is beside this one.*")
    return Image(path, retina=True, alt=read_captions(results)[name]["alt"])


def finish(results: Path) -> dict[str, Any]:
    """Record the hash of every file in the manifest of a results folder, and return the manifest."""
    found = sorted(path for path in results.rglob("*") if path.is_file() and path.name != "manifest.json")
    hashes = {str(path.relative_to(results)): files.sha256(path) for path in found}
    manifest = read_manifest(results) | {"files": hashes}
    with files.writing(results):
        files.write_json(results / "manifest.json", manifest)
    return manifest


def numbers(results: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return metrics and comparisons of a results folder."""
    return metrics.read_csv(results, metrics.FILES[0]), metrics.read_csv(results, metrics.FILES[1])


def behind_figures(results: Path, measured: pd.DataFrame) -> dict[str, pd.DataFrame]:
    """Return the table behind each figure that there are data for, by the figure's name."""
    if swept := set(figures.SWEEPS) & set(measured):
        # Averaged over what is swept, other figures would mean nothing.
        return {figures.SWEEPS[name]["figure"]: measured for name in swept}
    first = metrics.read_csv(results, metrics.FILES[0]).iloc[0]
    one_student = measured[measured["student"] == first["student"]]
    study = one_student[one_student["train_dataset"] == first["train_dataset"]]
    found = {"novelty": study, "headline": study, "fig5_ood": one_student, "fig6_architectures": measured}
    place = results / "figures"
    left = [name for name in FIGURES if name not in found and (place / f"{name}.csv").is_file()]
    return found | {name: metrics.read_csv(place, f"{name}.csv") for name in left}  # `collect` left them


def draw(
    results: Path, only: Sequence[str] = (), out: Path | None = None, width: float = style.COLUMN, **look: Any
) -> list[str]:
    """Draw tables and figures of a folder anew, saved by `style.save(**look)`; returns what was drawn."""
    if not (results / metrics.FILES[0]).is_file():
        there = [path.parent.name for path in sorted(results.parent.glob(f"*/{metrics.FILES[0]}"))]
        raise StageError(f"{results} holds no results; {results.parent} has {', '.join(there) or 'none'}")
    measured, comparisons = numbers(results)
    behind, target = behind_figures(results, measured), out or results / "figures"
    known = [*behind, *["table1"] * ("headline" in behind)]
    if unknown := set(only) - set(known):
        raise StageError(f"{results} has no data for {', '.join(unknown)}; it has for {', '.join(known)}")
    wanted = [name for name in known if name in (only or known)]
    how = {name: getattr(figures, FIGURES[name]["draw"]) for name in wanted if name in behind}
    drawn = {name: draw(behind[name], width=width) for name, draw in how.items()}
    with files.writing(target):
        for name, figure in drawn.items():
            if not figure.get_label():  # of one with nothing to draw
                style.save(figure, behind[name], target / name, figures.words(name, behind[name]), **look)
        if "table1" in wanted:
            tables.write_tables(target, measured, comparisons, results.name, look.get("labels"))
    if not out and (results / "manifest.json").is_file():
        finish(results)
    return [name for name, figure in drawn.items() if not figure.get_label()]


def command(
    results: Sequence[Path], only: Sequence[str], out: Path | None, width: str, labels: Any, **look: Any
) -> str:
    """Draw results folders anew, as `draw`, into `out` or their own; tell what was drawn."""
    told = []
    for folder in results:
        target = out / folder.name if out and len(results) > 1 else out
        inches = style.COLUMN if width == "column" else style.PAGE
        drawn = draw(folder, only, target, inches, labels=dict(labels), **look)
        told.append(f"{target or folder / 'figures'}: {', '.join(drawn)}")
    return "\n".join(told)


def listing(root: Path) -> str:
    """Return what results there are: date, what differs from the profile, accuracy on new questions."""
    told = []
    for path in sorted(root.glob(f"*/{metrics.FILES[0]}")):
        made = read_manifest(path.parent)["params"] if (path.parent / "manifest.json").is_file() else {}
        profile = next((files.project_root() / "params").rglob(f"{made.get('profile', '')}.yaml"), None)
        base = Params.from_yaml(profile).results_values() if profile else {}
        changed = [f"{k} {made[k]}" for k in base if k in made and base[k] not in (made[k], "auto")]
        study = behind_figures(path.parent, metrics.read_csv(path.parent, path.name)).get("headline")
        rows = [] if study is None else metrics.each_row(figures.own_splits(study, ("shift", "new", "test")))
        shares = [f"{r.test_split} {r.method} {100 * r.accuracy:.1f} %" for r in rows]
        day = datetime.fromtimestamp(path.stat().st_mtime).date()
        told.append("\n    ".join([f"{path.parent}  {day}  {', '.join(changed)}", *shares]))
    return "\n".join(told) or f"{root} holds no results"


def read_captions(results: Path) -> dict[str, dict[str, str]]:
    """Return caption and alternative text of every figure in a results folder."""
    return _read(results / "figures" / "captions.json", f"`cfdistill figures {results}`")


def read_manifest(results: Path) -> dict[str, Any]:
    """Return the manifest of a results folder."""
    return _read(results / "manifest.json", "notebook 07_paper_figures")


def _read(path: Path, maker: str) -> dict[str, Any]:
    if not path.is_file():
        raise StageError(f"{path} is missing; make it with {maker}")
    return dict(json.loads(path.read_text(encoding="utf-8")))


def is_whole(results: Path) -> bool:
    """Tell whether a results folder is finished and holds all that its manifest names, unchanged."""
    try:
        return files.first_changed(results, read_manifest(results)["files"]) is None
    except (StageError, ValueError, KeyError, TypeError):  # no manifest, or not one of ours
        return False


def answers(params: Params) -> pd.DataFrame:
    """Return what all methods answered to all test questions, by their views (`stories.COLUMNS`)."""
    tables = []
    for name in params.test_datasets:
        asked = [q for s in data.test_splits(name, params) for q in pipeline.questions(name, s, params)]
        given = [p for method in params.methods for p in pipeline.predictions(params, method, name)]
        tables.append(stories.answers(asked, given, params.methods, "elimination"))
    return pd.concat(tables, ignore_index=True)


def _stories(params: Params) -> dict[str, pd.DataFrame]:
    """Return the answers that `fig1_weasel` and `fig7_qualitative` show, of the last two methods."""
    name = params.train_dataset if params.train_dataset in params.test_datasets else params.test_datasets[0]
    table = answers(params)
    main = (table["dataset"] == name) & (table["view"] == "")
    table = table[main & table["method"].isin(params.methods[-2:])]
    return {
        "fig1_weasel": stories.pick(table, ("lured", "right"), 1),
        "fig7_qualitative": stories.pick(table, ("right", "right"), 2),
    }


def _origin(params: Params, stages: list[store.Stage]) -> dict[str, Any]:
    """Return the part of the manifest that tells where the numbers come from: what was read."""
    made = {stage.place: stage for stage in pipeline.behind(stages[-1])}  # that is, behind the metrics
    stamps = {
        place: {
            "seconds": stage.manifest()["seconds"],
            "manifest": files.sha256(stage.path / "manifest.json"),
        }
        for place, stage in made.items()
    }
    training = next(stage for stage in stages if stage.name == "training")
    threads = training.manifest()["notes"]["threads"]
    return {
        "status": "complete",
        "params": {**params.model_dump(), "precision": training.key["precision"]},
        "git": files.git_state(),
        "versions": files.versions(),
        "machine": {"processor": platform.machine(), "cores": files.cores(), "threads": threads},
        "stages": stamps,
        "seconds": round(sum(stamp["seconds"] for stamp in stamps.values()), 1),
    }
