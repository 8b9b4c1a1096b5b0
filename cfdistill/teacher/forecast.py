"""What a study will still ask of its teacher, and what that costs, worked out before any call.

Where the cache holds an answer it is used. What depends on a missing one is counted as if every later check
let it pass: so none too few are counted, and filters can only make them fewer.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from cfdistill import data
from cfdistill.params import Params
from cfdistill.teacher import prices
from cfdistill.teacher.limits import BYTES_PER_TOKEN, COMPLETION_TOKENS, estimate_tokens
from cfdistill.teacher.missing import Collector
from cfdistill.teacher.prompts import TASKS
from cfdistill.teacher.spending import text_table

STAGES = {"positive": "rationales", "negative": "rationales"}  # of a task; the others: counterfactuals
COLUMNS = ("stage", "task", "in cache", "to ask", "prompt tokens", "completion tokens", "dollars")


@dataclass
class Row:
    """The requests of one task."""

    stage: str
    task: str
    cached: int = 0
    requests: int = 0  # to be made
    prompt_tokens: int = 0  # of those, estimated
    completion_tokens: int = 0


@dataclass(frozen=True)
class Forecast:
    """One row per task, and the price of the model; None when it is not known."""

    model: str
    rows: list[Row]
    price: prices.Price | None
    costs: bool  # False for a teacher that nobody pays

    def usd(self, rows: Sequence[Row]) -> float | None:
        """Return what the requests to be made cost, or None when the price is not known."""
        if not self.costs:
            return 0.0
        if self.price is None:
            return None
        return sum(self.price.usd(row.prompt_tokens, row.completion_tokens) for row in rows)


def forecast(params: Params) -> Forecast:
    """Count what the stages `counterfactuals` and `rationales` will ask; makes the stage `data` if missing.

    Raises:
        TeacherError: the cache cannot be used.
        DataError: the questions cannot be read.
    """
    data.build(params.train_dataset, params)
    rows = {task: Row(STAGES.get(task, "counterfactuals"), task) for task in TASKS}
    with Collector(params.model_copy(update={"teacher_budget_usd": 0.0})) as teacher:
        teacher.collect(everything=True)
    for prompt in teacher.there.values():
        rows[prompt.task].cached += 1
    for prompt in (*teacher.missing.values(), *teacher.later.values()):
        row, (sent, answered) = rows[prompt.task], estimate_tokens(prompt, params.teacher_max_tokens)
        row.requests += 1
        row.prompt_tokens += sent
        row.completion_tokens += answered
    costs = params.teacher == "live"
    price = prices.find(teacher.model, params) if costs else None
    return Forecast(teacher.model, list(rows.values()), price, costs)


def to_text(made: Forecast) -> str:
    """Return the forecast as a table, with what it assumes."""
    total = Row("total", "")
    for name in ("cached", "requests", "prompt_tokens", "completion_tokens"):
        setattr(total, name, sum(getattr(row, name) for row in made.rows))
    cells = [_cells(row, made.usd([row])) for row in [*made.rows, total]]
    return "\n".join([*text_table([COLUMNS, *cells], left=2), "", _price_text(made, total), _assumptions()])


def _cells(row: Row, usd: float | None) -> tuple[str, ...]:
    numbers = (row.cached, row.requests, row.prompt_tokens, row.completion_tokens)
    dollars = "unknown" if usd is None else f"${usd:,.2f}"
    return (row.stage, row.task, *(f"{number:,}" for number in numbers), dollars)


def _price_text(made: Forecast, total: Row) -> str:
    if not made.costs:
        return f"Model {made.model}: nobody has to be paid."
    if made.price is None:
        return f"Model {made.model}: its price is not known; give it by teacher_prices."
    price, usd = made.price, made.usd([total]) or 0.0
    return (
        f"Model {made.model}: ${price.input:g} for a million prompt tokens, ${price.output:g} for a million "
        f"completion tokens (recorded {price.recorded}); as a batch ${usd * (1 - price.batch_discount):,.2f}."
    )


def _assumptions() -> str:
    answers = ", ".join(f"{task} {tokens}" for task, tokens in COMPLETION_TOKENS.items())
    return (
        f"Assumed: a token for every {BYTES_PER_TOKEN} bytes of a prompt; tokens per answer: {answers}; "
        "every candidate passes every filter, unless the cache says otherwise; no answer is asked for twice."
    )
