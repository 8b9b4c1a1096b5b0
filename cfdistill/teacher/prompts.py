"""The five prompts to the teacher: versioned files in `prompts/`, worded by us (the paper's are unknown)."""

import hashlib
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from string import Template
from typing import Any

from cfdistill.schema import options_text

# which words decide, new words for a new answer, one reasoning path, the two views
TASKS = ("mask", "fill", "reason", "positive", "negative")
JSON_LISTS = {"mask": "spans", "fill": "fills"}  # tasks answered in JSON, and the name of their list
VERSION = "v1"
# Estimates, for limits and where nobody counted; what an answer really took is in its row of the cache.
BYTES_PER_TOKEN = 4
ANSWER_TOKENS = {"mask": 40, "fill": 40, "reason": 120, "positive": 120, "negative": 250}
FOLDER = Path(__file__).with_name("prompts")


@dataclass(frozen=True)
class Prompt:
    """One request to the teacher, before it is addressed to a model."""

    task: str
    messages: tuple[tuple[str, str], ...]  # (role, content) pairs
    sample: int = 0  # tells apart answers wanted to the same words: reasoning paths, second attempts
    version: str = VERSION

    @property
    def question(self) -> str:
        """The last user message: what is asked, without instructions and examples."""
        return self.messages[-1][1]

    def estimate(self, max_tokens: int = 0) -> tuple[int, int]:
        """Return about how many tokens it and its answer have; no answer is longer than `max_tokens`."""
        size = sum(len(content.encode("utf-8", "replace")) for _, content in self.messages)
        usual = ANSWER_TOKENS[self.task]
        return size // BYTES_PER_TOKEN + 1, min(usual, max_tokens or usual)

    def request(self, model: str, max_tokens: int = 0) -> dict[str, Any]:
        """Return the body of the chat-completion request, as we wish it to be answered; 0 sets no limit."""
        body: dict[str, Any] = {
            "model": model,
            "messages": [{"role": role, "content": content} for role, content in self.messages],
            "temperature": 0.7 if self.task == "reason" or self.sample else 0.0,  # our choice
            "seed": self.sample,
        }
        if max_tokens:
            body["max_completion_tokens"] = max_tokens
        if self.task in JSON_LISTS:
            name = JSON_LISTS[self.task]
            strings = {name: {"type": "array", "items": {"type": "string"}}}
            schema = {"type": "object", "properties": strings, "required": [name]}
            named = {"name": name, "strict": True, "schema": schema | {"additionalProperties": False}}
            body["response_format"] = {"type": "json_schema", "json_schema": named}
        return body

    def key(self, base_url: str, model: str, limit: int | None = None) -> str:
        """Return a hash of all that can change an answer; one cut off has another key for every limit."""
        facts: dict[str, Any] = {"base_url": base_url, "prompt_version": f"{self.task}.{self.version}"}
        facts |= {"sample": self.sample, "request": self.request(model, limit or 0)}
        if limit == 0:
            facts["cut"] = "by the server's own limit"
        canonical = json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()


@cache
def load(task: str) -> tuple[tuple[str, str], ...]:
    """Return the (role, text) sections of a prompt file: system, examples, user template."""
    text = (FOLDER / f"{task}.{VERSION}.txt").read_text(encoding="utf-8")
    sections = re.split(r"^### (system|user|assistant)\n", text, flags=re.MULTILINE)[1:]
    return tuple((role, body.strip()) for role, body in zip(sections[::2], sections[1::2], strict=True))


def render(
    task: str, stem: str, options: Sequence[str], answer: int | None = None, sample: int = 0
) -> Prompt:
    """Fill in a prompt; `stem` is masked for `fill`, `answer` is the index of the one the teacher is told."""
    *shown, (role, template) = load(task)
    told = "" if answer is None else options[answer]
    asked = Template(template).substitute(stem=stem, options=options_text(options), answer=told)
    return Prompt(task, (*shown, (role, asked)), sample)
