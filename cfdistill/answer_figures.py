"""Figures of answers: two methods side by side on a few questions, and the audits of each student."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from cfdistill import metrics as measures
from cfdistill.errors import DataError
from cfdistill.figures import (
    FONT,
    PAGE,
    RIGHT,
    WRONG,
    legend_below,
    method_bars,
    note,
    questions,
    require_rows,
    styled,
    subplots,
)
from cfdistill.schema import Prediction, Question

if TYPE_CHECKING:
    import pandas as pd
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TextLine = tuple[str, str, bool]  # text, color, bold
LONGEST = 600  # characters of a text that are shown; data sets may hold texts of any length
LINE, GAP = 0.155, 0.1  # inches


def answers_table(
    questions: Iterable[Question],
    predictions: Iterable[Prediction],
    methods: Sequence[str] = ("ft-cot", "cf-distill"),
) -> pd.DataFrame:
    """Return what the methods answered to some questions, for the two text figures below.

    Returns:
        One row per question and method: id, stem, options, gold, stereotype, method, predicted, text,
        parsed.

    Raises:
        DataError: a method did not answer one of the questions.
    """
    import pandas as pd

    found = {
        (p.question_id, p.method): p for p in predictions if p.scoring == measures.main_scoring(p.method)
    }
    rows = []
    for q in questions:
        for method in methods:
            if (q.id, method) not in found:
                raise DataError(
                    f"{method} did not answer question {q.id}; evaluate it on {q.dataset} {q.split}"
                )
            p = found[q.id, method]
            rows.append(
                (
                    q.id,
                    q.stem,
                    "\n".join(q.options),
                    q.answer,
                    q.stereotype,
                    method,
                    p.predicted,
                    p.text,
                    p.parsed,
                )
            )
    columns = ["id", "stem", "options", "gold", "stereotype", "method", "predicted", "text", "parsed"]
    return pd.DataFrame(rows, columns=columns).astype({"stereotype": "Int64"})


@styled
def fig_audits(table: pd.DataFrame) -> Figure:
    """Draw accuracy, and the share of answers that stay as they were, by audit, condition and method.

    Args:
        table: from `audit.table`; of one training run per method.
    """
    if table.empty:
        return note("no question was audited: audit_questions is 0")
    audits = list(table["audit"].drop_duplicates())
    fig, axes = subplots(2, len(audits), width=PAGE, height=4.0)
    for column, name in enumerate(audits):
        rows = table[table["audit"] == name]
        rows = rows.assign(
            label=[textwrap.fill(words, 10, break_long_words=False) for words in rows["condition"]]
        )
        untouched = rows["condition"].iloc[0]
        changed = rows[rows["condition"] != untouched]  # the first condition is what the others are held to
        same = changed.assign(
            accuracy=changed["same_answer"], ci_low=changed["same_low"], ci_high=changed["same_high"]
        )
        above, below = axes[column], axes[column + len(audits)]
        method_bars(above, rows, "label")
        method_bars(below, same, "label")
        above.set(title=f"{name}: right (%), {questions(rows.assign(seeds=1))}", ylim=(0, 100))
        below.set(title=f"answered as with {untouched} (%)", ylim=(0, 100))
        for ax in (above, below):
            ax.tick_params(axis="x", labelsize=6.5)
    return legend_below(fig)


@styled
def fig_qualitative(answers: pd.DataFrame) -> Figure:
    """Write out questions and two methods' answers side by side, marked right or wrong.

    Used for `fig1_weasel` (one question) and `fig7_qualitative` (several).

    Args:
        answers: from `answers_table`.
    """
    from matplotlib.patches import Rectangle

    require_rows(answers, "answers")
    blocks = [_block(group) for _, group in answers.groupby("id", sort=False)]
    height = sum(len(head) + max(map(len, panels)) + 2 for head, panels in blocks) * LINE + GAP
    fig, (ax,) = subplots(1, 1, width=PAGE, height=height, layout=None)
    ax.set(position=(0, 0, 1, 1), xlim=(0, PAGE), ylim=(height, 0))  # data units are inches
    ax.set_axis_off()
    top = LINE / 2
    for head, panels in blocks:
        _write(ax, head, GAP, top)
        top += len(head) * LINE + GAP
        deep = max(map(len, panels)) * LINE + GAP
        width = (PAGE - GAP) / len(panels) - GAP
        for i, panel in enumerate(panels):
            left = GAP + i * (width + GAP)
            color = panel[0][1]
            ax.add_patch(Rectangle((left, top), width, deep, facecolor=color, alpha=0.08))
            ax.add_patch(Rectangle((left, top), 0.03, deep, facecolor=color))
            _write(ax, panel, left + GAP, top + GAP / 2)
        top += deep + LINE
    return fig


def _block(group: pd.DataFrame) -> tuple[list[TextLine], list[list[TextLine]]]:
    """Return the lines of one question and of each method's answer, wrapped to fit."""
    group = group.fillna({"stereotype": -1, "text": ""})  # -1: none
    rows = measures.each_row(group.astype({"stereotype": int}))
    first, options = rows[0], rows[0].options.split("\n")
    head: list[TextLine] = [(line, "black", True) for line in textwrap.wrap(_clean(first.stem), 88)]
    for i, option in enumerate(options):
        if i == first.gold:
            head.append((f"✓ {_clean(option)} – right", RIGHT, True))
        elif i == first.stereotype:
            head.append((f"✗ {_clean(option)} – what the topic suggests", WRONG, False))
        else:
            head.append((f"    {_clean(option)}", "black", False))
    panels: list[list[TextLine]] = []
    for row in rows:
        choice = options[row.predicted] if row.parsed else f"{options[row.predicted]} (likeliest option)"
        symbol, color = ("✓", RIGHT) if row.predicted == row.gold else ("✗", WRONG)
        lines = textwrap.wrap(_clean(row.text), 100 // len(rows)) or ["(no text)"]
        titles = textwrap.wrap(f"{symbol} {row.method}: {_clean(choice)}", 84 // len(rows))
        panels.append([*((t, color, True) for t in titles), *((line, "black", False) for line in lines)])
    return head, panels


def _write(ax: Axes, lines: Iterable[TextLine], left: float, top: float) -> None:
    for i, (text, color, bold) in enumerate(lines):
        weight = "bold" if bold else "normal"
        ax.text(left, top + i * LINE, text, color=color, weight=weight, va="top", parse_math=False)


def _clean(text: str) -> str:
    """Shorten a text, and replace what the font cannot draw: students sometimes write anything at all."""
    from matplotlib.font_manager import findfont, get_font

    font = get_font(findfont(FONT))
    words = " ".join(text[:LONGEST].split()) + (" …" if len(text) > LONGEST else "")
    return "".join(c if font.get_char_index(ord(c)) else "□" for c in words)
