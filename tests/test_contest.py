import csv
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

BENCHMARKS = Path(__file__).parent.parent / "benchmarks"
ECHO = """
import os, sys
from peers.contest import serve

def work(task):
    print("noise")
    return {"twice": 2 * task, "args": sys.argv[1:], "pid": os.getpid()}

serve(work)
"""


@pytest.fixture
def contest(monkeypatch):
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module("peers.contest")


def test_contestants_answer_every_turn_from_a_process_of_their_own(contest, tmp_path, monkeypatch):
    (tmp_path / "echo.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    echo = contest.Contestant(sys.executable, "echo", batch_size=4, empty="")
    first, second = echo.turn(3), echo.turn(5)
    echo.stop()
    assert (first["twice"], second["twice"], first["args"]) == (6, 10, ["--batch-size=4"])
    assert first["pid"] == second["pid"] == echo.process.pid
    assert first["seconds"] >= 0
    assert first["peak_gib"] > 0


def test_contestants_and_peers_that_fail_end_the_benchmark(contest):
    with pytest.raises(SystemExit, match="ended with exit code 1"):
        contest.Contestant(sys.executable, "no_such_module").turn(1)
    with pytest.raises(SystemExit, match="make bench"):
        contest.peers_python("/nowhere/python")


def test_ratios_are_above_one_where_ours_is_better(contest):
    assert contest.row("speed", 6.0, 2.0, "items/s") == ("speed", "6", "2", "3.00", "items/s", "")
    assert contest.row("memory", 2.0, 6.0, "GiB", less_is_better=True)[3] == "3.00"
    won = contest.faster("speed", [6, 7, 5, 9, 6], [2, 2, 2, 3, 1], "items/s")
    assert won == ("speed", "6", "2", "3.00", "items/s", "0.0312")
    assert contest.sign_test([2, 2, 1, 5], [1, 1, 2, 5]) == 0.5  # 2 or 3 of 3; a tie does not count


def test_the_gpu_script_measures_both_sides(tmp_path):
    table = tmp_path / "gpu.csv"
    command = [BENCHMARKS / "gpu.sh", "--tiny", "--rounds=1", f"--out={table}"]
    environment = os.environ | {"PYTHON": sys.executable, "CUDA_VISIBLE_DEVICES": ""}
    subprocess.run(command, env=environment, check=True, capture_output=True)
    rows = list(csv.DictReader(table.open(encoding="utf-8")))
    units = ["tokens of examples/s", "MFU", "GiB peak memory", "items/s", "GiB peak memory"]
    assert all(row["unit"].startswith(unit) for row, unit in zip(rows, units, strict=True))
    assert all(float(row["ours"]) > 0 < float(row["peer"]) for row in rows)
    assert "Trainer" in rows[0]["name"]


def test_the_gpu_script_says_what_is_missing(tmp_path, contest, monkeypatch):
    bare = tmp_path / "python"
    bare.write_text(f'#!/bin/sh\nexec {sys.executable} -S "$@"\n')  # without installed packages
    bare.chmod(0o755)
    told = subprocess.run([BENCHMARKS / "gpu.sh"], env={"PYTHON": str(bare)}, capture_output=True, text=True)
    assert (told.returncode, told.stderr.count("has no torch; pip install torch transformers")) == (1, 1)
    gpu = importlib.import_module("gpu")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(sys, "argv", ["gpu.py"])
    with pytest.raises(SystemExit, match="PyTorch sees no CUDA card here"):
        gpu.main()
