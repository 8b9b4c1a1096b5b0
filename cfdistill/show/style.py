"""The look of all figures: sizes of a two-column paper, one color and marker per method, 95 % intervals."""

import io
import json
import math
import re
import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import matplotlib
import matplotlib.pyplot as plt
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.text import Text

from cfdistill import files
from cfdistill.errors import DataError
from cfdistill.evaluate.metrics import write_csv
from cfdistill.methods import METHODS

COLUMN, PAGE = 3.25, 6.75  # widths in inches
LETTERS = 14  # of the style's font in an inch, on average
RIGHT, WRONG = "#0072b2", "#d55e00"
GUESSING = "guessing"
# Decorates what draws, so that the reader's own settings do not matter.
styled = matplotlib.rc_context(fname=Path(__file__).with_name("paper.mplstyle"))
SAVING: Mapping[str, dict[str, Any]] = {  # without dates, so that the same figure gives the same bytes
    "pdf": {"metadata": dict.fromkeys(("CreationDate", "Producer", "Creator"))},
    "png": {"dpi": 200, "metadata": {"Software": None}},
    "svg": {"metadata": {"Date": None}},
}


@styled
def save(
    fig: Figure,
    table: pd.DataFrame,
    place: Path,
    words: Mapping[str, str],
    formats: Sequence[str] = ("pdf", "png"),
    font: str = "DejaVu Sans",
    labels: Mapping[str, str] | None = None,
) -> None:
    """Write a figure to `place` plus an ending, with its table, its LaTeX and its part of `captions.json`."""
    if unknown := set(formats) - set(SAVING):
        raise DataError(f"no format {', '.join(unknown)}; there are {', '.join(SAVING)}")
    for text in fig.findobj(Text):
        text.set_text(relabel(text.get_text(), labels))
        text.set_fontfamily([font, "DejaVu Sans"])
    words = {kind: relabel(said, labels) for kind, said in words.items()}
    place.parent.mkdir(parents=True, exist_ok=True)
    for kind in formats:
        drawn = io.BytesIO()  # first, because a full disk in the midst of drawing confuses matplotlib
        fig.savefig(drawn, format=kind, **SAVING[kind])
        place.with_suffix(f".{kind}").write_bytes(drawn.getvalue())
    write_csv(table, place.with_suffix(".csv"))
    wide = "*" if fig.get_figwidth() > COLUMN else ""
    latex = Template(Path(__file__).with_name("figure.tex").read_text(encoding="utf-8"))
    filled = latex.substitute(wide=wide, name=place.name, caption=tex(words["caption"]))
    place.with_suffix(".tex").write_text(filled, encoding="utf-8")
    index = place.with_name("captions.json")
    known = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    files.write_json(index, dict(sorted((known | {place.name: words}).items())))


def relabel(text: str, labels: Mapping[str, str] | None) -> str:
    """Return a text with methods called by other names."""
    for method, label in (labels or {}).items():
        text = re.sub(rf"(?<![\w-]){re.escape(method)}(?![\w-])", label, text)
    return text


def tex(text: str) -> str:
    """Return a text as LaTeX that compiles without further packages."""
    text = re.sub(r"([&%#_$])", r"\\\1", text).replace("–", "--").replace("ρ", r"$\rho$")
    return re.sub(r"p ([<=]) ([\d.]+)", r"$p\1\2$", text)


def subplots(count: int, width: float, height: float, most: int = 1) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of panels of a height in inches: `most` beside each other, in a column one."""
    columns = 1 if width <= COLUMN else min(most, count)
    rows = -(-count // columns)
    fig, axes = plt.subplots(rows, columns, figsize=(width, height * rows + 0.4), squeeze=False)
    plt.close(fig)  # for pyplot it is done with: a notebook shows it once, where it is returned
    for ax in axes.flat[count:]:
        ax.set_visible(False)
    return fig, list(axes.flat[:count])


@styled
def note(words: str) -> Figure:
    """Return a figure that says why there is nothing to draw; its label says so, too."""
    fig, (ax,) = subplots(1, COLUMN, 0.2)
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
    look: dict[str, Any] = {"color": METHODS[method].color, "fmt": METHODS[method].marker, "label": method}
    ax.errorbar(x, y, reach, **look | {"elinewidth": 1, "capsize": 2, "clip_on": False, "zorder": 3} | how)


def bars(ax: Axes, rows: pd.DataFrame, room: float) -> None:
    """Draw accuracies in percent in `room` inches: a group by the column label, a bar per method."""
    groups, methods = list(rows["label"].drop_duplicates()), methods_in(rows)
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        part = rows[rows["method"] == method]
        at = part["label"].map(groups.index).astype(float) + (i - (len(methods) - 1) / 2) * width
        ax.bar(at, 100 * part["accuracy"], width * 0.92, color=METHODS[method].color, alpha=0.35)
        points(ax, at, part, method)
    for i, share in enumerate(rows.drop_duplicates("label")["chance"]):
        guessing(ax, share, i - 0.45, i + 0.45)
    names = []
    for group in groups:
        lines = [*group.split("\n"), *asked(rows[rows["label"] == group]).split(", ")]
        letters = max(7, int(LETTERS * room / len(groups)))
        names.append("\n".join(textwrap.fill(line, letters, break_long_words=False) for line in lines))
    ax.set_xticks(range(len(groups)), names)
    ax.tick_params(axis="x", length=0)


def lines(ax: Axes, rows: pd.DataFrame) -> None:
    """Draw accuracies in percent against the column value: a line per method."""
    values, methods = sorted(rows["value"].unique()), methods_in(rows)
    apart = 0.012 * ((values[-1] - values[0]) or 1)  # so that intervals do not overlap
    for i, method in enumerate(methods):
        part = rows[rows["method"] == method]
        points(ax, part["value"] + (i - (len(methods) - 1) / 2) * apart, part, method, linestyle="-")
    guessing(ax, rows["chance"].iloc[0], values[0], values[-1])
    ax.set_xticks(values, rows["label"].unique())
    ax.set_xlabel(f"{rows['axis'].iloc[0]}, {asked(rows)}")


def guessing(ax: Axes, share: float, start: float, end: float) -> None:
    """Draw the accuracy of guessing, unless it is NaN, as a dashed line between two places."""
    if not math.isnan(share):
        ax.plot([start, end], [100 * share] * 2, color="black", linestyle="--", linewidth=0.8, label=GUESSING)


def legend_below(fig: Figure) -> Figure:
    """Put one legend of all that is drawn under the figure, in the order of methods, guessing last."""
    named: dict[str, Any] = {}
    for ax in fig.axes:
        handles, labels = ax.get_legend_handles_labels()
        named |= dict(zip(labels, handles, strict=True))
    labels = sorted(named, key=[*METHODS, GUESSING].index)
    room, sizes = LETTERS * fig.get_figwidth(), [len(label) + 4 for label in labels]
    columns = len(labels) if sum(sizes) <= room else int(room / max(sizes))
    fig.legend([named[label] for label in labels], labels, loc="outside lower center", ncols=columns)
    return fig


def asked(rows: pd.DataFrame) -> str:
    """Return how many questions, and seeds where there are several, seed-averaged rows are of."""
    n, seeds = (" to ".join(map(str, sorted({rows[c].min(), rows[c].max()}))) for c in ("n", "seeds"))
    return f"n = {n}" if seeds == "1" else f"n = {n}, {seeds} seeds"
