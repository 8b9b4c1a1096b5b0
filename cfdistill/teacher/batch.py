"""The Batch API: a study's missing answers bought together, at a lower price, within a day each time.

What to ask next depends on what was answered: mask → fill → votes → views. So a round exports every
request that can be made by now, has them answered, and imports the results; some rounds later nothing
is missing. Requests and results are files in OpenAI's format, so any other engine can answer them too.
`submit`, `status` and `fetch` let OpenAI's endpoint do it.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from filelock import FileLock, Timeout
from pydantic import BaseModel

from cfdistill import runs
from cfdistill.errors import TeacherError
from cfdistill.params import Params
from cfdistill.teacher import prices
from cfdistill.teacher.cache import Answer
from cfdistill.teacher.limits import estimate_tokens
from cfdistill.teacher.missing import Collector
from cfdistill.teacher.prompts import Prompt

if TYPE_CHECKING:
    from openai import OpenAI
    from openai.types import Batch

URL: Final = "/v1/chat/completions"
MAX_REQUESTS, MAX_BYTES = 50_000, 200_000_000  # of one file, as OpenAI allows
ENDED = ("completed", "failed", "expired", "cancelled")
TIMEOUT_S = 600.0  # longest wait for one call; files are large
RETRIES = 4  # of one call, by the SDK with its own backoff; starting a batch is tried once


class Response(BaseModel):
    """What the endpoint returned to one request."""

    status_code: int
    body: Any = None


class Row(BaseModel):
    """One line of a result file; further fields are left alone."""

    custom_id: str
    response: Response | None = None
    error: Any = None

    def failure(self) -> str:
        """Return why the request failed, as far as the row tells."""
        body = self.response.body if self.response else None
        told = self.error or (body.get("error") if isinstance(body, dict) else body)
        if isinstance(told, dict):
            told = told.get("message") or told.get("code")
        said = " ".join(str(told or "no reason given").split())[:200]
        return f"HTTP {self.response.status_code}: {said}" if self.response else said


@dataclass
class Imported:
    """What became of the rows of a result file."""

    counts: Counter[str] = field(default_factory=lambda: Counter(new=0, known=0, failed=0, unknown=0))
    failure: str = ""  # of the first row that failed


def export(params: Params, target: Path) -> tuple[Counter[str], int]:
    """Write the requests that can be made by now, as many as one file may hold.

    Returns:
        How many were written, by task, and how many are left for the next file.
    """
    with _collector(params) as teacher:
        written = _write_requests(teacher, teacher.collect(), target)
        return written, len(teacher.missing) - written.total()


def import_results(params: Params, source: Path) -> Imported:
    """Store the answers of a result file.

    A failed row stays missing, and so is in the next export. A row that these parameters did not ask
    for is unknown and left out.

    Raises:
        TeacherError: the file is missing or a line is no result row; the cache is as it was.
    """
    with _collector(params) as teacher:
        teacher.collect()
        return _import(teacher, source)


def _collector(params: Params) -> Collector:
    if params.teacher != "live":
        raise TeacherError(
            f"a batch needs teacher: live, not {params.teacher}; set it or add -p teacher live"
        )
    return Collector(params)


def _write_requests(teacher: Collector, wanted: dict[str, Prompt], target: Path) -> Counter[str]:
    lines: list[str] = []
    written: Counter[str] = Counter()
    size = 0
    for key, prompt in wanted.items():
        request = {"custom_id": key, "method": "POST", "url": URL, "body": teacher.request(prompt)}
        lines.append(json.dumps(request) + "\n")  # in ASCII, so that a character is a byte
        size += len(lines[-1])
        if len(lines) > MAX_REQUESTS or size > MAX_BYTES:
            lines.pop()
            break
        written[prompt.task] += 1
    with runs.writing(target):
        runs.write_text(target, "".join(lines))
    return written


def _import(teacher: Collector, source: Path) -> Imported:
    result, answers, rows = Imported(), [], _read_rows(source)
    stored = teacher.cache.get(row.custom_id for row in rows)
    for row in rows:
        if row.custom_id in stored:
            result.counts["known"] += 1
        elif row.custom_id not in teacher.missing:
            result.counts["unknown"] += 1
        else:
            try:
                answers.append(_answer(teacher, row))
            except ValueError as error:
                result.counts["failed"] += 1
                result.failure = result.failure or str(error)
    put = teacher.cache.put_all(answers)
    result.counts.update(new=put["new"], known=put["known"] + put["conflicting"])
    return result


def _answer(teacher: Collector, row: Row) -> Answer:
    """Return the answer in a result row to a missing key; raises ValueError with the reason of a failure."""
    if row.response is None or row.response.status_code != 200 or row.error:
        raise ValueError(row.failure())
    body = json.dumps(row.response.body)  # in ASCII: it may hold half an emoji
    return teacher.read(body, row.custom_id, teacher.missing[row.custom_id].task, batched=1)


def _read_rows(source: Path) -> list[Row]:
    if not source.is_file():
        raise TeacherError(f"{source} is missing; it should hold the results of a batch")
    rows: list[Row] = []
    with source.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                rows.append(Row.model_validate(json.loads(line)))
            except (ValueError, RecursionError) as error:
                raise TeacherError(
                    f"{source}, line {number}: no result row of the Batch API; nothing was imported, so mend "
                    "or delete the line and import again"
                ) from error
    return rows


# the endpoint


@dataclass(frozen=True)
class Submission:
    """The one batch under way for a cache, remembered in a file beside it until it is fetched.

    The file is written between upload and start. So a second `submit`, or one after a process was killed
    at any moment, goes on with the same batch and never pays for another.
    """

    base_url: str
    requests: int
    began: str  # ISO 8601, UTC
    file_id: str  # of the uploaded requests
    batch_id: str = ""  # empty: it is unknown whether the batch was started


def submit(params: Params) -> Submission:
    """Send all that can be asked by now to the endpoint as one batch, or go on with the one under way.

    Raises:
        TeacherError: nothing is missing, the budget is reached, the endpoint failed, or another process
            is submitting.
    """
    with _collector(params) as teacher, _turn(teacher):
        submission, batch = _load(teacher), None
        if submission and submission.batch_id:
            return submission
        with _connection(teacher) as client:
            if submission:
                started = (b for b in client.batches.list() if b.input_file_id == submission.file_id)
                batch = next(started, None)
            if submission is None or batch is None:
                submission = _upload(teacher, client)
                # No retry: a request that seems to fail may have been accepted.
                batch = client.with_options(max_retries=0).batches.create(
                    input_file_id=submission.file_id, endpoint=URL, completion_window="24h"
                )
        return _save(teacher, replace(submission, batch_id=batch.id))


def status(params: Params) -> Batch:
    """Return what the endpoint says of the batch under way.

    Raises:
        TeacherError: there is none, or the endpoint failed.
    """
    with _collector(params) as teacher, _connection(teacher) as client:
        return client.batches.retrieve(_under_way(teacher).batch_id)


def fetch(params: Params) -> tuple[Batch, Imported]:
    """Import the results of the batch under way and forget it; the raw results stay beside the cache.

    Raises:
        TeacherError: there is none, it has not ended, or the endpoint failed.
    """
    with _collector(params) as teacher, _turn(teacher):
        submission = _under_way(teacher)
        results = _beside(teacher, re.sub(r"[^\w-]", "_", submission.batch_id) + ".jsonl")
        with _connection(teacher) as client:
            batch = client.batches.retrieve(submission.batch_id)
            if batch.status not in ENDED:
                raise TeacherError(f"{describe(batch)}; fetch it later")
            with runs.writing(results), results.open("wb") as out:
                for file_id in filter(None, (batch.output_file_id, batch.error_file_id)):
                    with client.files.with_streaming_response.content(file_id) as content:
                        out.writelines(content.iter_bytes())
        teacher.collect()
        imported = _import(teacher, results)
        _beside(teacher, "json").unlink()
        return batch, imported


def describe(batch: Batch) -> str:
    """Return the state of a batch in words."""
    counts = batch.request_counts
    done = f", {counts.completed} of {counts.total} answered, {counts.failed} failed" if counts else ""
    told = "; ".join(str(error.message) for error in (batch.errors and batch.errors.data) or [])
    return f"batch {batch.id} is {batch.status}{done}{f' ({told[:300]})' if told else ''}"


def _upload(teacher: Collector, client: OpenAI) -> Submission:
    """Write the requests of a new batch beside the cache, and send the file."""
    requests = _beside(teacher, "requests.jsonl")
    written = _write_requests(teacher, teacher.collect(), requests).total()
    if not written:
        raise TeacherError("no answer is missing, so there is nothing to submit; run the stages")
    _check_budget(teacher, written)
    with requests.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    began = datetime.now(UTC).isoformat(timespec="seconds")
    return _save(teacher, Submission(teacher.base_url, written, began, uploaded.id))


def _check_budget(teacher: Collector, count: int) -> None:
    """Raise BudgetReached when the first `count` missing answers might pass `teacher_budget_usd`."""
    price, limit = prices.find(teacher.model, teacher.params), teacher.params.teacher_max_tokens
    share = 1 - price.batch_discount if price else 1.0
    for prompt in islice(teacher.missing.values(), count):
        prompt_tokens, usual = estimate_tokens(prompt)
        teacher.budget.reserve(prompt_tokens * share, (limit or usual) * share)


@contextmanager
def _connection(teacher: Collector) -> Iterator[OpenAI]:
    """Yield the SDK's client, and turn its errors into one sentence."""
    from openai import OpenAI, OpenAIError

    from cfdistill.teacher.endpoint import api_key, explain

    try:
        with OpenAI(
            api_key=api_key(), base_url=teacher.base_url, timeout=TIMEOUT_S, max_retries=RETRIES
        ) as client:
            yield client
    except OpenAIError as error:
        # The SDK's error may quote the key, so it must not show in a traceback.
        raise TeacherError(explain(error, teacher.base_url, teacher.model)) from None


