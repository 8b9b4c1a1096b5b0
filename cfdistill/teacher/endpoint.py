"""Asking an OpenAI-compatible endpoint: many requests at once, paced, capped, and stopped without loss.

The SDK retries lost connections and HTTP 408, 409, 429 and 5xx with its own backoff, and waits as long as
`Retry-After` says. All that is added here is around it: every attempt, first or repeated, takes its turn at
the limits and one of the `teacher_concurrency` slots; a prompt that waits for its next attempt takes none.
"""

from __future__ import annotations

import asyncio
import os
import random
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import httpx2
from openai import APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError

from cfdistill.errors import TeacherError
from cfdistill.params import Params
from cfdistill.teacher import offline
from cfdistill.teacher.cache import Answer, Cache
from cfdistill.teacher.client import Usage
from cfdistill.teacher.limits import Budget, Pace, estimate_tokens
from cfdistill.teacher.prompts import Prompt

Handler = Callable[[httpx2.Request], Any]
RETRIES = 10  # of one request: by the SDK, or by us when the answer is no chat completion
FIRST_RETRIES = 4  # before anything was answered: the address may be wrong, so say so soon
PROMPTS_PER_SLOT = 8  # most prompts begun, for each slot: the others wait for their next attempt
LONGEST_REST_S = 120.0  # as the SDK's
THROTTLED = 0.5  # share of attempts refused for the rate from which on a refused slot rests, too
SCHEMA_WORDS = ("response_format", "json_schema", "structured output")  # in a refusal of the schema


class Endpoint:
    """One model at one address, and what this process has learnt about it.

    Args:
        params: concurrency, limits, timeout.
        base_url: address of the endpoint.
        model: name of the model.
        cache: where answers are stored.
        budget: what they may cost.
        usage: is kept up to date.
        handler: answers requests in process instead of the endpoint.
    """

    def __init__(
        self,
        params: Params,
        base_url: str,
        model: str,
        cache: Cache,
        budget: Budget,
        usage: Usage,
        handler: Handler | None = None,
    ) -> None:
        self.params, self.base_url, self.model = params, base_url, model
        self.cache, self.budget, self.usage, self.handler = cache, budget, usage, handler
        self.pace = Pace(params.teacher_requests_per_minute, params.teacher_tokens_per_minute)
        self.answered = False  # anything, yet
        self.takes_schema = True  # as far as is known
        self._throttled = 0.0  # share of the latest attempts that were refused for their rate

    def fetch(self, missing: Mapping[str, Prompt]) -> None:
        """Ask for answers, by cache key, and commit them.

        Works inside a running event loop. Ctrl-C, like an error, begins nothing new and lets the
        requests under way finish, so that what was paid for is kept.

        Raises:
            TeacherError: an answer cannot be had.
        """
        stop = threading.Event()
        with ThreadPoolExecutor(max_workers=1) as thread:  # an event loop and thread of their own
            try:
                thread.submit(asyncio.run, _Round(self, missing, stop).run()).result()
            except OpenAIError as error:  # it may quote the key, so it must not show in a traceback
                raise TeacherError(explain(error, self.base_url, self.model)) from None
            finally:
                stop.set()

    def request(self, prompt: Prompt) -> dict[str, Any]:
        """Return the body to send: as wished, but without a schema that the server has refused."""
        body = prompt.request(self.model, self.params.teacher_max_tokens)
        if not self.takes_schema and body.pop("response_format", None):
            self.usage.without_schema += 1
        return body

    def connect(self, attempt: Attempt) -> AsyncOpenAI:
        """Return a client whose every attempt, first or repeated, goes through `attempt`."""
        key = api_key() if self.params.teacher == "live" else "none"
        transport = {"transport": httpx2.MockTransport(self.handler)} if self.handler else {}
        return AsyncOpenAI(
            api_key=key,
            base_url=self.base_url,
            timeout=self.params.teacher_timeout_s,
            http_client=_HttpClient(attempt, **transport),
        )

    def rest_s(self, response: httpx2.Response) -> float:
        """Return for how long the slot of an answered attempt has to rest, in seconds.

        While the server turns most attempts away for their rate, fewer prompts must compete, or each one
        would use up its retries; so a slot rests at least as long as its prompt waits, and not all slots
        equally long, or their prompts would come back together.
        """
        refused = response.status_code == 429
        self._throttled = 0.9 * self._throttled + 0.1 * refused
        if not refused or self._throttled < THROTTLED:
            return 0.0
        try:
            asked_s = float(response.headers.get("retry-after", 1))
        except ValueError:  # a date
            asked_s = 1.0
        return (asked_s if 0 < asked_s <= LONGEST_REST_S else 1.0) * random.uniform(1, 2)


