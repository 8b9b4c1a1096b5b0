"""Write docs/results.md, every number of the committed results in words and tables.

    python tools/results_page.py [--check]

`--check` writes nothing, and fails if docs/results.md holds something else.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd
import registered

from cfdistill import files
from cfdistill.evaluate import metrics
from cfdistill.show import figures, tables
from cfdistill.study import results, site

HEAD = """# Results

Written by `python tools/results_page.py` from the tables in [`results/`](../results); `cfdistill list`
tells of the same folders. Differences are in points of accuracy, with 95 % intervals, and p-values of the
exact McNemar test over scenes, Holm-adjusted over all rows of their table.

**Not to be compared with `offline`:** `ablation`, `data_size`, `offline_control`, `offline_full` and
`spurious` are of an earlier design, with 60 scenes, the stand-in teacher, and cues in their tests that
training had shown. `params/grids/testbed.yaml` is the present design with seeds and controls; it has not
been run yet. The learning rate of `offline` is provisional: lower ones were better for ft-cot on development
questions (docs/registration.md).
"""
GAIN = """Reads or remembers: the gain on `shift`, split into what comes from no longer following the
stereotype (*bias removed*) and what comes from finding the right option once it is avoided (*cue read*), in
points:"""


def main() -> int:
    """Write or check docs/results.md; returns 1 if a check finds something else there."""
    path = files.project_root() / "docs" / "results.md"
    folders = sorted(found.parent for found in (files.project_root() / "results").glob("*/metrics.csv"))
    text = "\n".join([HEAD, *map(section, folders)])
    if "--check" in sys.argv[1:]:
        return int(not path.is_file() or path.read_text(encoding="utf-8") != text)
    path.write_text(text, encoding="utf-8")
    return 0


def section(folder: Path) -> str:
    """Return what a results folder holds: its question, tables, and the finding of each figure."""
    measured, comparisons = results.numbers(folder)
    said = results.read_captions(folder)
    parts = [f"## {folder.name}", site.question(folder.name)]
    if "headline" in results.behind_figures(folder, measured):
        parts.append(tables.to_markdown(measured, comparisons))
    else:
        parts.append(swept(measured))
    parts += [f"- {name}: {figure['finding']}" for name, figure in said.items()]
    gain = tables.reads_or_remembers(measured)
    if not gain.empty:
        parts += [GAIN, gain.to_markdown(index=False)]
    if folder.name in registered.REGISTERED:
        parts += ["Registered comparisons (docs/registration.md), in points:", registered.to_markdown(folder)]
    return "\n\n".join([*parts, "Differences:", tables.differences(comparisons)]) + "\n"


def swept(measured: pd.DataFrame) -> str:
    """Return accuracies of a grid on the splits of the training data set, a row per training."""
    rows = figures.own_splits(measured)
    varied = [name for name in measured if name not in (*metrics.METRIC_COLUMNS, *metrics.OVER_SEEDS)]
    rows["shown"] = [
        tables.CELL.format(f"{100 * r.accuracy:.1f}", 100 * r.ci_low, 100 * r.ci_high)
        for r in metrics.each_row(rows)
    ]
    table = rows.pivot_table(
        index=[*varied, "method"], columns="test_split", values="shown", aggfunc="first", sort=False
    )
    return str(table[rows["test_split"].unique()].reset_index().to_markdown(index=False))


if __name__ == "__main__":
    sys.exit(main())
