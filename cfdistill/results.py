"""The results folder of a study: small tables, figures, and a manifest of what they came from."""

from __future__ import annotations

import json
import os
import platform
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfdistill import (
    answer_figures,
    audit,
    counterfactual,
    data,
    figures,
    grid_figures,
    metrics,
    process_figures,
    qualitative,
    runs,
    tables,
)
from cfdistill.data.weasel import ALL
from cfdistill.errors import DataError, StageError
from cfdistill.params import Params

if TYPE_CHECKING:
    import pandas as pd
    from IPython.display import Image, Markdown

HEADLINE = {"ft", "ft-cot", "ft-cot-long", "cf-distill"}  # methods beyond these are ablations
SWEEPS = {
    "spurious_rate": ("spurious_sweep", grid_figures.fig_spurious_sweep),
    "train_questions": ("data_size", grid_figures.fig_data_size),
}
QUOTED_GRIDS = ("data_size", "ablation", "spurious")  # whose numbers the README quotes
STORIES = {
    "fig1_weasel": "One question on which the baseline follows the stereotype, and both methods' answers",
    "fig7_qualitative": "Two questions that both methods answer right, and both explanations",
}


def collect(params: Params) -> Path:
    """Write a study's small files into its results folder, emptied before, and return it.

    These are the tables of the stage `metrics`, the tables behind figures that cannot be recomputed
    from them, and the manifest: parameters, code, versions, machine, and each stage behind the numbers
    with its seconds and its manifest's hash. `draw` needs nothing else.

    Raises:
        StageError: a stage is missing, or the folder cannot be written.
    """
    source = runs.require(runs.stage("metrics", params))
    folder = runs.results_folder(params)
    counts = counterfactual.funnel_counts(funnel(params), params)
    small = {**stories(params), "funnel": counts, "cost": cost(params)}
    if params.audit_questions:
        small["audits"] = audit.table(params)
    with runs.writing(folder):
        if folder.exists():
            (folder / "manifest.json").unlink(missing_ok=True)  # first, so that no half folder has one
            runs.sync(folder)
            shutil.rmtree(folder)
        (folder / "figures").mkdir(parents=True)
        for name in metrics.FILES:
            shutil.copyfile(source.path / name, folder / name)
        for name, table in small.items():
            metrics.write_csv(table, folder / "figures" / f"{name}.csv")
        _write_manifest(folder, _origin(params))
    return folder


def draw(folder: Path) -> dict[str, str]:
    """Make table and figures of a results folder anew, from nothing but small files.

    The folders that the manifest's parameter `gather` names are drawn with it. What a folder has no
    data for is not drawn: one of a grid has no single study's costs, for example.

    Returns:
        The alternative text of every figure that was drawn, by its name.

    Raises:
        StageError: a table is missing or damaged, or the folder cannot be written.
    """
    manifest = read_manifest(folder) if (folder / "manifest.json").is_file() else {}
    known = {"gather": [], "bootstrap_samples": 2000} | manifest.get("params", {})
    measured, comparisons = (metrics.read_csv(folder, name) for name in metrics.FILES[:2])
    target = folder / "figures"
    if set(measured.columns) - {*metrics.METRIC_COLUMNS, metrics.AGREEMENT}:
        plots = _sweeps(measured)  # averaged over what is swept, the others would mean nothing
    elif ALL in set(measured["train_dataset"]):
        plots = _joint(measured)
    else:
        own = measured.iloc[0]  # what the folder's single-study figures are of
        if known["gather"]:
            folders = [folder, *map(runs.resolve, known["gather"])]
            measured, comparisons = metrics.gather(folders, known["bootstrap_samples"])
        with runs.writing(target):
            tables.write_tables(target, measured, comparisons)
        plots = _plots(target, measured, comparisons, own)
    drawn = {}
    with runs.writing(target):
        for name, figure, table, alt in plots:
            figures.save(figure, table, target, name, alt)
            drawn[name] = alt
    if manifest:
        _write_manifest(folder, manifest)
    return drawn


def picture(folder: Path, name: str) -> Image | Markdown:
    """Return a figure of a results folder for a notebook, or a sentence if there is no data for it."""
    from IPython.display import Image, Markdown

    if not (folder / "figures").is_dir():
        return Markdown(f"*Not drawn: no results folder `{folder.name}` was drawn beside this study's.*")
    if (alt := alt_texts(folder).get(name)) is None:
        return Markdown(f"*Not drawn: this study lacks the methods or data sets that `{name}` compares.*")
    return Image(folder / "figures" / f"{name}.png", retina=True, alt=alt)


