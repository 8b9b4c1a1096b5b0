"""The study's figures and their captions: functions of tables; a grid's parameters are columns of them."""

import math
import textwrap
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from cfdistill.errors import DataError
from cfdistill.evaluate import metrics as measures
from cfdistill.evaluate.metrics import each_row
from cfdistill.methods import LOADER, METHODS
from cfdistill.show import style
from cfdistill.show.style import COLUMN, RIGHT, WRONG, note, styled, subplots
from cfdistill.show.tables import FEWEST

WORDS = yaml.load(Path(__file__).with_name("words.yaml").read_text(encoding="utf-8"), LOADER)
SPLITS, NOVELTY, SWEEPS = (WORDS[kind] for kind in ("splits", "novelty", "sweeps"))
WHOLE = ("id", "shift", "new", "test")
WHISKERS = "Whiskers: 95 % intervals over scenes (or questions) and any further seeds; dashed: guessing"
LONGEST = 600  # characters of a text that are shown; data sets may hold texts of any length


def own_splits(metrics: pd.DataFrame, splits: Iterable[str] = SPLITS) -> pd.DataFrame:
    """Return the seed-averaged main scores on the training data set's own test splits."""
    rows = measures.over_seeds(metrics[measures.is_main(metrics)])
    own = rows["train_dataset"] == rows["test_dataset"]
    return rows[own & rows["test_split"].isin(list(splits))]


