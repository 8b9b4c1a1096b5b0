"""The paper's Table 1 from our metrics, as markdown, LaTeX, CSV and plain text, and the README's numbers."""

from __future__ import annotations

import textwrap
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from cfdistill import metrics as measures
from cfdistill.data.weasel import ALL
from cfdistill.errors import DataError
from cfdistill.stats import ALPHA

if TYPE_CHECKING:
    import pandas as pd

ROW = ["train_dataset", "student", "method"]
SWEPT_SPLITS = ("id", "shift", "shift_reachable", "shift_heldout", "new")


class Reported(NamedTuple):
    """An accuracy that the paper reports, in percent."""

    student: str
    dataset: str
    method: str
    accuracy: float


# All numbers of the paper that are known to us. They are shown beside ours, never mixed with them.
STANDARD = "standard methods"  # ft or ft-cot: which one is not known
REPORTED = (
    Reported("gpt2", "ARC", measures.OURS, 40.42),
    Reported("gpt2-medium", "ARC", STANDARD, 36.70),
)
REPORTED_COLUMN = "paper reports (ARC)"
REPORTED_GAIN = 11.43  # points over FT-CoT, averaged over the paper's students and data sets
REPORTED_NOTE = (
    f"Reported by the paper (other data and students, so not comparable with ours): {measures.OURS} is "
    f"{REPORTED_GAIN:+.2f} points above ft-cot on average; on ARC, "
    + ", ".join(f"{r.student} with {r.method} {r.accuracy:.2f}" for r in REPORTED)
    + "."
)


def short_name(dataset: str) -> str:
    """Return a data set's name without the testbed's prefix."""
    return dataset.removeprefix("weasel-")


def table1(
    metrics: pd.DataFrame,
    comparisons: pd.DataFrame,
    bold: Callable[[str], str] = str,
    mark: str = "*",
    *,
    reported: bool = False,
) -> pd.DataFrame:
    """Return accuracies in percent, method × test set, as texts like "61.0 [51.2, 70.0]".

    Args:
        metrics: table with `METRIC_COLUMNS`; several training seeds are averaged.
        comparisons: table with `COMPARISON_COLUMNS`.
        bold: applied to the highest accuracy of each training data set, student and test set.
        mark: appended where the method differs from cf-distill (Holm-adjusted p < 0.05).
        reported: append the paper's numbers as a column of their own, and the number of seeds.

    Returns:
        A table with the columns train_dataset, student and seeds where they vary, then method and test
        sets.

    Raises:
        DataError: there is nothing to show.
    """
    cells = _cells(metrics, comparisons)
    if cells.empty:
        raise DataError("there are no metrics to put into a table; run notebook 05_evaluation first")
    cells["text"] = [
        (bold(c.text) if c.best else c.text) + (mark if c.differs else "") for c in measures.each_row(cells)
    ]
    table = cells.pivot_table(index=ROW, columns="test", values="text", aggfunc="first", sort=False)
    columns = sorted(table.columns, key=lambda c: c.startswith("OOD "))  # stable: own splits come first
    seeds = cells.groupby(ROW, sort=False)["seeds"].max()
    table = table[columns].fillna("–").assign(seeds=seeds).reset_index().rename_axis(columns=None)
    if reported:
        table[REPORTED_COLUMN] = table["method"].map(_reported)
    constant = [c for c in (*ROW[:2], "seeds") if table[c].nunique() == 1 and not (reported and c == "seeds")]
    return table.drop(columns=constant)


def caption(metrics: pd.DataFrame) -> str:
    """Return what the table shows: training data, students, questions, seeds, and how to read it."""
    cells = _cells(metrics)
    sizes = cells.groupby("test", sort=False)["n"].agg(lambda n: _span(n.min(), n.max()))
    each = (
        f"n = {sizes.iloc[0]} questions each" if sizes.nunique() == 1 else f"n = {_listed(sizes)} questions"
    )
    seeds = f"{'seed' if metrics['seed'].nunique() == 1 else 'mean of seeds'} {_names(metrics['seed'])}"
    if cells["seeds"].nunique() > 1:
        seeds += ", as many of them as the column seeds says"
    first = measures.reference(metrics["method"])
    return (
        f"Accuracy in % with 95 % intervals; trained on {_names(metrics['train_dataset'])}, student "
        f"{_names(metrics['student'])}, {each}, {seeds}. Bold: highest. "
        f"*: differs from {first} (exact McNemar test, Holm-adjusted p < {ALPHA})."
    )


