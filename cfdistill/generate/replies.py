"""Asking the teacher and reading its answers: nothing is taken on trust, and what is unfit is asked again."""

import json
import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from cfdistill.params import Params
from cfdistill.teacher import Teacher
from cfdistill.teacher.outcomes import FINAL, NoAnswer
from cfdistill.teacher.prompts import Prompt

OBJECT = re.compile(r'\{\s*"')  # how a JSON object that holds something begins
UNFIT = re.compile(r"^$|[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # empty, a control character, half a character
NOT_YET = NoAnswer("not answered yet")  # by a teacher that only notes what it is asked
Asked = tuple[Any, list[Prompt]]  # an item and what is asked about it


class Collector(Teacher):
    """A teacher that never asks: it answers from the cache, and notes what is missing there."""

    def __init__(self, params: Params) -> None:
        super().__init__(params)
        self.missing: dict[str, Prompt] = {}  # by key

    def ask(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return the answers that are there, and `NOT_YET` in place of the others."""
        wanted = {self.key(prompt): prompt for prompt in prompts}
        answers = self.known(wanted)
        self.missing |= {key: prompt for key, prompt in wanted.items() if key not in answers}
        return [answers[key].text if key in answers else NOT_YET for key in map(self.key, prompts)]


@dataclass(frozen=True)
class Reply:
    """What was read from the answers about one item; `value` is None when nothing could be."""

    value: Any
    attempts: int = 1
    reason: str = ""  # why nothing could be read


def ask(teacher: Teacher, items: Sequence[Asked], read: Callable[..., Any]) -> list[Reply]:
    """Ask the prompts of every item, and where `read` refuses the answers once more, as new samples."""
    replies: dict[int, Reply] = {}
    for attempt in (1, 2):
        settled = {i for i, reply in replies.items() if reply.reason in ("", NOT_YET, *FINAL)}
        left = [i for i in range(len(items)) if i not in settled]
        asked = [[replace(p, sample=p.sample + attempt - 1) for p in items[i][1]] for i in left]
        texts = iter(teacher.ask([prompt for group in asked for prompt in group]))
        for i, group in zip(left, asked, strict=True):
            replies[i] = attempted(read, items[i][0], *[next(texts) for _ in group], attempts=attempt)
    return [replies[i] for i in range(len(items))]


def attempted(read: Callable[..., Any], *given: Any, attempts: int = 1) -> Reply:
    """Return what is read from what is given, or the reason why nothing is."""
    texts = [text for text in given if isinstance(text, str)]
    if NOT_YET in texts:
        return Reply(None, attempts, NOT_YET)
    if texts and all(isinstance(text, NoAnswer) for text in texts):
        return Reply(None, attempts, texts[0])
    try:
        return Reply(read(*given), attempts)
    except ValueError as error:
        return Reply(None, attempts, str(error))


def read_strings(text: str, name: str) -> tuple[str, ...]:
    """Return the one list of strings under `name` in an answer's JSON; raises ValueError if there is none."""
    found = [value[name] for value in _json_objects(text) if name in value]
    listed = found[0] if found and isinstance(found[0], list) else []
    strings = tuple(" ".join(item.split()) if isinstance(item, str) else "" for item in listed)
    if not strings or any(map(UNFIT.search, strings)) or any(value != listed for value in found):
        raise ValueError("no JSON of the form asked for")
    return strings


def _json_objects(text: str) -> Iterator[dict[str, Any]]:
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