def alt_texts(folder: Path) -> dict[str, str]:
    """Return the alternative text of every figure in a results folder; StageError if none was drawn."""
    path = folder / "figures" / "alt_texts.json"
    if not path.is_file():
        raise StageError(f"{path} is missing; make it with `cfdistill figures {folder}`")
    texts: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return texts


def read_manifest(folder: Path) -> dict[str, Any]:
    """Return the manifest of a results folder; raises StageError when it has none."""
    path = folder / "manifest.json"
    if not path.is_file():
        raise StageError(f"{path} is missing; make it with notebook 07_paper_figures")
    manifest: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return manifest


def _plots(folder: Path, measured: pd.DataFrame, comparisons: pd.DataFrame, own: pd.Series[Any]) -> Any:
    """Yield name, figure, its table and its alternative text, for all that the folder has data for."""
    chances = _chances(measured["test_dataset"].unique())
    study = measured[
        (measured["train_dataset"] == own["train_dataset"]) & (measured["student"] == own["student"])
    ]
    headline = figures.fig_headline(study, chances.get(own["train_dataset"]))
    rows = figures.own_splits(study)
    alt = f"Accuracy and lure rate by method and test split. Right answers: {_spoken(rows, 'test_split')}"
    yield "headline", headline, study, alt
    same = measured[measured["student"] == own["student"]]
    rows = metrics.transfer(same)
    alt = f"Accuracy by training and test data set. {_spoken(rows, 'train_dataset', 'test_dataset')}"
    yield "fig5_ood", figures.fig5_ood(same, chances), same, f"Bars. {alt}"
    cells = tables.matrix(same, comparisons)
    if not cells.empty:
        yield "fig5_matrix", figures.fig5_matrix(cells), cells, f"Matrices. {alt}"
    rows = figures.own_splits(measured)
    alt = f"Accuracy by student and method. {_spoken(rows, 'student', 'train_dataset', 'test_split')}"
    yield "fig6_architectures", figures.fig6_architectures(measured), measured, alt
    if not set(study["method"]) <= HEADLINE:
        rows = grid_figures.ablation_table(study, comparisons)
        alt = f"Accuracy of the ablations. {_spoken(rows, 'test_split')}"
        chance = chances.get(own["train_dataset"])
        yield "ablation", grid_figures.fig_ablation(rows, chance), rows, alt
    if (folder / "audits.csv").is_file():
        audits = metrics.read_csv(folder, "audits.csv")
        alt = f"Right answers by audit and condition. {_spoken(audits, 'audit', 'condition')}"
        yield "audits", answer_figures.fig_audits(audits), audits, alt
    for name, alt in STORIES.items():
        if (folder / f"{name}.csv").is_file():
            story = metrics.read_csv(folder, f"{name}.csv")
            yield name, answer_figures.fig_qualitative(story), story, f"{alt}. {_told(story)}"
    if (folder / "funnel.csv").is_file():
        counts = metrics.read_csv(folder, "funnel.csv")
        left = "; ".join(f"{row.step}: {row.left}" for row in metrics.each_row(counts))
        yield (
            "funnel",
            process_figures.fig_funnel(counts),
            counts,
            f"Counterfactuals left after each step. {left}",
        )
    if (folder / "cost.csv").is_file():
        steps = metrics.read_csv(folder, "cost.csv")
        spent = "; ".join(f"{row.step}: {row.value:.0f}" for row in metrics.each_row(steps))
        yield "cost", process_figures.fig_cost(steps, "seconds"), steps, f"Seconds of each stage. {spent}"


def _sweeps(measured: pd.DataFrame) -> Any:
    """Yield the figures of a grid that sweeps a parameter, as `_plots` does."""
    for swept, (name, draw_it) in SWEEPS.items():
        if swept in measured:
            rows = figures.own_splits(measured)
            alt = f"Accuracy by {swept} and test split. {_spoken(rows, swept, 'test_split')}"
            trained_on = measured["train_dataset"].iloc[0]
            yield name, draw_it(measured, _chances([trained_on]).get(trained_on)), measured, alt


def _joint(measured: pd.DataFrame) -> Any:
    """Yield the figure of joint training, as `_plots` does."""
    rows = figures.own_splits(measured)
    rows = rows[rows["test_split"].isin(grid_figures.UNSEEN)]
    alt = f"Accuracy by training data. {_spoken(rows, 'train_dataset', 'test_dataset', 'test_split')}"
    figure = grid_figures.fig_joint(measured, _chances(rows["test_dataset"].unique()))
    yield "joint", figure, measured, alt


