"""Write the numbers of the default study's committed results into README.md, between its markers.

    python tools/readme.py [--check]

`--check` writes nothing, and fails if README.md tells other numbers.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from cfdistill import files
from cfdistill.evaluate import metrics
from cfdistill.methods import reference
from cfdistill.show import tables
from cfdistill.study import results

AGAINST = ("ft-cot", "base")  # what the findings compare with
FEWEST = 20  # questions of a comparison that is told of


def main() -> int:
    """Write or check README.md; returns 1 if a check finds other numbers."""
    path = files.project_root() / "README.md"
    text = path.read_text(encoding="utf-8")
    new = text
    for name, block in blocks(files.project_root() / "results" / "offline").items():
        begin, end = f"<!-- {name}:begin -->\n", f"<!-- {name}:end -->"
        before, rest = new.split(begin)
        new = f"{before}{begin}{block.strip()}\n{end}{rest.split(end)[1]}"
    if "--check" in sys.argv[1:]:
        return int(new != text)
    path.write_text(new, encoding="utf-8")
    return 0


def blocks(folder: Path) -> dict[str, str]:
    """Return what README.md tells of a results folder, by the markers' names."""
    measured, comparisons, answers = (metrics.read_csv(folder, name) for name in metrics.FILES)
    trained = measured["train_dataset"].iloc[0]
    shown = [t[t["test_dataset"].isin([trained, metrics.OTHERS])] for t in (measured, comparisons)]
    return {
        "results": tables.to_markdown(*shown),
        "findings": "\n".join(findings(measured, comparisons, answers)),
        "minutes": minutes(folder),
    }


def findings(measured: pd.DataFrame, comparisons: pd.DataFrame, answers: pd.DataFrame) -> list[str]:
    """Return a sentence each: memory, unlearning and reading; how far it carries; what it costs."""
    ours, baseline = reference(measured["method"]), AGAINST[0]
    asked = answers[(answers["method"] == ours) & (answers["split"] == "shift")].drop_duplicates("id")
    shown = int((asked["novelty"] == "cue").sum())
    parts = tables.reads_or_remembers(measured).set_index(["test", "method"]).loc[("shift", baseline)]
    return [
        f"1. **Memory, unlearning, reading.** On `shift`, {ours} is {_told(comparisons, 'shift')}. *Memory* "
        f"could answer {shown} of {len(asked)} questions, whose cue training showed with this answer. Of the "
        f"difference to {baseline}, {parts['bias removed']:+.1f} points are *unlearning* (the stereotype is "
        f"avoided) and {parts['cue read']:+.1f} *reading* (once avoided, the right option is found).",
        "2. **How far it carries.** On answers that training showed under another cue, "
        f"{ours} is {_told(comparisons, 'shift', 'answer')}; on answers that were never right in training, "
        f"{_told(comparisons, 'shift', 'cause')}; on unseen scenes, {_told(comparisons, 'new')}.",
        f"3. **What it costs.** Where the shortcut holds (`id`), {ours} is {_told(comparisons, 'id')}; out "
        f"of distribution, in other formats, {_told(comparisons, '')}.",
    ]


def _told(comparisons: pd.DataFrame, split: str, novelty: str = "") -> str:
    """Return the differences on a split (none: of all other data sets) in words, as the intervals allow."""
    dataset = comparisons["train_dataset"] if split else metrics.OTHERS
    at = (comparisons["test_split"] == split) & (comparisons["test_dataset"] == dataset)
    rows, told = comparisons[at & (comparisons["novelty"] == novelty) & (comparisons["n"] >= FEWEST)], []
    for name in AGAINST:
        for r in metrics.each_row(rows[rows["method_b"] == name]):
            verdict = "ahead of" if r.ci_low > 0 else "behind" if r.ci_high < 0 else "not told apart from"
            points = f"{100 * r.delta:+.1f} [{100 * r.ci_low:+.1f}, {100 * r.ci_high:+.1f}]"
            told.append(f"{verdict} {name} ({points})")
    return ", ".join(told) or f"asked fewer than {FEWEST} questions"


def minutes(folder: Path) -> str:
    """Return how long the stages of the committed run took, and on what."""
    manifest = results.read_manifest(folder)
    machine, seconds = manifest["machine"], {place: s["seconds"] for place, s in manifest["stages"].items()}
    by_kind = pd.Series(seconds).groupby(lambda place: place.partition("/")[0]).sum()
    told = ", ".join(f"{by_kind[kind] / 60:.0f} of {kind}" for kind in ("training", "evaluation"))
    where = f"{machine['cores']} cores ({machine['processor']}), in {manifest['params']['precision']}"
    return f"The committed run's stages took {manifest['seconds'] / 60:.0f} minutes ({told}) on {where}."


if __name__ == "__main__":
    sys.exit(main())
