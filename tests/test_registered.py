"""The registered comparisons: which answers they are over, and what they are called."""

import json
import sys

import pandas as pd
import pytest

from cfdistill import files
from cfdistill.evaluate import metrics

sys.path.insert(0, str(files.project_root() / "tools"))
import registered

RIGHT = {
    "cf-distill": 0.8,
    "ft-cot-long": 0.4,
    "multi-view-more": 0.8,
}  # shares on seen scenes; elsewhere 0.5


def cell(folder, method, seed):
    """Save the predictions of a training: 40 scenes of each novelty, 40 questions of another format."""
    rows = []
    for step in ("cue", "answer", "cause", "format"):
        share = {"cue": 1.0, "format": 0.5}.get(step, RIGHT[method])
        for i in range(40):
            own = step != "format"
            facts = {"dataset": "weasel-commonsense" if own else "weasel-science", "novelty": step}
            facts |= {"split": "shift" if own else "new", "id": f"{step}{i}", "scene": f"{step}{i}"}
            rows += [
                facts | {"scoring": s, "predicted": int(i % 10 >= 10 * share)} for s in registered.SCORINGS
            ]
    told = {"train_dataset": "weasel-commonsense", "student": "s", "seed": seed, "method": method, "gold": 0}
    table = pd.DataFrame(rows).assign(**told, subset="", stereotype=1, parsed=True, options=5)
    folder.mkdir(parents=True)
    metrics.write_csv(table[metrics.PREDICTION_COLUMNS], folder / "predictions.csv")
    (folder / "manifest.json").write_text(json.dumps({"params": {"seed": seed, "train_questions": 120}}))


def test_the_testbeds_comparisons_are_of_what_training_did_not_show_and_end_in_one_word(tmp_path):
    folder = tmp_path / "testbed"
    cells = [f"testbed/{method}{seed}" for method in RIGHT for seed in range(3)]
    for name in cells:
        cell(tmp_path / name, name[8:-1], int(name[-1]))
    (folder / "tables.json").write_text(json.dumps({"cells": cells}))
    found = registered.compare(registered.read(folder), registered.REGISTERED["testbed"])
    assert found.n.tolist() == [80] * 4 + [40] * 4  # without the 40 whose cue was shown
    assert found.seeds.tolist() == [3] * 8
    assert found.delta.tolist() == pytest.approx([0.4, 0.4] + [0.0] * 6)
    assert found.verdict.tolist() == ["ahead", "ahead"] + ["equivalent"] * 6
    assert registered.to_markdown(folder).count("| ahead ") == 2
    assert registered.to_markdown(tmp_path / "ablation") == ""
    broken = metrics.read_csv(tmp_path / cells[0], "predictions.csv")
    metrics.write_csv(broken[broken["id"] != "cause3"], tmp_path / cells[0] / "predictions.csv")
    with pytest.raises(SystemExit, match="cf-distill and ft-cot-long answered different questions"):
        registered.compare(registered.read(folder), registered.REGISTERED["testbed"])


@pytest.mark.parametrize(
    ("low", "high", "p", "word"),
    [
        (0.01, 0.2, 0.04, "ahead"),
        (0.01, 0.2, 0.06, "inconclusive"),
        (-0.2, -0.01, 0.04, "behind"),
        (-0.02, 0.02, 1.0, "equivalent"),
        (-0.02, 0.04, 1.0, "inconclusive"),
    ],
)
def test_a_verdict_needs_interval_and_p(low, high, p, word):
    assert registered.verdict(pd.Series({"low": low, "high": high, "p": p})) == word
