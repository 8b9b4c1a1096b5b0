"""Progress of long loops: a line now and then on standard error, which `cfdistill run` passes on."""

import os
import sys
import time
from contextlib import suppress

PAUSE = "CFDISTILL_PROGRESS_PAUSE"  # the environment's variable for the fewest seconds between two lines


class StandardError:
    """Standard error, as long as somebody reads it: a study goes on when its terminal is gone."""

    def write(self, text: str) -> None:
        """Write a text at once."""
        with suppress(BrokenPipeError):
            sys.stderr.write(text)
            sys.stderr.flush()

    def flush(self) -> None:
        """Do nothing: all is written."""


def tell(line: str) -> None:
    """Write a line of progress, at once."""
    StandardError().write(f"{line}\n")


class Progress:
    """Progress of a loop over `total` steps, of which `done` were made earlier, in no time measured now."""

    def __init__(self, total: int, label: str, done: int = 0) -> None:
        self.total, self.label, self.done, self.earlier = total, label, done, done
        self.began = self.told = time.monotonic()

    def advance(self, steps: int, text: str = "") -> None:
        """Count steps; with a label, report each tenth of them, or fewer where PAUSE says so."""
        tenths, now = 10 * self.done // self.total, time.monotonic()
        self.done += steps
        waited = now - self.told >= float(os.environ.get(PAUSE, 0))
        if self.label and self.total > 1 and 10 * self.done // self.total > tenths and waited:
            self.told = now
            left = round((now - self.began) / (self.done - self.earlier) * (self.total - self.done))
            parts = [f"{self.label} {self.done}/{self.total}", text]
            parts += [f"{left // 60}:{left % 60:02d} left"] if self.done < self.total else []
            tell(" · ".join(filter(None, parts)))
