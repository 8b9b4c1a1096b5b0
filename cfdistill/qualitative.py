"""The answers themselves: outcomes by rule, examples picked by rule, and tables to read."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from html import escape
from typing import TYPE_CHECKING, Any

from cfdistill import data, runs
from cfdistill.answer_figures import answers_table
from cfdistill.metrics import main_scoring
from cfdistill.params import Params
from cfdistill.schema import Prediction

if TYPE_CHECKING:
    import pandas as pd

OUTCOMES = ("right", "lured", "other")


def answers(params: Params, methods: Sequence[str]) -> pd.DataFrame:
    """Return what methods answered to all test questions of the training data set.

    Returns:
        One row per question and method, in the order of the files: the columns of `answers_table`
        plus split, scene and outcome (one of OUTCOMES).

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
        scenes = [q.scene for q in questions for _ in methods]
        tables.append(answers_table(questions, predictions, methods).assign(split=split, scene=scenes))
    table = pd.concat(tables, ignore_index=True)
    return table.assign(outcome=[_outcome(row) for row in table.to_dict("records")])


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
        return f"<p>no training question shares its scene with: {escape(row['stem'])}</p>"
    before = max(trained, key=lambda q: difflib.SequenceMatcher(None, q.stem, row["stem"]).ratio())
    gold = row["options"].split("\n")[row["gold"]]
    marked_before, marked_after = _marked(before.stem, row["stem"])
    return (
        f"<p>trained: {marked_before} → <b>{escape(before.options[before.answer])}</b></p>"
        f"<p>tested: {marked_after} → <b>{escape(gold)}</b></p>"
    )


def browse(table: pd.DataFrame, splits: Sequence[str]) -> str:
    """Return HTML of all questions and answers, a foldable table per split; all text is escaped."""
    methods = list(table["method"].unique())
    head = "".join(f"<th>{escape(word)}</th>" for word in ("question", "right", *methods))
    parts = []
    for split in splits:
        part = table[table["split"] == split]
        rows = "".join(_browse_row(group) for _, group in part.groupby("id", sort=False))
        title = f"<summary>{escape(split)}: {part['id'].nunique()} questions</summary>"
        parts.append(f"<details>{title}<table><tr>{head}</tr>{rows}</table></details>")
    return "".join(parts)


def _browse_row(group: pd.DataFrame) -> str:
    first = group.iloc[0]
    cells = [first["stem"], first["options"].split("\n")[first["gold"]]]
    cells += [f"{row['outcome']}: {row['text']}" for row in group.to_dict("records")]
    return "<tr>" + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"


def _outcome(row: Mapping[Any, Any]) -> str:
    import pandas as pd

    if row["predicted"] == row["gold"]:
        return "right"
    lured = not pd.isna(row["stereotype"]) and row["predicted"] == row["stereotype"]
    return "lured" if lured else "other"


def _marked(before: str, after: str) -> tuple[str, str]:
    """Return both texts as HTML with the words that differ marked."""
    old, new = before.split(), after.split()
    sides: tuple[list[str], list[str]] = ([], [])
    for kind, i, j, k, m in difflib.SequenceMatcher(None, old, new, autojunk=False).get_opcodes():
        for side, words in zip(sides, (old[i:j], new[k:m]), strict=True):
            text = escape(" ".join(words))
            side.append(text if kind == "equal" or not text else f"<mark>{text}</mark>")
    return " ".join(sides[0]), " ".join(sides[1])
