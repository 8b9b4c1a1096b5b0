"""Committed results: every digit follows from the predictions, and every figure from small files alone."""

import json
import resource
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from studies import committed

from cfdistill import grid, metrics, results, runs, tables
from cfdistill.errors import StageError
from cfdistill.params import Params

ROOT = runs.project_root()
CONTRAST = {"method_a": "cf-distill", "method_b": "ft"}
FOLDERS = sorted(path.parent for path in (ROOT / "results").glob("*/metrics.csv"))
STUDIES = [folder for folder in FOLDERS if (folder / "manifest.json").is_file()]
GRIDS = [folder.name for folder in FOLDERS if (folder / "tables.json").is_file()]
WITHOUT_TORCH = """
import sys
class Refuse:
    def find_spec(name, path=None, target=None):
        assert name.partition(".")[0] not in ("torch", "transformers", "datasets", "openai"), name
sys.meta_path.insert(0, Refuse)
from cfdistill.cli import main
sys.exit(main(["figures", *sys.argv[1:]]))
"""


DRAWN = ("*.pdf", "*.png", "table1*", "alt*")


def test_the_default_study_and_its_control_are_committed():
    assert {"offline", "offline_control"} <= {folder.name for folder in STUDIES}
    assert set(FOLDERS) == {*STUDIES, *(ROOT / "results" / name for name in GRIDS)}


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_metrics_and_comparisons_follow_from_the_predictions(folder, tmp_path):
    predictions = metrics.read_csv(folder, "predictions.csv")
    again = (
        metrics.metrics_table(predictions),
        metrics.comparisons_table(predictions, Params().bootstrap_samples),
    )
    for name, table in zip(metrics.FILES, again, strict=False):
        metrics.write_csv(table, tmp_path / name)
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("name", GRIDS)
def test_tables_of_grids_follow_from_the_cells(name, tmp_path):
    ignored = shutil.ignore_patterns("figures", "tables.json")
    shutil.copytree(ROOT / "results", tmp_path / "results", ignore=ignored)
    made = grid.read(ROOT / f"params/grids/{name}.yaml", {"results_root": str(tmp_path / "results")})
    grid.write_tables(made, grid.finished(made))
    committed = ROOT / "results" / name
    for file in (
        *metrics.FILES[:2],
        *([metrics.SETTINGS] if (committed / metrics.SETTINGS).exists() else []),
    ):
        assert (made.folder / file).read_bytes() == (committed / file).read_bytes(), file


def test_tables_and_figures_follow_from_small_files_in_a_minute_without_torch(tmp_path):
    for folder in FOLDERS:
        shutil.copytree(
            folder, tmp_path / folder.name, ignore=shutil.ignore_patterns(*DRAWN, "predictions.csv")
        )
    copies = sorted(tmp_path.iterdir())
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_TORCH, *copies], capture_output=True, text=True, cwd=ROOT, timeout=600
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # What the processor worked: a machine that is busy with other things takes longer by the clock.
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) <= 60
    for copy in copies:
        check_drawn(copy / "figures", ROOT / "results" / copy.name / "figures")


def check_drawn(again, committed):
    """Pixels may differ by the machine's fonts and libraries; words and numbers may not."""
    names = {path.name for path in again.iterdir()}
    assert names == {path.name for path in committed.iterdir()}
    for name in sorted(names):
        if Path(name).suffix in (".csv", ".md", ".tex", ".json"):
            assert (again / name).read_bytes() == (committed / name).read_bytes(), committed / name
    pictures = {Path(name).stem for name in names if name.endswith(".png")}
    assert pictures
    assert set(json.loads((again / "alt_texts.json").read_text())) == pictures
    if (again.parent / "manifest.json").is_file():  # grids have none: their cells do
        assert {"headline", "fig5_ood", "fig5_matrix", "fig6_architectures"} <= pictures
        written = results.read_manifest(again.parent)["files"]["figures/headline.png"]
        assert written == runs.sha256(again / "headline.png")


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
    assert "no results folder `spurious` was drawn" in results.picture(tmp_path / "spurious", "headline").data


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
    ft = committed("metrics.csv", method="ft", test_split="shift", scoring="label")
    assert f"1 → shift: ft {100 * ft.accuracy:.0f} %" in drawn[figure]
    assert (tmp_path / "figures" / f"{figure}.pdf").is_file()
    assert not (tmp_path / "figures" / "table1.md").exists()
    said = tables.differences(metrics.read_csv(tmp_path, "comparisons.csv"))
    id = committed("comparisons.csv", **CONTRAST, test_split="id")
    assert (
        f"cf-distill minus ft (weasel-commonsense, smollm2-135m, {swept} 2): id {100 * id.delta:+.1f}" in said
    )


def test_joint_training_has_a_figure_of_its_own(tmp_path):
    for name in metrics.FILES[:2]:
        table = metrics.read_csv(ROOT / "results" / "offline", name)
        metrics.write_csv(pd.concat([table, table.assign(train_dataset="weasel-all")]), tmp_path / name)
    drawn = results.draw(tmp_path)
    assert list(drawn) == ["joint"]
    ft = committed("metrics.csv", method="ft", test_split="shift_reachable", scoring="label")
    assert f"all → commonsense → shift_reachable: ft {100 * ft.accuracy:.0f} %" in drawn["joint"]
    said = tables.differences(metrics.read_csv(tmp_path, "comparisons.csv"))
    id = committed("comparisons.csv", **CONTRAST, test_split="id")
    assert f"cf-distill minus ft (weasel-all, smollm2-135m): commonsense id {100 * id.delta:+.1f}" in said
