"""The study's figures: pure functions from a table to a matplotlib figure, and one way to save them.

Sizes are those of a two-column paper (3.25 and 6.75 inches, 8 points). Every method has one color
and one marker everywhere; the colors are Okabe and Ito's, safe for color-blind readers. Error
bars are 95 % intervals. A figure drawn again from its own CSV is the same figure.
"""

from __future__ import annotations

import functools
import io
import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, ParamSpec

from cfdistill import metrics as measures
from cfdistill import runs
from cfdistill.data.weasel import ALL
from cfdistill.errors import DataError
from cfdistill.stats import proportion_interval
from cfdistill.tables import REPORTED, short_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

COLUMN, PAGE = 3.25, 6.75  # widths in inches
FONT = "DejaVu Sans"  # ships with matplotlib, so figures look the same everywhere
METHOD_STYLES = {  # color, marker
    "ft": ("#7f7f7f", "s"),
    "ft-cot": ("#e69f00", "^"),
    "ft-cot-long": ("#d55e00", "v"),
    "multi-view": ("#56b4e9", "D"),
    "cf-only": ("#009e73", "P"),
    "cf-unfiltered": ("#cc79a7", "X"),
    "cf-random-mask": ("#000000", "*"),
    "cf-distill": ("#0072b2", "o"),
}
RIGHT, WRONG = "#0072b2", "#d55e00"
SPLIT_LABELS = {"id": "id\nshortcut holds", "shift": "shift\nshortcut broken", "new": "new\nunseen scenes"}
STYLE: dict[Any, Any] = {
    "font.family": FONT,
    "font.size": 8,
    "axes.titlesize": 8,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.grid.axis": "y",
    "axes.axisbelow": True,
    "axes.linewidth": 0.6,
    "grid.color": "#e4e4e4",
    "grid.linewidth": 0.6,
    "legend.frameon": False,
    "lines.linewidth": 1.2,
    "lines.markersize": 4,
    "pdf.fonttype": 42,
}
P = ParamSpec("P")


def styled(draw: Callable[P, Figure]) -> Callable[P, Figure]:
    """Draw a figure in the study's style, whatever the reader's own settings are."""

    @functools.wraps(draw)
    def wrapper(*args: P.args, **kwargs: P.kwargs) -> Figure:
        import matplotlib

        with matplotlib.rc_context(STYLE):
            return draw(*args, **kwargs)

    return wrapper


def save(fig: Figure, df: pd.DataFrame, folder: Path, name: str, alt: str) -> Path:
    """Write `<name>.pdf`, `.png` (200 dpi) and `.csv`, and the alternative text to `alt_texts.json`.

    Args:
        fig: the figure.
        df: the table it was drawn from.
        folder: made if missing.
        name: of the files.
        alt: what the figure shows, for readers who cannot see it.

    Returns:
        The path of the PNG.
    """
    import matplotlib

    folder.mkdir(parents=True, exist_ok=True)
    undated = dict.fromkeys(("CreationDate", "Producer", "Creator"))
    kinds: dict[str, Any] = {
        "pdf": {"metadata": undated},
        "png": {"dpi": 200, "metadata": {"Software": None}},
    }
    with matplotlib.rc_context(STYLE):
        for kind, options in kinds.items():
            drawn = io.BytesIO()  # first, because a full disk in the midst of drawing confuses matplotlib
            fig.savefig(drawn, format=kind, **options)
            (folder / f"{name}.{kind}").write_bytes(drawn.getvalue())
    measures.write_csv(df, folder / f"{name}.csv")
    index = folder / "alt_texts.json"
    texts = json.loads(index.read_text(encoding="utf-8")) if index.is_file() else {}
    texts[name] = alt
    runs.write_text(index, json.dumps(texts, indent=1, sort_keys=True, ensure_ascii=False) + "\n")
    return folder / f"{name}.png"


