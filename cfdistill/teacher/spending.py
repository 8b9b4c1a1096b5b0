"""Tokens and dollars: what the steps of a stage took, one kept example, and all answers of a cache.

Tokens of a step count whether an answer was new or in the cache: they tell what the step costs, not what
the last run paid.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from cfdistill import runs
from cfdistill.params import Params
from cfdistill.teacher import prices
from cfdistill.teacher.cache import Cache, Total

if TYPE_CHECKING:
    import pandas as pd

    from cfdistill.teacher.client import Teacher

FILE = "cost.csv"
COLUMNS = ("step", "model", "prompt_tokens", "completion_tokens")
STATS = ("model", "served by", "endpoint", "task", "answers", "tokens in", "tokens out", "US dollars")


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


def dollars(total: Total, params: Params) -> float | None:
    """Return what answers cost at today's price, or None when there is none for their model."""
    price = prices.find(total.model, params)
    if price is None:
        return None
    share = 1 - price.batch_discount if total.batched else 1.0
    return price.usd(total.prompt_tokens, total.completion_tokens) * share


def stats(cache: Cache, params: Params) -> str:
    """Return a table of all answers in a cache, one row per kind of answer, and their sums."""
    totals = cache.totals()
    costs = [dollars(total, params) for total in totals]
    rows = [
        (
            total.model,
            total.served_model,
            f"{total.base_url} (batch)" if total.batched else total.base_url,
            total.task,
            *(f"{n:,}" for n in (total.answers, total.prompt_tokens, total.completion_tokens)),
            "no price" if cost is None else f"{cost:.4f}",
        )
        for total, cost in zip(totals, costs, strict=True)
    ]
    sums = [
        f"{sum(numbers):,}"
        for numbers in (
            [total.answers for total in totals],
            [total.prompt_tokens for total in totals],
            [total.completion_tokens for total in totals],
        )
    ]
    rows.append(("all", "", "", "", *sums, f"{sum(cost or 0.0 for cost in costs):.4f}"))
    return "\n".join([str(cache.path), *text_table([STATS, *rows], left=4)])


def hit_rates(params: Params) -> list[str]:
    """Return, for each finished stage of a study, how many of its answers were in the cache already."""
    lines = []
    for name in ("counterfactuals", "rationales"):
        stage = runs.stage(name, params)
        noted = stage.manifest()["notes"].get("teacher") if stage.is_complete() else None
        if noted is None:
            lines.append(f"{name}: not made yet")
        else:
            hits, asked = noted["cache_hits"], noted["cache_hits"] + noted["requests"]
            share = f"{hits / asked:.0%}" if asked else "none asked for"
            lines.append(f"{name}: {hits} of {asked} answers were in the cache ({share})")
    return lines


def text_table(rows: Sequence[Sequence[str]], left: int) -> list[str]:
    """Return rows as lines with aligned columns, the first `left` of them flush left."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [
        "  ".join(
            cell.ljust(width) if i < left else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in rows
    ]
