"""What each step of a stage took of the teacher, and what one kept example cost.

Tokens count whether an answer was new or in the cache: they tell what the step costs, not what the last
run paid.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from cfdistill.params import Params
from cfdistill.teacher import prices
from cfdistill.teacher.client import Teacher

if TYPE_CHECKING:
    import pandas as pd

FILE = "cost.csv"
COLUMNS = ("step", "model", "prompt_tokens", "completion_tokens")


class Meter:
    """Reads off a teacher's usage after every step of a stage."""

    def __init__(self, teacher: Teacher) -> None:
        self._teacher = teacher
        self.rows: list[tuple[str, str, int, int]] = []  # COLUMNS

    def note(self, step: str) -> None:
        """Count all tokens since the last note as those of `step`."""
        usage = self._teacher.usage
        prompt_tokens = usage.prompt_tokens - sum(row[2] for row in self.rows)
        completion_tokens = usage.completion_tokens - sum(row[3] for row in self.rows)
        self.rows.append((step, self._teacher.model, prompt_tokens, completion_tokens))


def write(folder: Path, rows: list[tuple[str, str, int, int]]) -> None:
    """Write a meter's rows as `cost.csv`."""
    import pandas as pd

    pd.DataFrame(rows, columns=COLUMNS).to_csv(folder / FILE, index=False)


def per_kept(costs: pd.DataFrame, kept: int, params: Params) -> pd.DataFrame:
    """Return what one kept example cost, by step.

    Args:
        costs: `cost.csv` of one stage or several; dropped candidates are paid for in it, too.
        kept: number of examples that came out.
        params: `teacher_prices`.

    Returns:
        The columns step, read and written (by the teacher, per example), and unit: US dollars if
        the price of every model is known, else tokens. Steps that asked nothing are left out, and
        all are if nothing came out.

    Raises:
        ParamsError: `teacher_prices` is no table of prices.
    """
    asked = costs[(costs["prompt_tokens"] + costs["completion_tokens"] > 0) & (kept > 0)]
    asked = asked.reset_index(drop=True)
    found = [prices.find(model, params) for model in asked["model"]]
    known = [price for price in found if price is not None]
    in_dollars = len(known) == len(found)
    reading = [price.usd(1, 0) for price in known] if in_dollars else [1.0] * len(found)
    writing = [price.usd(0, 1) for price in known] if in_dollars else [1.0] * len(found)
    return asked[["step"]].assign(
        read=asked["prompt_tokens"] * reading / kept,
        written=asked["completion_tokens"] * writing / kept,
        unit="US dollars" if in_dollars else "tokens",
    )
