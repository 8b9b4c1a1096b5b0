"""Limits on asking: how fast, and for how much money."""

from __future__ import annotations

import asyncio
import time

from cfdistill.errors import TeacherError
from cfdistill.teacher.prices import Price
from cfdistill.teacher.prompts import Prompt

# Estimates, for limits and forecasts; what an answer really took is in its row of the cache.
BYTES_PER_TOKEN = 4
COMPLETION_TOKENS = {"mask": 40, "fill": 40, "reason": 120, "positive": 120, "negative": 250}


def estimate_tokens(prompt: Prompt, max_tokens: int = 0) -> tuple[int, int]:
    """Return about how many tokens a prompt and its answer have; no answer is longer than `max_tokens`."""
    size = sum(len(content.encode("utf-8", "replace")) for _, content in prompt.messages)
    usual = COMPLETION_TOKENS[prompt.task]
    return size // BYTES_PER_TOKEN + 1, min(usual, max_tokens or usual)


class Pace:
    """Spaces requests evenly, so that no minute holds more of them, or of their tokens, than allowed.

    Args:
        requests_per_minute: most requests; 0 sets no limit.
        tokens_per_minute: most tokens, of prompts and completions together; 0 sets no limit.
    """

    def __init__(self, requests_per_minute: int, tokens_per_minute: int) -> None:
        self._s_per_request = 60 / requests_per_minute if requests_per_minute else 0.0
        self._s_per_token = 60 / tokens_per_minute if tokens_per_minute else 0.0
        self._next = 0.0  # when the next request may go out, by time.monotonic

    async def wait(self, tokens: float) -> None:
        """Wait for one's turn to send a request that will take about so many tokens."""
        now = time.monotonic()
        turn = max(self._next, now)
        self._next = turn + max(self._s_per_request, tokens * self._s_per_token)
        if turn > now:
            await asyncio.sleep(turn - now)

    def correct(self, tokens: float) -> None:
        """Take account of tokens that an answer took beyond the estimate (or less, if negative)."""
        self._next += tokens * self._s_per_token


class BudgetReached(TeacherError):
    """The next request might cost more than is left of `teacher_budget_usd`."""


class Budget:
    """A cap on what the answers of one model in one cache may cost, over all runs.

    Args:
        cap_usd: the cap; 0 sets none.
        price: of the model; needed with a cap.
        spent_usd: what the answers in the cache have cost.
    """

    def __init__(self, cap_usd: float, price: Price | None, spent_usd: float = 0.0) -> None:
        self._cap_usd, self._price = cap_usd, price
        self._spent_usd, self._under_way_usd = spent_usd, 0.0

    def reserve(self, prompt_tokens: float, completion_tokens: float) -> float:
        """Set aside what a request may cost, before it is sent; returns the dollars.

        Raises:
            BudgetReached: with it and the requests under way, the cap might be passed.
        """
        usd = self._price.usd(prompt_tokens, completion_tokens) if self._price else 0.0
        if self._cap_usd and self._spent_usd + self._under_way_usd + usd > self._cap_usd:
            raise BudgetReached(
                f"teacher_budget_usd is reached: of ${self._cap_usd:g}, ${self._spent_usd:.4f} is spent and "
                f"the next answer may cost ${usd:.4f}; raise it to go on"
            )
        self._under_way_usd += usd
        return usd

    def settle(self, reserved_usd: float, prompt_tokens: float, completion_tokens: float) -> None:
        """Replace what was set aside by what the answer took."""
        self._under_way_usd -= reserved_usd
        self._spent_usd += self._price.usd(prompt_tokens, completion_tokens) if self._price else 0.0
