"""Committed results: every digit follows from the predictions, and every figure from small files alone."""

import json
import re
import resource
import shutil
import subprocess
import sys

import pytest

from cfdistill import files, pipeline, store
from cfdistill.cli import main
from cfdistill.errors import StageError
from cfdistill.evaluate import metrics
from cfdistill.params import Params
from cfdistill.show import figures, tables
from cfdistill.study import grid, results, run

ROOT = files.project_root()
RESULTS = ROOT / "results"
FOLDERS = sorted(path.parent for path in RESULTS.glob("*/metrics.csv"))
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


@pytest.mark.parametrize("folder", STUDIES, ids=lambda folder: folder.name)
def test_metrics_and_comparisons_follow_from_the_predictions(folder, tmp_path):
    predictions = metrics.read_csv(folder, "predictions.csv")
    again = metrics.metrics_table(predictions), metrics.comparisons_table(predictions)
    for name, table in zip(metrics.FILES, again, strict=False):
        metrics.write_csv(table, tmp_path / name)
        assert (tmp_path / name).read_bytes() == (folder / name).read_bytes()


@pytest.mark.parametrize("name", GRIDS)
def test_tables_of_grids_follow_from_the_cells(name, tmp_path):
    shutil.copytree(RESULTS, tmp_path / "results", ignore=shutil.ignore_patterns("figures", "*trics.csv"))
    made = grid.read(ROOT / f"params/grids/{name}.yaml", {"results_root": str(tmp_path / "results")})
    record = made.folder / grid.TABLES
    cells = [RESULTS / cell for cell in json.loads(record.read_text())["cells"]]
    record.unlink()
    grid.write_tables(made, dict(zip(made.cells, cells, strict=True)))
    for file in (*metrics.FILES[:2], grid.TABLES):
        assert (made.folder / file).read_bytes() == (RESULTS / name / file).read_bytes(), file


def test_tables_and_figures_follow_from_small_files_in_a_minute_without_torch(tmp_path):
    ignored = shutil.ignore_patterns("*.p??", "*.tex", "table1*", "captions*", "predictions.csv", "weasel*")
    assert {"offline", "offline_control"} <= {folder.name for folder in STUDIES}
    assert set(FOLDERS) == {*STUDIES, *(RESULTS / name for name in GRIDS)}
    copies = [shutil.copytree(folder, tmp_path / folder.name, ignore=ignored) for folder in FOLDERS]
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    command = [sys.executable, "-c", WITHOUT_TORCH, *copies]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, timeout=600)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    # What the processor worked: a machine that is busy with other things takes longer by the clock.
    assert (after.ru_utime + after.ru_stime) - (before.ru_utime + before.ru_stime) <= 60
    for copy in copies:
        again, committed = (folder / copy.name / "figures" for folder in (tmp_path, RESULTS))
        assert {path.name for path in again.iterdir()} == {path.name for path in committed.iterdir()}
        for path in sorted(again.iterdir()):  # pixels may differ by the machine's fonts and libraries
            if path.suffix in (".csv", ".md", ".tex", ".json"):
                assert path.read_bytes() == (committed / path.name).read_bytes(), committed / path.name
        pictures = {path.stem for path in again.glob("*.png")}
        assert set(results.read_captions(copy)) == pictures
        if (copy / "manifest.json").is_file():  # grids have none: their cells do
            assert {"headline", "fig5_ood"} <= pictures
            assert results.is_whole(copy)


def test_a_results_folder_is_whole_with_all_its_files_only(tmp_path):
    folder = shutil.copytree(RESULTS / "offline", tmp_path / "offline")
    assert results.is_whole(folder)
    (folder / "metrics.csv").unlink()
    assert not results.is_whole(folder)


def test_a_folder_of_tables_alone_is_drawn_and_what_is_not_there_is_said(tmp_path):
    for name in metrics.FILES[:2]:
        metrics.write_csv(metrics.read_csv(RESULTS / "offline", name), tmp_path / name)
    assert results.draw(tmp_path) == ["novelty", "headline", "fig5_ood"]
    assert not (tmp_path / "manifest.json").exists()
    measured, compared = (metrics.read_csv(tmp_path, name) for name in metrics.FILES[:2])
    assert tables.to_markdown(measured, compared) in (tmp_path / "figures" / "table1.md").read_text()
    with pytest.raises(StageError, match=rf"nothing holds no results; {tmp_path.parent} has {tmp_path.name}"):
        results.draw(tmp_path.parent / "nothing")
    kept = results.keep(tmp_path, "fig6_architectures", figures.fig6_architectures(measured), measured)
    assert "Not drawn: one student only" in kept.data
    assert "id shortcut holds cf-distill" in results.picture(tmp_path, "headline").alt
    assert "no results folder `spurious`" in results.picture(tmp_path / "spurious", "headline").data


