"""Asking an OpenAI-compatible endpoint: many requests at once, paced, capped, and stopped without loss."""

import asyncio
import itertools
import logging
import os
import threading
import time
from collections.abc import Awaitable, Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from typing import Any

import httpx2
from openai import APIStatusError, AsyncOpenAI, DefaultAsyncHttpxClient, OpenAIError

from cfdistill.errors import TeacherError
from cfdistill.params import Params
from cfdistill.teacher.budget import Budget, Pace, Usage
from cfdistill.teacher.cache import Answer, Cache
from cfdistill.teacher.outcomes import AGAIN, BROKEN, KEEP, WITHOUT, NoAnswer, Outcome, outcome
from cfdistill.teacher.prompts import Prompt

RETRIES = 10  # of one request, by the SDK
FIRST_RETRIES = 4  # before anything was answered: the address may be wrong, so say so soon
LOG = logging.getLogger(__name__)


@dataclass
class Call:
    """A prompt that has been begun."""

    prompt: Prompt
    body: dict[str, Any] = field(default_factory=dict, init=False)  # of the request
    tokens: tuple[int, int]  # of prompt and answer, estimated
    found: Outcome = field(init=False)  # of the latest attempt
    answer: Answer | None = None
    reserved: int = 0  # in the budget
    under_way: bool = False  # sent, and neither failed nor answered and stored