def _under_way(teacher: Collector) -> Submission:
    submission = _load(teacher)
    if submission is None or not submission.batch_id:
        raise TeacherError("no batch is under way; send one with `cfdistill teacher batch-submit`")
    return submission


def _load(teacher: Collector) -> Submission | None:
    file = _beside(teacher, "json")
    if not file.is_file():
        return None
    try:
        submission = Submission(**json.loads(file.read_text(encoding="utf-8")))
    except (ValueError, TypeError) as error:
        raise TeacherError(
            f"{file} is damaged; put back a copy, or look at the endpoint for a batch under way and, when "
            "there is none, delete the file"
        ) from error
    if submission.base_url != teacher.base_url:
        raise TeacherError(
            f"a batch of this cache is under way at {submission.base_url}, not {teacher.base_url}; set "
            f"teacher_base_url, or another teacher_cache, or delete {file} to give the batch up"
        )
    return submission


def _save(teacher: Collector, submission: Submission) -> Submission:
    file = _beside(teacher, "json")
    with runs.writing(file):
        runs.write_text(file, json.dumps(asdict(submission), indent=1))
    return submission


def _beside(teacher: Collector, name: str) -> Path:
    return teacher.cache.path.with_name(f"{teacher.cache.path.name}.batch.{name}")


@contextmanager
def _turn(teacher: Collector) -> Iterator[None]:
    """Let one process at a time submit or fetch."""
    try:
        with FileLock(_beside(teacher, "lock"), timeout=0):
            yield
    except Timeout as error:
        raise TeacherError(
            "another process is submitting or fetching this cache's batch; wait for it"
        ) from error
