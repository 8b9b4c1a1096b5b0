"""The study's figures: functions of tables such as `metrics.csv`; a grid's parameters are columns of it."""

import textwrap
from collections.abc import Iterable
from typing import Any

import pandas as pd
from matplotlib.figure import Figure
from matplotlib.font_manager import findfont, get_font

from cfdistill.errors import DataError
from cfdistill.evaluate import metrics as measures
from cfdistill.evaluate.metrics import each_row
from cfdistill.evaluate.stats import proportion_interval
from cfdistill.methods import METHODS
from cfdistill.show import style
from cfdistill.show.style import COLUMN, PAGE, RIGHT, WRONG, note, styled, subplots
from cfdistill.show.tables import short_name

SPLITS = {  # test splits, and what they are called in figures
    "id": "id\nshortcut holds",
    "shift": "shift\nshortcut broken",
    "shift_reachable": "shift, reachable\ncauses shown",
    "shift_heldout": "shift, held out\ncauses not shown",
    "new": "new\nunseen scenes",
    "test": "test",
}
WHOLE = ("id", "shift", "new", "test")
UNSEEN = ("shift_reachable", "shift_heldout", "new", "test")  # further and further from what was shown
SWEEPS = {  # swept parameter: its figure's name, splits shown, words at the axis
    "spurious_rate": ("spurious_sweep", WHOLE, "share ρ of stereotype answers in training"),
    "train_questions": ("data_size", UNSEEN, "training questions"),
}
LONGEST = 600  # characters of a text that are shown; data sets may hold texts of any length


def own_splits(metrics: pd.DataFrame, splits: Iterable[str] = SPLITS) -> pd.DataFrame:
    """Return the seed-averaged main scores on the training data set's own test splits."""
    rows = measures.over_seeds(metrics[measures.is_main(metrics)])
    own = rows["train_dataset"] == rows["test_dataset"]
    return rows[own & rows["test_split"].isin(list(splits))]


@styled
def fig_headline(metrics: pd.DataFrame) -> Figure:
    """Draw one student's accuracy and lure rate on its own test splits."""
    lured = metrics.dropna(subset="lure_rate")  # real benchmarks have none
    ends = [proportion_interval(round(row.lure_rate * row.n), row.n) for row in each_row(lured)]
    low, high = [end[0] for end in ends], [end[1] for end in ends]
    lured = lured.assign(accuracy=lured["lure_rate"], ci_low=low, ci_high=high, chance=float("nan"))
    lured = lured.drop(columns=measures.AGREEMENT, errors="ignore")  # it is about right answers
    panels = {"right answers (%), higher is better": metrics, "lured by the stereotype (%)": lured}
    rows = pd.concat([own_splits(part, WHOLE).assign(panel=title) for title, part in panels.items()])
    rows["label"] = rows["test_split"].map(SPLITS)
    return _bar_panels(rows, "not tested on the training data set")


@styled
def fig5_ood(metrics: pd.DataFrame) -> Figure:
    """Draw one student's accuracy out of distribution, a panel per training data set (Fig. 5)."""
    rows = measures.transfer(metrics)
    rows = rows[rows["train_dataset"] != rows["test_dataset"]]
    panel = "trained on " + rows["train_dataset"].map(short_name) + ": right (%)"
    label = rows["test_dataset"].map(short_name) + "\n" + rows["test_split"]
    return _bar_panels(rows.assign(panel=panel, label=label), "tested on the training data set only")


@styled
def fig6_architectures(metrics: pd.DataFrame) -> Figure:
    """Draw accuracy by student on `shift` or `test`, a panel per training data set (Fig. 6)."""
    rows = own_splits(metrics, ("shift", "test"))
    if rows["student"].nunique() < 2:
        return note("one student only: there is nothing to compare")
    panel = rows["test_dataset"].map(short_name) + " " + rows["test_split"] + ": right (%)"
    return _bar_panels(rows.assign(panel=panel, label=rows["student"].str.replace("-", "-\n")))


@styled
def fig_audits(table: pd.DataFrame) -> Figure:
    """Draw accuracy, and the share of answers that stay as they were (`audit.table`)."""
    labels = [textwrap.fill(words, 10, break_long_words=False) for words in table["condition"]]
    first = table.groupby("audit")["condition"].transform("first")
    table = table.assign(label=labels, seeds=1, chance=float("nan"), panel=table["audit"] + ": right (%)")
    same = {"accuracy": table["same_answer"], "ci_low": table["same_low"], "ci_high": table["same_high"]}
    below = table.assign(panel="answered as with " + first + " (%)", **same)[table["condition"] != first]
    nothing = "no question was audited: audit_questions is 0"
    return _bar_panels(pd.concat([table, below]), nothing, columns=table["audit"].nunique())


