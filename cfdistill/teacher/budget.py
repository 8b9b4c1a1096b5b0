"""What asking takes: tokens, dollars, and the limits on both."""

import asyncio
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Any

import pandas as pd
from pydantic import BaseModel, Field, ValidationError

from cfdistill.errors import ParamsError, TeacherError
from cfdistill.files import resolve
from cfdistill.params import Params, read_yaml
from cfdistill.teacher.cache import Cache
from cfdistill.teacher.prompts import Prompt

PRICES = Path(__file__).with_name("prices.yaml")
# Estimates, for limits and forecasts; what an answer really took is in its row of the cache.
BYTES_PER_TOKEN = 4
COMPLETION_TOKENS = {"mask": 40, "fill": 40, "reason": 120, "positive": 120, "negative": 250}


@dataclass
class Usage:
    """What asking took so far; tokens count whether an answer was new or in the cache."""

    requests: int = 0  # sent to the endpoint, repeated ones included
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    broken: int = 0  # responses that were no chat completion
    without_schema: int = 0  # requests sent without the JSON schema that the server refused


def estimate_tokens(prompt: Prompt, max_tokens: int = 0) -> tuple[int, int]:
    """Return about how many tokens a prompt and its answer have; no answer is longer than `max_tokens`."""
    size = sum(len(content.encode("utf-8", "replace")) for _, content in prompt.messages)
    usual = COMPLETION_TOKENS[prompt.task]
    return size // BYTES_PER_TOKEN + 1, min(usual, max_tokens or usual)


class Price(BaseModel):
    """Of one model, in US dollars per million tokens."""

    input: float = Field(ge=0, lt=1e6)
    output: float = Field(ge=0, lt=1e6)
    batch_discount: float = Field(0.0, ge=0, le=1)  # share that a batch is cheaper
    recorded: date

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return what so many tokens cost outside a batch."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6

    def paid(self, total: Mapping[str, Any]) -> float:
        """Return what a row of `Cache.totals` costs today."""
        share = 1 - self.batch_discount * int(total["batched"])
        return self.usd(total["prompt_tokens"], total["completion_tokens"]) * share


def find_price(model: str, params: Params) -> Price | None:
    """Return the price of a model, or None when neither `teacher_prices` nor our own table knows it."""
    rows = read_yaml(PRICES) | (read_yaml(resolve(params.teacher_prices)) if params.teacher_prices else {})
    row = rows.get(model, rows.get(re.sub(r"-\d{4}-\d\d-\d\d$", "", model)))  # a dated snapshot
    try:
        return None if row is None else Price.model_validate(row)
    except ValidationError as error:
        form = "{input: 1.5, output: 6.0, batch_discount: 0.5, recorded: 2026-01-31}"
        told = f"{params.teacher_prices}, {model}: no price; write {form}, in US dollars per million tokens"
        raise ParamsError(f"{told}, the discount from 0 to 1") from error


class Budget:
    """The cap `teacher_budget_usd` on what a live model's answers in a cache may cost, over all runs."""

    def __init__(self, model: str, params: Params, cache: Cache) -> None:
        self._cap_usd = params.teacher_budget_usd if params.teacher == "live" else 0.0
        self._price = find_price(model, params) if self._cap_usd else None
        self._spent_usd = self._under_way_usd = 0.0
        if self._price:
            self._spent_usd = sum(self._price.paid(t) for t in cache.totals() if t["model"] == model)
        elif self._cap_usd:
            told = f"teacher_budget_usd: the price of {model} is not known; give it by teacher_prices, a YAML"
            raise ParamsError(f"{told} file like cfdistill/teacher/prices.yaml, or set 0 for no cap")

    def reserve(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Set aside what a request may cost, before it is sent; TeacherError when the cap might be passed."""
        usd = self._price.usd(prompt_tokens, completion_tokens) if self._price else 0.0
        if self._cap_usd and self._spent_usd + self._under_way_usd + usd > self._cap_usd:
            told = f"of ${self._cap_usd:g}, ${self._spent_usd:.4f} is spent and the next answer may cost"
            raise TeacherError(f"teacher_budget_usd is reached: {told} ${usd:.4f}; raise it to go on")
        self._under_way_usd += usd
        return usd

    def settle(self, reserved_usd: float, prompt_tokens: float, completion_tokens: float) -> None:
        """Replace what was set aside by what the answer took."""
        self._under_way_usd -= reserved_usd
        self._spent_usd += self._price.usd(prompt_tokens, completion_tokens) if self._price else 0.0


class Pace:
    """Spaces requests evenly, so that no minute holds more of them, or of tokens, than allowed (0: any)."""

    def __init__(self, requests_per_minute: int, tokens_per_minute: int) -> None:
        self._s_per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._s_per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next = 0.0  # when the next request may go out, by time.monotonic

    async def wait(self, tokens: float) -> None:
        """Wait for one's turn to send a request that will take about so many tokens."""
        now = time.monotonic()
        turn = max(self._next, now)
        self._next = turn + max(self._s_per_request, tokens * self._s_per_token)
        await asyncio.sleep(turn - now)

    def correct(self, tokens: float) -> None:
        """Take account of tokens that an answer took beyond the estimate (or less, if negative)."""
        self._next += tokens * self._s_per_token


def stats(cache: Cache, params: Params) -> str:
    """Return a table of all answers in a cache, one row per kind of answer, and their sums."""
    rows = []
    for total in cache.totals():
        price = find_price(total["model"], params)
        usd = price.paid(total) if price else float("nan")
        rows.append({**total, "batched": "yes" if total["batched"] else "no", "US dollars": usd})
    table = pd.DataFrame(rows)
    table.loc["all"] = table.sum(numeric_only=True)
    return f"{cache.path}\n{table.to_string(na_rep='', float_format='{:,.4f}'.format)}"
