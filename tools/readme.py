"""Write the numbers of committed results into README.md, between its markers.

    python tools/readme.py [--check]

`--check` writes nothing, and fails if README.md quotes other numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from cfdistill import files
from cfdistill.errors import DataError
from cfdistill.evaluate import metrics
from cfdistill.show import tables
from cfdistill.study import results

GRIDS = ("data_size", "ablation", "spurious")  # whose numbers are quoted
SPLITS = ("id", "shift", "shift_reachable", "shift_heldout", "new")


def main() -> int:
    """Write or check README.md; returns 1 if a check finds other numbers."""
    path = files.project_root() / "README.md"
    text = path.read_text(encoding="utf-8")
    new = replaced(text, blocks(files.project_root() / "results"))
    if "--check" in sys.argv[1:]:
        return int(new != text)
    path.write_text(new, encoding="utf-8")
    return 0


def replaced(text: str, parts: dict[str, str]) -> str:
    """Return a text with each block, by its name, between the markers of that name."""
    for name, block in parts.items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        if text.count(begin) != 1 or text.count(end) != 1 or text.index(begin) > text.index(end):
            raise DataError(f"README.md must hold {begin.strip()} and, on a later line, {end}, each once")
        before, rest = text.split(begin)
        text = f"{before}{begin}{block.strip()}\n{end}{rest.split(end)[1]}"
    return text


def blocks(folder: Path) -> dict[str, str]:
    """Return what README.md quotes, from the folders of the default study, its grids, and real questions."""

    def read(name: str) -> list[pd.DataFrame]:
        return [metrics.read_csv(folder / name, file) for file in metrics.FILES[:2]]

    default, real, seeds = read("offline"), read("csqa_smollm2"), read("offline_full")
    trained = default[0]["train_dataset"].iloc[0]
    own = [table[table["train_dataset"] == trained] for table in seeds]
    manifest = results.read_manifest(folder / "offline")
    machine, minutes = manifest["machine"], manifest["seconds"] / 60
    made = f"Made on {machine['cores']} cores ({machine['processor']}) in {minutes:.1f} minutes in total."
    return {
        "results": _joined(_compared(*default), made),
        "seeds": _compared(*own),
        **{name: _swept(folder / name, trained) for name in GRIDS},
        "benchmark": f"{tables.to_markdown(*real)}\n{tables.differences(real[1])}",
    }


def _joined(*parts: str) -> str:
    return "\n\n".join(part.strip() for part in parts if part)


def _compared(measured: pd.DataFrame, comparisons: pd.DataFrame) -> str:
    """Return Table 1, all differences, and how often each method follows the stereotype."""
    how = "paired bootstrap over scenes"
    if (comparisons["seeds"] > 1).any():
        how += "; where there are several seeds, Student's t over scenes and seeds"
    told = (
        f"Differences in accuracy, in points, with 95 % intervals ({how}) and p-values (exact McNemar test "
        f"over scenes, Holm-adjusted over all {len(comparisons)} comparisons):"
    )
    table = tables.to_markdown(measured, comparisons)
    return _joined(table, told, tables.differences(comparisons), _lures(measured))


def _lures(measured: pd.DataFrame) -> str:
    rows = metrics.over_seeds(measured[metrics.is_main(measured) & (measured["test_split"] == "shift")])
    told = []
    for (train, student), group in rows.groupby(["train_dataset", "student"], sort=False):
        rates = [f"{r.method} {100 * r.lure_rate:.1f} %" for r in metrics.each_row(group) if r.lure_rate >= 0]
        told.append(f"{train} {student}: {', '.join(rates)}")
    return (
        f"Lure rate on `shift` (wrong, and the stereotype was chosen): {'; '.join(told) or 'not measured'}."
    )


def _swept(folder: Path, dataset: str) -> str:
    """Return what a grid varied: accuracy on the splits of one data set."""
    measured = metrics.read_csv(folder, metrics.FILES[0])
    rows = metrics.over_seeds(measured[metrics.is_main(measured) & (measured["test_dataset"] == dataset)])
    varied = [name for name in rows if name not in (*metrics.METRIC_COLUMNS, metrics.AGREEMENT, "seeds")]
    lines = []
    for (train, *values, method), cell in rows.groupby(["train_dataset", *varied, "method"], sort=False):
        told = ", ".join(f"{name} {value}" for name, value in zip(varied, values, strict=True)) or train
        shown = {
            r.test_split: f"{100 * r.accuracy:.1f} [{100 * r.ci_low:.1f}, {100 * r.ci_high:.1f}]"
            for r in metrics.each_row(cell)
        }
        lines.append([told, method, cell["seeds"].iloc[0], *(shown.get(split, "–") for split in SPLITS)])
    return pd.DataFrame(lines, columns=["training", "method", "seeds", *SPLITS]).to_markdown(index=False)


if __name__ == "__main__":
    sys.exit(main())
