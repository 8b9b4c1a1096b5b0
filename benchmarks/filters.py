"""What each filter of the counterfactuals lets through, on the testbed, where the truth is known.

    python benchmarks/filters.py [--noise 0.3]

The offline teacher errs more often than in the default study, so that filters differ. `precision` is the
share of kept rewrites that are sound by the scene bank, `answers` what the teacher was asked in all. Its
errors are independent of each other, which no real teacher's are. Writes results/bench/filters.csv.
"""

from __future__ import annotations

import argparse
import tempfile
from typing import Any

import pandas as pd

from cfdistill import data
from cfdistill.data.weasel import makes_right
from cfdistill.evaluate import metrics
from cfdistill.files import project_root
from cfdistill.generate import counterfactual
from cfdistill.params import Params
from cfdistill.teacher import Teacher

FILTERS: dict[str, dict[str, Any]] = {
    "default": {},
    "unfiltered": {"vote_threshold": 0, "leak_check": False, "min_edit_ratio": 0.0, "max_edit_ratio": 1.0},
    "no vote": {"vote_threshold": 0},
    "majority vote": {"vote_threshold": 3},
    "unanimous vote": {"vote_threshold": 5},
    "no leak check": {"leak_check": False},
    "small edits only": {"max_edit_ratio": 0.4},
}


def main() -> None:
    """Make the counterfactuals once per filter, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--noise", type=float, default=0.3, help="error rate of the offline teacher")
    noise = parser.parse_args().noise
    with tempfile.TemporaryDirectory() as run_root:
        rows = [
            {"filter": name, **measure(Params(run_root=run_root, teacher_noise=noise, **options))}
            for name, options in FILTERS.items()
        ]
    table = pd.DataFrame(rows)
    target = project_root() / "results" / "bench" / "filters.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_csv(table, target)
    print(table.round(3).to_string(index=False))


def measure(params: Params) -> dict[str, float]:
    """Return candidates, kept ones, their precision and the teacher's answers under these filters."""
    name = params.train_dataset
    held_out = [q for split in data.splits(name, params)[1:] for q in data.load(name, split, params)]
    with Teacher(params) as teacher:
        candidates = counterfactual.make(params, teacher, data.load(name, "train", params), held_out)
    sound = [
        makes_right(c.original.id, c.original.options[c.target], " | ".join(c.fills))
        for c in candidates
        if not c.reason
    ]
    return {
        "candidates": len(candidates),
        "kept": len(sound),
        "precision": sum(sound) / len(sound) if sound else float("nan"),
        "answers": teacher.usage.requests + teacher.usage.cache_hits,
    }


if __name__ == "__main__":
    main()
