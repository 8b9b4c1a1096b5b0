"""What asking takes: tokens, dollars, and the limits on both."""

import asyncio
import re
import time
from dataclasses import dataclass, field
from datetime import date
from pathlib import Path

import pandas as pd
from pydantic import BaseModel, Field, ValidationError

from cfdistill.errors import ParamsError, TeacherError
from cfdistill.files import resolve
from cfdistill.params import Params, read_yaml
from cfdistill.teacher.cache import Cache


@dataclass
class Usage:
    """What asking took so far; tokens count whether an answer was new or in the cache."""

    requests: int = 0  # sent to the endpoint, repeated ones included
    cache_hits: int = 0
    tokens: dict[str, tuple[int, int]] = field(default_factory=dict)  # by task: of prompts, of answers
    thought: int = 0  # answers that began with thinking, which was left out
    without: dict[str, int] = field(default_factory=dict)  # requests, by a parameter the endpoint refuses


class Price(BaseModel):
    """Of one model, in US dollars per million tokens."""

    input: float = Field(ge=0, lt=1e6)
    output: float = Field(ge=0, lt=1e6)
    batch_discount: float = Field(0.0, ge=0, le=1)  # share that a batch is cheaper
    recorded: date

    def usd(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Return what so many tokens cost outside a batch."""
        return (prompt_tokens * self.input + completion_tokens * self.output) / 1e6


def find_price(model: str, params: Params) -> Price | None:
    """Return the price of a model, or None when neither `teacher_prices` nor our own table knows it."""
    rows = read_yaml(Path(__file__).with_name("prices.yaml"))
    rows |= read_yaml(resolve(params.teacher_prices)) if params.teacher_prices else {}
    row = rows.get(model, rows.get(re.sub(r"-\d{4}-\d\d-\d\d$", "", model)))  # a dated snapshot
    try:
        return None if row is None else Price.model_validate(row)
    except ValidationError as error:
        form = "{input: 1.5, output: 6.0, batch_discount: 0.5, recorded: 2026-01-31}"
        told = f"{params.teacher_prices}, {model}: no price; write {form}, in US dollars per million tokens"
        raise ParamsError(f"{told}, the discount from 0 to 1") from error


LEDGER = "ledger (id INTEGER PRIMARY KEY AUTOINCREMENT, model TEXT NOT NULL, usd REAL NOT NULL, until REAL)"
# `until` (Unix time): lapses then, since its process must be dead; NULL: paid for without an answer
INDEX = "spent ON answers (model, batched, prompt_tokens, completion_tokens)"
SPENT = """SELECT coalesce(sum((prompt_tokens * ? + completion_tokens * ?) * (1 - batched * ?)), 0) / 1e6
    FROM answers WHERE model = ?"""
HELD = "SELECT coalesce(sum(usd), 0) FROM ledger WHERE model = ?"


class Budget:
    """The cap `teacher_budget_usd` on what a live model's answers cost: one ledger, in the cache, for all."""

    def __init__(self, model: str, params: Params, cache: Cache) -> None:
        price = find_price(model, params)
        if not price:
            told = f"teacher_budget_usd: the price of {model} is not known; give it by teacher_prices, a YAML"
            raise ParamsError(f"{told} file like cfdistill/teacher/prices.yaml, or set 0 for no cap")
        self._cap_usd, self._price, self._model, self._cache = params.teacher_budget_usd, price, model, cache
        self._lapses_s = 4 * params.teacher_timeout_s  # an attempt may be silent connecting, sending, …
        with cache.transaction() as db:
            db.execute(f"CREATE TABLE IF NOT EXISTS {LEDGER}")
            db.execute(f"CREATE INDEX IF NOT EXISTS {INDEX}")

    def reserve(self, prompt_tokens: float, completion_tokens: float) -> int:
        """Set aside what a request may cost, before it is sent; TeacherError when the cap might be passed."""
        price, usd = self._price, self._price.usd(prompt_tokens, completion_tokens)
        with self._cache.transaction() as db:
            db.execute("DELETE FROM ledger WHERE until < ?", [time.time()])
            rates = (price.input, price.output, price.batch_discount)
            (spent,) = db.execute(SPENT, [*rates, self._model]).fetchone()
            (held,) = db.execute(HELD, [self._model]).fetchone()
            if spent + held + usd > self._cap_usd:
                told = f"teacher_budget_usd is reached: of ${self._cap_usd:g}, ${spent:.4f} is spent, "
                told += f"${held:.4f} is set aside or lost, and the next answer may cost ${usd:.4f}; raise it"
                raise TeacherError(f"{told} to go on (what a killed run set aside lapses in minutes)")
            row = [self._model, usd, time.time() + self._lapses_s]
            return db.execute("INSERT INTO ledger (model, usd, until) VALUES (?, ?, ?)", row).lastrowid or 0

    def settle(self, reserved: int, prompt_tokens: float = 0, completion_tokens: float = 0) -> None:
        """Give back what was set aside, except the price of these tokens, which no answer accounts for."""
        with self._cache.transaction() as db:
            db.execute("DELETE FROM ledger WHERE id = ?", [reserved])
            if lost := self._price.usd(prompt_tokens, completion_tokens):
                db.execute("INSERT INTO ledger (model, usd) VALUES (?, ?)", [self._model, lost])


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
        usd = price.usd(total["prompt_tokens"], total["completion_tokens"]) if price else float("nan")
        if price and total["batched"]:
            usd *= 1 - price.batch_discount
        rows.append({**total, "batched": "yes" if total["batched"] else "no", "US dollars": usd})
    table = pd.DataFrame(rows)
    table.loc["all"] = table.sum(numeric_only=True)
    return f"{cache.path}\n{table.to_string(na_rep='', float_format='{:,.4f}'.format)}"
