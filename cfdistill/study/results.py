"""The results folder of a study: small tables, figures, and a manifest of what they came from."""

import json
import platform
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
from cfdistill.student import models

Table = pd.DataFrame
OWN = "test_split method accuracy"
FIGURES = {  # by name: what draws it, what it shows, and the columns that are told to those who cannot see it
    "headline": (figures.fig_headline, "Accuracy by method and test split", OWN),
    "fig5_ood": (figures.fig5_ood, "Accuracy by data sets", "train_dataset test_dataset method accuracy"),
    "fig6_architectures": (figures.fig6_architectures, "Accuracy by student", f"student train_dataset {OWN}"),
    "spurious_sweep": (figures.fig_sweep, "Accuracy by the shortcut's share", f"spurious_rate {OWN}"),
    "data_size": (figures.fig_sweep, "Accuracy by training questions", f"train_questions {OWN}"),
    "fig1_weasel": (figures.fig_qualitative, "The baseline follows the stereotype", "stem method text"),
    "fig7_qualitative": (figures.fig_qualitative, "Both methods answer right", "stem method text"),
    "funnel": (figures.fig_funnel, "Counterfactuals left after each step", "step left"),
    "cost": (figures.fig_cost, "Seconds of each stage", "step value"),
    "audits": (figures.fig_audits, "Right answers by audit", "audit condition method accuracy"),
}


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
    steps, target = _steps(params), folder(params)
    seconds = [(step, stage.manifest()["seconds"]) for step, stage in steps]
    cost = pd.DataFrame(seconds, columns=["step", "value"]).groupby("step", sort=False, as_index=False).sum()
    ledgers = [stage.path / "funnel.csv" for _, stage in steps if stage.name == "counterfactuals"]
    read = [pd.read_csv(ledger, keep_default_na=False) for ledger in ledgers]
    funnel = counterfactual.funnel_counts(pd.concat([counterfactual.funnel_table([]), *read]), params)
    small = {**_stories(params), "funnel": funnel, "cost": cost, "audits": pipeline.audits(params)}
    source, origin = pipeline.find("metrics", params).path, _origin(params, [stage for _, stage in steps])
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
    _, what, columns = FIGURES[name]
    shown = table  # of which the alternative text tells in words and numbers
    if "scoring" in table:
        shown = metrics.transfer(table) if name == "fig5_ood" else figures.own_splits(table)
    rows = shown[columns.split()].itertuples(index=False)
    said = (" ".join(f"{v:.2f}" if isinstance(v, float) else str(v)[:200] for v in row) for row in rows)
    with files.writing(results):
        style.save(figure, table, results / "figures", name, f"{what}: {'; '.join(said)}.")
    return picture(results, name)


def picture(results: Path, name: str) -> Image | Markdown:
    """Return a figure of a results folder for a notebook, or a sentence if there is none."""
    path = results / "figures" / f"{name}.png"
    if not path.is_file():
        return Markdown(f"*Not drawn: no results folder `{results.name}` with `{name}` is beside this one.*")
    return Image(path, retina=True, alt=alt_texts(results)[name])


def finish(results: Path) -> dict[str, Any]:
    """Record the hash of every file in the manifest of a results folder, and return the manifest."""
    found = sorted(path for path in results.rglob("*") if path.is_file() and path.name != "manifest.json")
    hashes = {str(path.relative_to(results)): files.sha256(path) for path in found}
    manifest = read_manifest(results) | {"files": hashes}
    with files.writing(results):
        files.write_json(results / "manifest.json", manifest)
    return manifest


def numbers(results: Path) -> tuple[Table, Table]:
    """Return metrics and comparisons of a results folder, together with those in its `gather`."""
    params = read_manifest(results)["params"] if (results / "manifest.json").is_file() else {}
    if not params.get("gather"):
        return metrics.read_csv(results, metrics.FILES[0]), metrics.read_csv(results, metrics.FILES[1])
    pooled = metrics.pool([results, *map(files.resolve, params["gather"])])
    return metrics.metrics_table(pooled), metrics.comparisons_table(pooled, params["bootstrap_samples"])