def to_markdown(metrics: pd.DataFrame, comparisons: pd.DataFrame, *, reported: bool = False) -> str:
    """Return the table and its caption as markdown, on request with the paper's numbers as a column."""
    table = table1(metrics, comparisons, bold=lambda text: f"**{text}**", mark=r"\*", reported=reported)
    lines = [list(table.columns), ["---"] * len(table.columns), *table.to_numpy().tolist()]
    rows = "\n".join(f"| {' | '.join(map(str, line))} |" for line in lines)
    return f"{rows}\n\n{caption(metrics).replace('*', chr(92) + '*')}\n"


def to_latex(metrics: pd.DataFrame, comparisons: pd.DataFrame) -> str:
    """Return the table as a LaTeX table environment; it needs the packages booktabs and graphicx."""
    table = table1(
        metrics, comparisons, bold=lambda text: rf"\textbf{{{text}}}", mark="$^{*}$", reported=True
    )
    table = table.astype(str).map(_tex).rename(columns=_tex)
    words = f"{_tex(caption(metrics))} {_tex(REPORTED_NOTE)}"
    latex = table.to_latex(index=False, caption=words, label="tab:results", position="t")
    latex = latex.replace("{table}", "{table*}").replace(r"\end{tabular}", r"\end{tabular}}")
    return latex.replace(r"\begin{tabular}", "\\resizebox{\\textwidth}{!}{%\n\\begin{tabular}")


def to_text(metrics: pd.DataFrame, comparisons: pd.DataFrame) -> str:
    """Return the table, its caption and the differences as plain text for a terminal."""
    table = table1(metrics, comparisons).to_string(index=False)
    notes = [caption(metrics).replace("Bold: highest. ", ""), *differences(comparisons).splitlines()]
    return "\n\n".join([table, *(textwrap.fill(note, 100) for note in notes)]) + "\n"


def write_tables(folder: Path, metrics: pd.DataFrame, comparisons: pd.DataFrame) -> None:
    """Write `table1.md`, `table1.tex` and `table1.csv` into a folder."""
    folder.mkdir(parents=True, exist_ok=True)
    markdown = f"{to_markdown(metrics, comparisons, reported=True)}\n{REPORTED_NOTE}\n"
    (folder / "table1.md").write_text(markdown, encoding="utf-8")
    (folder / "table1.tex").write_text(to_latex(metrics, comparisons), encoding="utf-8")
    measures.write_csv(table1(metrics, comparisons, reported=True), folder / "table1.csv")


def matrix(metrics: pd.DataFrame, comparisons: pd.DataFrame, baseline: str = "ft-cot") -> pd.DataFrame:
    """Return the cells of the train × test matrices of the paper's Fig. 5, for one student.

    Returns:
        Columns panel (a method, or "difference"), train_dataset, test_dataset, value (percent or
        points), seeds, differs (Holm-adjusted p < 0.05). No rows when a method is missing.
    """
    import pandas as pd

    keys = ["train_dataset", "test_dataset"]
    rows = measures.transfer(metrics)
    rows = rows.assign(value=100 * rows["accuracy"], differs=False)
    ours, theirs = (rows[rows["method"] == name] for name in (measures.OURS, baseline))
    both = ours.merge(theirs, on=[*keys, "student", "test_split"], suffixes=("", "_other"))
    tested = comparisons[(comparisons["method_a"] == measures.OURS) & (comparisons["method_b"] == baseline)]
    both = both.merge(tested[[*keys, "student", "test_split", "delta", "p_holm"]])
    difference = both.assign(value=100 * both["delta"], differs=both["p_holm"] < ALPHA, method="difference")
    parts = [part for part in (theirs, ours, difference) if len(both)]
    columns = {"method": "panel"}
    kept = ["panel", *keys, "value", "seeds", "differs"]
    return pd.concat(parts).rename(columns=columns)[kept] if parts else pd.DataFrame(columns=kept)