def by_novelty(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return what `fig_novelty` shows: `shift` by its steps, `new`, and all other data sets together."""
    rows = measures.over_seeds(metrics[measures.is_main(metrics.assign(novelty=""))])
    own = rows["train_dataset"] == rows["test_dataset"]
    elsewhere = measures.OTHERS if measures.OTHERS in set(rows["test_dataset"]) else rows["test_dataset"]
    whole = rows["novelty"] == ""
    known = (
        own & (rows["test_split"] == "shift") & (rows["novelty"] != "scene")
    )  # few scenes are not trained on
    step = rows["novelty"].where(known, "")
    step = step.mask(own & (rows["test_split"] == "new") & whole, "scene")
    step = step.mask(~own & (rows["test_dataset"] == elsewhere) & whole, "format")
    rows = rows.assign(step=step, panel="right (%), by what training has shown")[rows["n"] >= FEWEST]
    steps = [rows[rows["step"] == name].assign(label=label) for name, label in NOVELTY.items()]
    return pd.concat(steps) if sum(not step.empty for step in steps) > 1 else rows[:0].assign(label="")


def headline(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return what `fig_headline` shows: accuracies, then lure rates."""
    right = own_splits(metrics, WHOLE)
    lured = right.dropna(subset="lure_rate").assign(chance=math.nan)  # real benchmarks have none
    for shown, column in (("accuracy", "lure_rate"), ("ci_low", "lure_low"), ("ci_high", "lure_high")):
        lured[shown] = lured[column]
    panels = {"right answers (%), higher is better": right, "lured by the stereotype (%)": lured}
    rows = pd.concat([part.assign(panel=title) for title, part in panels.items()])
    return rows.assign(label=rows["test_split"].map(SPLITS))


def transfer(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return what `fig5_ood` shows: accuracies on data sets that were not trained on."""
    rows = measures.transfer(metrics)
    rows = rows[rows["train_dataset"] != rows["test_dataset"]]
    panel = "trained on " + rows["train_dataset"].str.removeprefix("weasel-") + ": right (%)"
    splits = rows["test_split"].map(lambda split: "" if split in ("new", "test") else f"\n{split}")
    return rows.assign(panel=panel, label=rows["test_dataset"].str.removeprefix("weasel-") + splits)


def architectures(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return what `fig6_architectures` shows: accuracies on `shift` or `test`, by student."""
    several = metrics["student"].nunique() > 1
    rows = own_splits(metrics, ("shift", "test") if several else ())
    panel = rows["test_dataset"].str.removeprefix("weasel-") + " " + rows["test_split"] + ": right (%)"
    return rows.assign(panel=panel, label=rows["student"].str.replace("-", "-\n"))


def sweep(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return what `fig_sweep` shows: accuracies by what a grid swept (`value`), a panel per test split."""
    swept = next(name for name in SWEEPS if name in metrics)
    rows = own_splits(metrics, SWEEPS[swept]["splits"]).sort_values(swept, kind="stable")
    panel = rows["test_split"].map(SPLITS).str.replace("\n", ": ") + " (right, %)"
    label = rows[swept].map("{:g}".format)
    return rows.assign(value=rows[swept], label=label, panel=panel, axis=SWEEPS[swept]["axis"])


ROWS: Mapping[str, Callable[[pd.DataFrame], pd.DataFrame]] = {  # of figures of accuracies: what they show
    "novelty": by_novelty,
    "headline": headline,
    "fig5_ood": transfer,
    "fig6_architectures": architectures,
    **dict.fromkeys(("sweep", "spurious_sweep", "data_size"), sweep),
}


@styled
def _accuracies(name: str, table: pd.DataFrame, width: float = COLUMN) -> Figure:
    """Draw a figure of ROWS in panels, as bars or along what was swept, or say why there is nothing."""
    rows = ROWS[name](table)
    panels = list(rows.groupby("panel", sort=False))
    if not panels:
        return note(WORDS["figures"][name]["nothing"])
    _refuse_mixed(rows, "panel", "label")
    most = 2 if len(panels) in (2, 4) else 3
    fig, axes = subplots(len(panels), width, 1.8, most)
    for ax, (title, panel) in zip(axes, panels, strict=True):
        if "value" in rows:
            style.lines(ax, panel)
        else:
            style.bars(ax, panel, width if width <= COLUMN else width / min(most, len(panels)))
        ax.set(title=title, ylim=(0, 100))
    return style.legend_below(fig)


# Each is called with a table, and with a width in inches if it is not to be COLUMN.
fig_novelty = partial(_accuracies, "novelty")
fig_headline = partial(_accuracies, "headline")
fig5_ood = partial(_accuracies, "fig5_ood")
fig6_architectures = partial(_accuracies, "fig6_architectures")
fig_sweep = partial(_accuracies, "sweep")


def fig_funnel(counts: pd.DataFrame, width: float = COLUMN) -> Figure:
    """Draw what is left after each step of the filter, and why the rest was dropped (`funnel_counts`)."""
    drops = counts["drops"].fillna("").map(lambda drops: f" · dropped: {drops}" if drops else "")
    words = counts["left"].astype(str) + drops
    return _horizontal(counts["step"], counts["left"], words, [RIGHT] * len(counts), "candidates left", width)


def fig_cost(df: pd.DataFrame, width: float = COLUMN) -> Figure:
    """Draw the seconds of each step (columns step and value): what all methods share, then each method's."""
    methods = df["step"].map(lambda step: step.split()[-1]).where(lambda last: last.isin(list(METHODS)), "")
    df = df.assign(color=methods.map({name: method.color for name, method in METHODS.items()}).fillna(RIGHT))
    df = df.iloc[methods.map(["", *METHODS].index).argsort(kind="stable")]
    words = df["value"].map(lambda v: f"{v:,.0f}" if v >= 100 else f"{v:.3g}")
    return _horizontal(df["step"], df["value"], words, df["color"], "seconds", width)


@styled
def _horizontal(names: Any, values: Any, words: Any, colors: Any, unit: str, width: float) -> Figure:
    """Draw horizontal bars, read from above, with words on them."""
    room = int(style.LETTERS * (width - 1.1))
    lines = [textwrap.wrap(text, room, max_lines=3, placeholder=" …") for text in words]
    fig, (ax,) = subplots(1, width, 0.1 + (0.2 + 0.08 * max(map(len, lines))) * len(lines))
    ax.barh(range(len(values)), values, color=list(colors), alpha=0.35)
    total = max(values.max(), 1)
    for place, wrapped in enumerate(lines):
        ax.text(total * 0.01, place, "\n".join(wrapped), va="center", parse_math=False)
    ax.set_yticks(range(len(values)), names)
    ax.tick_params(axis="y", length=0)
    ax.grid(False)
    ax.set(xlabel=unit, xlim=(0, total), ylim=(len(values) - 0.5, -0.5))
    return fig


@styled
def fig_qualitative(answers: pd.DataFrame, width: float = COLUMN) -> Figure:
    """Write out questions, and each method's answer, marked right or wrong (`stories.answers`)."""
    told = [text for _, group in answers.groupby("id", sort=False) for text in _story(group)]
    lines = []
    for text in told:
        color = {"✓": RIGHT, "✗": WRONG}.get(text[:1], "black")
        lines += [(line, color) for line in textwrap.wrap(text, int(width * 12)) or [""]]
    if not lines:
        return note("there are no such answers")
    fig, (ax,) = subplots(1, width, 0.155 * len(lines) - 0.4)
    fig.set_layout_engine("none")
    ax.set(position=(0, 0, 1, 1), xlim=(0, width), ylim=(len(lines) - 0.5, -0.5))
    ax.set_axis_off()
    for place, (line, color) in enumerate(lines):
        weight = "normal" if color == "black" else "bold"
        ax.text(0.1, place, line, color=color, weight=weight, va="center_baseline", parse_math=False)
    return fig


def _story(group: pd.DataFrame) -> list[str]:
    """Return the texts of a question and its answers: what begins with ✓ is right, with ✗ wrong."""
    rows = each_row(group.fillna({"stereotype": -1, "text": ""}))
    options = [_clean(option) for option in rows[0].options.split("\n")]
    marks = {rows[0].stereotype: "✗ {} – what the topic suggests", rows[0].gold: "✓ {} – right"}
    told = [_clean(rows[0].stem), *(marks.get(i, "    {}").format(o) for i, o in enumerate(options))]
    for row in rows:
        symbol, likeliest = "✗✓"[row.predicted == row.gold], "" if row.parsed else " (likeliest option)"
        told += [
            "",
            f"{symbol} {row.method}: {options[row.predicted]}{likeliest}",
            _clean(row.text) or "(no text)",
        ]
    return [*told, ""]


def _clean(text: str) -> str:
    """Shorten a text, and replace what the font cannot draw: students sometimes write anything at all."""
    font = get_font(findfont("DejaVu Sans"))  # of the style; it ships with matplotlib
    words = " ".join(text[:LONGEST].split()) + (" …" if len(text) > LONGEST else "")
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in words)


def _refuse_mixed(rows: pd.DataFrame, *shown: str) -> None:
    """Raise DataError when a figure's points are not one row each, as with two students in one figure."""
    facts = rows.columns.difference([*measures.METRIC_VALUES, "n", "seeds", "scoring"], sort=False)
    differing = rows[facts].groupby(["method", *shown]).nunique().max()
    for column in differing[differing > 1].index:
        found = ", ".join(map(str, rows[column].unique()))
        raise DataError(f"this figure shows one {column}, got {found}; choose one")


def words(name: str, table: pd.DataFrame) -> dict[str, str]:
    """Return a figure's `caption`, the `finding` in it, and its numbers for who cannot see it (`alt`)."""
    figure = WORDS["figures"][name]
    if name not in ROWS:
        finding = figure["finding"].format(first=table.iloc[0], last=table.iloc[-1], sum=table.sum())
        alt = f"{figure['shows']} {_told(table[figure['numbers'].split()])}."
        return {"caption": f"{figure['shows']} {finding}", "finding": finding, "alt": alt}
    rows = ROWS[name](table)
    if "value" in rows:
        ends = rows.groupby(["panel", "method"], sort=False)["accuracy"].agg(["first", "last"])
        finding = f"From {rows['label'].iloc[0]} to {rows['label'].iloc[-1]}: {_told(ends.reset_index())}."
    else:
        right = rows[rows["panel"].str.contains("right")]
        best = right.loc[right.groupby(["panel", "label"], sort=False)["accuracy"].idxmax()]
        several = ["panel"] if right["panel"].nunique() > 1 else []
        finding = f"Highest: {_told(best[[*several, 'label', 'method', 'accuracy']])}."
    students = ", ".join(rows["student"].unique())
    caption = f"{figure['shows']} {WHISKERS}; {style.asked(rows)}; trained: {students}. {finding}"
    numbers = _told(rows[["panel", "label", "method", "accuracy"]])
    return {"caption": caption, "finding": finding, "alt": f"{figure['shows']} {numbers}."}


def _told(table: pd.DataFrame) -> str:
    """Return a table in words, shares in percent."""
    shares = table.columns.intersection(["accuracy", "first", "last"])
    table = table.assign(**{name: (100 * table[name]).map("{:.1f} %".format) for name in shares})
    rows = (" ".join(str(value)[:200] for value in row) for row in table.fillna("").to_numpy())
    return " ".join("; ".join(rows).replace("-\n", "-").split())