@dataclass
class Endpoint:
    """One model at one address, and what this process has learnt about it."""

    params: Params
    base_url: str
    model: str
    cache: Cache  # which gets the answers
    budget: Budget | None
    usage: Usage  # which is kept up to date
    handler: Callable[..., Any] | None = None  # answers requests in its place
    answered: bool = False  # anything, yet
    refused: set[str] = field(default_factory=set)  # parameters, as far as is known

    def __post_init__(self) -> None:
        self.pace = Pace(self.params.teacher_requests_per_minute, self.params.teacher_tokens_per_minute)

    def fetch(self, missing: Mapping[str, Prompt]) -> None:
        """Ask for answers, by cache key, and commit them; Ctrl-C and errors let those under way finish."""
        self._stop = stop = threading.Event()
        with ThreadPoolExecutor(max_workers=1) as thread:  # an event loop and thread of their own
            try:
                thread.submit(asyncio.run, self._ask_all(missing)).result()
            except OpenAIError as error:  # it may quote the key, so it must not show in a traceback
                told = f"cannot be reached ({type(error).__name__}); check teacher_base_url and the network"
                if isinstance(error, APIStatusError):
                    _, advice, code, said, _ = outcome(error.status_code, error.response.text)
                    told = f"answered {f'HTTP {code}: ' * (code != BROKEN)}{said}{advice and f'; {advice}'}"
                raise TeacherError(f"the teacher at {self.base_url}, model {self.model}, {told}") from None
            finally:
                stop.set()

    async def _ask_all(self, missing: Mapping[str, Prompt]) -> None:
        """Ask until all is answered, something fails, or the stop is set; raises the first error."""
        self._calls: dict[asyncio.Task[Any] | None, Call] = {}
        self._disk = asyncio.Lock()
        todo, watcher = iter(missing.values()), asyncio.create_task(self._watch())
        try:
            async with self._connect() as client:
                # The first goes alone: it may show that none can be answered.
                first = [] if self.answered else [self._work(client, itertools.islice(todo, 1))]
                ended = await asyncio.gather(*first, return_exceptions=True)
                workers = [self._work(client, todo) for _ in range(self.params.teacher_concurrency)]
                ended += await asyncio.gather(*workers, return_exceptions=True)
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
        """Return a client whose every attempt, also those that the SDK repeats, goes through `attempt`."""
        key, timeout = os.environ.get("OPENAI_API_KEY", "").strip(), self.params.teacher_timeout_s
        if self.params.teacher != "live":
            key = "none"
        elif not (key and key.isascii() and key.isprintable()):
            told = "teacher: live needs a key in the environment variable OPENAI_API_KEY (any word, for a"
            raise TeacherError(f"{told} server that asks for none); teacher: offline needs no key")
        try:
            http_client = _Client(self, httpx2.MockTransport(self.handler) if self.handler else None)
        except (ImportError, ValueError, httpx2.InvalidURL):  # which may quote a proxy's password
            told = "a proxy variable (ALL_PROXY, HTTPS_PROXY or HTTP_PROXY) cannot be used"
            raise TeacherError(f'{told}; mend or unset it; socks5:// needs "httpx2[socks]"') from None
        return AsyncOpenAI(api_key=key, base_url=self.base_url, timeout=timeout, http_client=http_client)

    async def _work(self, client: AsyncOpenAI, prompts: Iterator[Prompt]) -> None:
        """Answer one prompt after the other."""
        try:
            for prompt in prompts:
                await self._answer(client, Call(prompt, prompt.estimate(self.params.teacher_max_tokens)))
        except (OpenAIError, TeacherError):
            self._stop.set()
            raise

    async def _answer(self, client: AsyncOpenAI, call: Call) -> None:
        """Ask, without what the endpoint refuses, and commit the answer or why there is none."""
        self._calls[asyncio.current_task()] = call
        refused, retries = set(self.refused), RETRIES if self.answered else FIRST_RETRIES
        try:
            while not call.answer and not self._stop.is_set():
                call.body = call.prompt.request(self.model, self.params.teacher_max_tokens)
                for name in refused & call.body.keys():
                    value = call.body.pop(name)
                    self.usage.without[name] = self.usage.without.get(name, 0) + 1
                    if name == "max_completion_tokens":
                        call.body["max_tokens"] = value  # its older name
                try:
                    # Not chat.completions.create: converting the messages would take most of the time here.
                    options: Any = {"cast_to": httpx2.Response, "options": {"max_retries": retries}}
                    await client.post("/chat/completions", body=call.body, **options)
                except APIStatusError:
                    if call.found.act != WITHOUT:
                        raise
                    refused.add(call.found.detail)
            if call.answer:
                if not isinstance(call.answer.text, NoAnswer):  # which shows that nothing else is refused
                    for name in refused - self.refused:
                        LOG.warning("%s refuses %s, and is asked without it", self.base_url, name)
                    self.refused |= refused
                await self._keep(call, call.answer)
        finally:
            call.under_way = False

    async def attempt(
        self, send: Callable[..., Awaitable[httpx2.Response]], request: httpx2.Request, **options: Any
    ) -> httpx2.Response:
        """Send one request of the current task's call; a successful one is under way until it is stored."""
        call = self._calls[asyncio.current_task()]
        await self.pace.wait(sum(call.tokens))
        if self._stop.is_set():  # the watcher has not come round to this task
            raise asyncio.CancelledError
        call.under_way, lost = True, (0, 0)
        try:
            longest = self.params.teacher_max_tokens or call.tokens[1]
            call.reserved = await self._account(Budget.reserve, call.tokens[0], longest)
            self.usage.requests += 1
            began = time.perf_counter()
            response = await send(request, **options)
            took_s = round(time.perf_counter() - began, 4)
            status, text = response.status_code, response.content.decode("utf-8", "replace")
            call.found = found = outcome(status, text, call.body)
            if found.act == KEEP:
                asked = (self.base_url, self.model, self.params.teacher_max_tokens)
                call.answer = Answer.to(call.prompt, found.stored, *asked, took_s)
                return httpx2.Response(200, request=request)
            if found.status == BROKEN:
                lost = call.tokens  # it may well have been billed
            headers = {k: v for k, v in response.headers.items() if k.startswith("retry-after")}
            headers["x-should-retry"] = str(found.act == AGAIN).lower()  # which the SDK obeys
            return httpx2.Response(found.status, headers=headers, text=text, request=request)
        finally:
            if not call.answer:
                await self._account(Budget.settle, call.reserved, *lost)
                call.under_way = False
                if self._stop.is_set():  # else the SDK would wait for the next attempt
                    raise asyncio.CancelledError

    async def _account(self, change: Callable[..., int | None], *given: float) -> int:
        """Change the budget, if there is one, in the cache's file."""
        if not self.budget:
            return 0
        async with self._disk:
            return await asyncio.to_thread(change, self.budget, *given) or 0

    async def _keep(self, call: Call, answer: Answer) -> None:
        """Commit an answer."""
        async with self._disk:
            new = (await asyncio.to_thread(self.cache.put_all, [answer]))["new"]
        took = (answer.prompt_tokens, answer.completion_tokens)
        self.pace.correct(sum(took) - sum(call.tokens))
        # What another process answered first was paid for all the same.
        await self._account(Budget.settle, call.reserved, *((0, 0) if new else took))
        self.answered = True


class _Client(DefaultAsyncHttpxClient):
    """An HTTP client whose attempts go through an endpoint's `attempt`."""

    def __init__(self, endpoint: Endpoint, transport: httpx2.AsyncBaseTransport | None) -> None:
        super().__init__(transport=transport)
        self._endpoint = endpoint

    async def send(self, request: httpx2.Request, **options: Any) -> httpx2.Response:
        return await self._endpoint.attempt(super().send, request, **options)
