"""Figures of how a study was made: what the filters dropped, what it cost, how the loss fell."""

from __future__ import annotations

import textwrap
from typing import TYPE_CHECKING

from cfdistill import metrics as measures
from cfdistill.figures import (
    COLUMN,
    METHOD_STYLES,
    PAGE,
    RIGHT,
    legend_below,
    methods_in,
    note,
    require_rows,
    styled,
    subplots,
)

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.figure import Figure


@styled
def fig_funnel(counts: pd.DataFrame) -> Figure:
    """Draw what is left after each step of the filter, and why the rest was dropped.

    Args:
        counts: from `counterfactual.funnel_counts`.
    """
    fig, (ax,) = subplots(1, 1, width=PAGE, height=0.5 + 0.34 * len(counts))
    ax.barh(range(len(counts)), counts["left"], color=RIGHT, alpha=0.35)
    total = max(int(counts["left"].max()), 1)
    for place, row in enumerate(measures.each_row(counts)):
        dropped = f" · dropped: {row.drops}" if isinstance(row.drops, str) and row.drops else ""
        words = textwrap.shorten(f"{row.left}{dropped}", 85, placeholder=" …")
        ax.text(total * 0.01, place, words, va="center", parse_math=False)
    ax.set_yticks(range(len(counts)), counts["step"])
    ax.invert_yaxis()
    ax.grid(False)
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="candidates left", xlim=(0, total))
    return fig


@styled
def fig_cost(df: pd.DataFrame, unit: str) -> Figure:
    """Draw one bar per step with its value written beside it.

    Args:
        df: columns step and value; a step that ends in a method's name gets its color.
        unit: of the values, such as "teacher requests" or "seconds".
    """
    require_rows(df, "costs")
    fig, (ax,) = subplots(1, 1, width=COLUMN, height=0.6 + 0.26 * len(df))
    colors = [METHOD_STYLES.get(step.split()[-1], (RIGHT, ""))[0] for step in df["step"]]
    bars = ax.barh(range(len(df)), df["value"], color=colors, alpha=0.6)
    ax.bar_label(bars, labels=[f"{value:,.0f}" for value in df["value"]], padding=2)
    ax.set_yticks(range(len(df)), df["step"])
    ax.invert_yaxis()
    ax.grid(False)
    ax.margins(x=0.18)
    ax.set(xlabel=unit)
    return fig


@styled
def fig_unit_cost(df: pd.DataFrame, example: str) -> Figure:
    """Draw what one kept example cost, a bar per step: what the teacher read, and what it wrote.

    Args:
        df: from `spending.per_kept`.
        example: what is counted, such as "kept counterfactual".
    """
    if df.empty:
        return note(f"no {example}, or no tokens reported: there is nothing to divide")
    fig, (ax,) = subplots(1, 1, width=PAGE, height=0.9 + 0.3 * len(df))
    ax.barh(range(len(df)), df["read"], color=RIGHT, alpha=0.35, label="prompts read")
    bars = ax.barh(range(len(df)), df["written"], left=df["read"], color=RIGHT, label="answers written")
    totals, unit = df["read"] + df["written"], df["unit"].iloc[0]
    ax.bar_label(bars, labels=[_amount(total) for total in totals], padding=2)
    ax.set_yticks(range(len(df)), df["step"])
    ax.invert_yaxis()
    ax.grid(False)
    ax.tick_params(axis="y", length=0)
    ax.margins(x=0.1)
    ax.set(xlabel=f"{unit} per {example}", title=f"{_amount(totals.sum())} {unit} per {example}")
    fig.legend(loc="outside lower center", ncols=2)
    return fig


@styled
def fig_loss_curves(log: pd.DataFrame) -> Figure:
    """Draw loss by optimiser step, one curve per method: in training, and on validation questions if asked.

    Args:
        log: the `log.csv` of each method, with a column method. The training loss is smoothed over a
            twentieth of a curve.
    """
    require_rows(log, "training log")
    validated = log[log["val_loss"].notna()]
    panels = 1 if validated.empty else 3
    fig, axes = subplots(1, panels, width=COLUMN if panels == 1 else PAGE, height=2.4)
    for method in methods_in(log):
        color, marker = METHOD_STYLES[method]
        curve, tested = (rows[rows["method"] == method] for rows in (log, validated))
        smooth = curve["loss"].rolling(max(1, len(curve) // 20), min_periods=1).mean()
        axes[0].plot(curve["step"], curve["loss"], color=color, alpha=0.2, linewidth=0.6)
        axes[0].plot(curve["step"], smooth, color=color, marker=marker, markevery=0.2, label=method)
        for ax, values in zip(axes[1:], (tested["val_loss"], 100 * tested["val_accuracy"]), strict=False):
            ax.plot(tested["step"], values, color=color, marker=marker)
    titles = ("training: loss per\ntarget token (nats)", "validation: loss per\nquestion (nats)",
              "validation: accuracy (%)\n")  # fmt: skip
    for ax, title in zip(axes, titles, strict=False):
        ax.set(xlabel="optimiser step", title=title, ylim=(0, None))
    if panels == 3:
        axes[2].set_ylim(0, 100)
    return legend_below(fig, columns=2 if panels == 1 else 6)


def _amount(value: float) -> str:
    return f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
