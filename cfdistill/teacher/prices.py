"""What tokens cost: the table `prices.yaml`, and a table of the user's own before it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from datetime import date
from importlib.resources import as_file, files
from typing import Any

from cfdistill import runs
from cfdistill.errors import ParamsError
from cfdistill.params import Params, read_yaml


@dataclass(frozen=True)
class Price:
    """Of one model, in US dollars per million tokens."""

    input: float
    output: float
    batch_discount: float  # share that a batch is cheaper, 0 to 1
    recorded: date

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return what so many tokens cost when they are asked for one request at a time."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


def find(model: str, params: Params) -> Price | None:
    """Return the price of a model, or None when neither table knows it.

    Raises:
        ParamsError: `teacher_prices` is no table of prices.
    """
    with as_file(files("cfdistill.teacher") / "prices.yaml") as shipped:
        tables = [shipped]
        if params.teacher_prices:
            tables.insert(0, runs.resolve(params.teacher_prices))
        for table in tables:
            rows = read_yaml(table)
            row = rows.get(model, rows.get(re.sub(r"-\d{4}-\d\d-\d\d$", "", model)))
            if row is not None:
                return _read(row, f"{table}, {model}")
    return None


def require(model: str, params: Params) -> Price:
    """Return the price of a model that a budget needs.

    Raises:
        ParamsError: it is not known.
    """
    price = find(model, params)
    if price is None:
        raise ParamsError(
            f"teacher_budget_usd: the price of {model} is not known; give it by teacher_prices, a YAML file "
            "like cfdistill/teacher/prices.yaml, or set teacher_budget_usd to 0 for no cap"
        )
    return price


def _read(row: Any, where: str) -> Price:
    try:
        price = Price(
            float(row["input"]), float(row["output"]), float(row.get("batch_discount", 0)), row["recorded"]
        )
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise ParamsError(
            f"{where}: no price; write {{input: 1.5, output: 6.0, batch_discount: 0.5, recorded: "
            "2026-01-31}}, in US dollars per million tokens"
        ) from error
    if not (
        0 <= price.input < 1e6
        and 0 <= price.output < 1e6
        and 0 <= price.batch_discount <= 1
        and isinstance(price.recorded, date)
    ):
        raise ParamsError(f"{where}: a price must be 0 or more, batch_discount 0 to 1, recorded a date")
    return price
