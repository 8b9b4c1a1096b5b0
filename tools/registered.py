"""The comparisons of docs/registration.md, from the committed predictions of a grid: `testbed` or `csqa`.

    python tools/registered.py results/testbed

Prints the eight primary comparisons with their verdicts; docs/results.md holds them, too.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from itertools import product
from pathlib import Path

import pandas as pd

from cfdistill.evaluate import metrics, stats

CONTROLS = ("ft-cot-long", "multi-view-more")
SCORINGS = ("direct", "cloze")
MARGIN = 0.03  # two methods are equivalent if the whole interval is within
Answers = pd.DataFrame


def new_to_training(answers: Answers) -> Answers:
    """Return the answers to questions on seen scenes whose cue, or whose answer, training has not shown."""
    shift = (answers["dataset"] == answers["train_dataset"]) & (answers["split"] == "shift")
    return answers[shift & answers["novelty"].isin(["answer", "cause"])]


def in_distribution(answers: Answers) -> Answers:
    """Return the answers to questions of the training data set."""
    return answers[answers["dataset"] == answers["train_dataset"]]


def out_of_distribution(answers: Answers) -> Answers:
    """Return the answers to questions of all other data sets."""
    return answers[answers["dataset"] != answers["train_dataset"]]


# by grid: the tests of its registration
REGISTERED: Mapping[str, Mapping[str, Callable[[Answers], Answers]]] = {
    "testbed": {"shift, cue or answer not shown": new_to_training, "other formats": out_of_distribution},
    "csqa": {"CommonsenseQA": in_distribution, "other benchmarks": out_of_distribution},
}


def read(folder: Path) -> Answers:
    """Return the predictions of a grid's cells at the training size of its three seeds."""
    cells = json.loads((folder / "tables.json").read_text(encoding="utf-8"))["cells"]
    tables = [metrics.read_csv(folder.parent / cell, metrics.FILES[2]) for cell in cells]
    sizes = [
        json.loads((folder.parent / cell / "manifest.json").read_text(encoding="utf-8"))["params"]
        for cell in cells
    ]
    usual = max(size["train_questions"] for size in sizes if size["seed"])  # a size curve has one seed
    return pd.concat(
        [table for table, size in zip(tables, sizes, strict=True) if size["train_questions"] == usual]
    )


def compare(answers: Answers, tests: Mapping[str, Callable[[Answers], Answers]]) -> pd.DataFrame:
    """Return a row per registered comparison: points, 95 % interval, p by Holm over all rows, and verdict."""
    rows = []
    for (test, chosen), control, scoring in product(tests.items(), CONTROLS, SCORINGS):
        asked = chosen(answers)
        asked = asked[asked["scoring"] == scoring].assign(
            cluster=lambda own: own["scene"].where(own["scene"] != "", own["id"]),
            right=lambda own: (own["predicted"] == own["gold"]).astype(float),
        )
        tables = [
            own.pivot(index="seed", columns=["dataset", "split", "cluster", "id"], values="right").dropna(
                axis=1
            )
            for own in (asked[asked["method"] == method] for method in ("cf-distill", control))
        ]
        seeds = tables[0].index.intersection(tables[1].index)
        ours, theirs = (table.loc[seeds].sort_index(axis=1) for table in tables)
        if not ours.columns.equals(theirs.columns):
            raise SystemExit(f"cf-distill and {control} answered different questions: {test}, {scoring}")
        clusters = ours.columns.get_level_values("cluster")
        found = stats.paired_difference(ours, theirs, clusters)
        p = stats.mcnemar_exact(ours, theirs, clusters)
        rows.append([f"cf-distill − {control}", test, scoring, len(clusters), len(seeds), *found, p])
    columns = ["compared", "test", "scoring", "n", "seeds", "delta", "low", "high", "p"]
    table = pd.DataFrame(rows, columns=columns)
    table["p"] = stats.holm(table["p"].tolist())
    return table.assign(verdict=[verdict(row) for row in metrics.each_row(table)])


def verdict(row: pd.Series) -> str:
    """Return the registered word for a comparison."""
    if row.low > 0 and row.p < stats.ALPHA:
        return "ahead"
    if row.high < 0 and row.p < stats.ALPHA:
        return "behind"
    return "equivalent" if row.low > -MARGIN and row.high < MARGIN else "inconclusive"


def to_markdown(folder: Path) -> str:
    """Return the registered comparisons of a grid as a table, in points; "" for a grid without any."""
    if folder.name not in REGISTERED:
        return ""
    table = compare(read(folder), REGISTERED[folder.name])
    shown = table[["compared", "test", "scoring", "n", "seeds"]].assign(
        points=[
            f"{100 * r.delta:+.1f} [{100 * r.low:+.1f}, {100 * r.high:+.1f}]" for r in metrics.each_row(table)
        ],
        p=table["p"].map("{:.3f}".format),
        verdict=table["verdict"],
    )
    return str(shown.to_markdown(index=False, disable_numparse=True))


if __name__ == "__main__":
    sys.stdout.write(to_markdown(Path(sys.argv[1])) + "\n")