def explain(error: OpenAIError, base_url: str, model: str) -> str:
    """Return one sentence without the key, which an error of the SDK may quote."""
    status = getattr(error, "status_code", None)
    if base_url == offline.BASE_URL and status == 422:
        return "the offline teacher knows only the weasel testbed; use teacher: live or recorded"
    if status is None:
        return (
            f"the teacher at {base_url} cannot be reached ({type(error).__name__}); check teacher_base_url "
            "and the network"
        )
    if status in (401, 403):
        return f"the teacher at {base_url} refused the key in OPENAI_API_KEY (HTTP {status})"
    told = " ".join(str(error).split()).replace(os.environ.get("OPENAI_API_KEY", "").strip() or "\0", "…")
    advice = "; lower teacher_requests_per_minute or teacher_concurrency" if status == 429 else ""
    return f"the teacher at {base_url}, model {model}, failed: {told[:300]}{advice}"


def api_key() -> str:
    """Return the key, which the environment alone holds.

    Raises:
        TeacherError: there is none that could be sent.
    """
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if not key or not key.isascii() or not key.isprintable():
        raise TeacherError(
            "teacher: live needs a key in the environment variable OPENAI_API_KEY (any word will do "
            "for a server that asks for none); teacher: offline needs no key"
        )
    return key


Attempt = Callable[[Callable[[], Awaitable[httpx2.Response]]], Awaitable[httpx2.Response]]


class _HttpClient(DefaultAsyncHttpxClient):
    """The SDK's own HTTP client, with every attempt and its whole response inside `attempt`."""

    def __init__(self, attempt: Attempt, **options: Any) -> None:
        super().__init__(**options)
        self._attempt = attempt

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        return await self._attempt(partial(super().send, request, **options))


@dataclass
class _Call:
    """A prompt that has been begun."""

    tokens: tuple[int, int]  # of prompt and answer, estimated
    reserved_usd: float = 0.0
    holds_slot: bool = False
    latency_s: float = 0.0  # of the latest attempt
    under_way: bool = False  # sent, and neither failed nor answered and stored


