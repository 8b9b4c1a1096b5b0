"""The paper's Table 1 from our metrics, as markdown, LaTeX, CSV and plain text."""

import re
from pathlib import Path
from typing import Any

import pandas as pd

from cfdistill.errors import DataError
from cfdistill.evaluate import metrics as measures
from cfdistill.methods import reference

ROW = ["train_dataset", "student", "data_seed", "method"]


def short_name(dataset: str) -> str:
    """Return a data set's name without the testbed's prefix."""
    return dataset.removeprefix("weasel-")


def table1(metrics: pd.DataFrame, compared: pd.DataFrame, top: str = "{}", star: str = "*") -> pd.DataFrame:
    """Return accuracies in percent ("61.0 [51.2, 70.0]*"): the highest as in `top`, `star` if it differs."""
    cells, keys = _cells(metrics), [*ROW, "test_dataset", "test_split"]
    best = cells["shown"] == cells.groupby([*ROW[:-1], "test"])["shown"].transform("max")
    cells["text"] = cells["text"].mask(best, cells["text"].map(top.format))
    between = compared[(compared["method_a"] != compared["method_b"]) & (compared["novelty"] == "")]
    between = between.assign(method=between["method_b"], data_seed=between.get("data_seed", 0))
    between = between.assign(differs=measures.differs(between))[[*keys, "differs"]]
    starred = cells[keys].merge(between, how="left").set_index(cells.index)["differs"].eq(True)
    cells["text"] = cells["text"].mask(starred, cells["text"] + star)
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
    table = table1(metrics, comparisons, "**{}**", r"\*")
    return f"{table.to_markdown(index=False)}\n\n{caption(metrics, comparisons)}\n".replace(" *:", r" \*:")


def to_latex(metrics: pd.DataFrame, comparisons: pd.DataFrame) -> str:
    """Return the table as a LaTeX table environment; it needs the packages booktabs and graphicx."""
    table = table1(metrics, comparisons, r"\textbf{{{}}}", "$^{*}$")
    table = table.astype(str).map(_tex).rename(columns=_tex)
    words = _tex(caption(metrics, comparisons))
    latex = table.style.hide(axis="index").to_latex(
        hrules=True, caption=words, label="tab:results", position="t", environment="table*"
    )
    wide = latex.replace(r"\begin{tabular}", "\\resizebox{\\textwidth}{!}{%\n\\begin{tabular}")
    return wide.replace(r"\end{tabular}", r"\end{tabular}}")


def write_tables(folder: Path, metrics: pd.DataFrame, comparisons: pd.DataFrame) -> None:
    """Write `table1.md` and `table1.tex` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "table1.md").write_text(to_markdown(metrics, comparisons), encoding="utf-8")
    (folder / "table1.tex").write_text(to_latex(metrics, comparisons), encoding="utf-8")


def differences(table: pd.DataFrame) -> str:
    """Return a markdown line per compared pair of methods or scorings: points, intervals, adjusted p."""
    pair = [name for name in ("method_a", "method_b", *measures.COMPARISON_SCORINGS) if name in table]
    where = [
        name
        for name in table
        if name not in (*pair, *measures.COMPARED, "test_dataset", "test_split", "novelty")
    ]
    lines = []
    for key, rows in table.groupby([*where, *pair], sort=False):
        a, b, *how = key[len(where) :]
        names = f"{a} {how[0]} minus {how[1]}" if a == b else f"{a} minus {b}"
        told = [str(v) if k in ROW else f"{k} {v}" for k, v in zip(where, key, strict=False)]
        found = []
        for r in measures.each_row(rows):
            p = "p < 0.001" if r.p_holm < 0.001 else f"p = {r.p_holm:.3f}"
            interval = f"[{100 * r.ci_low:+.1f}, {100 * r.ci_high:+.1f}]"
            found.append(f"{_test_name(r)} {100 * r.delta:+.1f} {interval}, {p}")
        lines.append(f"- {names} ({', '.join(told)}): {'; '.join(found)}.")
    return "\n".join(lines)


def _cells(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return a row per cell of Table 1: seeds averaged, without the parts of `shift`."""
    cells = measures.over_seeds(metrics[measures.is_main(metrics)])
    cells = cells[~cells["test_split"].str.startswith("shift_")]
    if cells.empty:
        raise DataError("there are no metrics to put into a table; run notebook 05_evaluation first")
    rows = measures.each_row(cells)
    return cells.assign(
        data_seed=cells.get("data_seed", 0),
        test=[_test_name(row) for row in rows],
        text=[f"{100 * r.accuracy:.1f} [{100 * r.ci_low:.1f}, {100 * r.ci_high:.1f}]" for r in rows],
        shown=(100 * cells["accuracy"]).round(1),
    )


def _test_name(row: Any) -> str:
    """Name a test set as seen from training: its own split, or another data set."""
    if row.test_dataset == row.train_dataset:
        step = getattr(row, "novelty", "")
        return f"{row.test_split} ({step})" if step else str(row.test_split)
    return f"OOD {short_name(row.test_dataset)} {row.test_split}".removesuffix(" new").strip()


def _tex(text: str) -> str:
    return re.sub(r"([&%#_])", r"\\\1", text).replace("–", "--")
