"""What a study has yet to ask of its teacher, found by taking the stages' own steps without asking.

What is asked next depends on what was answered: mask → fill → votes → views. A candidate waits where an
answer of its own is missing, and the others go on without it.
"""

from __future__ import annotations

from collections.abc import Sequence

from cfdistill import counterfactual, data, rationale, runs
from cfdistill.counterfactual import Candidate
from cfdistill.params import Params
from cfdistill.schema import Counterfactual
from cfdistill.teacher.answers import NOT_YET, NotYet
from cfdistill.teacher.client import Teacher
from cfdistill.teacher.prompts import Prompt, render
from cfdistill.teacher.spending import Meter

STEPS = ("mask", "fill", "vote", "round trip")  # at which a candidate may wait


class Collector(Teacher):
    """A teacher that never asks: it answers from the cache, and notes what is missing there."""

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.there: dict[str, Prompt] = {}  # by key: answered
        self.missing: dict[str, Prompt] = {}  # by key: can be asked now
        self.later: dict[tuple[str, str, Prompt], Prompt] = {}  # will follow if every filter lets it pass

    def ask(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return the answers that are there, and `NotYet` in place of the others."""
        keys = [self.key(prompt) for prompt in prompts]
        answers = self.cache.get(keys)
        for key, prompt in zip(keys, prompts, strict=True):
            (self.there if key in answers else self.missing)[key] = prompt
        return [answers[key].text if key in answers else NotYet() for key in keys]

    def collect(self, *, everything: bool = False) -> dict[str, Prompt]:
        """Return all that can be asked by now for the stages `counterfactuals` and `rationales`, by key.

        Should a candidate turn out to repeat one that waited, its answers are paid for and not used.

        Args:
            everything: also look at what finished stages have asked.

        Raises:
            StageError: the questions of `train_dataset` are not there yet.
        """
        if self.params.has_counterfactuals:  # published rationales are asked of nobody
            runs.require(data.stage(self.params.train_dataset, self.params))
            for variant in self.params.variants():
                self._collect(variant, everything)
        return self.missing

    def _collect(self, params: Params, everything: bool) -> None:
        questions = data.questions(params.train_dataset, "train", params)
        made = runs.stage("counterfactuals", params)
        if made.is_complete() and not everything:
            questions += [c.question for c in made.read("counterfactuals.train.jsonl", Counterfactual)]
        else:
            candidates = counterfactual.make(params, self, Meter(self))
            questions += [c.question() for c in candidates if not c.reason]
            for c in (c for c in candidates if c.reason.endswith(NOT_YET)):
                self.later |= {(c.question().id, c.masked_stem, p): p for p in _following(c, params)}
        if everything or not runs.stage("rationales", params).is_complete():
            rationale.views(questions, self)


def _following(c: Candidate, params: Params) -> list[Prompt]:
    """Return what comes after the step at which a candidate waits, with the original's words for the new."""
    stem, options = c.stem or c.original.stem, c.original.options
    paths = params.reasoning_paths if params.vote_threshold else 0
    steps = (
        [render("fill", stem, options, c.target)],
        [render("reason", stem, options, sample=sample) for sample in range(paths)],
        [render("reason", stem, counterfactual.reorder(options, c.question().id))] * params.round_trip_check,
        [render(view, stem, options, c.target) for view in rationale.VIEWS],
    )
    waits = STEPS.index(c.reason.partition(":")[0])
    return [prompt for step in steps[waits:] for prompt in step]
