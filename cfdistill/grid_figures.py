"""Figures of grids: accuracy against a swept parameter, and the ablations side by side.

Each is drawn from a grid's `metrics.csv` alone (`grid.write_tables`), in which a swept parameter is a
column. Seeds are averaged, with the intervals of `metrics.over_seeds`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from cfdistill.figures import (
    METHOD_STYLES,
    PAGE,
    SPLIT_LABELS,
    legend_below,
    method_bars,
    methods_in,
    own_splits,
    points,
    require_rows,
    styled,
    subplots,
)
from cfdistill.metrics import OWN_SPLITS

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure

DODGE = 0.012  # share of the axis by which methods stand beside each other, so that intervals do not overlap


@styled
def fig_spurious_sweep(metrics: pd.DataFrame) -> Figure:
    """Draw accuracy against the strength of the shortcut ρ: where it holds, where it breaks, on new scenes.

    Args:
        metrics: table with `METRIC_COLUMNS` and spurious_rate, of one training data set and student.
    """
    return _curves(
        metrics, "spurious_rate", ("id", "shift", "new"), "share ρ of stereotype answers in training"
    )


@styled
def fig_data_size(metrics: pd.DataFrame) -> Figure:
    """Draw accuracy against the number of training questions: on causes shown, held out, and unseen.

    Args:
        metrics: table with `METRIC_COLUMNS` and train_questions, of one training data set and student.
    """
    splits = ("shift_reachable", "shift_heldout", "new")
    return _curves(metrics, "train_questions", splits, "training questions")


@styled
def fig_ablation(metrics: pd.DataFrame) -> Figure:
    """Draw the accuracy of methods side by side on each test split of the training data set.

    Args:
        metrics: table with `METRIC_COLUMNS`, of one training data set and student.
    """
    rows = own_splits(metrics)
    rows = rows[rows["test_split"] != "shift"]  # its two parts tell more
    require_rows(rows, "metrics of the training data set's own splits")
    order = [split for split in (*OWN_SPLITS, "new", "test") if split in set(rows["test_split"])]
    rows = rows.set_index("test_split").loc[order].reset_index()
    rows = rows.assign(label=[_label(split) for split in rows["test_split"]])
    fig, (ax,) = subplots(1, 1, width=PAGE, height=2.8)
    method_bars(ax, rows, "label")
    ax.set(ylabel="accuracy (%)", ylim=(0, 100))
    return legend_below(fig, columns=4)


def _curves(metrics: pd.DataFrame, swept: str, splits: tuple[str, ...], label: str) -> Figure:
    """Draw a panel per split, a line per method."""
    rows = own_splits(metrics)
    rows = rows[rows["test_split"].isin(splits)]
    require_rows(rows, f"metrics of the splits {', '.join(splits)}")
    shown = [split for split in splits if split in set(rows["test_split"])]
    values = sorted(rows[swept].unique())
    reach = (values[-1] - values[0]) or 1
    fig, axes = subplots(1, len(shown), width=PAGE, height=2.4)
    methods = methods_in(rows)
    for ax, split in zip(axes, shown, strict=True):
        for i, method in enumerate(methods):
            part = rows[(rows["test_split"] == split) & (rows["method"] == method)].sort_values(swept)
            at = part[swept] + (i - (len(methods) - 1) / 2) * DODGE * reach
            ax.plot(at, 100 * part["accuracy"], color=METHOD_STYLES[method][0])
            points(ax, at, part, method)
        ax.set_xticks(values)
        ax.set(title=_label(split), ylim=(0, 100))
    axes[0].set_ylabel("accuracy (%)")
    axes[len(axes) // 2].set_xlabel(label)
    return legend_below(fig)


def _label(split: str) -> str:
    parts = {
        "shift_reachable": "shift, reachable\ncauses shown",
        "shift_heldout": "shift, held out\ncauses not shown",
    }
    return (SPLIT_LABELS | parts).get(split, split)