def test_some_figures_are_drawn_elsewhere_and_the_results_stay_as_they_are(tmp_path, capsys):
    before = {path: path.stat().st_mtime_ns for path in (RESULTS / "offline").rglob("*")}
    words = ["--only", "fig5_ood,table1", "--width", "page", "--format", "svg", "--label", "ft-cot=FT-CoT"]
    assert main(["figures", str(RESULTS / "offline"), *words, "--out", str(tmp_path)]) == 0
    drawn = {f"fig5_ood.{end}" for end in ("svg", "csv", "tex")}
    assert {path.name for path in tmp_path.iterdir()} == drawn | {"captions.json", "table1.md", "table1.tex"}
    assert all("FT-CoT" in (tmp_path / name).read_text() for name in ("table1.tex", "captions.json"))
    assert r"\begin{figure*}" in (tmp_path / "fig5_ood.tex").read_text()
    assert {path: path.stat().st_mtime_ns for path in (RESULTS / "offline").rglob("*")} == before
    assert main(["figures", str(RESULTS / "offline"), "--only", "spurious_sweep"]) == 1
    assert "has no data for spurious_sweep; it has for novelty, headline" in capsys.readouterr().err


def test_a_run_tells_how_long_what_is_left_took_the_last_time(small_params):
    assert run._left(run.NOTEBOOKS, small_params) == ""
    made = results.read_manifest(shutil.copytree(RESULTS / "offline", results.folder(small_params)))["stages"]
    seconds = sum(s["seconds"] for place, s in made.items() if place.split("/")[0] in pipeline.STAGES)
    told = run._left(run.NOTEBOOKS, small_params)
    assert told == f"(this and the rest took {seconds / 60:.0f} minutes the last time)"
    assert run._left(run.NOTEBOOKS[-1:], small_params).startswith("(this and the rest took 0 minutes")


def test_list_tells_of_every_folder_what_differs_and_its_numbers(tmp_path, capsys):
    made = shutil.copytree(RESULTS / "offline", tmp_path / "mine")
    manifest = results.read_manifest(made)
    manifest["params"] |= {"seed": 7}
    (made / "manifest.json").write_text(json.dumps(manifest))
    assert main(["list", str(tmp_path)]) == 0
    told = capsys.readouterr().out
    assert re.search(r"mine  \d{4}-\d\d-\d\d  .*seed 7", told)
    own = figures.own_splits(metrics.read_csv(made, "metrics.csv"), ["shift"]).set_index("method")["accuracy"]
    assert f"    shift cf-distill {100 * own['cf-distill']:.1f} %" in told.splitlines()
    assert main(["list", str(tmp_path / "mine")]) == 0
    assert "holds no results" in capsys.readouterr().out


def test_every_parameter_set_has_a_results_folder_of_its_own(tmp_path):
    base, copy = ROOT / "params" / "paper" / "base.yaml", tmp_path / "base.yaml"
    copy.write_text(base.read_text())
    named = [Params.from_yaml(base, more) for more in ({}, {"seed": 1}, {"data_root": "elsewhere"})]
    named += [Params.from_yaml(copy, {"profile": "mine"} | more) for more in ({}, {"seed": 1})]
    named += [Params(profile="spurious"), Params(profile="spurious", seed=1)]  # a grid's name
    folders = [results.folder(params) for params in named]
    assert len(set(folders)) == len(named)
    assert [folder.name for folder in folders if "-" not in folder.name] == ["base"]
    assert results.folder(Params.from_yaml(copy)) == folders[0]
    assert results.folder(Params.from_yaml(base, {"teacher_concurrency": 2, "run_root": "/x"})) == folders[0]


@pytest.mark.parametrize(("profile", "root"), [("spurious", "results"), ("notebooks", "."), ("docs", ".")])
def test_what_this_program_did_not_make_for_the_study_is_never_emptied(tmp_path, monkeypatch, profile, root):
    """A committed grid, the notebooks and the documents stay, even if a study should lead to their folder."""
    place = shutil.copytree(ROOT / root / profile, tmp_path / profile)
    before = {path: path.stat().st_mtime_ns for path in place.rglob("*")}
    monkeypatch.setattr(results.pipeline, "find", lambda *_: store.Stage("metrics", {}, place))
    monkeypatch.setattr(results.pipeline, "STAGES", {})
    for name, found in (("folder", place), ("_origin", {}), ("_stories", {})):
        monkeypatch.setattr(results, name, lambda *_, found=found: found)
    with pytest.raises(StageError, match=f"{profile} holds something else than results of {profile}"):
        results.collect(Params(profile=profile))
    assert {path: path.stat().st_mtime_ns for path in place.rglob("*")} == before