def _chances(datasets: Iterable[str]) -> dict[str, float]:
    """Return the accuracy of guessing on each data set whose questions can be had here."""
    found = {}
    for name in datasets:
        try:
            found[name] = data.chance(name, Params())
        except DataError:  # a real benchmark's files are not here: its line of guessing is not drawn
            continue
    return found


def _spoken(rows: pd.DataFrame, *groups: str) -> str:
    """Return accuracies as a sentence for readers who cannot see the bars."""
    parts = []
    for key, group in rows.groupby(list(groups), sort=False):
        where = " → ".join(tables.short_name(str(name)) for name in key)
        shown = ", ".join(f"{r.method} {100 * r.accuracy:.0f} %" for r in metrics.each_row(group))
        parts.append(f"{where}: {shown}")
    return "; ".join(parts) + "."


def _told(story: pd.DataFrame) -> str:
    """Return questions and what was answered to them as text."""
    parts = []
    for _, group in story.groupby("id", sort=False):
        first, *_ = rows = metrics.each_row(group)
        options = first.options.split("\n")
        said = ", ".join(f"{row.method}: {options[row.predicted]}" for row in rows)
        parts.append(f"{first.stem[:200]} Right: {options[first.gold]}. {said}.")
    return " ".join(parts)


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


def readme_blocks(results: Path) -> dict[str, str]:
    """Return the README's results in markdown, from the committed results folders.

    Args:
        results: holds the folders of the default study, its grids, and the run on real questions.

    Raises:
        StageError: a table or the manifest is missing.
    """

    def read(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
        measured, compared = (metrics.read_csv(results / name, file) for file in metrics.FILES[:2])
        return measured, compared

    default, real = read("offline"), read("csqa_smollm2")
    trained = default[0]["train_dataset"].iloc[0]
    seeds = [table[table["train_dataset"] == trained] for table in read("offline_full")]
    return {
        "results": tables.readme_block(*default, read_manifest(results / "offline")),
        "seeds": tables.seeds_block(*seeds),
        **{name: _quoted(results / name, trained) for name in QUOTED_GRIDS},
        "benchmark": f"{tables.to_markdown(*real)}\n{tables.differences(real[1])}",
    }


def _quoted(folder: Path, dataset: str) -> str:
    """Return what the README quotes of a grid."""
    block = tables.sweep_block(metrics.read_csv(folder, metrics.FILES[0]), dataset)
    if not (folder / metrics.SETTINGS).is_file():  # methods were varied
        return block
    return f"{block}\n\n{tables.settings_block(metrics.read_csv(folder, metrics.SETTINGS))}"


def _origin(params: Params) -> dict[str, Any]:
    """Return the part of the manifest that tells where the numbers come from."""
    made = _stages(params)
    stages = {
        str(stage.path.relative_to(stage.path.parents[1])): {
            "seconds": stage.manifest()["seconds"],
            "manifest": runs.sha256(stage.path / "manifest.json"),
        }
        for stage in made
    }
    training = next(stage.manifest()["notes"] for stage in made if stage.name == "training")
    return {
        "status": "complete",
        "params": params.model_dump(),
        "git": runs.git_state(),
        "versions": runs.versions(),
        "machine": {
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "precision": training["precision"],
            "threads": training["threads"],
        },
        "stages": stages,
        "seconds": round(sum(facts["seconds"] for facts in stages.values()), 1),
    }


def _write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write the manifest with the hash of every file that the folder holds now."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "manifest.json")
    manifest["files"] = {str(path.relative_to(folder)): runs.sha256(path) for path in files}
    with runs.writing(folder):
        runs.sync_tree(folder)
        runs.write_text(folder / "manifest.json", json.dumps(manifest, indent=1) + "\n")


def _stages(params: Params) -> list[runs.Stage]:
    """Return every stage the study's numbers come from, in order, by following the manifests."""
    root = runs.resolve(params.run_root)
    found: dict[str, runs.Stage] = {}

    def follow(stage: runs.Stage) -> None:
        for name in stage.manifest()["inputs"]:
            follow(runs.Stage(name.partition("/")[0], {}, root / name))
        found.setdefault(str(stage.path), runs.Stage(stage.name, stage.manifest()["key"], stage.path))

    follow(runs.require(runs.stage("metrics", params)))
    for method in params.methods:
        follow(runs.require(runs.stage("audits", params, method=method)))
    return list(found.values())


def _step(stage: runs.Stage) -> str:
    method = stage.key.get("method")
    return f"{stage.name} {method}" if method else stage.name
