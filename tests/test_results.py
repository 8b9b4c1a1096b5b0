"""Committed results: every digit follows from the predictions, and every figure from small files alone."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest

from cfdistill import metrics, results, runs, tables
from cfdistill.errors import StageError
from cfdistill.params import Params

ROOT = runs.project_root()
FOLDERS = sorted(path.parent for path in (ROOT / "results").glob("offline*/metrics.csv"))
WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(name, path=None, target=None):
        assert name.partition(".")[0] not in ("torch", "transformers", "datasets", "openai"), name
sys.meta_path.insert(0, Refuse)
from cfdistill.cli import main
sys.exit(main(["figures", *sys.argv[1:]]))
"""


@pytest.fixture(params=FOLDERS, ids=lambda folder: folder.name)
def folder(request, tmp_path):
    """Return a copy of committed results without what is drawn from them."""
    copy = tmp_path / request.param.name
    shutil.copytree(request.param, copy, ignore=shutil.ignore_patterns("*.pdf", "*.png", "table1*", "alt*"))
    return copy


def test_the_default_study_and_its_control_are_committed():
    assert {"offline", "offline_control"} <= {folder.name for folder in FOLDERS}


def test_metrics_and_comparisons_follow_from_the_predictions(folder, tmp_path):
    cells = [path.parent for path in folder.rglob("predictions.csv")]
    predictions = pd.concat([metrics.read_csv(cell, "predictions.csv") for cell in cells])
    again = metrics.metrics_table(predictions)
    metrics.write_csv(again, tmp_path / "metrics.csv")
    assert (tmp_path / "metrics.csv").read_bytes() == (folder / "metrics.csv").read_bytes()
    compared = metrics.comparisons_table(predictions, Params().bootstrap_samples)
    metrics.write_csv(compared, tmp_path / "comparisons.csv")
    assert (tmp_path / "comparisons.csv").read_bytes() == (folder / "comparisons.csv").read_bytes()


def test_tables_and_figures_follow_from_small_files_without_torch(folder):
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, folder], capture_output=True, text=True, cwd=ROOT, timeout=240
    )
    assert done.returncode == 0, done.stderr
    committed = ROOT / "results" / folder.name / "figures"
    names = {path.name for path in (folder / "figures").iterdir()}
    for name in (
        sorted(names) if committed.is_dir() else []
    ):  # pixels may differ by the machine's fonts and libraries; words and numbers may not
        if Path(name).suffix in (".csv", ".md", ".tex", ".json"):
            assert (folder / "figures" / name).read_bytes() == (committed / name).read_bytes(), name
    pictures = {Path(name).stem for name in names if name.endswith(".png")}
    assert {"headline", "fig5_ood", "fig5_matrix", "fig6_architectures"} <= pictures
    assert set(json.loads((folder / "figures" / "alt_texts.json").read_text())) == pictures
    if (folder / "manifest.json").is_file():  # grids have none: their cells do
        written = results.read_manifest(folder)["files"]["figures/headline.png"]
        assert written == runs.sha256(folder / "figures" / "headline.png")


def test_gathered_folders_are_drawn_together(tmp_path):
    """A second seed, made up from the first by giving every question another id and seed."""
    first, second = tmp_path / "first", tmp_path / "second"
    for number, copy in enumerate((first, second)):
        shutil.copytree(ROOT / "results" / "offline", copy)
        for name in ("metrics.csv", "predictions.csv"):
            metrics.write_csv(metrics.read_csv(copy, name).assign(seed=number), copy / name)
    manifest = results.read_manifest(first)
    manifest["params"] |= {"gather": [str(second)], "bootstrap_samples": 100}
    (first / "manifest.json").write_text(json.dumps(manifest))
    results.draw(first)
    text = (first / "figures" / "table1.md").read_text()
    assert "mean of seeds 0, 1." in text
    assert set(pd.read_csv(first / "figures" / "table1.csv")["seeds"]) == {2}


def test_a_folder_of_tables_alone_is_drawn_and_one_without_is_refused(tmp_path):
    for name in metrics.FILES[:2]:
        shutil.copyfile(ROOT / "results" / "offline" / name, tmp_path / name)
    assert list(results.draw(tmp_path)) == ["headline", "fig5_ood", "fig5_matrix", "fig6_architectures"]
    assert not (tmp_path / "manifest.json").exists()
    measured, compared = (metrics.read_csv(tmp_path, name) for name in metrics.FILES[:2])
    assert (
        tables.to_markdown(measured, compared, reported=True)
        in (tmp_path / "figures" / "table1.md").read_text()
    )
    with pytest.raises(StageError, match=r"metrics\.csv is missing"):
        results.draw(tmp_path / "figures")


def test_a_study_without_the_methods_of_a_figure_has_a_sentence_in_its_place(tmp_path):
    for name in metrics.FILES[:2]:
        table = metrics.read_csv(ROOT / "results" / "offline", name)
        method = table["method" if "method" in table else "method_b"]
        metrics.write_csv(table[method != "ft-cot"], tmp_path / name)
    assert "fig5_matrix" not in results.draw(tmp_path)
    assert "Not drawn" in results.picture(tmp_path, "fig5_matrix").data
    assert results.picture(tmp_path, "headline").alt.startswith("Accuracy")


@pytest.mark.parametrize(
    ("swept", "figure"), [("spurious_rate", "spurious_sweep"), ("train_questions", "data_size")]
)
def test_a_sweep_is_not_averaged_over_what_is_swept(tmp_path, swept, figure):
    """A grid's tables begin with the parameters in which its cells differ."""
    for name in metrics.FILES[:2]:
        table = metrics.read_csv(ROOT / "results" / "offline", name)
        both = pd.concat([table.assign(**{swept: value}) for value in (1, 2)])
        metrics.write_csv(both[[swept, *table.columns]], tmp_path / name)
    drawn = results.draw(tmp_path)
    assert list(drawn) == [figure]
    assert "1 → shift: ft 7 %" in drawn[figure]
    assert (tmp_path / "figures" / f"{figure}.pdf").is_file()
    assert not (tmp_path / "figures" / "table1.md").exists()
