"""The answers themselves: outcomes and reasons by rule, examples picked by rule, and HTML to read them in."""

import re
from collections.abc import Iterable, Sequence
from html import escape
from itertools import product
from typing import Any

import pandas as pd

from cfdistill.errors import DataError
from cfdistill.methods import METHODS
from cfdistill.schema import Prediction, Question
from cfdistill.show.figures import LONGEST

COLUMNS = (
    *("id", "split", "scene", "stem", "cue", "options", "gold", "stereotype"),  # options: a line each
    *("method", "predicted", "text", "parsed", "outcome", "reason"),
)
OUTCOMES = ("right", "lured", "other")
REASONS = ("names no option", "contradicts itself", "names the cue", "ignores the cue")


def answers(
    questions: Iterable[Question], predictions: Iterable[Prediction], methods: Sequence[str]
) -> pd.DataFrame:
    """Return COLUMNS of what methods answered by their main scorings; DataError when an answer is missing."""
    found = {(p.question_id, p.split, p.method, p.scoring): p for p in predictions}
    rows = []
    for q, method in product(questions, methods):
        p = found.get((q.id, q.split, method, METHODS[method].scoring))
        if p is None:
            raise DataError(f"{method} did not answer question {q.id}; evaluate it on {q.dataset} {q.split}")
        options = "\n".join(" ".join(option.split()) for option in q.options)
        outcome = {q.stereotype: "lured", q.answer: "right"}.get(p.predicted, "other")
        known = {"options": options, "outcome": outcome, "reason": _reason(q, p)}
        rows.append(p.to_json() | q.to_json() | known)
    return pd.DataFrame(rows, columns=COLUMNS).astype({"stereotype": "Int64"})


def _reason(question: Question, answer: Prediction) -> str:
    """Return the first of REASONS that fits; words of the cue count from four letters on."""
    text = answer.text.lower()
    if not answer.parsed:
        return "names no option"
    if answer.predicted != question.answer and question.options[question.answer].lower() in text:
        return "contradicts itself"
    causal = set(re.findall(r"\w{4,}", question.cue.lower()))
    return "names the cue" if causal & set(re.findall(r"\w{4,}", text)) else "ignores the cue"


def pick(table: pd.DataFrame, wanted: Sequence[str], count: int) -> pd.DataFrame:
    """Return the questions whose last methods best fit the wanted outcomes: chosen by rule, not by taste."""
    table = table.drop_duplicates(["id", "method"])  # a question may be in two splits
    outcomes = table.pivot(index="id", columns="method", values="outcome")
    fit = table.groupby("id")["parsed"].all().astype(int)
    for method, outcome, weight in zip(table["method"].unique()[::-1], wanted[::-1], (4, 2), strict=False):
        fit += weight * (outcomes[method] == outcome)
    chosen = fit.reindex(table["id"].unique()).sort_values(ascending=False, kind="stable").index[:count]
    return table[table["id"].isin(chosen)]


def side_by_side(table: pd.DataFrame) -> str:
    """Return HTML of questions (right bold, stereotype italic), each beside what the methods answered."""
    lines = []
    for _, group in table.groupby(["split", "id"], sort=False):
        rows = group.to_dict("records")
        tags = {rows[0]["stereotype"]: "i", rows[0]["gold"]: "b"}
        tagged = [(tags.get(i, "span"), _html(o)) for i, o in enumerate(rows[0]["options"].split("\n"))]
        options = "; ".join(f"<{tag}>{option}</{tag}>" for tag, option in tagged)
        cells = [f"<b>{row['outcome']}</b>, {row['reason']}<br>{_html(row['text'])}" for row in rows]
        cells.insert(0, f"{_html(rows[0]['stem'])}<br>{options}")
        lines.append("".join(f"<td dir=auto>{cell}</td>" for cell in cells))
    head = "".join(f"<th>{escape(word)}</th>" for word in ("question", *table["method"].unique()))
    return f'<table class="answers"><tr>{head}</tr>{"".join(f"<tr>{line}</tr>" for line in lines)}</table>'


def browse(table: pd.DataFrame) -> str:
    """Return HTML of all questions and answers, one fold per split and outcomes; it needs no script."""
    rows = table.assign(what=table["method"] + " " + table["outcome"])
    rows["what"] = rows.groupby(["split", "id"])["what"].transform(", ".join)
    folds = []
    for (split, what), part in rows.groupby(["split", "what"], sort=False):
        title = f"{escape(str(split))}: {escape(str(what))} ({part['id'].nunique()})"
        folds.append(f"<details><summary>{title}</summary>{side_by_side(part)}</details>")
    return "".join(folds)


def _html(text: Any) -> str:
    """Return a text of a data set or student as HTML, shortened, without what no page may hold."""
    text = str(text).replace("\0", "\ufffd")
    return escape(text[:LONGEST]) + (f" … ({len(text):,} characters)" if len(text) > LONGEST else "")
