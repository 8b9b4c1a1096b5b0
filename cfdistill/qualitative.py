"""The answers themselves: outcomes and reasons by rule, examples picked by rule, and tables to read."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from cfdistill import data, runs
from cfdistill.answer_figures import LONGEST, answers_table
from cfdistill.metrics import main_scoring
from cfdistill.params import Params
from cfdistill.schema import Prediction

if TYPE_CHECKING:
    import pandas as pd

OUTCOMES = ("right", "lured", "other")
REASONS = ("names no option", "contradicts itself", "names the cue", "ignores the cue")
READINGS = ("reasons", "recites", "muddled")


def answers(params: Params, methods: Sequence[str]) -> pd.DataFrame:
    """Return what methods answered to all test questions of the training data set.

    Returns:
        One row per question and method, in the order of the files: the columns of `answers_table`,
        split, scene and cue, and those of `sorted_out`.

    Raises:
        StageError: an evaluation is missing.
    """
    import pandas as pd

    name = params.train_dataset
    done = {m: runs.require(runs.stage("evaluation", params, method=m, dataset=name)) for m in methods}
    tables = []
    for split in data.test_splits(name, params):
        questions = data.questions(name, split, params)
        predictions = [
            prediction
            for method, stage in done.items()
            for prediction in stage.read(f"predictions.{split}.{main_scoring(method)}.jsonl", Prediction)
        ]
        known = pd.DataFrame(
            [{"id": q.id, "split": split, "scene": q.scene, "cue": q.cue} for q in questions]
        )
        tables.append(answers_table(questions, predictions, methods).merge(known, on="id"))
    return sorted_out(pd.concat(tables, ignore_index=True))


def sorted_out(table: pd.DataFrame) -> pd.DataFrame:
    """Add the columns outcome (one of OUTCOMES) and reason (one of REASONS), both by rule (our choice).

    The first reason that fits counts: the text names no option as its answer; the answer is wrong though the
    text names the right option; the text holds a word of four or more letters from the cue; it does not.
    """
    rows = table.to_dict("records")
    return table.assign(outcome=[_outcome(row) for row in rows], reason=[_reason(row) for row in rows])


def readings(table: pd.DataFrame) -> pd.DataFrame:
    """Return the answers that were read for `results/readings.csv`, with the column reading (of READINGS).

    A reading counts for a text that is word for word the one that was read, and for no other.
    """
    import pandas as pd

    read = pd.read_csv(runs.project_root() / "results" / "readings.csv", keep_default_na=False)
    return table.drop_duplicates(["id", "method"]).merge(read, on=["id", "method", "text"])


def pick(table: pd.DataFrame, baseline: str, ours: str, wanted: tuple[str, str], count: int) -> pd.DataFrame:
    """Return the first questions with the wanted outcomes of baseline and ours.

    Where there are too few, those come next that fit in ours only, then in the baseline only, then the
    others. Among equals, questions to which both texts name an option come first, then the order of
    the files decides: examples are chosen by rule, never by taste. A question that is in two splits
    counts once.
    """
    table = table.drop_duplicates(["id", "method"])
    outcomes = table.pivot(index="id", columns="method", values="outcome")
    parsed = table.groupby("id")["parsed"].all()
    fit = 4 * (outcomes[ours] == wanted[1]) + 2 * (outcomes[baseline] == wanted[0]) + parsed
    chosen = fit.reindex(table["id"].unique()).sort_values(ascending=False, kind="stable").index[:count]
    return table[table["id"].isin(chosen)]


def beside_training(story: pd.DataFrame, params: Params) -> str:
    """Return HTML of a question under a training question of its scene, differing words marked."""
    row = story.iloc[0]
    trained = [q for q in data.questions(params.train_dataset, "train", params) if q.scene == row["scene"]]
    if not trained or not row["scene"]:
        return f"<p>no training question shares its scene with: {_html(row['stem'])}</p>"
    before = max(trained, key=lambda q: difflib.SequenceMatcher(None, q.stem, row["stem"][:LONGEST]).ratio())
    gold = row["options"].split("\n")[row["gold"]]
    marked_before, marked_after = _marked(before.stem, row["stem"])
    return (
        f"<p>trained: {marked_before} → <b>{escape(before.options[before.answer])}</b></p>"
        f"<p>tested: {marked_after} → <b>{escape(gold)}</b></p>"
    )


def side_by_side(table: pd.DataFrame) -> str:
    """Return HTML of questions with two methods' texts next to each other, differing words marked."""
    first, second = table["method"].unique()[:2]
    rows = []
    for _, group in table.groupby("id", sort=False):
        asked, (left, right) = group.iloc[0], group["text"].fillna("")[:2]
        cells = "".join(f"<td dir=auto>{words}</td>" for words in _marked(left, right))
        rows.append(f"<tr><td dir=auto>{_question(asked)}</td>{cells}</tr>")
    head = "".join(f"<th>{escape(word)}</th>" for word in ("question", first, second))
    return f"<table><tr>{head}</tr>{''.join(rows)}</table>"


