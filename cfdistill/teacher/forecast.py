"""What a study will still ask of its teacher, and what that costs, worked out before any call.

The stages' own steps are taken with real prompts. Where the cache holds an answer it is used; where it does
not, the request is counted and a stand-in takes its place that every later check lets pass. So requests
that depend on missing answers are counted, too, and none too few: filters can only make them fewer.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from cfdistill import counterfactual, data, rationale
from cfdistill.masking import MASK
from cfdistill.params import Params
from cfdistill.schema import answer_text
from cfdistill.teacher import prices
from cfdistill.teacher.answers import NotYet
from cfdistill.teacher.client import Teacher
from cfdistill.teacher.limits import BYTES_PER_TOKEN, COMPLETION_TOKENS, estimate_tokens
from cfdistill.teacher.prompts import TASKS, Prompt

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


class _StandIn(Teacher):
    """Answers from the cache; counts what is missing there, and makes up an answer that passes."""

    def __init__(self, params: Params) -> None:
        super().__init__(params.model_copy(update={"teacher_budget_usd": 0.0}))
        self.rows = {task: Row(STAGES.get(task, "counterfactuals"), task) for task in TASKS}
        self.counted: set[str] = set()
        self.answers: dict[str, str] = {}  # by question: what its reasoning paths have to reach

    def ask(self, prompts: Sequence[Prompt]) -> list[str]:
        keys = [self.key(prompt) for prompt in prompts]
        there = self.cache.get(keys)
        for key, prompt in dict(zip(keys, prompts, strict=True)).items():
            if key not in self.counted:  # two sets of counterfactuals share many requests
                self._count(prompt, cached=key in there)
        self.counted.update(keys)
        return [
            there[key].text if key in there else self._make_up(prompt)
            for key, prompt in zip(keys, prompts, strict=True)
        ]

    def _count(self, prompt: Prompt, *, cached: bool) -> None:
        row = self.rows[prompt.task]
        if cached:
            row.cached += 1
            return
        sent, answered = estimate_tokens(prompt, self._params.teacher_max_tokens)
        row.requests += 1
        row.prompt_tokens += sent
        row.completion_tokens += answered

    def _make_up(self, prompt: Prompt) -> str:
        stem = prompt.question.partition("uestion: ")[2].rpartition("\nOptions: ")[0]
        if prompt.task == "mask":
            return json.dumps({"spans": [max(re.findall(r"\w+", stem), key=len, default="")]})
        if prompt.task == "fill":
            word = hashlib.sha256(prompt.question.encode()).hexdigest()[:8]
            return json.dumps({"fills": [f"other {word}"] * stem.count(MASK)})
        return self.answers[stem] if prompt.task == "reason" else NotYet()


def forecast(params: Params) -> Forecast:
    """Count what the stages `counterfactuals` and `rationales` will ask; makes the stage `data` if missing.

    Raises:
        TeacherError: the cache cannot be used.
        DataError: the questions cannot be read.
    """
    data.build(params.train_dataset, params)
    with _StandIn(params) as teacher:
        if params.has_counterfactuals:  # published rationales are asked of nobody
            for variant in params.variants():
                _take_steps(variant, teacher)
        costs = params.teacher == "live"
        price = prices.find(teacher.model, params) if costs else None
        return Forecast(teacher.model, list(teacher.rows.values()), price, costs)


def _take_steps(params: Params, teacher: _StandIn) -> None:
    name = params.train_dataset
    originals = data.questions(name, "train", params)
    splits = ("validation", *data.test_splits(name, params))
    held_out = [question for split in splits for question in data.questions(name, split, params)]
    candidates = counterfactual.propose(originals, params.counterfactuals_per_question)
    candidates = counterfactual.fill(counterfactual.masked(candidates, params, teacher), teacher)
    candidates = counterfactual.check(candidates, params, originals, held_out)
    options = {c.stem: (c.original.options, c.target) for c in candidates}
    teacher.answers = {stem: answer_text(*reached) for stem, reached in options.items()}
    candidates = counterfactual.vote(candidates, teacher, params)
    candidates = counterfactual.round_trip(candidates, teacher, params)
    rationale.views([*originals, *(c.question() for c in candidates if not c.reason)], teacher)


def to_text(made: Forecast) -> str:
    """Return the forecast as a table, with what it assumes."""
    total = Row("total", "")
    for row in made.rows:
        total.cached += row.cached
        total.requests += row.requests
        total.prompt_tokens += row.prompt_tokens
        total.completion_tokens += row.completion_tokens
    lines = [_line(COLUMNS), *(_line(_cells(row, made.usd([row]))) for row in [*made.rows, total])]
    return "\n".join([*lines, "", _price_text(made, total), _assumptions()])


def _line(cells: tuple[str, ...]) -> str:
    return f"{cells[0]:<16} {cells[1]:<8}" + "".join(f"{cell:>19}" for cell in cells[2:])


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
