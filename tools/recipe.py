"""Write what a recipe grid found on development questions, and the recipe that the registered rule chooses.

python tools/recipe.py runs/results/testbed_recipe     # writes results/recipe_testbed.csv
"""

from __future__ import annotations

import sys
from pathlib import Path

import pandas as pd

from cfdistill import files
from cfdistill.evaluate import metrics

CHOICES = ["learning_rate", "interpolation"]


def table(measured: pd.DataFrame) -> pd.DataFrame:
    """Return accuracies (shares) by method and choice, on development and OOD questions by each scoring."""
    own = measured["test_dataset"] == measured["train_dataset"]
    elsewhere = (measured["test_dataset"] == metrics.OTHERS) & ~own
    rows = measured[(own | elsewhere) & (measured["novelty"] == "")]
    rows = rows.assign(asked=own.map({True: "development", False: "OOD"}) + " " + rows["scoring"])
    found = rows.pivot_table(index=["method", *CHOICES], columns="asked", values="accuracy", sort=False)
    return found.assign(mean=found.mean(axis=1)).round(4).reset_index()


def chosen(found: pd.DataFrame) -> pd.Series:
    """Return the mean over the trained arms, by choice, the best first; at equal means the lower values."""
    trained = found[found["method"] != "base"]
    means = trained.groupby(CHOICES)["mean"].agg(["mean", "size"])
    complete = means[means["size"] == trained["method"].nunique()]["mean"]
    return complete.sort_values(ascending=False, kind="stable")


def main(folder: Path) -> None:
    """Write the table, and print the means over the arms."""
    found = table(metrics.read_csv(folder, metrics.FILES[0]))
    name = f"recipe_{folder.name.removesuffix('_recipe')}.csv"
    metrics.write_csv(found, files.project_root() / "results" / name)
    sys.stdout.write(f"{found.to_string()}\n\n{chosen(found).to_string()}\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
