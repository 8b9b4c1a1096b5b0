"""All that tells the training methods apart: what they learn from, how they are scored and drawn."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

VIEWS = ("positive", "negative")
OURS = "cf-distill"
UNFILTERED = {"vote_threshold": 0, "leak_check": False, "min_edit_ratio": 0.0, "max_edit_ratio": 1.0}


@dataclass(frozen=True)
class Method:
    """One training method."""

    label: str  # what it learns from, in a few words
    color: str
    marker: str
    views: tuple[str, ...]  # "label" (the answer sentence alone), "positive", "negative"
    rewrites: bool = False  # counterfactuals beside the original questions
    changes: Mapping[str, Any] = field(default_factory=dict)  # how its rewrites are made: other parameters
    steps_like: str = ""  # the method whose number of optimiser steps it takes; empty: its own epochs

    @property
    def scoring(self) -> str:
        """The main scoring: what it was trained to write first."""
        return "label" if self.views == ("label",) else "direct"

    @property
    def needs_teacher(self) -> bool:
        """Whether one published rationale of each original question is not enough."""
        return self.rewrites or self.views == VIEWS or bool(self.steps_like)


METHODS: Mapping[str, Method] = {  # in the order of tables and figures; colors are Okabe and Ito's
    "ft": Method("the answer sentence", "#7f7f7f", "s", ("label",)),
    "ft-cot": Method("the positive view", "#e69f00", "^", ("positive",)),
    # Controls and ablations (our choice): what of cf-distill is it that helps?
    "ft-cot-long": Method(
        "the positive view, in as many steps as cf-distill",
        *("#d55e00", "v", ("positive",)),
        steps_like=OURS,
    ),
    "multi-view": Method("both views", "#56b4e9", "D", VIEWS),
    "cf-only": Method("the positive view, also of counterfactuals", "#009e73", "P", ("positive",), True),
    "cf-unfiltered": Method(
        "both views, also of rewrites that no filter has seen",
        *("#cc79a7", "X", VIEWS, True, UNFILTERED, OURS),
    ),
    "cf-random-mask": Method(
        "both views, also of rewrites of words chosen by chance",
        *("#000000", "*", VIEWS, True, {"mask_source": "random"}, OURS),
    ),
    OURS: Method("both views, also of counterfactuals", "#0072b2", "o", VIEWS, True),
}


def reference(methods: Iterable[str]) -> str:
    """Return the method that others are compared with: the last in the table's order."""
    return max(methods, key=tuple(METHODS).index)
