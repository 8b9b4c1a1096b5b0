"""The words of a question, and how some of them are masked."""

from __future__ import annotations

import random
import re
from collections.abc import Sequence

MASK = "[MASK]"


def words(text: str) -> list[str]:
    """Return the lower-case words of a text, without punctuation."""
    return re.findall(r"[\w']+", text.lower())


def mask_spans(stem: str, spans: Sequence[str]) -> str:
    """Replace each span, a run of whole words, by `[MASK]`.

    Raises:
        ValueError: a span does not stand in the question, or nothing of the question is left.
    """
    for span in spans:
        pattern = r"\s+".join(map(re.escape, span.split()))
        found = re.search(rf"(?<![\w\[]){pattern}(?![\w\]])", stem, re.IGNORECASE)
        if not found or MASK in span:
            raise ValueError("span is not in the question")
        stem = f"{stem[: found.start()]}{MASK}{stem[found.end() :]}"
    if not words(stem.replace(MASK, "")):
        raise ValueError("nothing of the question is left")
    return stem


def random_span(stem: str, seed: int) -> str:
    """Return a run of a quarter of the words, from a random place that only stem and seed decide.

    Returns:
        The run as it stands in the question; empty where nothing would be left of it.
    """
    found = list(re.finditer(r"(?<![\w\[])\w+(?![\w\]])", stem))
    count = max(1, round(len(found) / 4))
    if count >= len(found):
        return ""
    first = random.Random(f"{seed}/{stem}").randrange(len(found) - count + 1)
    return stem[found[first].start() : found[first + count - 1].end()]
