"""What models cost, from the dated table `prices.yaml`."""

from __future__ import annotations

from functools import cache
from importlib.resources import files

import yaml


@cache
def price_of(model: str) -> tuple[float, float] | None:
    """Return a model's price of prompt and of completion tokens, in US dollars per million, if known."""
    rows = yaml.safe_load(files("cfdistill.teacher").joinpath("prices.yaml").read_text(encoding="utf-8"))
    return next(((row["input"], row["output"]) for row in rows if row["model"] == model), None)
