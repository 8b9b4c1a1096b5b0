"""What a study has yet to ask of its teacher, found by taking its own steps without asking."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager

import pandas as pd

from cfdistill.generate import counterfactual, rationale
from cfdistill.generate.counterfactual import Candidate
from cfdistill.generate.replies import NOT_YET
from cfdistill.methods import VIEWS
from cfdistill.params import Params
from cfdistill.schema import Question
from cfdistill.teacher import Teacher
from cfdistill.teacher.budget import estimate_tokens, find_price
from cfdistill.teacher.prompts import BYTES_PER_TOKEN, TASKS, Prompt, render

Questions = Sequence[Question]
COLUMNS = ("in cache", "to ask", "prompt tokens", "completion tokens")


class Collector(Teacher):
    """A teacher that never asks: it answers from the cache, and notes what is missing there."""

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.there: dict[str, Prompt] = {}  # by key: answered
        self.missing: dict[str, Prompt] = {}  # by key: can be asked now
        self.later: set[tuple[str, str, Prompt]] = set()  # by candidate: follow if every filter lets it pass

    def ask(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return the answers that are there, and `NOT_YET` in place of the others."""
        wanted = [(self.key(prompt), prompt) for prompt in prompts]
        answers = self.known(dict(wanted))
        for key, prompt in wanted:
            (self.there if key in answers else self.missing)[key] = prompt
        return [answers[key].text if key in answers else NOT_YET for key, _ in wanted]


@contextmanager
def collect(params: Params, originals: Questions, held_out: Questions) -> Iterator[Collector]:
    """Open a Collector that knows all that can be asked by now for rewrites and rationales."""
    with Collector(params) as teacher:
        variants = params.variants().values() if params.has_counterfactuals else ()  # else a file explains
        for variant in variants:
            candidates = counterfactual.make(variant, teacher, originals, held_out)
            rationale.views([*originals, *(c.question() for c in candidates if not c.reason)], teacher)
            for c in candidates:
                step, _, reason = c.reason.rpartition(": ")
                if reason == NOT_YET:
                    teacher.later |= {(c.id, c.masked_stem, p) for p in _following(c, step, variant)}
        yield teacher


def _following(c: Candidate, step: str, params: Params) -> list[Prompt]:
    """Return what comes after the step at which a candidate waits, with the original's words for the new."""
    stem, options = c.stem or c.original.stem, c.original.options
    paths = params.reasoning_paths if params.vote_threshold else 0
    after = {
        "mask": [render("fill", stem, options, c.target)],
        "fill": [render("reason", stem, options, sample=sample) for sample in range(paths)],
        "vote": [render(view, stem, options, c.target) for view in VIEWS],
    }
    names = list(after)
    return [prompt for name in names[names.index(step) :] for prompt in after[name]]


def forecast(params: Params, originals: Questions, held_out: Questions) -> pd.DataFrame:
    """Return COLUMNS by task and in total; tokens are estimates, and dollars NaN where no price is known."""
    with collect(params.model_copy(update={"teacher_budget_usd": 0.0}), originals, held_out) as teacher:
        rows = [(prompt.task, 1, 0, 0, 0) for prompt in teacher.there.values()]
        to_ask = [*teacher.missing.values(), *(prompt for *_, prompt in teacher.later)]
    rows += [(p.task, 0, 1, *estimate_tokens(p, params.teacher_max_tokens)) for p in to_ask]
    table = pd.DataFrame(rows, columns=["task", *COLUMNS]).groupby("task").sum()
    table = table.reindex(TASKS, fill_value=0).astype(int)
    table.loc["total"] = table.sum()
    price = find_price(params.teacher_model, params)
    tokens = table[list(COLUMNS[2:])].itertuples(index=False)
    usd = [price.usd(*row) if price else float("nan") for row in tokens]
    return table.assign(dollars=usd if params.teacher == "live" else 0.0)


def to_text(table: pd.DataFrame, params: Params) -> str:
    """Return a forecast as a table, with what it assumes."""
    price, told = find_price(params.teacher_model, params), "Nobody has to be paid."
    if params.teacher == "live" and price:
        as_batch = table["dollars"].iloc[-1] * (1 - price.batch_discount)
        told = f"At ${price.input:g} and ${price.output:g} for a million tokens of prompts and of answers"
        told += f" (recorded {price.recorded}); as a batch ${as_batch:,.2f}."
    elif params.teacher == "live":
        told = f"{params.teacher_model}: its price is not known; give it by teacher_prices."
    told += f"\nAssumed: {BYTES_PER_TOKEN} bytes a token, answers of usual length; all filters are passed."
    return f"{table.astype(object).to_markdown(tablefmt='plain', intfmt=',', floatfmt=',.2f')}\n\n{told}"
