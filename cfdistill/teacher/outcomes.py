"""What a response is: an answer, or by name what is wrong with it and what follows from that."""

import json
import os
import re
from collections.abc import Container
from pathlib import Path
from typing import Any, NamedTuple

from cfdistill.params import read_yaml
from cfdistill.teacher.prompts import BYTES_PER_TOKEN, JSON_LISTS

# Why a prompt has no answer. Such outcomes stand in the cache like answers, so that none is asked for again.
CUT, FILTERED = "answer cut off (raise teacher_max_tokens)", "content filter"
TOO_LONG, EMPTY, THINKING = "too long for the model", "refusal or empty answer", "nothing but thinking"
ELSEWHERE = "content is empty, and reasoning_content has not the form asked for"
FINAL = (FILTERED, TOO_LONG)  # another sample would not change it
LIMITED = (CUT, TOO_LONG)  # another teacher_max_tokens would
KEEP, AGAIN, WITHOUT, STOP = "keep", "again", "ask without", "stop"
BROKEN = 599  # our status for what is no chat completion
NO_CHAT = "no chat completion; check teacher_base_url, which usually ends in /v1"
QUIRKS = read_yaml(Path(__file__).with_suffix(".yaml"))
TAG = rf"(?:\w+:)?(?:{QUIRKS['thinking']})"
THOUGHTS = re.compile(rf"\A(?:.*[<\[]/{TAG}[>\]]\s*|\s*[<\[]{TAG}[>\]].*)", re.DOTALL | re.IGNORECASE)
NO_COMPLETION = (LookupError, ValueError, ArithmeticError, TypeError, AttributeError, RecursionError)


class NoAnswer(str):
    """Stands for an answer that is none; the text is the reason."""


class Outcome(NamedTuple):
    """What follows from a response, and why."""

    act: str
    detail: str  # why there is no answer, what to leave out, or what the user should do
    status: int
    told: str  # an error's own words
    stored: str = ""  # what the cache shall hold


def outcome(status: int, body: str, sent: Container[str] = ()) -> Outcome:
    """Return what follows from a response to a request with the parameters `sent`."""
    if 200 <= status < 300:
        try:
            read_completion(body, "")
            return Outcome(KEEP, "", status, "", body)
        except ValueError:
            status = _carried(body)
    told = words(body) if status != BROKEN else NO_CHAT
    for rule in QUIRKS["errors"]:
        fits = re.fullmatch(rule["status"], str(status))
        if fits and re.search(rule.get("words", ""), told, re.IGNORECASE):
            detail = rule.get("detail", "")
            return Outcome(rule["act"], detail, status, told, json.dumps({"dropped": detail, "told": told}))
    if status in (400, 422, 501):
        for name in QUIRKS["refusable"]:
            if name in sent and name in told:
                return Outcome(WITHOUT, name, status, told)
        if "response_format" in sent:  # whatever the words: asking without it decides
            return Outcome(WITHOUT, "response_format", status, told)
    return Outcome(STOP, "", status, told)


def words(body: str) -> str:
    """Return an error's own words in one line, without the key that they may quote."""
    try:
        told = _said(json.loads(body))
    except (ValueError, RecursionError):
        told = body
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if len(key) >= 8:
        told = re.sub(rf"(?<![\w-]){re.escape(key)}(?![\w-])", "…", told)
    return " ".join(told.split())[:300] or "no reason given"


def _said(value: Any) -> str:
    if isinstance(value, dict):
        return " ".join(_said(value[name]) for name in QUIRKS["said"] if value.get(name))
    return " ".join(map(_said, value)) if isinstance(value, list) else str(value)


def _carried(body: str) -> int:
    """Return the status of the error that a response of status 200 carries, or BROKEN."""
    try:
        value = json.loads(body)
        error = value.get("error") or value["choices"][0]["error"]
        code = str(error.get("code")) if isinstance(error, dict) else ""
    except NO_COMPLETION:
        return BROKEN
    if re.fullmatch("[45][0-9][0-9]", code):
        return int(code)
    return 429 if re.search("rate|limit", words(body), re.IGNORECASE) else 500


def read_completion(response: str, task: str) -> tuple[str, bool, str, int, int]:
    """Return text (or NoAnswer), whether it held thinking, model, prompt and completion tokens (0: unknown).

    Raises ValueError when the response is no chat completion, nor what is stored in the place of one.
    """
    try:
        body = json.loads(response)
        if "dropped" in body:
            return NoAnswer(_whole(body["dropped"])), False, "", 0, 0
        choice, usage = body["choices"][0], body.get("usage") or {}
        if body.get("error") or choice.get("error"):
            raise ValueError("an error")
        text, thought = _text(choice, task)
        sent, written = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
        if not (0 <= sent < 2**63 and 0 <= written < 2**63):
            raise ValueError("no number of tokens")
        written = written or len(json.dumps(choice["message"])) // BYTES_PER_TOKEN
        return text, thought, _whole(str(body.get("model") or "")), sent, written
    except NO_COMPLETION as error:
        raise ValueError(f"no chat completion ({type(error).__name__})") from error


def _text(choice: dict[str, Any], task: str) -> tuple[str, bool]:
    """Return the answer in a choice, or why there is none, and whether thinking was left out."""
    message, finish = choice["message"], str(choice.get("finish_reason")).lower()
    content, thought = message.get("content") or "", False
    if isinstance(content, list):
        chunks = [part["text"] for part in content if part["type"] in ("text", "output_text")]
        content, thought = "".join(chunks), len(chunks) < len(content)  # other parts are thinking
    text, found = THOUGHTS.subn("", content)
    elsewhere = next(filter(None, map(message.get, QUIRKS["elsewhere"])), "")
    wanted = f'"{JSON_LISTS[task]}"' if task in JSON_LISTS else "answer is"
    if finish in QUIRKS["cut_off"]:
        text = NoAnswer(CUT)
    elif finish.startswith("content_filter"):
        text = NoAnswer(FILTERED)
    elif not text.strip() and elsewhere:
        text = THOUGHTS.sub("", elsewhere) if wanted in elsewhere else NoAnswer(ELSEWHERE)
    elif not text.strip():
        text = NoAnswer(THINKING if thought or found else EMPTY)
    return (text if isinstance(text, NoAnswer) else _whole(text)), thought or found > 0


def _whole(text: str) -> str:
    return text.encode("utf-8", "replace").decode()  # half an emoji cannot be written to a file