class _Round:
    """The prompts of one `fetch`, each in a task, in one event loop."""

    def __init__(self, endpoint: Endpoint, missing: Mapping[str, Prompt], stop: threading.Event) -> None:
        self._endpoint, self._missing, self._stop = endpoint, missing, stop
        self._todo = iter(missing.items())
        self._slots = asyncio.Semaphore(endpoint.params.teacher_concurrency)
        self._calls: dict[asyncio.Task[Any], _Call] = {}
        self._store = _Store(endpoint.cache)
        self._failures: list[OpenAIError | TeacherError] = []

    async def run(self) -> None:
        """Ask until all is answered, something fails, or `stop` is set."""
        begun = min(len(self._missing), self._endpoint.params.teacher_concurrency * PROMPTS_PER_SLOT)
        watcher = asyncio.create_task(self._watch())
        try:
            async with self._endpoint.connect(self._attempt) as client:
                if not self._endpoint.answered:  # one goes ahead, and finds out what the server takes
                    await self._work_in_tasks(client, islice(self._todo, 1), 1)
                await self._work_in_tasks(client, self._todo, begun)
        finally:
            self._stop.set()
            await watcher
        if self._failures:
            raise self._failures[0]

    async def _watch(self) -> None:
        """Once asked to stop, end what waits for a slot, its turn or another attempt."""
        await asyncio.to_thread(self._stop.wait)
        for task, call in self._calls.items():
            if not call.under_way:
                task.cancel()

    async def _work_in_tasks(
        self, client: AsyncOpenAI, todo: Iterator[tuple[str, Prompt]], count: int
    ) -> None:
        tasks = [asyncio.create_task(self._work(client, todo)) for _ in range(count)]
        for ended in await asyncio.gather(*tasks, return_exceptions=True):
            if isinstance(ended, BaseException) and not isinstance(ended, asyncio.CancelledError):
                raise ended

    async def _work(self, client: AsyncOpenAI, todo: Iterator[tuple[str, Prompt]]) -> None:
        for key, prompt in todo:
            try:
                await self._answer(client, key, prompt)
            except (OpenAIError, TeacherError) as error:
                self._failures.append(error)
                self._stop.set()
            if self._stop.is_set():
                return

    async def _answer(self, client: AsyncOpenAI, key: str, prompt: Prompt) -> None:
        """Ask until there is a chat completion, and commit it."""
        endpoint = self._endpoint
        retries = RETRIES if endpoint.answered else FIRST_RETRIES
        for _ in range(1 + retries):
            if self._stop.is_set():
                return
            body = endpoint.request(prompt)
            call = self._calls[_this_task()] = _Call(
                estimate_tokens(prompt, endpoint.params.teacher_max_tokens)
            )
            try:
                # Not chat.completions.create: converting the messages would take most of the time here.
                response = await client.post(
                    "/chat/completions",
                    body=body,
                    cast_to=httpx2.Response,
                    options={"max_retries": retries},
                )
                answer = self._read(response, key, prompt, call.latency_s)
                if answer:
                    await self._store.keep(answer)
                    self._settle(call, answer.prompt_tokens, answer.completion_tokens)
                    endpoint.answered = True
                    return
                endpoint.usage.broken += 1
                self._settle(call, *call.tokens)  # it may well have been billed
            except APIStatusError as error:
                if "response_format" not in body or not _refuses_schema(error):
                    raise
                endpoint.takes_schema = False
            finally:
                self._end_attempt(call)
        raise TeacherError(
            f"{endpoint.base_url} answered {1 + retries} times, but not with a chat completion; check "
            "teacher_base_url, which usually ends in /v1"
        )

    def _read(self, response: httpx2.Response, key: str, prompt: Prompt, latency_s: float) -> Answer | None:
        """Return the answer, or None when the body is no chat completion, whatever its content type."""
        try:
            return Answer.read(
                response.content.decode("utf-8", "replace"),
                key=key,
                task=prompt.task,
                base_url=self._endpoint.base_url,
                model=self._endpoint.model,
                latency_s=latency_s,
            )
        except ValueError:
            return None

    async def _attempt(self, send: Callable[[], Awaitable[httpx2.Response]]) -> httpx2.Response:
        """Send one request of the current task's call; a successful one keeps its slot until it is stored."""
        endpoint, call = self._endpoint, self._calls[_this_task()]
        await self._slots.acquire()
        call.holds_slot, rest_s, succeeded = True, 0.0, False
        try:
            await endpoint.pace.wait(sum(call.tokens))
            if self._stop.is_set():  # the watcher has not come round to this task
                raise asyncio.CancelledError
            prompt_tokens, usual = call.tokens
            longest = endpoint.params.teacher_max_tokens or usual
            call.reserved_usd = endpoint.budget.reserve(prompt_tokens, longest)
            call.under_way = True
            endpoint.usage.requests += 1
            began = time.perf_counter()
            response = await send()
            call.latency_s = round(time.perf_counter() - began, 4)
            rest_s, succeeded = endpoint.rest_s(response), response.is_success
            return response
        finally:
            if not succeeded:
                endpoint.budget.settle(call.reserved_usd, 0, 0)
                call.reserved_usd = 0.0
                self._end_attempt(call, rest_s)
                if self._stop.is_set():
                    _this_task().cancel()  # else the SDK would wait for the next attempt

    def _settle(self, call: _Call, prompt_tokens: int, completion_tokens: int) -> None:
        self._endpoint.pace.correct(prompt_tokens + completion_tokens - sum(call.tokens))
        self._endpoint.budget.settle(call.reserved_usd, prompt_tokens, completion_tokens)
        call.reserved_usd = 0.0

    def _end_attempt(self, call: _Call, rest_s: float = 0.0) -> None:
        """Give back the slot, after a rest."""
        call.under_way = False
        if call.holds_slot:
            call.holds_slot = False
            asyncio.get_running_loop().call_later(rest_s, self._slots.release)


class _Store:
    """Commits answers together with those that come in while the disk is busy with others."""

    def __init__(self, cache: Cache) -> None:
        self._cache = cache
        self._fresh: list[Answer] = []
        self._lock = asyncio.Lock()

    async def keep(self, answer: Answer) -> None:
        """Return when the answer is committed.

        Raises:
            TeacherError: the cache cannot be written.
        """
        self._fresh.append(answer)
        async with self._lock:
            if not self._fresh:  # somebody else has committed it
                return
            batch, self._fresh = self._fresh, []
            try:
                await asyncio.to_thread(self._cache.put_all, batch)
            except TeacherError:
                self._fresh = batch + self._fresh  # whose turn is next shall fail, too
                raise


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("called outside of a task")
    return task


def _refuses_schema(error: APIStatusError) -> bool:
    """Tell whether a server turned a request down because of its `response_format`."""
    told = error.response.text.lower()
    return error.status_code in (400, 422, 501) and any(word in told for word in SCHEMA_WORDS)
