"""The answers themselves: outcomes and reasons by rule, examples picked by rule, and HTML of them."""

import re
from collections.abc import Iterable, Sequence
from itertools import product

import jinja2
import pandas as pd

from cfdistill.errors import DataError
from cfdistill.methods import METHODS
from cfdistill.schema import Prediction, Question
from cfdistill.show.figures import LONGEST

COLUMNS = ["id", "dataset", "split", "scene", "stem", "cue", "options", "gold", "stereotype"]
COLUMNS += ["method", "view", "predicted", "text", "parsed", "outcome", "reason"]  # view: "" is the main one
OUTCOMES = ("right", "lured", "other")
REASONS = ("names no option", "contradicts itself", "names the cue", "ignores the cue")
TEMPLATES = jinja2.Environment(loader=jinja2.PackageLoader("cfdistill", "show"), autoescape=True)


def answers(
    questions: Iterable[Question], given: Iterable[Prediction], methods: Sequence[str], *views: str
) -> pd.DataFrame:
    """Return COLUMNS of what methods answered by their main scorings (DataError if not), and by `views`."""
    found = {(p.question_id, p.split, p.method, p.scoring): p for p in given}
    rows = []
    for q, method, view in product(questions, methods, ("", *views)):
        p = found.get((q.id, q.split, method, view or METHODS[method].scoring))
        if p is not None:
            options = "\n".join(" ".join(option.split()) for option in q.options)
            outcome = {q.stereotype: "lured", q.answer: "right"}.get(p.predicted, "other")
            known = {"options": options, "outcome": outcome, "reason": _reason(q, p), "view": view}
            rows.append(p.to_json() | q.to_json() | known)
        elif not view:
            raise DataError(f"{method} did not answer question {q.id}; evaluate it on {q.dataset} {q.split}")
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


def side_by_side(table: pd.DataFrame, *, filters: bool = False) -> str:
    """Return HTML of questions (cue marked, right bold, stereotype italic) with all answers to each.

    With `filters`, a reader chooses tests and outcomes, and counts follow.
    """
    test = table["dataset"] + " " + table["split"]
    anchor = (test + " " + table["id"]).str.replace(r"[^\w.~-]+", "-", regex=True)
    shown = table.assign(test=test, anchor=anchor)
    main = shown[shown["view"] == ""]
    counts = main.groupby("method", sort=False)["outcome"].value_counts().unstack(fill_value=0)
    counts = counts.reindex(columns=OUTCOMES, fill_value=0)
    return TEMPLATES.get_template("answers.html").render(
        filters=filters,
        questions=[group.to_dict("records") for _, group in shown.groupby("anchor", sort=False)],
        tests=main.drop_duplicates("anchor")["test"].value_counts(sort=False).to_dict(),
        methods=counts.to_dict("index"),
        classes=[f"{method}-{outcome}" for method in counts.index for outcome in OUTCOMES],
    )


def _cut(text: str) -> str:
    """Return a text of a data set or student, shortened, without what no page may hold."""
    text = text.replace("\0", "\ufffd")
    return text[:LONGEST] + (f" … ({len(text):,} characters)" if len(text) > LONGEST else "")


def _around(text: str, cue: str) -> list[str]:
    """Return what stands before the cue, the cue, and what stands after it."""
    return re.split(f"({re.escape(cue)})", text, maxsplit=1, flags=re.IGNORECASE) if cue else [text]


TEMPLATES.filters |= {"cut": _cut, "around": _around}
