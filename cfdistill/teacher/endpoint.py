"""Asking an OpenAI-compatible endpoint: many requests at once, paced, capped, and stopped without loss.

The SDK retries lost connections and HTTP 408, 409, 429 and 5xx with its own backoff, and waits as long as
`Retry-After` says. `teacher_concurrency` tasks take one prompt after the other through it. All that is
added here is around each attempt, first or repeated: its turn at the limits, and the budget.
"""

from __future__ import annotations

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Coroutine, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import islice
from typing import Any

import httpx2
from openai import APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError

from cfdistill.errors import TeacherError
from cfdistill.teacher import offline
from cfdistill.teacher.cache import Answer, Cache
from cfdistill.teacher.client import Teacher
from cfdistill.teacher.limits import Pace, estimate_tokens
from cfdistill.teacher.prompts import Prompt

Handler = Callable[[httpx2.Request], Any]
Send = Callable[[], Awaitable[httpx2.Response]]
RETRIES = 10  # of one request: by the SDK, or by us when the answer is no chat completion
FIRST_RETRIES = 4  # before anything was answered: the address may be wrong, so say so soon
SCHEMA_WORDS = ("response_format", "json_schema", "structured output")  # in a refusal of the schema


@dataclass
class _Call:
    """A prompt that has been begun."""

    tokens: tuple[int, int]  # of prompt and answer, estimated
    reserved_usd: float = 0.0
    latency_s: float = 0.0  # of the latest attempt
    under_way: bool = False  # sent, and neither failed nor answered and stored


