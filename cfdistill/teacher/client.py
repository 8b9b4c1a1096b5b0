"""The teacher's client: cache first, then an OpenAI-compatible endpoint, with bounded concurrency.

Three backends differ only in where a missing answer comes from: `live` asks an endpoint, `offline` asks
the stand-in through an in-process transport, and `recorded` asks nobody.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cfdistill import runs
from cfdistill.errors import TeacherError
from cfdistill.params import Params
from cfdistill.teacher import offline
from cfdistill.teacher.cache import Answer, Cache
from cfdistill.teacher.prompts import Prompt

if TYPE_CHECKING:
    import httpx2
    from openai import AsyncOpenAI, OpenAIError

OPENAI_URL = "https://api.openai.com/v1"
RETRIES = 4  # by the SDK, with its own backoff, on lost connections and HTTP 408, 409, 429, 5xx


@dataclass
class Usage:
    """What the answers used so far took; tokens count whether an answer was new or in the cache."""

    requests: int = 0  # sent to the endpoint
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0


class Teacher:
    """Answers prompts. A context manager: leaving it closes the cache file.

    Args:
        params: backend, model, endpoint, cache file, concurrency.
        timeout_s: longest wait for one response, in seconds.
        handler: answers requests in process instead of an endpoint; default for `offline`: the
            scene bank.

    Raises:
        TeacherError: the cache cannot be used, or it is unclear which model's answers to replay.
    """

    def __init__(
        self,
        params: Params,
        *,
        timeout_s: float = 120.0,
        handler: Callable[[httpx2.Request], Any] | None = None,
    ) -> None:
        self.usage = Usage()
        self._params, self._timeout_s, self._handler = params, timeout_s, handler
        backend = params.teacher
        self.cache = Cache(cache_path(params), read_only=backend == "recorded", durable=backend == "live")
        try:
            self.base_url, self.model = _source(params, self.cache)
        except TeacherError:
            self.cache.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def summary(self) -> dict[str, Any]:
        """Return who answered and what it took, for a stage's manifest."""
        return {
            "backend": self._params.teacher,
            "base_url": self.base_url,
            "model": self.model,
            **asdict(self.usage),
        }

    def close(self) -> None:
        """Close the cache file."""
        self.cache.close()

    def ask(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return one answer per prompt, in order.

        Equal prompts are asked once. Works inside a running event loop, such as a notebook's. Ctrl-C
        and errors let the requests under way finish, so that what was paid for is kept.

        Raises:
            TeacherError: an answer is missing and cannot be had.
        """
        keys = [self.key(prompt) for prompt in prompts]
        wanted = dict(zip(keys, prompts, strict=True))
        answers = self.cache.get(wanted)
        missing = {key: prompt for key, prompt in wanted.items() if key not in answers}
        self.usage.cache_hits += len(answers)
        if missing:
            if self._params.teacher == "recorded":
                raise TeacherError(self._describe_missing(list(missing.values())))
            if self._params.teacher_batch:
                tasks = _count_tasks(missing.values())
                raise TeacherError(
                    f"{len(missing)} answers are missing in {self.cache.path}: {tasks}; "
                    "export, run, import, rerun (`cfdistill teacher batch-export`, the Batch API, `cfdistill "
                    "teacher batch-import`, and this again)"
                )
            self._fetch(missing)
            answers |= self.cache.get(missing)  # use what was committed, whoever came first
        self.usage.prompt_tokens += sum(answer.prompt_tokens for answer in answers.values())
        self.usage.completion_tokens += sum(answer.completion_tokens for answer in answers.values())
        texts = {key: answer.text for key, answer in answers.items()}
        return [texts[key] for key in keys]

    def key(self, prompt: Prompt) -> str:
        """Return the cache key of a prompt: a hash of all that can change its answer."""
        facts = {
            "request": self._request(prompt),
            "base_url": self.base_url,
            "prompt_version": f"{prompt.task}.{prompt.version}",
            "sample": prompt.sample,
        }
        canonical = json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _request(self, prompt: Prompt) -> dict[str, Any]:
        return {
            "model": self.model,
            "messages": [{"role": role, "content": content} for role, content in prompt.messages],
            "temperature": prompt.temperature,
            "seed": prompt.sample,
        }

    def _fetch(self, missing: dict[str, Prompt]) -> None:
        """Ask for answers and commit them, in an event loop and thread of their own."""
        stop = threading.Event()
        with ThreadPoolExecutor(max_workers=1) as thread:
            try:
                thread.submit(asyncio.run, self._fetch_all(missing, stop)).result()
            finally:
                stop.set()

    async def _fetch_all(self, missing: dict[str, Prompt], stop: threading.Event) -> None:
        from openai import OpenAIError

        todo = iter(missing.items())
        failures: list[OpenAIError | TeacherError] = []

        async def work() -> None:
            for key, prompt in todo:
                if stop.is_set():
                    return
                try:
                    await self._fetch_one(client, key, prompt)
                except (OpenAIError, TeacherError) as error:
                    failures.append(error)
                    stop.set()

        async with self._client() as client:
            await asyncio.gather(*(work() for _ in range(self._params.teacher_concurrency)))
        if failures:
            error = failures[0]
            # The SDK's error may quote the key, so it must not show in a traceback.
            raise error if isinstance(error, TeacherError) else TeacherError(self._explain(error)) from None

    async def _fetch_one(self, client: AsyncOpenAI, key: str, prompt: Prompt) -> None:
        import httpx2

        began = time.perf_counter()
        self.usage.requests += 1
        # Not client.chat.completions.create: converting the messages would take most of the time here.
        response = await client.post("/chat/completions", body=self._request(prompt), cast_to=httpx2.Response)
        latency_s = round(time.perf_counter() - began, 4)
        try:
            answer = Answer.read(
                response.text,
                key=key,
                task=prompt.task,
                base_url=self.base_url,
                model=self.model,
                latency_s=latency_s,
            )
        except ValueError:
            raise TeacherError(
                f"{self.base_url} answered, but not with a chat completion; check teacher_base_url, which "
                "usually ends in /v1"
            ) from None
        self.cache.put(answer)

    def _client(self) -> AsyncOpenAI:
        import httpx2
        from openai import AsyncOpenAI

        handler, key = self._handler, "none"
        if self._params.teacher == "live":
            key = api_key()
        elif handler is None:
            handler = offline.SceneTeacher(self._params.teacher_noise, self._params.data_seed)
        http_client = httpx2.AsyncClient(transport=httpx2.MockTransport(handler)) if handler else None
        return AsyncOpenAI(
            api_key=key,
            base_url=self.base_url,
            timeout=self._timeout_s,
            max_retries=RETRIES,
            http_client=http_client,
        )

    def _explain(self, error: OpenAIError) -> str:
        status = getattr(error, "status_code", None)
        if self._params.teacher == "offline" and status == 422:
            return "the offline teacher knows only the weasel testbed; use teacher: live or recorded"
        kept = "answers so far are kept, so running again goes on from there"
        if status is None:
            return (
                f"the teacher at {self.base_url} cannot be reached ({type(error).__name__}); check "
                f"teacher_base_url and the network ({kept})"
            )
        if status in (401, 403):
            return f"the teacher at {self.base_url} refused the key in OPENAI_API_KEY (HTTP {status})"
        told = " ".join(str(error).split()).replace(os.environ.get("OPENAI_API_KEY", "").strip() or "\0", "…")
        return f"the teacher at {self.base_url}, model {self.model}, failed: {told[:300]} ({kept})"

    def _describe_missing(self, missing: Sequence[Prompt]) -> str:
        first = missing[0].question.splitlines()[0]
        return (
            f"{len(missing)} answers are missing in {self.cache.path}: {_count_tasks(missing)}; first: "
            f"{first[:100]!r} for model {self.model}; record them with teacher: live or offline"
        )


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


def cache_path(params: Params) -> Path:
    """Return the cache file of a study; `recorded` without one replays the recording we ship."""
    if params.teacher == "recorded" and not params.teacher_cache:
        return Path(str(files("cfdistill.teacher"))) / "recorded" / "offline.sqlite"
    return runs.resolve(params.teacher_cache or f"{params.run_root}/teacher/cache.sqlite")


def _count_tasks(prompts: Iterable[Prompt]) -> str:
    return ", ".join(f"{count} {task}" for task, count in Counter(p.task for p in prompts).items())


def _source(params: Params, cache: Cache) -> tuple[str, str]:
    """Return the base URL and model to ask.

    A recording is replayed under the name it was made with: `teacher_model` chooses among several, and
    need not be set when the file holds one.
    """
    if params.teacher == "offline":
        return offline.BASE_URL, offline.model_name(params)
    asked = (params.teacher_base_url or OPENAI_URL).rstrip("/"), params.teacher_model
    if "@" in asked[0]:
        raise TeacherError("teacher_base_url must not hold a user name or password; use OPENAI_API_KEY")
    if params.teacher == "live":
        return asked
    sources = cache.sources()
    urls = [asked[0]] if params.teacher_base_url else [url for url, _ in sources]
    matching = [source for source in sources if source[0] in urls and source[1] == asked[1]] or sources
    if len(matching) > 1:
        raise TeacherError(
            f"{cache.path} holds answers of {' and '.join(f'{model} at {url}' for url, model in matching)}; "
            "choose one by teacher_model and teacher_base_url"
        )
    return matching[0] if matching else asked
