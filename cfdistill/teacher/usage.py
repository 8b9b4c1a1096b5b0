"""What a cache holds and what it took: answers, tokens, dollars, and who served them."""

from __future__ import annotations

from cfdistill import runs
from cfdistill.params import Params
from cfdistill.teacher import prices
from cfdistill.teacher.cache import Cache, Total

COLUMNS = ("model", "served by", "endpoint", "task", "answers", "tokens in", "tokens out", "US dollars")
STAGES = ("counterfactuals", "rationales")


def rows(cache: Cache, params: Params) -> list[tuple[str, ...]]:
    """Return one row per kind of answer (COLUMNS) and a last one with the sums."""
    totals = cache.totals()
    costs = [dollars(total, params) for total in totals]
    table = [
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
        sum(t.answers for t in totals),
        sum(t.prompt_tokens for t in totals),
        sum(t.completion_tokens for t in totals),
    ]
    known = f"{sum(cost for cost in costs if cost is not None):.4f}"
    return [*table, ("all", "", "", "", *(f"{n:,}" for n in sums), known)]


def dollars(total: Total, params: Params) -> float | None:
    """Return what answers cost by the table of prices, or None when their model is not in it."""
    price = prices.find(total.model, params)
    if price is None:
        return None
    paid_share = 1 - price.batch_discount if total.batched else 1.0
    return price.usd(total.prompt_tokens, total.completion_tokens) * paid_share


def to_text(cache: Cache, params: Params) -> str:
    """Return the rows as a table."""
    table = [COLUMNS, *rows(cache, params)]
    widths = [max(len(row[i]) for row in table) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(
            cell.ljust(width) if i < 4 else cell.rjust(width)
            for i, (cell, width) in enumerate(zip(row, widths, strict=True))
        ).rstrip()
        for row in table
    ]
    return "\n".join([str(cache.path), *lines])


def hit_rates(params: Params) -> list[str]:
    """Return, for each finished stage of a study, how many of its answers were in the cache already."""
    lines = []
    for name in STAGES:
        stage = runs.stage(name, params)
        noted = stage.manifest()["notes"].get("teacher") if stage.is_complete() else None
        if noted is None:
            lines.append(f"{name}: not made yet")
        else:
            hits, asked = noted["cache_hits"], noted["cache_hits"] + noted["requests"]
            share = f"{hits / asked:.0%}" if asked else "none asked for"
            lines.append(f"{name}: {hits} of {asked} answers were in the cache ({share})")
    return lines
