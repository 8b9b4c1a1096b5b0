"""What tokens cost: the table `prices.yaml`, and a table of the user's own before it."""

from __future__ import annotations

import re
from datetime import date
from importlib.resources import as_file, files

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from cfdistill import runs
from cfdistill.errors import ParamsError
from cfdistill.params import Params, read_yaml


class Price(BaseModel):
    """Of one model, in US dollars per million tokens."""

    model_config = ConfigDict(frozen=True)

    input: float = Field(ge=0, lt=1e6)
    output: float = Field(ge=0, lt=1e6)
    batch_discount: float = Field(0.0, ge=0, le=1)  # share that a batch is cheaper
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
                try:
                    return Price.model_validate(row)
                except ValidationError as error:
                    raise ParamsError(
                        f"{table}, {model}: no price; write {{input: 1.5, output: 6.0, batch_discount: 0.5, "
                        "recorded: 2026-01-31}, in US dollars per million tokens, the discount from 0 to 1"
                    ) from error
    return None
