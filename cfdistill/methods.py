"""What each training method learns from: the one table that tells the methods apart."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BOTH_VIEWS = ("positive", "negative")
UNFILTERED = {
    "vote_threshold": 0,
    "round_trip_check": False,
    "leak_check": False,
    "min_edit_ratio": 0.0,
    "max_edit_ratio": 1.0,
}


@dataclass(frozen=True)
class Method:
    """What one method learns from."""

    views: tuple[str, ...]  # "label" (the answer sentence alone), "positive", "negative"
    counterfactuals: bool = False  # beside the original questions
    changes: Mapping[str, Any] = field(default_factory=dict)  # how its rewrites are made: other parameters
    steps_like: str = ""  # the method whose number of optimiser steps it takes; empty: its own epochs


METHODS: Mapping[str, Method] = {  # in the order of tables and figures
    "ft": Method(("label",)),
    "ft-cot": Method(("positive",)),
    # Controls and ablations (our choice): what of cf-distill is it that helps?
    "ft-cot-long": Method(("positive",), steps_like="cf-distill"),
    "multi-view": Method(BOTH_VIEWS),
    "cf-only": Method(("positive",), counterfactuals=True),
    "cf-unfiltered": Method(BOTH_VIEWS, True, UNFILTERED, "cf-distill"),
    "cf-random-mask": Method(BOTH_VIEWS, True, {"mask_source": "random"}, "cf-distill"),
    "cf-distill": Method(BOTH_VIEWS, counterfactuals=True),
}
"""Methods by name."""
