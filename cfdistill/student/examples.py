"""What a method learns from: training examples, made from questions, their rewrites and rationales."""

import math
from collections.abc import Sequence
from itertools import groupby

from cfdistill.errors import TrainingError
from cfdistill.methods import METHODS
from cfdistill.params import Params
from cfdistill.schema import STRATEGY, Counterfactual, Example, Question, Rationale, answer_text, prompt_text


def make_examples(
    questions: list[Question], rewrites: list[Counterfactual], rationales: list[Rationale], method: str
) -> list[Example]:
    """Return a method's examples, those of a question together, where it has rationales (paper, Fig. 2)."""
    if METHODS[method].rewrites and not rewrites:
        told = f"{method}: there are no counterfactuals to train on; funnel.csv of their stage says why"
        raise TrainingError(f"{told}: loosen the filter, ask another teacher or choose other methods")
    sources = [(question, False) for question in questions]
    sources += [(rewrite.question, True) for rewrite in rewrites if METHODS[method].rewrites]
    texts = {(rationale.question_id, rationale.view): rationale.text for rationale in rationales}
    texts |= {(q.id, "label"): answer_text(q.options, q.answer) for q, _ in sources}
    examples = [
        Example(q.id, view, prompt_text(q, STRATEGY[view]), f" {texts[q.id, view]}", is_rewrite)
        for q, is_rewrite in sources
        for view in METHODS[method].views
        if (q.id, view) in texts
    ]
    if not examples:
        told = f"no training examples from {len(questions)} questions and {len(rationales)} rationales"
        raise TrainingError(f"{method}: {told}; see why these were dropped, or raise train_questions")
    return examples


def by_question(examples: Sequence[Example]) -> list[list[Example]]:
    """Return the examples of each question, which share a step."""
    return [list(own) for _, own in groupby(examples, lambda example: example.question_id)]


def questions_per_step(examples: Sequence[Example], params: Params) -> int:
    """Return how many questions' examples make up about `batch_size` examples."""
    return max(1, params.batch_size // max(map(len, by_question(examples))))


def count_steps(examples: Sequence[Example], params: Params) -> int:
    """Return the number of optimiser steps in `params.epochs` passes over the examples."""
    epoch = math.ceil(len(by_question(examples)) / questions_per_step(examples, params))
    return math.ceil(params.epochs * epoch)


def example_weight(example: Example, params: Params) -> float:
    """Return an example's weight in the mean over examples (our choice: 1 for all by default)."""
    rewritten = params.counterfactual_weight if example.counterfactual else 1.0
    return rewritten * (params.negative_view_weight if example.kind == "negative" else 1.0)
