"""Figures of grids: accuracy against a swept parameter, ablations side by side, and joint training.

Each is drawn from a grid's small tables (`grid.write_tables`), in which a swept parameter is a column.
Seeds are averaged, with the intervals of `metrics.over_seeds`.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING

from cfdistill.data.weasel import ALL
from cfdistill.figures import (
    METHOD_STYLES,
    PAGE,
    SPLIT_LABELS,
    chance_lines,
    legend_below,
    methods_in,
    own_splits,
    points,
    questions,
    require_rows,
    styled,
    subplots,
)
from cfdistill.metrics import COMPARISON_KEYS, OWN_SPLITS, each_row, reference
from cfdistill.stats import ALPHA
from cfdistill.tables import short_name

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

DODGE = 0.012  # share of the axis by which methods stand beside each other, so that intervals do not overlap
UNSEEN = ("shift_reachable", "shift_heldout", "new")  # further and further from what was shown
LABELS = SPLIT_LABELS | {
    "shift_reachable": "shift, reachable\ncauses shown",
    "shift_heldout": "shift, held out\ncauses not shown",
}


@styled
def fig_spurious_sweep(metrics: pd.DataFrame, chance: float | None = None) -> Figure:
    """Draw accuracy against the strength of the shortcut ρ: where it holds, where it breaks, on new scenes.

    Args:
        metrics: table with `METRIC_COLUMNS` and spurious_rate, of one training data set and student.
        chance: accuracy of guessing, as a share; drawn as a dashed line.
    """
    label = "share ρ of stereotype answers in training"
    return _curves(metrics, "spurious_rate", ("id", "shift", "new"), label, chance)


@styled
def fig_data_size(metrics: pd.DataFrame, chance: float | None = None) -> Figure:
    """Draw accuracy against the number of training questions: on causes shown, held out, and unseen.

    Args:
        metrics: table with `METRIC_COLUMNS` and train_questions, of one training data set and student.
        chance: accuracy of guessing, as a share; drawn as a dashed line.
    """
    return _curves(metrics, "train_questions", UNSEEN, "training questions", chance)


def ablation_table(metrics: pd.DataFrame, comparisons: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies on the training data set's own splits, each with its paired difference.

    Args:
        metrics: table with `METRIC_COLUMNS`, of one training data set and student.
        comparisons: table with `COMPARISON_COLUMNS`.

    Returns:
        The columns of `metrics.over_seeds`, and delta, delta_low, delta_high (shares: the method minus
        cf-distill) and p_holm, which are NaN for cf-distill itself.
    """
    rows = own_splits(metrics)
    rows = rows[rows["test_split"] != "shift"]  # its two parts tell more
    named = {"method_b": "method", "ci_low": "delta_high", "ci_high": "delta_low"}
    keys = [name for name in COMPARISON_KEYS if not name.startswith("method_")]
    columns = ["delta", "delta_low", "delta_high"]
    other = comparisons[comparisons["method_a"] != comparisons["method_b"]].rename(columns=named)
    other = other.assign(**{name: -other[name] for name in columns})
    return rows.merge(other[[*keys, "method", *columns, "p_holm"]], how="left")


@styled
def fig_ablation(rows: pd.DataFrame, chance: float | None = None) -> Figure:
    """Draw the accuracy of methods, a panel per test split, with a star where one differs from cf-distill.

    Args:
        rows: from `ablation_table`.
        chance: accuracy of guessing, as a share; drawn as a dashed line.
    """
    require_rows(rows, "metrics of the training data set's own splits")
    splits = [split for split in (*OWN_SPLITS, "new", "test") if split in set(rows["test_split"])]
    methods = methods_in(rows)
    first = reference(methods)
    fig, axes = subplots(1, len(splits), width=PAGE, height=1.1 + 0.21 * len(methods))
    for ax, split in zip(axes, splits, strict=True):
        part = rows[rows["test_split"] == split]
        for row in each_row(part):
            place, (color, marker) = methods.index(row.method), METHOD_STYLES[row.method]
            ax.plot([100 * row.ci_low, 100 * row.ci_high], [place, place], color=color)
            ax.plot(100 * row.accuracy, place, marker, color=color)
            if row.p_holm < ALPHA:
                ax.text(100 * row.ci_high + 2, place + 0.12, "*", va="center", color=color)
            if row.method == first:
                ax.axvline(100 * row.accuracy, color=color, linewidth=0.6)
        if chance is not None:
            ax.axvline(100 * chance, color="black", linestyle="--", linewidth=0.8)
        ax.set_yticks(range(len(methods)), methods if ax is axes[0] else [])
        title = f"{LABELS.get(split, split)}\n{questions(part)}"
        ax.set(title=title, xlim=(0, 100), xticks=range(0, 101, 25))
        ax.grid(axis="x")
        ax.grid(axis="y", visible=False)
        ax.tick_params(axis="y", length=0)
        ax.invert_yaxis()
    words = f"line: {first}; *: differs from it (McNemar, Holm-adjusted p < {ALPHA}); dashed: guessing"
    fig.supxlabel(f"accuracy (%) with 95 % intervals; {words}", fontsize=8)
    return fig


