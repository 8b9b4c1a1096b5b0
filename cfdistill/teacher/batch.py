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


def write_requests(teacher: Teacher, wanted: Mapping[str, Prompt], target: Path) -> Counter[str]:
    """Write the requests for answers, by key, as many as one file may hold, and count them by task."""
    backend = teacher.params.teacher
    if backend != "live":
        raise TeacherError(f"a batch needs teacher: live, not {backend}; set it or add -p teacher live")
    text = ""  # ASCII: a character is a byte
    written: Counter[str] = Counter()
    for key, prompt in wanted.items():
        request = {"custom_id": key, "method": "POST", "url": "/v1/chat/completions"}
        line = json.dumps(request | {"body": teacher.request(prompt)}) + "\n"
        if written.total() == MAX_REQUESTS or len(text) + len(line) > MAX_BYTES:
            break
        text += line
        written[prompt.task] += 1
    with writing(target):
        write_text(target, text)
    return written


def import_results(teacher: Teacher, missing: Mapping[str, Prompt], source: Path) -> tuple[Counter[str], str]:
    """Store a result file's answers, all or none; return their numbers by outcome, and the first failure."""
    rows = list(_read(source, _read_result, "results of a batch"))
    stored = teacher.cache.get(row["custom_id"] for row in rows)
    counts: Counter[str] = Counter(new=0, known=0, failed=0, unknown=0)
    answers: list[Answer] = []
    failure = ""
    for row in rows:
        key = row["custom_id"]
        try:
            if key in missing and key not in stored:
                asked = (key, missing[key].task, teacher.base_url, teacher.model)
                answers.append(Answer.read(_completion(row), *asked)._replace(batched=1))
            else:
                counts["known" if key in stored else "unknown"] += 1
        except ValueError as error:
            counts["failed"] += 1
            failure = failure or str(error)
    put = teacher.cache.put_all(answers)
    counts.update(new=put["new"], known=put["known"] + put["conflicting"])
    return counts, failure


def _completion(row: dict[str, Any]) -> str:
    """Return the body of a result's response; raises ValueError with the reason when the request failed."""
    status, body = ((row.get("response") or {}).get(name) for name in ("status_code", "body"))
    if status == 200 and not row.get("error"):
        return json.dumps(body)  # in ASCII: it may hold half an emoji
    told = row.get("error") or (body.get("error") if isinstance(body, dict) else body)
    if isinstance(told, dict):
        told = told.get("message") or told.get("code")
    said = " ".join(str(told or "no reason given").split())[:200]
    raise ValueError(f"HTTP {status}: {said}" if status else said)


def _read(source: Path, read: Callable[[Any], T], content: str) -> Iterator[T]:
    """Yield what the lines of a file say; raises TeacherError at one that says nothing."""
    if not source.is_file():
        raise TeacherError(f"{source} is missing; it should hold {content}")
    for number, line in jsonl_lines(source):
        try:
            yield read(json.loads(line))
        except (ValueError, RecursionError) as error:
            reason = first_fault(error) if isinstance(error, ValidationError) else error
            told = f"{source}, line {number}: {reason}; it should hold {content}; nothing was imported"
            raise TeacherError(f"{told}, so mend or delete the line and import again") from error


def _read_result(row: Any) -> dict[str, Any]:
    match row:
        case {"custom_id": str(), "response": dict() | None}:
            return dict(row)
    raise ValueError("no custom_id with a response")


def _read_answer(row: Any) -> Answer:
    if not isinstance(row, dict) or row.pop("schema_version", None) != SCHEMA_VERSION:
        raise ValueError(f"needs schema_version {SCHEMA_VERSION} (update cfdistill if the file's is newer)")
    answer = ROWS.validate_json(json.dumps(row))  # as JSON, which half a character is no part of
    _ = answer.text  # raises when the response is no chat completion
    return answer
