import sys
from pathlib import Path
from typing import Any

import pytest

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
def contest(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    from peers import contest

    return contest


def test_contestants_answer_every_turn_from_a_process_of_their_own(
    contest: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "echo.py").write_text(ECHO)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    echo = contest.Contestant(sys.executable, "echo", batch_size=4, empty="")
    first, second = echo.turn(3), echo.turn(5)
    echo.stop()
    assert (first["twice"], second["twice"], first["args"]) == (6, 10, ["--batch-size=4"])
    assert first["pid"] == second["pid"] == echo.process.pid
    assert first["seconds"] >= 0
    assert first["peak_gib"] > 0


def test_contestants_and_peers_that_fail_end_the_benchmark(contest: Any) -> None:
    with pytest.raises(SystemExit, match="ended with exit code 1"):
        contest.Contestant(sys.executable, "no_such_module").turn(1)
    with pytest.raises(SystemExit, match="make bench"):
        contest.peers_python("/nowhere/python")


def test_ratios_are_above_one_where_ours_is_better(contest: Any) -> None:
    assert contest.row("speed", 6.0, 2.0, "items/s") == ("speed", "6", "2", "3.00", "items/s")
    assert contest.row("memory", 2.0, 6.0, "GiB", less_is_better=True)[3] == "3.00"
