"""All that tells the training methods apart: what they learn from, how they are scored and drawn."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)  # the other one takes ten times as long
VIEWS = ("positive", "negative")


@dataclass(frozen=True)
class Method:
    """One training method; `methods.yaml` explains the fields."""

    label: str  # what it learns from, in a few words
    color: str
    marker: str
    views: tuple[str, ...] = ()
    rewrites: bool = False
    originals: str = "train"
    more: str = ""
    changes: Mapping[str, Any] = field(default_factory=dict)
    steps_like: str = ""

    @property
    def scoring(self) -> str:
        """The main scoring: what it was trained to write first."""
        return "label" if self.views == ("label",) else "direct"

    @property
    def splits(self) -> tuple[str, ...]:
        """The splits of original questions that it learns from."""
        return (self.originals, *filter(None, [self.more])) if self.views else ()

    @property
    def own_questions(self) -> bool:
        """Whether it learns from original questions that other methods do not have."""
        return self.splits not in ((), ("train",))

    @property
    def needs_teacher(self) -> bool:
        """Whether one published rationale of each original question is not enough."""
        return self.rewrites or self.views == VIEWS or bool(self.steps_like) or self.own_questions


def _read() -> dict[str, Method]:
    rows = yaml.load(Path(__file__).with_suffix(".yaml").read_text(encoding="utf-8"), LOADER)
    return {name: Method(**row | {"views": tuple(row.get("views", ()))}) for name, row in rows.items()}


METHODS: Mapping[str, Method] = _read()


def reference(methods: Iterable[str]) -> str:
    """Return the method that others are compared with: the last in the table's order."""
    return max(methods, key=tuple(METHODS).index)
