"""Rewrite the manifests of committed cells and studies after a change of what a stage's key holds.

    python tools/carry_over.py [--data ../shared/data] [RESULTS_ROOT]

Data, counterfactuals and rationales of each cell are made again in a temporary folder by the offline teacher.
A cell is carried if they are what it was trained on and tested on, as far as its records tell: the number of
examples and of optimiser steps, and which questions its students answered. Predictions stay as they are.
Then the tables of grids and the comparisons of studies are computed anew. May be run again at any time.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

from cfdistill import data, files, pipeline, store
from cfdistill.errors import CfdistillError
from cfdistill.evaluate import metrics
from cfdistill.params import Params
from cfdistill.study import grid, results


def main() -> None:
    """Carry over all cells, then tables and studies; print what could not be carried."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("results", type=Path, nargs="?", default=files.project_root() / "results")
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="benchmarks/ and rationales/"
    )
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as run_root:
        places = {"run_root": run_root, "results_root": str(args.results)}
        for manifest in sorted(args.results.glob("*/*/manifest.json")):
            print(carry_cell(manifest, places, args.data.resolve()))
        for record in sorted(args.results.glob("*/tables.json")):
            write_tables(record, args.results)
        for manifest in sorted(args.results.glob("*/manifest.json")):
            carry_study(manifest, places, args.data.resolve())


def known(manifest: dict[str, Any], places: dict[str, str], data_folder: Path, **more: Any) -> Params:
    """Return the parameters of a manifest, young ones by their defaults, with files where they are here."""
    values = {name: value for name, value in manifest["params"].items() if name in Params.model_fields}
    if values.get("rationale_file"):
        values["rationale_file"] = str(data_folder / "rationales" / Path(values["rationale_file"]).name)
    return Params.build({**values, **places, "data_root": str(data_folder / "benchmarks"), **more})


def carry_cell(path: Path, places: dict[str, str], data_folder: Path) -> str:
    """Rewrite a cell's manifest, and say how; one that is not carried gets a key that no training has."""
    cell, old = path.parent, json.loads(path.read_text(encoding="utf-8"))
    notes = old.get("notes") or old["training"]
    precision = notes["precision"].split()[0]
    params = known(old, places, data_folder, precision=precision)
    make_upstream(params)
    try:
        check(cell, params, notes)
        same, said = grid.identity(params), f"carried ({precision})"
    except CfdistillError as error:
        same, said = {"training": "", "tested": {}, "not carried": str(error)}, f"NOT CARRIED: {error}"
    new = {"status": "complete", **same, "params": params.results_values(), "seconds": old["seconds"]}
    new |= {
        "notes": notes,
        **{name: old[name] for name in ("git", "versions", "machine", "started", "files")},
    }
    files.write_json(cell / files.MARKER, {"made by": "cfdistill", "kind": "cell", "what": cell.name})
    files.write_json(path, new)
    return f"{cell.parent.name}/{cell.name}: {said}"


def make_upstream(params: Params) -> list[store.Stage]:
    """Make what comes before training."""
    return [
        pipeline.build(stage, params, **part)
        for stage in grid.UPSTREAM
        for part in pipeline.parts(stage, params)
    ]


def check(cell: Path, params: Params, notes: dict[str, Any]) -> None:
    """Make sure that a cell's training and tests are what they would be today."""
    (method,) = params.methods
    now = {
        "examples": len(pipeline.examples(method, params)),
        "steps": pipeline.planned_steps(method, params),
    }
    if differing := {name: (notes[name], value) for name, value in now.items() if notes[name] != value}:
        raise CfdistillError(f"its training is another now: {differing} (then, now)")
    answered = metrics.read_csv(cell, grid.PREDICTIONS)
    for (name, split), rows in answered.groupby(["dataset", "split"]):
        asked = {q.id: q.answer for q in pipeline.questions(str(name), str(split), params)}
        if dict(zip(rows["id"], rows["gold"], strict=True)) != asked:
            raise CfdistillError(f"its questions of {name} {split} are others now")
    for name in params.test_datasets:
        if set(answered[answered["dataset"] == name]["split"]) != set(data.test_splits(name, params)):
            raise CfdistillError(f"its splits of {name} are others now")


def write_tables(record: Path, results_root: Path) -> None:
    """Write a grid's tables anew from the cells that its record names, whatever their number format."""
    facts = json.loads(record.read_text(encoding="utf-8"))
    cells = [results_root / cell for cell in facts.get("cells", {})]
    formats = Counter(
        json.loads((cell / "manifest.json").read_text())["params"]["precision"] for cell in cells
    )
    commonest = min(formats, key=lambda name: (-formats[name], name))
    files.write_json(record, {"precision": commonest, "cells": facts["cells"]})
    file = files.project_root() / "params" / "grids" / f"{record.parent.name}.yaml"
    made = grid.read(file, {"results_root": str(results_root)})
    grid.write_tables(made, dict(zip(made.cells, cells, strict=True)))
    draw(record.parent)
    print(f"tables of {record.parent.name}: cells of {dict(formats)}")


def draw(folder: Path) -> list[str]:
    """Draw the figures of a folder anew, and delete those that are not drawn any more."""
    for pattern in ("*.pdf", "*.png", "captions.json", "fig6_architectures.csv"):
        for gone in (folder / "figures").glob(pattern):
            gone.unlink()
    return results.draw(folder)


def carry_study(path: Path, places: dict[str, str], data_folder: Path) -> None:
    """Compute a study's comparisons anew, mark its folder as ours, and complete its manifest."""
    folder, manifest = path.parent, json.loads(path.read_text(encoding="utf-8"))
    params = known(manifest, places, data_folder)
    precision = manifest["params"].get("precision") or manifest["machine"]["precision"].split()[0]
    manifest["content"] = results.content(params, make_upstream(params))
    kept = {name: value for name, value in manifest["params"].items() if name in Params.model_fields}
    manifest["params"] = {**Params.build(kept).model_dump(), "precision": precision}
    predictions = metrics.read_csv(folder, metrics.FILES[2])
    metrics.write_csv(metrics.comparisons_table(predictions), folder / metrics.FILES[1])
    files.write_json(path, manifest)
    files.write_json(folder / files.MARKER, {"made by": "cfdistill", "kind": "results", "what": folder.name})
    print(f"study {folder.name} ({precision}): {', '.join(draw(folder))}")


if __name__ == "__main__":
    os.environ.setdefault("OMP_NUM_THREADS", "1")
    main()
