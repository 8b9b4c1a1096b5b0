"""Asking an OpenAI-compatible endpoint: many requests at once, paced, capped, and stopped without loss."""

import asyncio
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import httpx2
from openai import APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError

from cfdistill.errors import TeacherError
from cfdistill.params import Params
from cfdistill.teacher.budget import Budget, Pace, Usage, estimate_tokens
from cfdistill.teacher.cache import Answer, Cache
from cfdistill.teacher.offline import BASE_URL as OFFLINE_URL
from cfdistill.teacher.prompts import Prompt

RETRIES = 10  # of one request: by the SDK, or by us when the answer is no chat completion
FIRST_RETRIES = 4  # before anything was answered: the address may be wrong, so say so soon
SCHEMA_WORDS = ("response_format", "json_schema", "structured output")  # in a refusal of the schema


@dataclass
class Call:
    """A prompt that has been begun."""

    tokens: tuple[int, int]  # of prompt and answer, estimated
    reserved_usd: float = 0.0
    latency_s: float = 0.0  # of the latest attempt
    under_way: bool = False  # sent, and neither failed nor answered and stored


@dataclass
class Endpoint:
    """One model at one address, and what this process has learnt about it."""

    params: Params
    base_url: str
    model: str
    cache: Cache  # which gets the answers
    budget: Budget
    usage: Usage  # which is kept up to date
    handler: Callable[..., Any] | None = None  # answers requests in its place
    answered: bool = False  # anything, yet
    takes_schema: bool = True  # as far as is known

    def __post_init__(self) -> None:
        self.pace = Pace(self.params.teacher_requests_per_minute, self.params.teacher_tokens_per_minute)

    def fetch(self, missing: Mapping[str, Prompt]) -> None:
        """Ask for answers, by cache key, and commit them; Ctrl-C and errors let those under way finish."""
        self._stop = stop = threading.Event()
        with ThreadPoolExecutor(max_workers=1) as thread:  # an event loop and thread of their own
            try:
                thread.submit(asyncio.run, self._ask_all(missing)).result()
            except OpenAIError as error:  # it may quote the key, so it must not show in a traceback
                raise TeacherError(explain(error, self.base_url, self.model)) from None
            finally:
                stop.set()

    async def _ask_all(self, missing: Mapping[str, Prompt]) -> None:
        """Ask until all is answered, something fails, or the stop is set; raises the first error."""
        self._calls: dict[asyncio.Task[Any] | None, Call] = {}
        self._fresh: list[Answer] = []  # not committed yet
        self._disk = asyncio.Lock()
        todo, watcher = iter(missing.items()), asyncio.create_task(self._watch())
        try:
            async with self._connect() as client:
                workers = [self._work(client, todo) for _ in range(self.params.teacher_concurrency)]
                ended = await asyncio.gather(*workers, return_exceptions=True)
        finally:
            self._stop.set()
            await watcher
        for error in ended:
            if error and not isinstance(error, asyncio.CancelledError):
                raise error

    async def _watch(self) -> None:
        """Once asked to stop, end the tasks that wait for their turn or another attempt."""
        await asyncio.to_thread(self._stop.wait)
        for task, call in self._calls.items():
            if task and not call.under_way:
                task.cancel()

    def _connect(self) -> AsyncOpenAI:
        """Return a client whose every attempt, also those that the SDK repeats, goes through `_attempt`."""
        transport = httpx2.MockTransport(self.handler) if self.handler else None
        http_client = DefaultAsyncHttpxClient(transport=transport)
        http_client.send = partial(self._attempt, http_client.send)  # type: ignore[method-assign]
        key, timeout = api_key() if self.params.teacher == "live" else "none", self.params.teacher_timeout_s
        return AsyncOpenAI(api_key=key, base_url=self.base_url, timeout=timeout, http_client=http_client)

    async def _work(self, client: AsyncOpenAI, prompts: Iterator[tuple[str, Prompt]]) -> None:
        """Answer one prompt after the other."""
        try:
            for key, prompt in prompts:
                await self._answer(client, key, prompt)
        except (OpenAIError, TeacherError):
            self._stop.set()
            raise

    async def _answer(self, client: AsyncOpenAI, key: str, prompt: Prompt) -> None:
        """Ask until there is a chat completion, and commit it."""
        retries = RETRIES if self.answered else FIRST_RETRIES
        for _ in range(1 + retries):
            if self._stop.is_set():
                return
            body = prompt.request(self.model, self.params.teacher_max_tokens)
            if not self.takes_schema and body.pop("response_format", None):
                self.usage.without_schema += 1
            call = Call(estimate_tokens(prompt, self.params.teacher_max_tokens))
            self._calls[asyncio.current_task()] = call
            try:
                # Not chat.completions.create: converting the messages would take most of the time here.
                response = await client.post(
                    "/chat/completions", body=body, cast_to=httpx2.Response, options={"max_retries": retries}
                )
                if await self._keep(response, key, prompt, call):
                    return
            except APIStatusError as error:
                told, refused = error.response.text.lower(), error.status_code in (400, 422, 501)
                if "response_format" not in body or not (refused and any(w in told for w in SCHEMA_WORDS)):
                    raise
                self.takes_schema = False
            finally:
                call.under_way = False
        told = f"{self.base_url} answered {1 + retries} times, but not with a chat completion"
        raise TeacherError(f"{told}; check teacher_base_url, which usually ends in /v1")

    async def _attempt(
        self, send: Callable[..., Awaitable[httpx2.Response]], *request: Any, **options: Any
    ) -> httpx2.Response:
        """Send one request of the current task's call; a successful one is under way until it is stored."""
        call, succeeded = self._calls[asyncio.current_task()], False
        prompt_tokens, usual = call.tokens
        await self.pace.wait(prompt_tokens + usual)
        if self._stop.is_set():  # the watcher has not come round to this task
            raise asyncio.CancelledError
        call.reserved_usd = self.budget.reserve(prompt_tokens, self.params.teacher_max_tokens or usual)
        call.under_way = True
        self.usage.requests += 1
        began = time.perf_counter()
        try:
            response = await send(*request, **options)
            succeeded = response.is_success
            return response
        finally:
            call.latency_s = round(time.perf_counter() - began, 4)
            if not succeeded:
                self.budget.settle(call.reserved_usd, 0, 0)
                call.under_way = False
                if self._stop.is_set():  # else the SDK would wait for the next attempt
                    raise asyncio.CancelledError

    async def _keep(self, response: httpx2.Response, key: str, prompt: Prompt, call: Call) -> bool:
        """Commit an answer, with those that came in while the disk was busy; False when it is none."""
        text = response.content.decode("utf-8", "replace")
        try:
            answer = Answer.read(text, key, prompt.task, self.base_url, self.model, call.latency_s)
        except ValueError:
            self.usage.broken += 1
            self.budget.settle(call.reserved_usd, *call.tokens)  # it may well have been billed
            return False
        self._fresh.append(answer)
        async with self._disk:
            batch = list(self._fresh)
            if answer in batch:  # else somebody has committed it meanwhile
                await asyncio.to_thread(self.cache.put_all, batch)
                del self._fresh[: len(batch)]
        took = (answer.prompt_tokens, answer.completion_tokens)
        self.pace.correct(sum(took) - sum(call.tokens))
        self.budget.settle(call.reserved_usd, *took)
        self.answered = True
        return True


def explain(error: OpenAIError, base_url: str, model: str) -> str:
    """Return one sentence without the key, which an error of the SDK may quote."""
    status = getattr(error, "status_code", None)
    if base_url == OFFLINE_URL and status == 422:
        return "the offline teacher knows only the weasel testbed; use teacher: live or recorded"
    told = " ".join(str(error).split()).replace(os.environ.get("OPENAI_API_KEY", "").strip() or "\0", "…")
    told = f"failed: {told[:300]}"
    if status is None:
        told = f"cannot be reached ({type(error).__name__}); check teacher_base_url and the network"
    elif status in (401, 403):
        told = f"refused the key in OPENAI_API_KEY (HTTP {status})"
    elif status == 429:
        told += "; lower teacher_requests_per_minute or teacher_concurrency"
    return f"the teacher at {base_url}, model {model}, {told}"


def api_key() -> str:
    """Return the key, which the environment alone holds."""
    key = os.environ.get("OPENAI_API_KEY", "").strip()
    if key and key.isascii() and key.isprintable():
        return key
    told = "teacher: live needs a key in the environment variable OPENAI_API_KEY"
    raise TeacherError(f"{told} (any word, for a server that asks for none); teacher: offline needs no key")
