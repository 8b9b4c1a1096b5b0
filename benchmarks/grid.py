"""How long a grid takes whose cells are all complete already.

    python benchmarks/grid.py [--cells 200]

Writes cells of an offline study's size, runs `cfdistill grid` twice and times the second, which has nothing
to do. Writes results/bench/grid.csv.
"""

from __future__ import annotations

import argparse
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import pandas as pd
import yaml

from cfdistill import files
from cfdistill.evaluate import metrics
from cfdistill.params import Params
from cfdistill.study import grid


def main() -> None:
    """Make the cells, time the run, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--cells", type=int, default=200)
    count = parser.parse_args().cells
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "many.yaml"
        base = {"profile": "base", "run_root": f"{folder}/runs", "results_root": f"{folder}/results"}
        (Path(folder) / "base.yaml").write_text(yaml.safe_dump(base), encoding="utf-8")
        block = {"method": ["ft-cot", "cf-distill"], "seed": list(range(count // 2))}
        path.write_text(yaml.safe_dump({"base": "base.yaml", "cells": [block]}), encoding="utf-8")
        made = grid.read(path)
        grid.prepare(made)
        for name, params in made.cells.items():
            write_cell(made.folder / name, params)
        first, second = (timed([sys.executable, "-m", "cfdistill.cli", "grid", str(path)]) for _ in range(2))
    unit = "s of processor"
    rows = [("tables of a grid", count, first, unit), ("grid with nothing to do", count, second, unit)]
    table = pd.DataFrame(rows, columns=["name", "cells", "value", "unit"])
    metrics.write_csv(table, files.project_root() / "results" / "bench" / "grid.csv")
    print(table.to_string(index=False))


def write_cell(folder: Path, params: Params, items: int = 440) -> None:
    """Write a cell with random answers to as many questions as the offline study asks."""
    folder.mkdir(parents=True)
    rng = random.Random(str(folder))
    rows = pd.DataFrame({"id": [f"s{i}.f2.v1.c0" for i in range(items)]})
    known = {"train_dataset": params.train_dataset, "student": params.student, "seed": params.seed}
    known |= {"method": params.methods[0], "dataset": params.train_dataset, "split": "shift"}
    known |= {"subset": "reachable", "scoring": "direct", "gold": 1, "stereotype": 0, "parsed": True}
    drawn = [rng.randrange(5) for _ in range(items)]
    rows = rows.assign(**known, scene=rows["id"].str[:4], predicted=drawn, options=5)
    metrics.write_csv(rows[metrics.PREDICTION_COLUMNS], folder / grid.PREDICTIONS)
    facts = {"files": {grid.PREDICTIONS: files.sha256(folder / grid.PREDICTIONS)}}
    files.write_json(folder / "manifest.json", grid.identity(params) | facts)


def timed(command: list[str]) -> float:
    """Return the processor seconds that a command takes, which other work on the machine changes little."""
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run(command, check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
