"""The look of all figures: sizes of a two-column paper, one color and marker per method, 95 % intervals."""

import io
import json
import math
import textwrap
from pathlib import Path
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from cfdistill import files
from cfdistill.errors import DataError
from cfdistill.evaluate.metrics import write_csv
from cfdistill.methods import METHODS

COLUMN, PAGE = 3.25, 6.75  # widths in inches
RIGHT, WRONG = "#0072b2", "#d55e00"
GUESSING = "guessing"
# Decorates what draws, so that the reader's own settings do not matter.
styled = matplotlib.rc_context(fname=Path(__file__).with_name("paper.mplstyle"))


@styled
def save(fig: Figure, df: pd.DataFrame, folder: Path, name: str, alt: str) -> Path:
    """Write `<name>.pdf`, `.png` (200 dpi), `.csv` and its line of `alt_texts.json`; return the PNG."""
    none = dict.fromkeys(("CreationDate", "Producer", "Creator"))  # the same figure gives the same bytes
    formats: dict[str, Any] = {"pdf": {"metadata": none}, "png": {"dpi": 200, "metadata": {"Software": None}}}
    folder.mkdir(parents=True, exist_ok=True)
    for kind, options in formats.items():
        drawn = io.BytesIO()  # first, because a full disk in the midst of drawing confuses matplotlib
        fig.savefig(drawn, format=kind, **options)
        (folder / f"{name}.{kind}").write_bytes(drawn.getvalue())
    write_csv(df, folder / f"{name}.csv")
    index = folder / "alt_texts.json"
    texts = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    files.write_json(index, dict(sorted((texts | {name: alt}).items())))
    return folder / f"{name}.png"


def subplots(rows: int, columns: int, width: float, height: float, **how: Any) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of this size in inches, and its axes row by row."""
    fig, axes = plt.subplots(rows, columns, figsize=(width, height), squeeze=False, **how)
    plt.close(fig)  # for pyplot it is done with: a notebook shows it once, where it is returned
    return fig, list(axes.flat)


@styled
def note(words: str) -> Figure:
    """Return a figure that says why there is nothing to draw; its label says so, too."""
    fig, (ax,) = subplots(1, 1, COLUMN, 0.6)
    fig.set_label(words)
    ax.set_axis_off()
    ax.text(0.5, 0.5, textwrap.fill(words, 50), ha="center", va="center")
    return fig


def methods_in(rows: pd.DataFrame) -> list[str]:
    """Return the methods in a table in their one order; DataError when one of them has no look."""
    if unknown := sorted(set(rows["method"]) - set(METHODS)):
        raise DataError(f"no such method: {', '.join(unknown)}; add it to METHODS in cfdistill/methods.py")
    return [method for method in METHODS if method in set(rows["method"])]


def points(ax: Axes, x: Any, rows: pd.DataFrame, method: str, **how: Any) -> None:
    """Draw accuracies in percent as the method's markers, with their intervals; `how` goes to matplotlib."""
    y = 100 * rows["accuracy"]
    reach = [(y - 100 * rows["ci_low"]).clip(lower=0), (100 * rows["ci_high"] - y).clip(lower=0)]
    look: dict[str, Any] = {"color": METHODS[method].color, "fmt": METHODS[method].marker}
    ax.errorbar(x, y, reach, **look | {"elinewidth": 1, "capsize": 2, "label": method} | how)


def bars(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw accuracies in percent: a group of bars per value of the column label, a bar per method."""
    groups, methods = list(rows["label"].drop_duplicates()), methods_in(rows)
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        part = rows[rows["method"] == method]
        at = part["label"].map(groups.index).astype(float) + (i - (len(methods) - 1) / 2) * width
        ax.bar(at, 100 * part["accuracy"], width * 0.92, color=METHODS[method].color, alpha=0.35)
        points(ax, at, part, method)
    for i, share in enumerate(rows.drop_duplicates("label")["chance"]):
        guessing(ax, share, i - 0.45, i + 0.45)
    counts = [asked(rows[rows["label"] == group]).replace(", ", "\n") for group in groups]
    ax.set_xticks(range(len(groups)), map("\n".join, zip(groups, counts, strict=True)))
    ax.tick_params(axis="x", length=0)
    ax.set_ylim(0, 100)


def guessing(ax: Axes, share: float, start: float, end: float) -> None:
    """Draw the accuracy of guessing, unless it is NaN, as a dashed line between two places."""
    if not math.isnan(share):
        ax.plot([start, end], [100 * share] * 2, color="black", linestyle="--", linewidth=0.8, label=GUESSING)


def horizontal(ax: Axes, names: Any) -> None:
    """Set up an axis of horizontal bars that are read from above, with their names."""
    ax.set_yticks(range(len(names)), names)
    ax.set_ylim(len(names) - 0.5, -0.5)
    ax.tick_params(axis="y", length=0)
    ax.grid(False)


def legend_below(fig: Figure, columns: int = 6) -> Figure:
    """Put one legend of all that is drawn under the figure, in the order of methods, guessing last."""
    named: dict[str, Any] = {}
    for ax in fig.axes:
        handles, labels = ax.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    labels = sorted(named, key=[*METHODS, GUESSING].index)
    fig.legend([named[label] for label in labels], labels, loc="outside lower center", ncols=columns)
    return fig


def asked(rows: pd.DataFrame) -> str:
    """Return how many questions, and seeds where there are several, seed-averaged rows are of."""
    n, seeds = (" to ".join(map(str, sorted({rows[c].min(), rows[c].max()}))) for c in ("n", "seeds"))
    return f"n = {n}" if seeds == "1" else f"n = {n}, {seeds} seeds"
