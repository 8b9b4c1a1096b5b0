"""What a study will ask of its teacher, and what that costs, worked out before any call."""

from __future__ import annotations

from cfdistill.params import Params


def forecast(params: Params) -> list[dict[str, str]]:
    """Return one row per stage and task."""
    raise NotImplementedError


def to_text(rows: list[dict[str, str]]) -> str:
    """Return the forecast as a table."""
    raise NotImplementedError
