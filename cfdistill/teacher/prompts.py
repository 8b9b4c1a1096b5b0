"""The five prompts to the teacher, kept as versioned text files in `prompts/`.

Tasks: `mask` (which words decide the answer), `fill` (new words for a new answer), `reason` (one
reasoning path), `positive` and `negative` (the two views). Wordings and examples are our choice; the
paper's own prompts are not public. A changed wording is a new file with the next version, so that
cached answers to the old one stay valid.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from string import Template
from typing import Any

from cfdistill.schema import options_text

TASKS = ("mask", "fill", "reason", "positive", "negative")
JSON_LISTS = {"mask": "spans", "fill": "fills"}  # tasks answered in JSON, and the name of their list
VERSION = "v1"


@dataclass(frozen=True)
class Prompt:
    """One request to the teacher, before it is addressed to a model.

    `sample` tells apart several answers wanted to the same words: reasoning paths, second attempts.
    """

    task: str
    messages: tuple[tuple[str, str], ...]  # (role, content) pairs
    sample: int = 0
    version: str = VERSION

    @property
    def temperature(self) -> float:
        """Sampling temperature: 0, but 0.7 where different answers are wanted (our choice)."""
        return 0.7 if self.task == "reason" or self.sample else 0.0

    @property
    def question(self) -> str:
        """The last user message: what is asked, without instructions and examples."""
        return self.messages[-1][1]

    def request(self, model: str, max_tokens: int = 0) -> dict[str, Any]:
        """Return the body of the chat-completion request, as we wish it to be answered; 0 sets no limit."""
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": role, "content": content} for role, content in self.messages],
            "temperature": self.temperature,
            "seed": self.sample,
        }
        if max_tokens:
            body["max_completion_tokens"] = max_tokens
        if self.task in JSON_LISTS:
            body["response_format"] = _list_of_strings(JSON_LISTS[self.task])
        return body


@cache
def load(task: str) -> tuple[tuple[str, str], ...]:
    """Return the (role, text) sections of a prompt file: system, examples, user template."""
    text = files("cfdistill.teacher").joinpath(f"prompts/{task}.{VERSION}.txt").read_text(encoding="utf-8")
    sections = re.split(r"^### (system|user|assistant)\n", text, flags=re.MULTILINE)[1:]
    return tuple((role, body.strip()) for role, body in zip(sections[::2], sections[1::2], strict=True))


def render(
    task: str, stem: str, options: Sequence[str], answer: int | None = None, sample: int = 0
) -> Prompt:
    """Fill in a prompt.

    Args:
        task: one of TASKS.
        stem: the question; for `fill`, the masked question.
        options: its options, in the order shown.
        answer: index of the answer the teacher is told; `reason` is told none.
        sample: which of several answers is wanted.
    """
    *shown, (role, template) = load(task)
    told = "" if answer is None else options[answer]
    asked = Template(template).substitute(stem=stem, options=options_text(options), answer=told)
    return Prompt(task, (*shown, (role, asked)), sample)


def _list_of_strings(name: str) -> dict[str, Any]:
    """Return the `response_format` of a JSON object with one list of strings."""
    schema = {
        "type": "object",
        "properties": {name: {"type": "array", "items": {"type": "string"}}},
        "required": [name],
        "additionalProperties": False,
    }
    return {"type": "json_schema", "json_schema": {"name": name, "strict": True, "schema": schema}}
