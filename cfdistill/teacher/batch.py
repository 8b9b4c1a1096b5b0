"""Answers in files: caches as JSON Lines, and requests and results of the Batch API, in OpenAI's format."""

import json
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from cfdistill.errors import TeacherError, first_fault
from cfdistill.files import write_text, writing
from cfdistill.schema import jsonl_lines
from cfdistill.teacher.cache import Answer, Cache
from cfdistill.teacher.client import Teacher
from cfdistill.teacher.outcomes import KEEP, STOP, outcome
from cfdistill.teacher.prompts import Prompt

SCHEMA_VERSION = 1  # of the lines of a cache's file
MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000  # of one file, as OpenAI allows
ROWS = TypeAdapter(Answer, config=ConfigDict(strict=True))
T = TypeVar("T")


def export_cache(cache: Cache, target: Path) -> int:
    """Write all answers in the order of keys, so that equal caches give equal files; returns how many."""
    rows = [{"schema_version": SCHEMA_VERSION, **answer._asdict()} for answer in cache.answers()]
    with writing(target):
        write_text(target, "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows))
    return len(rows)


def import_cache(source: Path, cache: Cache) -> Counter[str]:
    """Add an exported file's answers, all or, where a line is none, nothing; counts as `Cache.put_all`."""
    return cache.put_all(_read(source, _read_answer, "answers of `cfdistill teacher export-cache`"))


def write_requests(
    teacher: Teacher, wanted: Mapping[str, Prompt], target: Path, max_requests: int = 0, max_tokens: int = 0
) -> tuple[Counter[str], int]:
    """Write as many requests as one file may hold; returns their numbers by task, and estimated tokens."""
    backend, longest = teacher.params.teacher, teacher.params.teacher_max_tokens
    if backend != "live":
        raise TeacherError(f"a batch needs teacher: live, not {backend}; set it or add -p teacher live")
    text, total = "", 0  # ASCII: a character is a byte
    written: Counter[str] = Counter()
    for key, prompt in wanted.items():
        request = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions"}
        line = json.dumps(request | {"body": prompt.request(teacher.model, longest)}) + "\n"
        tokens = sum(prompt.estimate(longest))
        full = written.total() == min(max_requests or MAX_REQUESTS, MAX_REQUESTS)
        if full or len(text) + len(line) > MAX_BYTES or 0 < max_tokens < total + tokens:
            break
        text, total = text + line, total + tokens
        written[prompt.task] += 1
    with writing(target):
        write_text(target, text)
    return written, total


def import_results(teacher: Teacher, missing: Mapping[str, Prompt], source: Path) -> tuple[Counter[str], str]:
    """Store a result file's answers, all or none; return their numbers by outcome, and the first failure."""
    rows = list(_read(source, _read_result, "results of a batch"))
    stored = teacher.cache.get(row["custom_id"] for row in rows)
    counts: Counter[str] = Counter(new=0, known=0, failed=0, unknown=0)
    answers: list[Answer] = []
    failure, asked = "", (teacher.base_url, teacher.model, teacher.params.teacher_max_tokens)
    for row in rows:
        key, response, error = row["custom_id"], row.get("response") or {}, row.get("error")
        if key in stored or key not in missing:
            counts["known" if key in stored else "unknown"] += 1
            continue
        status = None if error else response.get("status_code")
        found = outcome(status if isinstance(status, int) else 400, json.dumps(error or response.get("body")))
        if found.act == KEEP:
            answers.append(Answer.to(missing[key], found.stored, *asked)._replace(batched=1))
        else:
            counts["failed"] += 1
            advice = f"; {found.detail}" if found.act == STOP and found.detail else ""
            failure = failure or f"{f'HTTP {status}: ' if status else ''}{found.told}{advice}"
    put = teacher.cache.put_all(answers)
    counts.update(new=put["new"], known=put["known"] + put["conflicting"])
    return counts, failure


def _read(source: Path, read: Callable[[Any], T], content: str) -> Iterator[T]:
    """Yield what the lines of a file say; raises TeacherError at one that says nothing."""
    if not source.is_file():
        raise TeacherError(f"{source} is missing; it should hold {content}")
    for number, line in jsonl_lines(source):
        try:
            left = line.decode()
            while left:  # more than one where a file without a last line break was appended to
                value, end = json.JSONDecoder().raw_decode(left)
                yield read(value)
                left = left[end:].lstrip()
        except (ValueError, RecursionError) as error:
            reason = first_fault(error) if isinstance(error, ValidationError) else error
            told = f"{source}, line {number}: {reason}; it should hold {content}; nothing was imported"
            raise TeacherError(f"{told}, so mend or delete the line and import again") from error


def _read_result(row: Any) -> dict[str, Any]:
    named = isinstance(row, dict) and isinstance(row.get("custom_id"), str)
    if named and {"response", "error"} & row.keys() and isinstance(row.get("response"), dict | None):
        return dict(row)
    raise ValueError("no custom_id with a response")


def _read_answer(row: Any) -> Answer:
    if not isinstance(row, dict) or row.pop("schema_version", None) != SCHEMA_VERSION:
        raise ValueError(f"needs schema_version {SCHEMA_VERSION} (update cfdistill if the file's is newer)")
    answer = ROWS.validate_json(json.dumps(row))  # as JSON, which half a character is no part of
    _ = answer.text  # raises when the response is no chat completion
    return answer
