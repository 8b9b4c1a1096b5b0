"""Side-by-side timing: every contestant lives in a process of its own and works when called.

So each has its own packages, its own peak memory and a warm start, and the parent calls them in turn: a
machine whose speed drifts is fair to all. This file needs the standard library only.
"""

from __future__ import annotations

import csv
import json
import math
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import redirect_stdout
from pathlib import Path
from typing import Any

BENCHMARKS = Path(__file__).resolve().parent.parent
PROJECT = BENCHMARKS.parent
COLUMNS = ("name", "ours", "peer", "ratio", "unit", "p")


class Contestant:
    """A process that runs a script which calls `serve`."""

    def __init__(self, python: str | Path, module: str, **options: object) -> None:
        """Start it; options become command-line options, empty or false ones are left out."""
        flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items() if value]
        self.process = subprocess.Popen(
            [str(python), "-m", module, *flags],
            cwd=BENCHMARKS,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )

    def turn(self, task: object) -> dict[str, Any]:
        """Let it work once on `task` and return its facts, with `seconds` and `peak_gib`."""
        assert self.process.stdin is not None
        assert self.process.stdout is not None
        self.process.stdin.write(json.dumps(task) + "\n")
        self.process.stdin.flush()
        answer = self.process.stdout.readline()
        if not answer:
            raise SystemExit(f"{self.process.args} ended with exit code {self.process.wait()}")
        return json.loads(answer)

    def stop(self) -> None:
        """End it by closing its input, and give its memory back."""
        self.process.communicate()


def serve(work: Callable[[Any], dict[str, Any]]) -> None:
    """Work on every task that comes in, and answer with what `work` returns, time and peak memory."""
    for line in sys.stdin:
        with redirect_stdout(sys.stderr):  # what libraries print is no answer
            began = time.perf_counter()
            facts = work(json.loads(line))
            seconds = time.perf_counter() - began
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / (
            2**30 if sys.platform == "darwin" else 2**20
        )
        print(json.dumps({"seconds": seconds, "peak_gib": peak} | facts), flush=True)


def peers_python(given: str) -> Path:
    """Return the interpreter that has the peers' packages; they are kept apart from the project's."""
    python = Path(given or PROJECT / ".venv-bench" / "bin" / "python").absolute()
    if not python.exists():
        raise SystemExit(f"{python} is missing: `make bench` makes it from benchmarks/peers/requirements.txt")
    return python


def row(name: str, ours: float, peer: float, unit: str, *, less_is_better: bool = False) -> tuple[str, ...]:
    """Return one row of COLUMNS without p; the ratio is above 1 where ours is better."""
    ratio = peer / ours if less_is_better else ours / peer
    return name, f"{ours:.3g}", f"{peer:.3g}", f"{ratio:.2f}", unit, ""


def faster(name: str, ours: Sequence[float], peer: Sequence[float], unit: str) -> tuple[str, ...]:
    """Return one row of COLUMNS: both sides' median speed over the rounds, and the p that ours is faster."""
    *facts, _ = row(name, statistics.median(ours), statistics.median(peer), unit)
    return *facts, f"{sign_test(ours, peer):.3g}"


def sign_test(ours: Sequence[float], peer: Sequence[float]) -> float:
    """Return the p of the one-sided sign test that ours is higher, round by round; ties do not count."""
    wins = sum(a > b for a, b in zip(ours, peer, strict=True))
    rounds = wins + sum(a < b for a, b in zip(ours, peer, strict=True))
    return sum(math.comb(rounds, k) for k in range(wins, rounds + 1)) / 2**rounds


def write_table(name: str, rows: Sequence[Sequence[str]]) -> None:
    """Write rows to results/bench/ and print them."""
    target = PROJECT / "results" / "bench" / name
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    print(target.read_text(encoding="utf-8"))