@styled
def fig_headline(metrics: pd.DataFrame, chance: float | None = None) -> Figure:
    """Draw accuracy and lure rate on the training data set's own test splits, one bar per method.

    Args:
        metrics: table with `METRIC_COLUMNS` of one training data set and student.
        chance: accuracy of guessing, as a share; drawn as a dashed line.
    """
    rows = _labelled(metrics)
    _only(rows, "train_dataset", "student")
    lured = metrics.dropna(subset="lure_rate")  # real benchmarks have none
    ends = [proportion_interval(round(row.lure_rate * row.n), row.n) for row in measures.each_row(lured)]
    low, high = zip(*ends, strict=True) if ends else ((), ())
    unknown = {measures.AGREEMENT: float("nan")}  # of lures: what is known is of right answers
    lured = _labelled(lured.assign(accuracy=lured["lure_rate"], ci_low=low, ci_high=high, **unknown))
    fig, axes = subplots(1, 1 if lured.empty else 2, width=PAGE, height=2.6)
    method_bars(axes[0], rows, "label")
    chance_lines(axes[0], [chance] * rows["label"].nunique())
    axes[0].set(title="right answers (%), higher is better", ylim=(0, 100))
    if not lured.empty:
        method_bars(axes[1], lured, "label")
        axes[1].set(title="lured by the stereotype (%), lower is better", ylim=(0, 100))
    return legend_below(fig)


