"""Bad input ends with one sentence and a non-zero exit code, before anything is written."""

import asyncio
import gc
import logging
import subprocess
import sys
import time
import warnings

import papermill
import pytest

from cfdistill import runner, runs
from cfdistill.cli import main
from cfdistill.params import Params

SMOKE = str(runs.project_root() / "params" / "smoke.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "params/none.yaml"], "params/none.yaml does not exist"),
        (["run", SMOKE, "-p", "epoch", "3"], "unknown parameter epoch"),
        (["run", SMOKE, "-p", "seed", "one"], "seed: Input should be a valid integer"),
        (["run", SMOKE, "-p", "train_dataset", "squad"], "train_dataset: unknown squad"),
        (["run", SMOKE, "-p", "methods", "dpo"], "methods: unknown dpo"),
        (["run", SMOKE, "--only", "08"], "--only 08: no such notebook"),
        (["run", SMOKE, "-p", "run_root", "/proc/none"], "cannot make /proc/none"),
    ],
)
def test_bad_input_is_one_sentence(capsys, arguments, message):
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert message in error
    assert error.startswith("error: ")
    assert error.count("\n") == 1


def test_missing_upstream_stage_stops_with_the_command_that_makes_it(tmp_path, capsys):
    assert main(["run", SMOKE, "-p", "run_root", str(tmp_path), "--only", "03"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: 03_rationale_generation: stage ")
    assert "is missing" in error
    assert "--only 0" in error
    folder = runner.executed_folder(
        Params.from_yaml(runs.project_root() / SMOKE, {"run_root": str(tmp_path)})
    )
    assert not (folder / "03_rationale_generation.ipynb").exists()
    assert (folder / "03_rationale_generation.unfinished.ipynb").is_file()


@pytest.mark.parametrize(
    ("rows", "message"),
    [
        ('{"id": "x"', "no CommonsenseQA rows: 1 truncated (first: line 1)"),
        ("", "csqa: split 'train' is empty"),
    ],
)
def test_bad_benchmark_files_stop_the_run_with_one_sentence(tmp_path, capsys, rows, message):
    (tmp_path / "csqa").mkdir()
    for name in ("train_rand_split.jsonl", "dev_rand_split.jsonl"):
        (tmp_path / "csqa" / name).write_text(rows)
    given = {
        "train_dataset": "csqa",
        "test_datasets": "csqa",
        "data_root": tmp_path,
        "run_root": tmp_path / "runs",
    }
    flags = [word for key, value in given.items() for word in ("-p", key, str(value))]
    assert main(["run", SMOKE, *flags, "--only", "01"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: 01_data_preparation: ")
    assert message in error
    assert not list((tmp_path / "runs").rglob("manifest.json"))


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
        code = main(["run", SMOKE, "-p", "run_root", str(tmp_path), "--only", "01"])
        gc.collect()  # tells of a failed task whose end nobody awaited
    assert code == 130
    assert warned == []
    assert [line.getMessage() for line in caplog.records if line.levelno >= logging.WARNING] == []
    assert capsys.readouterr().err.splitlines()[-1].startswith("stopped; what is finished is kept")


def test_only_a_live_teacher_is_waited_for_after_a_stop():
    live = Params(teacher="live", teacher_timeout_s=60.0)
    waits = {name[:2]: runner._patience(name, live) for name in runner.NOTEBOOKS}
    waited = {name: config.KernelManager.shutdown_wait_time for name, config in waits.items() if config}
    assert waited == {"02": 130.0, "03": 130.0}
    assert not any(runner._patience(name, Params()) for name in runner.NOTEBOOKS)


def test_plain_papermill_commands_are_printed(tmp_path):
    lines = runner.commands(runs.project_root() / SMOKE, {"seed": "1"}, ["04"])
    [line] = lines
    assert line.startswith("papermill ")
    assert "04_training.ipynb" in line
    assert line.endswith("-p seed 1")


def test_a_study_without_counterfactuals_leaves_their_notebook_out():
    given = {"rationale_source": "file", "rationale_file": "some.jsonl", "methods": "ft,ft-cot"}
    lines = runner.commands(runs.project_root() / SMOKE, given)
    assert len(lines) == len(runner.NOTEBOOKS) - 1
    assert "02_" not in " ".join(lines)


def test_doctor_says_what_will_be_used(capsys, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-planted-secret")
    assert main(["doctor", SMOKE]) == 0
    said = capsys.readouterr().out
    for subject in ("versions", "processor", "precision", "student", "teacher", "disk", "code"):
        assert f"{subject}  " in said
    assert "OPENAI_API_KEY set" in said
    assert "planted" not in said


def test_import_is_fast_and_light():
    code = "import sys, cfdistill; print(sorted({'torch', 'transformers', 'openai'} & set(sys.modules)))"
    began = time.perf_counter()
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
    assert time.perf_counter() - began < 2  # 0.3 s on an idle machine
