"""How fast questions load, and how much memory a million of them takes.

    python benchmarks/data.py [--rows 1000000]

Loads all splits of CommonsenseQA and ARC that are under `data_root`, and streams synthetic rows of the
user's format. Writes results/bench/data.csv.
"""

from __future__ import annotations

import argparse
import json
import resource
import tempfile
import time
from pathlib import Path

import pandas as pd

from cfdistill import data
from cfdistill.errors import DataError
from cfdistill.evaluate import metrics
from cfdistill.files import project_root
from cfdistill.params import Params

WHOLE = dict.fromkeys(("train_questions", "validation_questions", "test_questions"), 10**9)


def main() -> None:
    """Measure, print the table and write it."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rows", type=int, default=1_000_000, help="synthetic rows")
    parser.add_argument("--data-root", default="data", help="folder with csqa/ and arc/")
    args = parser.parse_args()
    rows = [*stream(args.rows), load_all(Params(data_root=args.data_root, **WHOLE))]  # peaks only grow
    table = pd.DataFrame(rows, columns=["name", "rows", "value", "unit"])
    target = project_root() / "results" / "bench" / "data.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    metrics.write_csv(table, target)
    print(table.to_string(index=False))


def load_all(params: Params) -> tuple[str, int, float, str]:
    """Return the seconds that loading every split of CSQA and ARC takes; absent files are left out."""
    began, count = time.process_time(), 0
    for name in ("csqa", "arc-challenge", "arc-easy"):
        for split in ("train", "validation", "test"):
            try:
                count += len(data.load(name, split, params))
            except DataError as error:
                print(error)
    return "load CSQA and ARC", count, time.process_time() - began, "s of processor"


def stream(count: int) -> list[tuple[str, int, float, str]]:
    """Return processor seconds and the peak memory, for a hundredth of the rows, then for all."""
    measured = []
    with tempfile.TemporaryDirectory() as folder:
        for rows in (count // 100, count):
            write_rows(Path(folder) / "user" / "test.jsonl", rows)
            began = time.process_time()
            data.load("user", "test", Params(data_root=folder, data_seed=1, test_questions=1))  # one of all
            measured.append(("stream", rows, time.process_time() - began, "s of processor"))
            peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**10
            measured.append(("stream, peak memory so far", rows, peak, "MiB"))
    return measured


def write_rows(path: Path, count: int) -> None:
    """Write questions that differ in a number."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8") as file:
        for i in range(count):
            row = {
                "id": f"q{i}",
                "stem": f"Which is number {i}?",
                "options": ["a", "b", "c"],
                "answer": i % 3,
            }
            file.write(json.dumps(row) + "\n")


if __name__ == "__main__":
    main()
