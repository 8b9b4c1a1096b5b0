"""Bad input ends with one sentence and a non-zero exit code, before anything is written."""

import asyncio
import gc
import json
import logging
import os
import re
import subprocess
import sys
import warnings

import papermill
import pytest

from cfdistill import files
from cfdistill.cli import main
from cfdistill.params import Params
from cfdistill.study import results, run
from cfdistill.teacher import cache_path

SMOKE = files.project_root() / "params" / "smoke.yaml"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("run params/none.yaml", "params/none.yaml does not exist"),
        ("run SMOKE -p epoch 3", "unknown parameter epoch; did you mean epochs?"),
        ("run SMOKE --only 08", "--only 08: no such notebook"),
        ("run SMOKE -p run_root /proc/none", "/proc/none"),
        ("grid SMOKE", "a grid has `base: PROFILE.yaml` and `cells:`"),
        ("ask SMOKE Where? --options barn", "a question needs two or more different options"),
        ("figures results/none", "results/none holds no results"),
    ],
)
def test_bad_input_is_one_sentence(capsys, arguments, message):
    assert main(arguments.replace("SMOKE", str(SMOKE)).split()) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_missing_upstream_stage_stops_with_the_command_that_makes_it(tmp_path, capsys):
    assert main(["run", str(SMOKE), "-p", "run_root", str(tmp_path), "--only", "03"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: 03_rationale_generation: stage data is missing")
    assert "--only 01" in error
    executed = [path.name for path in (tmp_path / "notebooks").glob("*/*.ipynb")]
    assert executed == ["03_rationale_generation.unfinished.ipynb"]


def test_a_stop_in_the_middle_of_a_cell_ends_with_its_own_sentence(tmp_path, capsys, caplog, monkeypatch):
    async def stopped():
        async def cell():
            logging.getLogger("papermill").error("Kernel died while waiting for execute reply.")
            raise RuntimeError("Kernel died")

        failed = asyncio.create_task(cell())
        await asyncio.sleep(0)
        assert failed.done()
        never_awaited = cell()  # noqa: F841
        raise KeyboardInterrupt

    monkeypatch.setattr(papermill, "execute_notebook", lambda *_, **__: asyncio.run(stopped()))
    for name in ("asyncio", "papermill"):
        caplog.set_level(logging.DEBUG, name)  # and restored at the end
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("default")
        assert main(["run", str(SMOKE), "-p", "run_root", str(tmp_path), "--only", "01"]) == 130
        gc.collect()  # tells of a failed task whose end nobody awaited
    assert warned == []
    assert [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING] == []
    assert capsys.readouterr().err.splitlines()[-1].startswith("stopped; what is finished is kept")


def test_only_a_live_teacher_is_waited_for_after_a_stop():
    live = Params(teacher="live", teacher_timeout_s=60.0)
    waits = {name[:2]: run._patience(name, live) for name in run.NOTEBOOKS}
    waited = {name: config.KernelManager.shutdown_wait_time for name, config in waits.items() if config}
    assert waited == {"02": 130.0, "03": 130.0}
    assert not any(run._patience(name, Params()) for name in run.NOTEBOOKS)


def test_a_study_without_counterfactuals_leaves_their_notebook_out():
    given = {"rationale_source": "file", "rationale_file": "some.jsonl", "methods": "ft,ft-cot"}
    assert [line.split("/0")[1][0] for line in run.commands(SMOKE, given)] == list("134567")


@pytest.mark.parametrize("place", ["JUPYTER_PATH", "JUPYTER_DATA_DIR"])
def test_a_kernel_of_another_checkout_is_not_started(place, tmp_path, monkeypatch):
    spec = tmp_path / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True)
    argv = [sys.executable, "-c", "raise SystemExit('another checkout')", "{connection_file}"]
    spec.write_text(json.dumps({"argv": argv, "display_name": "Python 3", "language": "python"}))
    monkeypatch.setenv(place, str(tmp_path))
    monkeypatch.setenv("JUPYTER_PREFER_ENV_PATH", "0")
    before = dict(os.environ)
    run.run(SMOKE, {"run_root": str(tmp_path / "runs")}, ["01"])
    assert dict(os.environ) == before


def test_a_second_run_of_the_same_results_says_who_makes_them_and_ends(tmp_path, capsys):
    words = ["-p", "run_root", str(tmp_path / "runs"), "-p", "results_root", str(tmp_path / "results")]
    params = Params.from_yaml(SMOKE, dict(zip(words[1::3], words[2::3], strict=True)))
    with files.held(run.lock(params), results.folder(params)):
        assert main(["run", str(SMOKE), *words]) == 1
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(f"error: {tmp_path}/results/smoke")
    assert f"is being made by process {os.getpid()} on " in error


def test_doctor_says_what_will_be_used(capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-secret")
    assert main(["doctor", str(SMOKE)]) == 0
    said = capsys.readouterr().out
    subjects = [line.split()[0] for line in said.splitlines()]
    assert subjects == ["versions", "processor", "precision", "teacher", "disk"]
    assert "OPENAI_API_KEY set" in said
    assert "planted" not in said


def test_import_is_fast_and_light():
    heavy = {"torch", "transformers", "datasets", "openai", "seaborn", "matplotlib", "pandas"}
    code = "import sys, time; t = time.process_time(); import cfdistill.cli; print(time.process_time() - t)"
    command = [sys.executable, "-c", f"{code}; print(*{heavy} & set(sys.modules))"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, loaded = done.stdout.split("\n")[:2]
    assert loaded == ""
    assert float(seconds) < 0.3


def test_the_teachers_answers_are_counted_and_moved(tmp_path, capsys):
    recorded = str(cache_path(Params(teacher="recorded", run_root=str(tmp_path))))
    file, copy = str(tmp_path / "answers.jsonl"), str(tmp_path / "copy.sqlite")
    assert main(["teacher", "stats", "-p", "teacher_cache", recorded]) == 0
    assert "negative" in capsys.readouterr().out
    assert main(["teacher", "export-cache", "-p", "teacher_cache", recorded, file]) == 0
    assert main(["teacher", "import-cache", "-p", "teacher_cache", copy, file]) == 0
    count = len((tmp_path / "answers.jsonl").read_text(encoding="utf-8").splitlines())
    assert f"{count} answers added" in capsys.readouterr().out
    own = ["-p", "run_root", str(tmp_path / "runs"), "-p", "train_scenes", "0"]
    live, requests = ["-p", "teacher", "live"], str(tmp_path / "requests.jsonl")
    assert main(["teacher", "batch-export", str(SMOKE), *own, *live, requests]) == 0
    (tmp_path / "results.jsonl").write_text("")
    assert main(["teacher", "batch-import", str(SMOKE), *own, *live, str(tmp_path / "results.jsonl")]) == 0
    told = capsys.readouterr().out
    assert re.search(r"^36 requests of about 1\d,\d{3} tokens written .* \(12 mask, ", told, re.MULTILINE)
    assert "0 answers stored" in told
