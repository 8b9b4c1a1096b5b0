"""The paper's Table 1 from our metrics, as markdown, LaTeX, CSV and plain text."""

from collections.abc import Mapping
from pathlib import Path
from string import Template
from typing import Any

import pandas as pd

from cfdistill.errors import DataError
from cfdistill.evaluate import metrics as measures
from cfdistill.methods import reference
from cfdistill.show import style

Labels = Mapping[str, str]
FEWEST = 20  # questions that a step of novelty must have to be shown
CELL = "{} [{:.1f}, {:.1f}]"
ROW = ["train_dataset", "student", "data_seed", "method"]


def table1(
    metrics: pd.DataFrame, compared: pd.DataFrame, cell: str = CELL, top: str = "{}", star: str = "*"
) -> pd.DataFrame:
    """Return accuracies in percent ("61.0* [51.2, 70.0]"): the highest as in `top`, `star` if it differs."""
    cells, keys = _cells(metrics), [*ROW, "test_dataset", "test_split"]
    best = cells["shown"] == cells.groupby([*ROW[:-1], "test"])["shown"].transform("max")
    between = compared[(compared["method_a"] != compared["method_b"]) & (compared["novelty"] == "")]
    between = between.assign(method=between["method_b"], data_seed=between.get("data_seed", 0))
    between = between.assign(differs=measures.differs(between))[[*keys, "differs"]]
    starred = cells[keys].merge(between, how="left").set_index(cells.index)["differs"].eq(True)
    values = cells["shown"].map("{:.1f}".format)
    values = values.mask(best, values.map(top.format)).mask(starred, lambda value: value + star)
    ends = zip(values, 100 * cells["ci_low"], 100 * cells["ci_high"], strict=True)
    cells["text"] = [cell.format(value, low, high) for value, low, high in ends]
    table = cells.pivot_table(index=ROW, columns="test", values="text", aggfunc="first", sort=False)
    columns = sorted(table.columns, key=lambda name: name.startswith("OOD "))  # own splits come first
    seeds = cells.groupby(ROW, sort=False)["seeds"].max()
    table = table[columns].fillna("–").assign(seeds=seeds).reset_index().rename_axis(columns=None)
    alike = [name for name in ROW[:-1] if table[name].nunique() == 1]
    return table.drop(columns=alike if seeds.max() > 1 else [*alike, "seeds"])


def caption(metrics: pd.DataFrame, comparisons: pd.DataFrame) -> str:
    """Return what Table 1 shows: training data, students, questions, seeds, and how to read it."""
    cells = _cells(metrics)
    by_test = cells.groupby("test", sort=False)["n"]
    sizes = by_test.agg(lambda n: "–".join(map(str, sorted({n.min(), n.max()}))))
    listed = ", ".join(f"{n} ({test})" for test, n in sizes.items())
    named = (metrics[name].drop_duplicates() for name in ("train_dataset", "student", "seed"))
    data, students, seeds = (", ".join(map(str, names)) for names in named)
    seeds = f"mean of seeds {seeds}" if "," in seeds else f"seed {seeds}"
    if cells["seeds"].nunique() > 1:
        seeds += ", as many of them as the column seeds says"
    return (
        f"Accuracy in % with 95 % intervals; trained on {data}, student {students}, "
        f"n = {listed} questions, {seeds}. Bold: highest. "
        f"*: differs from {reference(metrics['method'])} ({measures.star_note(comparisons)})."
    )


def to_markdown(metrics: pd.DataFrame, comparisons: pd.DataFrame) -> str:
    """Return the table and its caption as markdown."""
    table = table1(metrics, comparisons, top="**{}**", star=r"\*")
    return f"{table.to_markdown(index=False)}\n\n{caption(metrics, comparisons)}\n".replace(" *:", r" \*:")


def to_latex(metrics: pd.DataFrame, comparisons: pd.DataFrame, name: str, labels: Labels | None) -> str:
    """Return the table as a LaTeX table environment, with each interval below its value."""
    stacked = r"\shortstack{{{} \\ {{\scriptsize [{:.1f}, {:.1f}]}}}}"
    table = table1(metrics, comparisons, stacked, r"\textbf{{{}}}", "$^{*}$").astype(str).replace("–", "--")
    named = table.columns.intersection(ROW)
    table[named] = table[named].map(lambda text: style.tex(style.relabel(text, labels)))
    head = [rf"\shortstack{{{style.tex(str(title))}}}".replace(" ", r" \\ ") for title in table]
    latex = Template(Path(__file__).with_name("table1.tex").read_text(encoding="utf-8"))
    return latex.substitute(
        caption=style.tex(style.relabel(caption(metrics, comparisons), labels)),
        name=name,
        columns="l" * len(head),
        rows=" \\\\\n".join(" & ".join(row) for row in table.to_numpy()),
        head=" & ".join(head),
    )


