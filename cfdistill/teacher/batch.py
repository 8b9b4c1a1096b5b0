"""The Batch API: a study's missing answers bought together, at a lower price, within a day each time.

What to ask next depends on what was answered: mask → fill → votes → views. So a round exports every
request that can be made by now, has them answered, and imports the results; some rounds later nothing
is missing. Requests and results are files in OpenAI's format, so any other engine can answer them too.
`submit`, `status` and `fetch` let OpenAI's endpoint do it.
"""

from __future__ import annotations

import json
import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from datetime import UTC, datetime
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Final

from filelock import FileLock, Timeout
from pydantic import BaseModel

from cfdistill import counterfactual, data, rationale, runs
from cfdistill.errors import TeacherError
from cfdistill.params import Params
from cfdistill.schema import Counterfactual
from cfdistill.teacher import prices
from cfdistill.teacher.answers import NotYet
from cfdistill.teacher.cache import Answer
from cfdistill.teacher.client import Teacher
from cfdistill.teacher.limits import estimate_tokens
from cfdistill.teacher.prompts import Prompt
from cfdistill.teacher.spending import Meter

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


class Collector(Teacher):
    """A teacher that never asks: it notes what is missing, so that the stages' own steps say what to ask.

    Raises:
        TeacherError: the parameters do not name a live teacher, whose answers a batch can buy.
    """

    def __init__(self, params: Params) -> None:
        if params.teacher != "live":
            raise TeacherError(
                f"a batch needs teacher: live, not {params.teacher}; set it or add -p teacher live"
            )
        super().__init__(params)
        self.missing: dict[str, Prompt] = {}

    def ask(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return the answers that are there, and `NotYet` in place of the others."""
        keys = [self.key(prompt) for prompt in prompts]
        answers = self.cache.get(keys)
        self.missing |= {k: prompt for k, prompt in zip(keys, prompts, strict=True) if k not in answers}
        return [answers[key].text if key in answers else NotYet() for key in keys]

    def collect(self) -> dict[str, Prompt]:
        """Return all that can be asked by now for the stages `counterfactuals` and `rationales`, by key.

        A candidate waits where an answer of its own is missing, the others go on without it. Should it
        turn out to repeat one of those later, that one's answers are paid for and not used.

        Raises:
            StageError: the questions of `train_dataset` are not there yet.
        """
        params = self._params
        if not params.has_counterfactuals:  # published rationales: no teacher is asked
            return {}
        runs.require(data.stage(params.train_dataset, params))
        for variant in params.variants():
            self._collect(variant)
        return self.missing

    def _collect(self, params: Params) -> None:
        questions = data.questions(params.train_dataset, "train", params)
        made = runs.stage("counterfactuals", params)
        if made.is_complete():
            kept = made.read("counterfactuals.train.jsonl", Counterfactual)
            questions += [c.question for c in kept]
        else:
            questions += [
                c.question() for c in counterfactual.make(params, self, Meter(self)) if not c.reason
            ]
        if not runs.stage("rationales", params).is_complete():
            rationale.views(questions, self)

    def request_line(self, key: str, prompt: Prompt) -> bytes:
        """Return a request in the Batch API's format."""
        line = {"custom_id": key, "method": "POST", "url": URL, "body": self.request(prompt)}
        return json.dumps(line).encode() + b"\n"

    def answer(self, row: Row) -> Answer:
        """Return the answer in a result row to a missing key.

        Raises:
            ValueError: the request failed; says why.
        """
        if row.response is None or row.response.status_code != 200 or row.error:
            raise ValueError(row.failure())
        return Answer.read(
            json.dumps(row.response.body),  # in ASCII: a body may hold half an emoji
            key=row.custom_id,
            task=self.missing[row.custom_id].task,
            base_url=self.base_url,
            model=self.model,
            batched=1,
        )

    def check_budget(self, count: int) -> None:
        """Raise BudgetReached when the first `count` missing answers might pass `teacher_budget_usd`."""
        price = prices.find(self.model, self._params)
        share = 1 - price.batch_discount if price else 1.0
        for prompt in islice(self.missing.values(), count):
            prompt_tokens, usual = estimate_tokens(prompt)
            longest = self._params.teacher_max_tokens or usual
            self._budget.reserve(prompt_tokens * share, longest * share)

    @contextmanager
    def connection(self) -> Iterator[OpenAI]:
        """Yield the SDK's client, and turn its errors into one sentence."""
        from openai import OpenAI, OpenAIError

        from cfdistill.teacher.endpoint import api_key, explain

        try:
            with OpenAI(
                api_key=api_key(), base_url=self.base_url, timeout=TIMEOUT_S, max_retries=RETRIES
            ) as client:
                yield client
        except OpenAIError as error:
            # The SDK's error may quote the key, so it must not show in a traceback.
            raise TeacherError(explain(error, self.base_url, self.model)) from None


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
    with Collector(params) as teacher:
        written = _write_requests(teacher, teacher.collect(), target)
        return written, len(teacher.missing) - written.total()


def import_results(params: Params, source: Path) -> Imported:
    """Store the answers of a result file.

    A failed row stays missing, and so is in the next export. A row that these parameters did not ask
    for is unknown and left out.

    Raises:
        TeacherError: the file is missing or a line is no result row; the cache is as it was.
    """
    with Collector(params) as teacher:
        teacher.collect()
        return _import(teacher, source)


def _write_requests(teacher: Collector, wanted: dict[str, Prompt], target: Path) -> Counter[str]:
    written: Counter[str] = Counter()
    size, unfinished = 0, target.with_name(f"{target.name}.partial")
    with runs.writing(target):
        with unfinished.open("wb") as out:
            for key, prompt in wanted.items():
                line = teacher.request_line(key, prompt)
                size += len(line)
                if written.total() == MAX_REQUESTS or size > MAX_BYTES:
                    break
                out.write(line)
                written[prompt.task] += 1
        os.replace(unfinished, target)
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
                answers.append(teacher.answer(row))
            except ValueError as error:
                result.counts["failed"] += 1
                result.failure = result.failure or str(error)
    put = teacher.cache.put_all(answers)
    result.counts.update(new=put["new"], known=put["known"] + put["conflicting"])
    return result


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
    with Collector(params) as teacher, _turn(teacher):
        submission, batch = _load(teacher), None
        if submission and submission.batch_id:
            return submission
        with teacher.connection() as client:
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
    with Collector(params) as teacher, teacher.connection() as client:
        return client.batches.retrieve(_under_way(teacher).batch_id)


def fetch(params: Params) -> tuple[Batch, Imported]:
    """Import the results of the batch under way and forget it; the raw results stay beside the cache.

    Raises:
        TeacherError: there is none, it has not ended, or the endpoint failed.
    """
    with Collector(params) as teacher, _turn(teacher):
        submission = _under_way(teacher)
        results = _beside(teacher, re.sub(r"[^\w-]", "_", submission.batch_id) + ".jsonl")
        with teacher.connection() as client:
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
    teacher.check_budget(written)
    with requests.open("rb") as file:
        uploaded = client.files.create(file=file, purpose="batch")
    began = datetime.now(UTC).isoformat(timespec="seconds")
    return _save(teacher, Submission(teacher.base_url, written, began, uploaded.id))


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
    unfinished = file.with_name(f"{file.name}.partial")
    with runs.writing(file):
        with unfinished.open("w", encoding="utf-8") as out:
            json.dump(asdict(submission), out, indent=1)
            out.flush()
            os.fsync(out.fileno())
        os.replace(unfinished, file)
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