@styled
def fig5_ood(metrics: pd.DataFrame, chance: Mapping[str, float] | None = None) -> Figure:
    """Draw accuracy out of distribution: a panel per training data set, bars per method (Fig. 5).

    Args:
        metrics: table with `METRIC_COLUMNS` of one student.
        chance: accuracy of guessing per test data set, as shares; drawn as dashed lines.
    """
    rows = measures.transfer(metrics)
    rows = rows[rows["train_dataset"] != rows["test_dataset"]]
    if rows.empty and len(metrics):
        return note("tested on the training data set only")
    _only(rows, "student")
    words = [f"{short_name(r.test_dataset)}\n{r.test_split}, n = {r.n}" for r in measures.each_row(rows)]
    rows = rows.assign(label=words)
    trained_on = list(rows["train_dataset"].drop_duplicates())
    columns = min(2, len(trained_on))
    lines = -(-len(trained_on) // columns)
    fig, axes = subplots(lines, columns, width=PAGE, height=0.4 + 2.1 * lines)
    for ax in axes[len(trained_on) :]:
        ax.set_visible(False)
    for ax, name in zip(axes, trained_on, strict=False):
        panel = rows[rows["train_dataset"] == name]
        method_bars(ax, panel, "label")
        chance_lines(ax, [(chance or {}).get(d) for d in panel.drop_duplicates("label")["test_dataset"]])
        ax.set(title=f"trained on {short_name(name)}", ylim=(0, 100), ylabel="accuracy (%)")
    return legend_below(fig)


@styled
def fig5_matrix(cells: pd.DataFrame) -> Figure:
    """Draw the cells of `tables.matrix`: train × test, two methods and their difference (Fig. 5).

    On the diagonal stand unseen questions; a star marks a difference that Holm's correction leaves.
    """
    panels = list(cells["panel"].drop_duplicates())
    trained, tested = (list(dict.fromkeys(cells[f"{c}_dataset"])) for c in ("train", "test"))
    fig, axes = subplots(1, len(panels), width=PAGE, height=1.1 + 0.36 * len(trained))
    for ax, panel in zip(axes, panels, strict=True):
        rows = cells[cells["panel"] == panel]
        grid = rows.pivot(index="train_dataset", columns="test_dataset", values="value")
        signed = panel == "difference"
        colors, low, high = ("PuOr", -60, 60) if signed else ("Blues", 0, 100)
        ax.imshow(grid.reindex(trained)[tested], colors, aspect="auto", vmin=low, vmax=high)
        for row in measures.each_row(rows):
            words = (f"{row.value:+.0f}" if signed else f"{row.value:.0f}") + "*" * row.differs
            color = "white" if abs(row.value) > 0.6 * high else "black"
            x, y = tested.index(row.test_dataset), trained.index(row.train_dataset)
            ax.text(x, y, words, ha="center", va="center", color=color)
        ax.set_xticks(range(len(tested)), map(short_name, tested), rotation=35, ha="right")
        ax.set_yticks(range(len(trained)), map(short_name, trained) if ax is axes[0] else [])
        ax.grid(False)
        ax.set(title="difference (points)" if signed else f"{panel} (%)", xlabel="tested on")
    axes[0].set_ylabel("trained on")
    return fig


@styled
def fig6_architectures(metrics: pd.DataFrame, split: str | None = None) -> Figure:
    """Draw accuracy by student, bars per method, a panel per training data set (Fig. 6).

    The few accuracies known from the paper stand in a panel of their own, since they are of another
    data set.

    Args:
        metrics: table with `METRIC_COLUMNS`.
        split: the training data set's own test split to show; by default `shift`, or its only one.
    """
    rows = own_splits(metrics)
    split = split or ("shift" if "shift" in set(rows["test_split"]) else rows["test_split"].max())
    rows = rows[rows["test_split"] == split]
    require_rows(rows, f"split {split!r}")
    trained_on = list(rows["train_dataset"].drop_duplicates())
    count, lines = rows["student"].nunique(), len(trained_on)
    fig, axes = subplots(lines, 2, width=PAGE, height=0.4 + 2.1 * lines, width_ratios=[3, 1])
    for ax, name in zip(axes[::2], trained_on, strict=True):
        panel = rows[rows["train_dataset"] == name]
        method_bars(ax, panel, "student")
        only = " (one student only)" if count == 1 else ""
        title = f"{short_name(name)}, split {split}, {questions(panel)}{only}"
        ax.set(title=title, ylim=(0, 100), ylabel="accuracy (%)")
        ax.tick_params(axis="x", rotation=30 if count > 3 else 0)
    _reported_panel(axes[1])
    for ax in axes[3::2]:
        ax.set_visible(False)
    return legend_below(fig)


def note(words: str) -> Figure:
    """Return a figure that says why there is nothing to draw."""
    fig, (ax,) = subplots(1, 1, width=COLUMN, height=0.6)
    ax.set(xticks=[], yticks=[], xlabel=words)
    return fig


def _reported_panel(ax: Axes) -> None:
    for x, known in enumerate(REPORTED):
        ax.plot(x, known.accuracy, marker="*", color="black", markersize=8, fillstyle="none")
        words = f"{known.accuracy:.2f}\n{known.method}"
        ax.annotate(words, (x, known.accuracy), (0, 8), ha="center", fontsize=6, textcoords="offset points")
    ax.set_xticks(range(len(REPORTED)), [known.student.replace("-", "-\n") for known in REPORTED])
    ax.set(title="paper reports (ARC)", ylim=(0, 100), xlim=(-0.7, len(REPORTED) - 0.3))


def subplots(
    rows: int, columns: int, *, width: float, height: float, layout: Any = "constrained", **grid: Any
) -> tuple[Figure, list[Axes]]:
    """Return an empty figure of this size in inches, and its axes row by row."""
    import matplotlib.pyplot as plt

    fig, axes = plt.subplots(
        rows, columns, figsize=(width, height), layout=layout, squeeze=False, gridspec_kw=grid
    )
    plt.close(fig)  # for pyplot it is done with: a notebook shows it once, where it is returned
    return fig, list(axes.flat)


def method_bars(ax: Axes, rows: pd.DataFrame, x: str) -> None:
    """Draw groups of bars in percent, one group per value of column `x`, one bar per method."""
    groups, methods = list(rows[x].drop_duplicates()), methods_in(rows)
    width = 0.8 / len(methods)
    for i, method in enumerate(methods):
        part = rows[rows["method"] == method]
        at = part[x].map(groups.index) + (i - (len(methods) - 1) / 2) * width
        ax.bar(at, 100 * part["accuracy"], width * 0.92, color=METHOD_STYLES[method][0], alpha=0.35)
        points(ax, at, part, method)
    ax.set_xticks(range(len(groups)), groups)
    ax.tick_params(axis="x", length=0)


def points(ax: Axes, x: pd.Series[Any], rows: pd.DataFrame, method: str, **how: Any) -> None:
    """Draw accuracies in percent as the method's markers, with their intervals; `how` goes to matplotlib."""
    color, marker = METHOD_STYLES[method]
    y = 100 * rows["accuracy"]
    reach = [(y - 100 * rows["ci_low"]).clip(lower=0), (100 * rows["ci_high"] - y).clip(lower=0)]
    look: dict[str, Any] = {"color": color, "fmt": marker, "elinewidth": 1, "capsize": 2, "label": method}
    ax.errorbar(x, y, reach, **look | how)


def chance_lines(ax: Axes, shares: Sequence[float | None]) -> None:
    """Draw the accuracy of guessing at each group of an axis of groups."""
    for x, share in enumerate(shares):
        if share is not None:
            ends = (x - 0.45, x + 0.45)
            ax.hlines(100 * share, *ends, color="black", linestyle="--", linewidth=0.8, label="guessing")


def legend_below(fig: Figure, columns: int = 6) -> Figure:
    """Put one legend of all methods drawn under the figure."""
    named = {
        label: handle
        for ax in fig.axes
        for handle, label in zip(*ax.get_legend_handles_labels(), strict=True)
    }
    labels = [name for name in (*METHOD_STYLES, "guessing") if name in named]
    fig.legend([named[name] for name in labels], labels, loc="outside lower center", ncols=columns)
    return fig


def methods_in(rows: pd.DataFrame) -> list[str]:
    """Return the methods in a table in their one order; raises DataError for one without a style."""
    present = set(rows["method"])
    if unknown := present - set(METHOD_STYLES):
        raise DataError(f"no color and marker for {', '.join(unknown)}; add them to figures.METHOD_STYLES")
    return [method for method in METHOD_STYLES if method in present]


def own_splits(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the seed-averaged main scores on the training data set's own test splits."""
    rows = measures.over_seeds(metrics[measures.is_main(metrics)])
    return rows[(rows["train_dataset"] == rows["test_dataset"]) | (rows["train_dataset"] == ALL)]


def questions(rows: pd.DataFrame) -> str:
    """Return how many questions, and seeds where there are several, seed-averaged rows are of."""
    low, high = rows["n"].min(), rows["n"].max()
    said = f"n = {low}" if low == high else f"n = {low} to {high}"
    fewest, most = rows["seeds"].min(), rows["seeds"].max()
    if most == 1:
        return said
    return f"{said}, {most} seeds" if fewest == most else f"{said}, {fewest} to {most} seeds"


def _labelled(metrics: pd.DataFrame) -> pd.DataFrame:
    rows = own_splits(metrics)
    rows = rows[~rows["test_split"].str.startswith("shift_")]  # parts of `shift`
    labels = [f"{SPLIT_LABELS.get(r.test_split, r.test_split)}\nn = {r.n}" for r in measures.each_row(rows)]
    return rows.assign(label=labels)


def _only(rows: pd.DataFrame, *columns: str) -> None:
    require_rows(rows, "metrics of the test splits shown")
    for column in columns:
        if rows[column].nunique() > 1:
            raise DataError(
                f"this figure shows one {column}, got {', '.join(rows[column].unique())}; choose one"
            )


def require_rows(rows: pd.DataFrame, what: str) -> None:
    """Raise DataError when there is nothing to draw."""
    if rows.empty:
        raise DataError(f"nothing to draw: there are no {what}")