def differences(comparisons: pd.DataFrame) -> str:
    """Return one line per compared pair: differences in points, intervals, adjusted p-values."""
    lines = []
    known = [*measures.COMPARISON_COLUMNS, *measures.COMPARISON_SCORINGS]
    swept = [name for name in comparisons if name not in known]
    scorings = [name for name in measures.COMPARISON_SCORINGS if name in comparisons]
    keys = ["train_dataset", "student", "method_a", "method_b", *scorings]
    for key, rows in comparisons.groupby([*swept, *keys], sort=False):
        train, student, ours, other, *how = key[len(swept) :]
        found = [f"{_test_name(row)} {_difference(row)}" for row in measures.each_row(rows)]
        pair = f"{ours} {how[0]} minus {how[1]}" if ours == other else f"{ours} minus {other}"
        where = [f"{train}, {student}", *(f"{name} {value}" for name, value in zip(swept, key, strict=False))]
        lines.append(f"- {pair} ({', '.join(where)}): {'; '.join(found)}.")
    return "\n".join(lines)


def settings_block(settings: pd.DataFrame) -> str:
    """Return in markdown how each setting of a grid compares with the first (`metrics.settings_table`)."""
    lines = []
    for (a, b, method), rows in settings.groupby(["setting_a", "setting_b", "method"], sort=False):
        found = [
            f"{short_name(row.test_dataset)} {row.test_split} {_difference(row)}"
            for row in measures.each_row(rows)
        ]
        lines.append(f"- {method}, {a} minus {b}: {'; '.join(found)}.")
    return (
        "Each setting against the first one, on test splits with the same questions (points, intervals and "
        f"p-values as above, Holm-adjusted over these {len(settings)}):\n\n" + "\n".join(lines)
    )


def differences_block(comparisons: pd.DataFrame) -> str:
    """Return the differences in markdown, with what they and their intervals are."""
    how = "paired bootstrap"
    if bool((comparisons["seeds"] > 1).any()):
        how += "; where there are several seeds, Student's t over items and seeds"
    return (
        f"Differences in accuracy, in points, with 95 % intervals ({how}) and p-values (exact "
        f"McNemar test, Holm-adjusted over all {len(comparisons)} comparisons):\n\n{differences(comparisons)}"
    )


def readme_block(
    metrics: pd.DataFrame, comparisons: pd.DataFrame, manifest: Mapping[str, Any] | None = None
) -> str:
    """Return the README's results in markdown, made of nothing but numbers that were measured.

    Args:
        metrics: table with `METRIC_COLUMNS`.
        comparisons: table with `COMPARISON_COLUMNS`.
        manifest: of the whole study; `machine` (processor, cores) and `seconds` in total are read;
            a grid has none.
    """
    made = []
    if manifest:
        machine, minutes = manifest["machine"], manifest["seconds"] / 60
        made.append(
            f"Made on {machine['cores']} cores ({machine['processor']}) in {minutes:.1f} minutes in total."
        )
    return "\n\n".join(
        [
            to_markdown(metrics, comparisons).strip(),
            differences_block(comparisons),
            _lures(metrics),
            *made,
            REPORTED_NOTE,
        ]
    )


def seeds_block(metrics: pd.DataFrame, comparisons: pd.DataFrame) -> str:
    """Return the README's results over several seeds, in markdown."""
    table = to_markdown(metrics, comparisons).strip()
    return "\n\n".join([table, differences_block(comparisons), _lures(metrics)])


def sweep_block(metrics: pd.DataFrame, dataset: str) -> str:
    """Return what a grid varied as a markdown table: accuracy on the splits of one data set.

    Args:
        metrics: the grid's `metrics.csv`; columns beyond the usual ones were varied.
        dataset: what the students were tested on.
    """
    lines = [["training", "method", "seeds", *SWEPT_SPLITS], ["---"] * (3 + len(SWEPT_SPLITS))]
    rows = measures.over_seeds(metrics[measures.is_main(metrics) & (metrics["test_dataset"] == dataset)])
    known = {*measures.METRIC_COLUMNS, measures.AGREEMENT, "seeds"}
    varied = [column for column in rows.columns if column not in known]
    for (train, *values, method), cell in rows.groupby(["train_dataset", *varied, "method"], sort=False):
        told = [f"{column} {value}" for column, value in zip(varied, values, strict=True)]
        texts = cell.assign(text=_texts(cell)).set_index("test_split")["text"]
        shown = [str(texts.get(split, "–")) for split in SWEPT_SPLITS]
        lines.append([", ".join(told) or str(train), str(method), str(cell["seeds"].iloc[0]), *shown])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def read_block(text: str, name: str) -> tuple[str, str, str]:
    """Return what stands before, in and after the block `name` of a README, markers outside the block.

    Raises:
        DataError: the text does not hold each of the block's markers once, in order.
    """
    begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
    if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
        raise DataError(f"README.md must hold {begin.strip()} and, on a later line, {end}, each once")
    before, rest = text.split(begin)
    block, after = rest.split(end)
    return before + begin, block, end + after