def behind_figures(results: Path, measured: Table) -> dict[str, Table]:
    """Return the table behind each figure that there are data for, by the figure's name."""
    swept = set(measured) - {*metrics.METRIC_COLUMNS, metrics.AGREEMENT}
    if swept:  # averaged over what is swept, other figures would mean nothing
        return {figures.SWEEPS[name][0]: measured for name in figures.SWEEPS if name in swept}
    first = metrics.read_csv(results, metrics.FILES[0]).iloc[0]
    one_student = measured[measured["student"] == first["student"]]
    study = one_student[one_student["train_dataset"] == first["train_dataset"]]
    found = {"headline": study, "fig5_ood": one_student, "fig6_architectures": measured}
    place = results / "figures"
    left = [name for name in FIGURES if name not in found and (place / f"{name}.csv").is_file()]
    return found | {name: metrics.read_csv(place, f"{name}.csv") for name in left}  # `collect` left them


def draw(results: Path) -> list[str]:
    """Draw tables and figures of a results folder anew; returns the figures' names."""
    measured, comparisons = numbers(results)
    behind = behind_figures(results, measured)
    if "headline" in behind:
        with files.writing(results):
            tables.write_tables(results / "figures", measured, comparisons)
    drawn = {name: FIGURES[name][0](table) for name, table in behind.items()}
    for name, figure in drawn.items():
        keep(results, name, figure, behind[name])
    if (results / "manifest.json").is_file():
        finish(results)
    return [name for name, figure in drawn.items() if not figure.get_label()]


def alt_texts(results: Path) -> dict[str, str]:
    """Return the alternative text of every figure in a results folder."""
    return _read(results / "figures" / "alt_texts.json", f"`cfdistill figures {results}`")


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


def _steps(params: Params) -> list[tuple[str, store.Stage]]:
    """Return all stages of a study, each with its name and the method it is for, if any."""
    asked = [(name, part) for name in pipeline.STAGES for part in pipeline.parts(name, params)]
    named = (f"{name} {part.get('method', '')}".strip() for name, part in asked)
    return list(zip(named, (pipeline.find(name, params, **part) for name, part in asked), strict=True))


def _stories(params: Params) -> dict[str, pd.DataFrame]:
    """Return the answers that `fig1_weasel` and `fig7_qualitative` show, of the last two methods."""
    methods, tested = params.methods[-2:], params.test_datasets
    name = params.train_dataset if params.train_dataset in tested else tested[0]
    asked = [q for split in data.test_splits(name, params) for q in pipeline.questions(name, split, params)]
    given = [answer for method in methods for answer in pipeline.predictions(params, method, name)]
    table = stories.answers(asked, given, methods)
    return {
        "fig1_weasel": stories.pick(table, ("lured", "right"), 1),
        "fig7_qualitative": stories.pick(table, ("right", "right"), 2),
    }


def _origin(params: Params, stages: list[store.Stage]) -> dict[str, Any]:
    """Return the part of the manifest that tells where the numbers come from: what was read."""
    ends = [stage for stage in stages if stage.name in ("audits", "metrics")]
    made = {stage.place: stage for end in ends for stage in pipeline.behind(end)}
    seconds = {place: stage.manifest()["seconds"] for place, stage in made.items()}
    hashes = {place: files.sha256(stage.path / "manifest.json") for place, stage in made.items()}
    training = next(stage for stage in stages if stage.name == "training")
    threads = training.manifest()["notes"]["threads"]
    return {
        "status": "complete",
        "params": {**params.model_dump(), "precision": training.key["precision"]},
        "content": content(params, stages),
        "git": files.git_state(),
        "versions": files.versions(),
        "machine": {"processor": platform.machine(), "cores": files.cores(), "threads": threads},
        "stages": {place: {"seconds": seconds[place], "manifest": hashes[place]} for place in made},
        "seconds": round(sum(seconds.values()), 1),
    }


def content(params: Params, stages: list[store.Stage]) -> dict[str, str]:
    """Return a short hash of each thing that numbers come from, by which pooled studies are compared."""
    read: dict[str, Any] = {"student": models.fingerprint(params)}
    for stage in stages:
        if stage.name in ("data", "counterfactuals", "rationales"):
            label = f"questions of {stage.key['dataset']}" if stage.name == "data" else stage.name
            asked = dict(stage.reads("*.jsonl").files)
            for split in ("more", "balanced", "siblings"):  # of some methods, which may differ
                asked.pop(f"questions.{split}.jsonl", None)
            read.setdefault(label, asked)
    return {name: store.key_hash({"": value})[:8] for name, value in read.items()}
