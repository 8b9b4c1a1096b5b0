"""Progress of long loops: a printed line now and then, and a file that the runner's bar reads."""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path

PROGRESS_FILE = "CFDISTILL_PROGRESS"  # environment variable: where to write {"text", "fraction"}


class Progress:
    """Report on a loop of known length, about every tenth in print and every second in the file."""

    def __init__(self, total: int, label: str, done: int = 0) -> None:
        """Start the clock.

        Args:
            total: number of steps of the whole loop.
            label: what is counted, in singular ("step").
            done: steps finished earlier, which took none of the time measured now.
        """
        self.total, self.label, self.start = total, label, done
        self.began = self.written = time.monotonic()
        self.printed = 10 * done // max(total, 1)

    def update(self, done: int, text: str = "") -> None:
        """Report that `done` steps are finished; `text` says how they went."""
        now = time.monotonic()
        seconds_left = round((now - self.began) / max(done - self.start, 1) * (self.total - done))
        parts = [f"{self.label} {done}/{self.total}", text]
        parts += [f"{seconds_left // 60}:{seconds_left % 60:02d} left"] if done < self.total else []
        line = " · ".join(part for part in parts if part)
        if 10 * done // self.total > self.printed:
            self.printed = 10 * done // self.total
            sys.stdout.write(line + "\n")
            sys.stdout.flush()
        if now - self.written >= 1 or done == self.total:
            self.written = now
            _write(line, done / self.total)


def _write(text: str, fraction: float) -> None:
    target = os.environ.get(PROGRESS_FILE)
    if target:  # written aside and renamed, because the runner reads it at any moment
        aside = Path(f"{target}.new")
        aside.write_text(json.dumps({"text": text, "fraction": fraction}), encoding="utf-8")
        aside.replace(target)