def browse(table: pd.DataFrame, splits: Sequence[str]) -> str:
    """Return HTML of all questions and answers, a foldable table per split; all text is escaped.

    The last two methods' outcomes can be chosen by buttons that work by style alone, without a script.
    """
    methods = list(table["method"].unique())
    sides = dict(zip(("base", "ours"), methods[-2:], strict=False))
    rules, buttons = "", ""
    for side, method in sides.items():
        buttons += f"<b>{escape(method)}:</b> "
        for name in ("all", *OUTCOMES):
            key, checked = f"browse-{side}-{name}", " checked" if name == "all" else ""
            buttons += f'<input type="radio" name="browse-{side}" id="{key}"{checked}>'
            buttons += f'<label for="{key}">{name}</label>'
            if name != "all":
                rules += f"#{key}:checked ~ details tr.q:not(.{side}-{name}) {{ display: none; }}\n"
        buttons += "<br>"
    head = "".join(f"<th>{escape(word)}</th>" for word in ("question", *methods))
    parts = []
    for split in splits:
        part = table[table["split"] == split]
        rows = "".join(_browse_row(group, sides) for _, group in part.groupby("id", sort=False))
        title = f"<summary>{escape(split)}: {part['id'].nunique()} questions</summary>"
        parts.append(f"<details>{title}<table><tr>{head}</tr>{rows}</table></details>")
    return f'<div class="browse"><style>{rules}</style>{buttons}{"".join(parts)}</div>'


def _browse_row(group: pd.DataFrame, sides: Mapping[str, str]) -> str:
    rows = group.to_dict("records")
    kinds = " ".join(f"{side}-{r['outcome']}" for r in rows for side in sides if sides[side] == r["method"])
    told = [f"<b>{r['outcome']}</b>, {r['reason']}<br>{_html(r['text'])}" for r in rows]
    cells = "".join(f"<td dir=auto>{cell}</td>" for cell in (_question(group.iloc[0]), *told))
    return f'<tr class="q {kinds}">{cells}</tr>'


def _question(row: pd.Series[Any]) -> str:
    """Return a question as HTML: the right option bold, the stereotype, if one is known, in italics."""
    import pandas as pd

    lure = None if pd.isna(row["stereotype"]) else row["stereotype"]
    options = []
    for i, option in enumerate(row["options"].split("\n")):
        tag = "b" if i == row["gold"] else "i" if i == lure else "span"
        options.append(f"<{tag}>{_html(option)}</{tag}>")
    return f"{_html(row['stem'])}<br>{'; '.join(options)}"


def _html(text: Any) -> str:
    """Return a text of a data set or student as HTML, shortened, without what no page may hold."""
    text = str(text).replace("\0", "\ufffd")
    more = f" … ({len(text):,} characters)" if len(text) > LONGEST else ""
    return escape(text[:LONGEST]) + more


def _outcome(row: Mapping[Any, Any]) -> str:
    import pandas as pd

    if row["predicted"] == row["gold"]:
        return "right"
    lured = not pd.isna(row["stereotype"]) and row["predicted"] == row["stereotype"]
    return "lured" if lured else "other"


def _reason(row: Mapping[Any, Any]) -> str:
    text, options = str(row["text"]).lower(), row["options"].lower().split("\n")
    if not row["parsed"]:
        return REASONS[0]
    if row["predicted"] != row["gold"] and options[row["gold"]] in text:
        return REASONS[1]
    causal = set(re.findall(r"\w{4,}", row["cue"].lower()))
    return REASONS[2] if causal & set(re.findall(r"\w{4,}", text)) else REASONS[3]


def _marked(before: str, after: str) -> tuple[str, str]:
    """Return both texts as HTML with the words that differ marked."""
    old, new = before[:LONGEST].split(), after[:LONGEST].split()
    sides: tuple[list[str], list[str]] = ([], [])
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        for side, words in zip(sides, (old[i:j], new[k:m]), strict=True):
            text = _html(" ".join(words))
            side.append(text if kind == "equal" or not text else f"<mark>{text}</mark>")
    return " ".join(sides[0]), " ".join(sides[1])