@styled
def fig_joint(metrics: pd.DataFrame, chance: Mapping[str, float] | None = None) -> Figure:
    """Draw accuracy after training on a test set's own training data alone, and on all of them together.

    Args:
        metrics: table with `METRIC_COLUMNS` of one student, some of it trained on `weasel-all`.
        chance: accuracy of guessing per test data set, as shares; drawn as dashed lines.
    """
    rows = own_splits(metrics)
    rows = rows[rows["test_split"].isin(UNSEEN)]
    require_rows(rows, f"metrics of the splits {', '.join(UNSEEN)}")
    tested = list(dict.fromkeys(rows["test_dataset"]))
    bars = [(method, together) for method in methods_in(rows) for together in (False, True)]
    fig, axes = subplots(1, len(UNSEEN), width=PAGE, height=2.6)
    for ax, split in zip(axes, UNSEEN, strict=True):
        panel = rows[rows["test_split"] == split]
        for i, (method, together) in enumerate(bars):
            part = panel[(panel["method"] == method) & ((panel["train_dataset"] == ALL) == together)]
            at = part["test_dataset"].map(tested.index).astype(float) + (i - (len(bars) - 1) / 2) * 0.2
            label = f"{method}, on {'all four together' if together else 'this one alone'}"
            points(ax, at, part, method, label=label, markerfacecolor=None if together else "white")
        asked = set(panel["test_dataset"])
        chance_lines(ax, [(chance or {}).get(name) if name in asked else None for name in tested])
        ax.set_xticks(range(len(tested)), map(short_name, tested), rotation=35, ha="right")
        ax.set(title=f"{LABELS[split]}\n{questions(panel)}", ylim=(0, 100))
        ax.tick_params(labelleft=ax is axes[0])
    axes[0].set_ylabel("accuracy (%)")
    handles, labels = axes[-1].get_legend_handles_labels()
    shown = dict(sorted(zip(labels, handles, strict=True), key=lambda pair: pair[0] == "guessing"))
    fig.legend(shown.values(), shown.keys(), loc="outside lower center", ncols=3)
    return fig


def _curves(
    metrics: pd.DataFrame, swept: str, splits: tuple[str, ...], label: str, chance: float | None
) -> Figure:
    """Draw a panel per split, a line per method with its name at the end."""
    rows = own_splits(metrics)
    rows = rows[rows["test_split"].isin(splits)]
    require_rows(rows, f"metrics of the splits {', '.join(splits)}")
    shown = [split for split in splits if split in set(rows["test_split"])]
    values = sorted(rows[swept].unique())
    reach = (values[-1] - values[0]) or 1
    fig, axes = subplots(1, len(shown), width=PAGE, height=2.5)
    methods = methods_in(rows)
    for ax, split in zip(axes, shown, strict=True):
        panel = rows[rows["test_split"] == split]
        for i, method in enumerate(methods):
            part = panel[panel["method"] == method].sort_values(swept)
            at = part[swept] + (i - (len(methods) - 1) / 2) * DODGE * reach
            ax.plot(at, 100 * part["accuracy"], color=METHOD_STYLES[method][0])
            points(ax, at, part, method)
        if chance is not None:
            ax.axhline(100 * chance, color="black", linestyle="--", linewidth=0.8, label="guessing")
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.set(title=f"{LABELS.get(split, split)}\n{questions(panel)}", ylim=(0, 100))
        ax.tick_params(labelleft=ax is axes[0])
    _name_lines(axes[-1], rows[rows["test_split"] == shown[-1]], swept)
    axes[0].set_ylabel("accuracy (%)")
    axes[len(axes) // 2].set_xlabel(label)
    return legend_below(fig)


def _name_lines(ax: Axes, rows: pd.DataFrame, swept: str) -> None:
    """Write each method's name beside the last point of its line, names at least a line apart."""
    lowest = -100.0
    last = rows.sort_values(swept).groupby("method").tail(1).sort_values("accuracy")
    for row in each_row(last):
        lowest = max(lowest + 9, 100 * row.accuracy)
        place = (1.03, lowest / 100)
        ax.text(*place, row.method, color=METHOD_STYLES[row.method][0], va="center", transform=ax.transAxes)