@styled
def fig_sweep(metrics: pd.DataFrame) -> Figure:
    """Draw accuracy against what a grid swept (SWEEPS), a panel per test split, a line per method."""
    swept = next(name for name in SWEEPS if name in metrics)
    _, splits, label = SWEEPS[swept]
    rows = own_splits(metrics, splits).sort_values(swept)
    _refuse_mixed(rows, "test_split", swept)
    if rows.empty:
        return note(f"not tested on any of {', '.join(splits)}")
    values, methods = list(rows[swept].unique()), style.methods_in(rows)
    width = (values[-1] - values[0]) or 1
    shown = [split for split in splits if split in set(rows["test_split"])]
    fig, axes = subplots(1, len(shown), PAGE, 2.5, sharey=True)
    for ax, split in zip(axes, shown, strict=True):
        panel = rows[rows["test_split"] == split]
        for i, method in enumerate(methods):
            part = panel[panel["method"] == method]
            beside = (i - (len(methods) - 1) / 2) * 0.012 * width  # so that intervals do not overlap
            style.points(ax, part[swept] + beside, part, method, linestyle="-")
        style.guessing(ax, panel["chance"].iloc[0], values[0], values[-1])
        ax.set_xticks(values, [f"{value:g}" for value in values])
        ax.set(title=f"{SPLITS[split]}\n{style.asked(panel)}", ylim=(0, 100))
    axes[0].set_ylabel("accuracy (%)")
    axes[len(axes) // 2].set_xlabel(label)
    return style.legend_below(fig)


@styled
def fig_funnel(counts: pd.DataFrame) -> Figure:
    """Draw what is left after each step of the filter, and why the rest was dropped (`funnel_counts`)."""
    fig, (ax,) = subplots(1, 1, PAGE, 0.5 + 0.34 * len(counts))
    ax.barh(range(len(counts)), counts["left"], color=RIGHT, alpha=0.35)
    total = max(int(counts["left"].max()), 1)
    for place, row in enumerate(each_row(counts)):
        dropped = f" · dropped: {row.drops}" if isinstance(row.drops, str) and row.drops else ""
        words = textwrap.shorten(f"{row.left}{dropped}", 85, placeholder=" …")
        ax.text(total * 0.01, place, words, va="center", parse_math=False)
    style.horizontal(ax, counts["step"])
    ax.set(xlabel="candidates left", xlim=(0, total))
    return fig


@styled
def fig_cost(df: pd.DataFrame, unit: str = "seconds") -> Figure:
    """Draw what each step cost (columns step and value); a step of a method has its color."""
    fig, (ax,) = subplots(1, 1, COLUMN, 0.6 + 0.26 * len(df))
    drawn = [METHODS.get(step.split()[-1]) for step in df["step"]]
    colors = [method.color if method else RIGHT for method in drawn]
    bars = ax.barh(range(len(df)), df["value"], color=colors, alpha=0.6)
    ax.bar_label(bars, labels=[f"{v:,.0f}" if v >= 100 else f"{v:.3g}" for v in df["value"]], padding=2)
    ax.margins(x=0.18)
    style.horizontal(ax, df["step"])
    ax.set_xlabel(unit)
    return fig


@styled
def fig_loss_curves(log: pd.DataFrame) -> Figure:
    """Draw the loss by step (`log.csv` and a column method), smoothed over a twentieth, and validation."""
    panels = {"loss": "training: loss per\ntarget token (nats)"}
    if log["val_loss"].notna().any():
        panels["val_loss"] = "validation: loss per\nquestion (nats)"
        panels["val_accuracy"] = "validation:\naccuracy (share)"
    fig, axes = subplots(1, len(panels), COLUMN if len(panels) == 1 else PAGE, 2.4)
    for ax, (column, title) in zip(axes, panels.items(), strict=True):
        for method in style.methods_in(log):
            look: dict[str, Any] = {"color": METHODS[method].color, "marker": METHODS[method].marker}
            curve = log[(log["method"] == method) & log[column].notna()]
            smooth = curve[column].rolling(max(1, len(curve) // 20), min_periods=1).mean()
            ax.plot(curve["step"], curve[column], color=look["color"], alpha=0.2, linewidth=0.6)
            ax.plot(curve["step"], smooth, markevery=max(1, len(curve) // 5), label=method, **look)
        ax.set(xlabel="optimiser step", title=title, ylim=(0, 1 if column == "val_accuracy" else None))
    return style.legend_below(fig, columns=2 if len(panels) == 1 else 6)


@styled
def fig_qualitative(answers: pd.DataFrame) -> Figure:
    """Write out questions, and each method's answer in a box, marked right or wrong (`stories.answers`)."""
    lines = [line for _, group in answers.groupby("id", sort=False) for line in _story(group)]
    if not lines:
        return note("there are no such answers")
    fig, (ax,) = subplots(1, 1, PAGE, 0.155 * len(lines), layout="none")
    ax.set(position=(0, 0, 1, 1), xlim=(0, PAGE), ylim=(len(lines) - 0.5, -0.5))
    ax.set_axis_off()
    for place, (text, color, weight, box) in enumerate(lines):
        ax.text(0.1, place, text, color=color, weight=weight, va="center_baseline", parse_math=False)
        ax.axhspan(place - 0.5, place + 0.5, facecolor=box, alpha=0.1, linewidth=0, snap=True)
    return fig


def _story(group: pd.DataFrame) -> list[tuple[str, str, str, str]]:
    """Return the lines of a question and its answers: text, color, weight, color of the box around it."""
    rows, nothing = each_row(group.fillna({"stereotype": -1, "text": ""})), ("", "black", "normal", "white")
    lines = [(line, "black", "bold", "white") for line in textwrap.wrap(_clean(rows[0].stem), 82)]
    options = [_clean(option) for option in rows[0].options.split("\n")]
    looks = {rows[0].stereotype: ("✗ {} – what the topic suggests", WRONG, "normal")}
    looks[rows[0].gold] = ("✓ {} – right", RIGHT, "bold")
    for i, option in enumerate(options):
        words, color, weight = looks.get(i, ("    {}", "black", "normal"))
        lines.append((words.format(option), color, weight, "white"))
    for row in rows:
        symbol, color = ("✓", RIGHT) if row.predicted == row.gold else ("✗", WRONG)
        likeliest = "" if row.parsed else " (likeliest option)"
        title = f"{symbol} {row.method}: {options[row.predicted]}{likeliest}"
        lines += [nothing, *((line, color, "bold", color) for line in textwrap.wrap(title, 82))]
        text = textwrap.wrap(_clean(row.text), 92) or ["(no text)"]
        lines += [(line, "black", "normal", color) for line in text]
    return [*lines, nothing]


def _clean(text: str) -> str:
    """Shorten a text, and replace what the font cannot draw: students sometimes write anything at all."""
    font = get_font(findfont("DejaVu Sans"))  # of the style; it ships with matplotlib
    words = " ".join(text[:LONGEST].split()) + (" …" if len(text) > LONGEST else "")
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in words)


def _bar_panels(rows: pd.DataFrame, nothing: str = "", columns: int = 2) -> Figure:
    """Draw bars in groups by the column label, in panels by the column panel, or say why there are none."""
    panels = list(rows.groupby("panel", sort=False))
    if not panels:
        return note(nothing)
    _refuse_mixed(rows, "panel", "label")
    size = 8 if columns == 2 else 6.2  # points; smaller where many groups stand side by side
    columns = min(columns, len(panels))
    lines = -(-len(panels) // columns)
    fig, axes = subplots(lines, columns, PAGE, 0.5 + 2.1 * lines)
    for ax, (title, panel) in zip(axes, panels, strict=False):
        style.bars(ax, panel)
        ax.set_title(str(title))
        ax.tick_params(axis="x", labelsize=size)
    for ax in axes[len(panels) :]:
        ax.set_visible(False)
    return style.legend_below(fig)


def _refuse_mixed(rows: pd.DataFrame, *shown: str) -> None:
    """Raise DataError when a figure's points are not one row each, as with two students in one figure."""
    facts = rows.columns.difference([*measures.METRIC_VALUES, "n", "seeds", "scoring"], sort=False)
    differing = rows[facts].groupby(["method", *shown]).nunique().max()
    for column in differing[differing > 1].index:
        found = ", ".join(map(str, rows[column].unique()))
        raise DataError(f"this figure shows one {column}, got {found}; choose one")
