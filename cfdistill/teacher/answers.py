"""Reading the teacher's answers: nothing is taken on trust, and a malformed one is asked again once."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

from cfdistill.teacher.client import Teacher
from cfdistill.teacher.prompts import Prompt

T = TypeVar("T")
OBJECT = re.compile(r'\{\s*"')  # how a JSON object that holds something begins
NOT_YET = "not answered yet"  # the reason of what waits
CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


class NotYet(str):
    """Stands for an answer that is still to come, when a teacher only notes what it is asked."""


@dataclass(frozen=True)
class Reply(Generic[T]):
    """What was read from the answer to one prompt; `value` is None when nothing could be."""

    value: T | None
    attempts: int
    reason: str = ""  # why the last attempt could not be read


def ask_twice(
    teacher: Teacher, prompts: Sequence[Prompt], readers: Sequence[Callable[[str], T]]
) -> list[Reply[T]]:
    """Ask all prompts, and those whose answer cannot be read once more, as a new sample.

    Args:
        teacher: who is asked.
        prompts: what is asked.
        readers: one per prompt; returns what the answer says or raises ValueError with the reason.

    Returns:
        One reply per prompt, in order.
    """
    texts = teacher.ask(prompts)
    replies = [_read(reader, text, attempts=1) for reader, text in zip(readers, texts, strict=True)]
    again = [i for i, reply in enumerate(replies) if reply.value is None and not isinstance(texts[i], NotYet)]
    texts = teacher.ask([replace(prompts[i], sample=prompts[i].sample + 1) for i in again])
    for i, text in zip(again, texts, strict=True):
        replies[i] = _read(readers[i], text, attempts=2)
    return replies


def read_strings(text: str, name: str) -> tuple[str, ...]:
    """Return the non-empty list of non-empty strings under `name` in the JSON object of an answer.

    Words around the object, such as a code fence, are ignored; line breaks become spaces.

    Raises:
        ValueError: there is no such list, or there are several that differ.
    """
    found = [value[name] for value in _json_objects(text) if name in value]
    if not found or not all(value == found[0] for value in found):
        raise ValueError("no JSON of the form asked for")
    if not isinstance(found[0], list) or not found[0]:
        raise ValueError("no JSON of the form asked for")
    strings = tuple(" ".join(value.split()) if isinstance(value, str) else "" for value in found[0])
    if not all(value and not CONTROL.search(value) for value in strings):
        raise ValueError("no JSON of the form asked for")
    return strings


def _json_objects(text: str) -> Iterator[dict[str, Any]]:
    """Yield the JSON objects that stand in a text, one after the other."""
    start = OBJECT.search(text)
    while start:
        try:
            value, end = json.JSONDecoder().raw_decode(text, start.start())
            yield value
        except RecursionError:  # nested beyond reason; looking further would take minutes
            return
        except ValueError:
            end = start.end()
        start = OBJECT.search(text, end)


def _read(reader: Callable[[str], T], text: str, attempts: int) -> Reply[T]:
    if isinstance(text, NotYet):
        return Reply(None, attempts, NOT_YET)
    try:
        return Reply(reader(text), attempts)
    except ValueError as error:
        return Reply(None, attempts, str(error))