class Endpoint:
    """One model at one address, and what this process has learnt about it.

    Args:
        teacher: whom to ask, within which limits, where to store; its budget and usage are kept up to date.
        handler: answers requests in process instead of the endpoint.
    """

    def __init__(self, teacher: Teacher, handler: Handler | None = None) -> None:
        self.teacher, self.params, self.handler = teacher, teacher.params, handler
        self.pace = Pace(self.params.teacher_requests_per_minute, self.params.teacher_tokens_per_minute)
        self.answered = False  # anything, yet
        self.takes_schema = True  # as far as is known

    def fetch(self, missing: Mapping[str, Prompt]) -> None:
        """Ask for answers, by cache key, and commit them.

        Works inside a running event loop. Ctrl-C, like an error, begins nothing new and lets the
        requests under way finish, so that what was paid for is kept.

        Raises:
            TeacherError: an answer cannot be had.
        """
        self._stop = stop = threading.Event()
        self._calls: dict[asyncio.Task[Any], _Call] = {}
        with ThreadPoolExecutor(max_workers=1) as thread:  # an event loop and thread of their own
            try:
                thread.submit(asyncio.run, self._ask_all(missing)).result()
            except OpenAIError as error:  # it may quote the key, so it must not show in a traceback
                raise TeacherError(explain(error, self.teacher.base_url, self.teacher.model)) from None
            finally:
                stop.set()

    async def _ask_all(self, missing: Mapping[str, Prompt]) -> None:
        """Ask until all is answered, something fails, or the stop is set."""
        todo = iter(missing.items())
        self._store = _Store(self.teacher.cache)
        watcher = asyncio.create_task(self._watch())
        try:
            async with self._connect() as client:
                if not self.answered:  # one goes ahead, and finds out what the server takes
                    await _run(self._work(client, islice(todo, 1)))
                await _run(*(self._work(client, todo) for _ in range(self.params.teacher_concurrency)))
        finally:
            self._stop.set()
            await watcher

    async def _watch(self) -> None:
        """Once asked to stop, end the tasks that wait for their turn or another attempt."""
        await asyncio.to_thread(self._stop.wait)
        for task, call in self._calls.items():
            if not call.under_way:
                task.cancel()

    async def _work(self, client: AsyncOpenAI, prompts: Iterator[tuple[str, Prompt]]) -> None:
        try:
            for key, prompt in prompts:
                if self._stop.is_set():
                    return
                await self._answer(client, key, prompt)
        except (OpenAIError, TeacherError):
            self._stop.set()
            raise

    def _connect(self) -> AsyncOpenAI:
        """Return a client whose every attempt, first or repeated, goes through `_attempt`."""
        key = api_key() if self.params.teacher == "live" else "none"
        transport = {"transport": httpx2.MockTransport(self.handler)} if self.handler else {}
        return AsyncOpenAI(
            api_key=key,
            base_url=self.teacher.base_url,
            timeout=self.params.teacher_timeout_s,
            http_client=_HttpClient(self._attempt, **transport),
        )

    async def _answer(self, client: AsyncOpenAI, key: str, prompt: Prompt) -> None:
        """Ask until there is a chat completion, and commit it."""
        retries = RETRIES if self.answered else FIRST_RETRIES
        for _ in range(1 + retries):
            if self._stop.is_set():
                return
            body = self._body(prompt)
            call = self._calls[_this_task()] = _Call(estimate_tokens(prompt, self.params.teacher_max_tokens))
            try:
                # Not chat.completions.create: converting the messages would take most of the time here.
                response = await client.post(
                    "/chat/completions",
                    body=body,
                    cast_to=httpx2.Response,
                    options={"max_retries": retries},
                )
                text = response.content.decode("utf-8", "replace")
                try:
                    answer = self.teacher.read(text, key, prompt.task, latency_s=call.latency_s)
                except ValueError:  # no chat completion, whatever its content type
                    self.teacher.usage.broken += 1
                    self._settle(call, *call.tokens)  # it may well have been billed
                    continue
                await self._store.keep(answer)
                self._settle(call, answer.prompt_tokens, answer.completion_tokens)
                self.answered = True
                return
            except APIStatusError as error:
                if "response_format" not in body or not _refuses_schema(error):
                    raise
                self.takes_schema = False
            finally:
                call.under_way = False
        raise TeacherError(
            f"{self.teacher.base_url} answered {1 + retries} times, but not with a chat completion; check "
            "teacher_base_url, which usually ends in /v1"
        )

    def _body(self, prompt: Prompt) -> dict[str, Any]:
        """Return the body to send: as wished, but without a schema that the server has refused."""
        body = self.teacher.request(prompt)
        if not self.takes_schema and body.pop("response_format", None):
            self.teacher.usage.without_schema += 1
        return body

    async def _attempt(self, send: Send) -> httpx2.Response:
        """Send one request of the current task's call; a successful one is under way until it is stored."""
        call, succeeded = self._calls[_this_task()], False
        prompt_tokens, usual = call.tokens
        await self.pace.wait(prompt_tokens + usual)
        if self._stop.is_set():  # the watcher has not come round to this task
            raise asyncio.CancelledError
        longest = self.params.teacher_max_tokens or usual
        call.reserved_usd = self.teacher.budget.reserve(prompt_tokens, longest)
        call.under_way = True
        self.teacher.usage.requests += 1
        began = time.perf_counter()
        try:
            response = await send()
            succeeded = response.is_success
            return response
        finally:
            call.latency_s = round(time.perf_counter() - began, 4)
            if not succeeded:
                self.teacher.budget.settle(call.reserved_usd, 0, 0)
                call.under_way = False
                if self._stop.is_set():
                    _this_task().cancel()  # else the SDK would wait for the next attempt

    def _settle(self, call: _Call, prompt_tokens: int, completion_tokens: int) -> None:
        self.pace.correct(prompt_tokens + completion_tokens - sum(call.tokens))
        self.teacher.budget.settle(call.reserved_usd, prompt_tokens, completion_tokens)


class _HttpClient(DefaultAsyncHttpxClient):
    """The SDK's own HTTP client, with every attempt and its whole response inside `attempt`."""

    def __init__(self, attempt: Callable[[Send], Awaitable[httpx2.Response]], **options: Any) -> None:
        super().__init__(**options)
        self._attempt = attempt

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        return await self._attempt(partial(super().send, request, **options))


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


async def _run(*workers: Coroutine[Any, Any, None]) -> None:
    """Let all workers come to their ends; raises the first one's error."""
    for ended in await asyncio.gather(*map(asyncio.create_task, workers), return_exceptions=True):
        if isinstance(ended, BaseException) and not isinstance(ended, asyncio.CancelledError):
            raise ended


def _this_task() -> asyncio.Task[Any]:
    task = asyncio.current_task()
    if task is None:
        raise RuntimeError("called outside of a task")
    return task


def _refuses_schema(error: APIStatusError) -> bool:
    """Tell whether a server turned a request down because of its `response_format`."""
    told = error.response.text.lower()
    return error.status_code in (400, 422, 501) and any(word in told for word in SCHEMA_WORDS)


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