def write_tables(
    folder: Path, metrics: pd.DataFrame, compared: pd.DataFrame, name: str = "", labels: Labels | None = None
) -> None:
    """Write `table1.md` and `table1.tex` into a folder; `name` is for LaTeX's label."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table1.md").write_text(to_markdown(metrics, compared), encoding="utf-8")
    (folder / "table1.tex").write_text(to_latex(metrics, compared, name, labels), encoding="utf-8")


def differences(table: pd.DataFrame) -> str:
    """Return the compared pairs of methods or scorings as markdown: points, intervals, adjusted p."""
    rows = []
    for r in measures.each_row(table):
        a, b = r.method_a, r.method_b
        if a == b:
            a, b = f"{a} {r.scoring_a}", r.scoring_b
        points = f"{100 * r.delta:+.1f} [{100 * r.ci_low:+.1f}, {100 * r.ci_high:+.1f}]"
        p = "< 0.001" if r.p_holm < 0.001 else f"{r.p_holm:.3f}"
        rows.append([f"{a} − {b}", _test_name(r), r.n, points, p])
    told = pd.DataFrame(rows, columns=["compared", "test", "n", "points", "p"], index=table.index)
    return str(_settings(table).join(told).to_markdown(index=False, disable_numparse=True))


def reads_or_remembers(metrics: pd.DataFrame) -> pd.DataFrame:
    """Split the reference's gain on `shift` over each method into two parts, in points that sum to it.

    Accuracy is (1 - lure rate) · accuracy where not lured. "bias removed" is the change of the first factor
    at the mean of the second, "cue read" that of the second at the mean of the first (our choice).
    """
    rows = measures.over_seeds(metrics[measures.is_main(metrics.assign(novelty=""))])
    rows = rows[rows["test_split"].str.startswith("shift") & (rows["train_dataset"] == rows["test_dataset"])]
    rows = rows[rows["n"] >= FEWEST].drop(columns=["scoring", "seeds"])
    rows = rows.assign(kept=1 - rows["lure_rate"])
    rows = rows.assign(read=(rows["accuracy"] / rows["kept"]).fillna(0))
    where = list(rows.columns.difference(["method", "n", "kept", "read", *measures.METRIC_VALUES]))
    if rows.empty:
        return rows[["method"]]
    ours = rows["method"] == reference(rows["method"])
    pairs = rows[~ours].merge(rows[ours], on=where, suffixes=("", "_ours"))
    bias = (pairs["kept_ours"] - pairs["kept"]) * (pairs["read_ours"] + pairs["read"]) / 2
    cue = (pairs["read_ours"] - pairs["read"]) * (pairs["kept_ours"] + pairs["kept"]) / 2
    pairs["test"] = [_test_name(row) for row in measures.each_row(pairs)]
    shares = {"gain": pairs["accuracy_ours"] - pairs["accuracy"], "bias removed": bias, "cue read": cue}
    told = _settings(pairs[where]).join(pairs[["method", "test", "n"]])
    return told.assign(**{name: (100 * share).round(1) for name, share in shares.items()})


def _cells(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell of Table 1: seeds averaged, without parts of splits."""
    cells = measures.over_seeds(metrics[measures.is_main(metrics)])
    cells = cells[~cells["test_split"].str.startswith(("shift_", measures.WORST))]
    if cells.empty:
        raise DataError("there are no metrics to put into a table; run notebook 05_evaluation first")
    rows = measures.each_row(cells)
    return cells.assign(
        data_seed=cells.get("data_seed", 0),
        test=[_test_name(row) for row in rows],
        shown=(100 * cells["accuracy"]).round(1),
    )


def _settings(table: pd.DataFrame) -> pd.DataFrame:
    """Return the columns that tell rows apart, but for pairs, tests and values: those of a grid first."""
    known = {*measures.COMPARISON_KEYS, *measures.COMPARED, *measures.COMPARISON_SCORINGS} - set(ROW)
    return table[[name for name in table if name not in known and table[name].nunique() > 1]]


def _test_name(row: Any) -> str:
    """Name a test set as seen from training: its own split, or another data set."""
    if row.test_dataset == row.train_dataset:
        step = getattr(row, "novelty", "")
        return f"{row.test_split} ({step})" if step else str(row.test_split)
    elsewhere = row.test_dataset.removeprefix("weasel-")
    return f"OOD {elsewhere} {row.test_split}".removesuffix(" new").strip()