def write_readme(path: Path, blocks: Mapping[str, str]) -> None:
    """Put each block, by its name, between the README's markers of that name.

    Raises:
        DataError: a block's markers are not there; nothing is written then.
    """
    text = path.read_text(encoding="utf-8")
    for name, block in blocks.items():
        before, _, after = read_block(text, name)
        text = f"{before}{block}\n{after}"
    path.write_text(text, encoding="utf-8")


def _cells(metrics: pd.DataFrame, comparisons: pd.DataFrame | None = None) -> pd.DataFrame:
    """Return one row per table cell, with its text, and whether it is the best and differs from ours."""
    cells = measures.over_seeds(metrics[measures.is_main(metrics)])
    cells = cells[~cells["test_split"].isin([f"shift_{s}" for s in measures.SUBSETS])]
    cells = cells.assign(
        test=[_test_name(c) for c in measures.each_row(cells)],
        text=_texts(cells),
        shown=(100 * cells["accuracy"]).round(1),
    )
    best = cells.groupby(["train_dataset", "student", "test"])["shown"].transform("max")
    cells["best"] = cells["shown"] == best
    if comparisons is not None:
        keys = ["train_dataset", "student", "test_dataset", "test_split", "method_b"]
        between = comparisons[comparisons["method_a"] != comparisons["method_b"]]  # not of scorings
        significant = set(between[between["p_holm"] < ALPHA][keys].itertuples(index=False, name=None))
        ours = cells[[*keys[:-1], "method"]].itertuples(index=False, name=None)
        cells["differs"] = [key in significant for key in ours]
    return cells


def _texts(cells: pd.DataFrame) -> list[str]:
    return [
        f"{100 * c.accuracy:.1f} [{100 * c.ci_low:.1f}, {100 * c.ci_high:.1f}]"
        for c in measures.each_row(cells)
    ]


def _test_name(row: Any) -> str:
    """Name a test set as seen from training: its own split, or another data set."""
    if row.test_dataset == row.train_dataset:
        return str(row.test_split)
    if row.train_dataset == ALL:
        return f"{short_name(row.test_dataset)} {row.test_split}"
    split = "" if row.test_split == "new" else f" {row.test_split}"
    return f"OOD {short_name(row.test_dataset)}{split}"


def _lures(metrics: pd.DataFrame) -> str:
    shift = measures.over_seeds(metrics[measures.is_main(metrics) & (metrics["test_split"] == "shift")])
    lines = [
        f"{train} {student}: "
        + ", ".join(
            f"{r.method} {100 * r.lure_rate:.1f} %" for r in measures.each_row(rows) if r.lure_rate >= 0
        )
        for (train, student), rows in shift.groupby(["train_dataset", "student"], sort=False)
    ]
    return (
        f"Lure rate on `shift` (wrong, and the stereotype was chosen): {'; '.join(lines) or 'not measured'}."
    )


def _reported(method: str) -> str:
    """Return what the paper reports of a method, or of the standard methods that it is one of."""
    known = {r.method: f"{r.accuracy:.2f} ({r.student})" for r in REPORTED}
    either = f"{known[STANDARD]}, ft or ft-cot" if method in ("ft", "ft-cot") else "–"
    return known.get(method, either)


def _span(low: int, high: int) -> str:
    return str(low) if low == high else f"{low}–{high}"


def _difference(row: Any) -> str:
    """Return a difference in points with its interval and adjusted p-value."""
    return f"{100 * row.delta:+.1f} [{100 * row.ci_low:+.1f}, {100 * row.ci_high:+.1f}], {_p(row.p_holm)}"


def _p(value: float) -> str:
    return "p < 0.001" if value < 0.001 else f"p = {value:.3f}"


def _names(column: pd.Series[Any]) -> str:
    return ", ".join(map(str, column.drop_duplicates()))


def _listed(sizes: pd.Series[Any]) -> str:
    return ", ".join(f"{n} ({test})" for test, n in sizes.items())


def _tex(text: str) -> str:
    for character in "&%#_":
        text = text.replace(character, f"\\{character}")
    return text.replace("–", "--")
