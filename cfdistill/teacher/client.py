"""The teacher's client: cache first, then an OpenAI-compatible endpoint (`endpoint.py`).

Three backends differ only in where a missing answer comes from: `live` asks an endpoint, `offline` asks
the stand-in through an in-process transport, and `recorded` asks nobody.
"""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.resources import files
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from cfdistill import runs
from cfdistill.errors import CfdistillError, ParamsError, TeacherError
from cfdistill.params import Params
from cfdistill.teacher import offline, prices, spending
from cfdistill.teacher.cache import Answer, Cache
from cfdistill.teacher.limits import Budget
from cfdistill.teacher.prompts import Prompt

if TYPE_CHECKING:
    import httpx2

    from cfdistill.teacher.endpoint import Endpoint

OPENAI_URL = "https://api.openai.com/v1"


@dataclass
class Usage:
    """What asking took so far; tokens count whether an answer was new or in the cache."""

    requests: int = 0  # sent to the endpoint, repeated ones included
    cache_hits: int = 0
    prompt_tokens: int = 0
    completion_tokens: int = 0
    broken: int = 0  # responses that were no chat completion
    without_schema: int = 0  # requests sent without the JSON schema that the server refused


class Teacher:
    """Answers prompts. A context manager: leaving it closes the cache file.

    Args:
        params: backend, model, endpoint, cache file, concurrency.
        handler: answers requests in process instead of an endpoint; default for `offline`: the
            scene bank.

    Raises:
        TeacherError: the cache cannot be used, or it is unclear which model's answers to replay.
        ParamsError: there is a budget, but no price.
    """

    def __init__(
        self,
        params: Params,
        *,
        handler: Callable[[httpx2.Request], Any] | None = None,
    ) -> None:
        self.usage = Usage()
        self.params, self._handler = params, handler
        self._endpoint: Endpoint | None = None
        backend = params.teacher
        self.cache = Cache(cache_path(params), read_only=backend == "recorded", durable=backend == "live")
        try:
            self.base_url, self.model = _source(params, self.cache)
            self.budget = _budget(self.model, params, self.cache)
        except CfdistillError:
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
            "backend": self.params.teacher,
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
            if self.params.teacher == "recorded":
                raise TeacherError(self._describe_missing(list(missing.values())))
            if self.params.teacher_batch:
                raise TeacherError(
                    f"{len(missing)} answers are missing in {self.cache.path}: "
                    f"{_count_tasks(missing.values())}; export, run, import, rerun (`cfdistill teacher "
                    "batch-export`, the Batch API, `cfdistill teacher batch-import`, and this again)"
                )
            self._fetch(missing, wanted)
            answers |= self.cache.get(missing)  # use what was committed, whoever came first
        self.usage.prompt_tokens += sum(answer.prompt_tokens for answer in answers.values())
        self.usage.completion_tokens += sum(answer.completion_tokens for answer in answers.values())
        texts = {key: answer.text for key, answer in answers.items()}
        return [texts[key] for key in keys]

    def request(self, prompt: Prompt) -> dict[str, Any]:
        """Return the body of a prompt's request, as we wish it to be answered."""
        return prompt.request(self.model, self.params.teacher_max_tokens)

    def read(self, response: str, key: str, task: str, **more: Any) -> Answer:
        """Return a raw response body as an answer of this teacher; raises ValueError when it is none."""
        return Answer.read(response, key=key, task=task, base_url=self.base_url, model=self.model, **more)

    def key(self, prompt: Prompt) -> str:
        """Return the cache key of a prompt: a hash of all that can change its answer."""
        facts = {
            "request": self.request(prompt),
            "base_url": self.base_url,
            "prompt_version": f"{prompt.task}.{prompt.version}",
            "sample": prompt.sample,
        }
        canonical = json.dumps(facts, sort_keys=True, ensure_ascii=False, separators=(",", ":"))
        return hashlib.sha256(canonical.encode()).hexdigest()

    def _fetch(self, missing: Mapping[str, Prompt], wanted: Collection[str]) -> None:
        """Ask for answers and commit them; whatever ends it early says how many of the wanted are there."""
        if self._endpoint is None:
            self._endpoint = self._connect()
        try:
            self._endpoint.fetch(missing)
        except TeacherError as error:
            raise TeacherError(f"{error} ({self._progress(wanted)})") from None
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"stopped: {self._progress(wanted)}") from None

    def _connect(self) -> Endpoint:
        from cfdistill.teacher.endpoint import Endpoint  # the SDK takes long to import

        params, handler = self.params, self._handler
        if params.teacher == "offline" and handler is None:
            handler = offline.SceneTeacher(params.teacher_noise, params.data_seed)
        return Endpoint(self, handler)

    def _progress(self, wanted: Collection[str]) -> str:
        there = len(self.cache.get(wanted))
        return (
            f"{there:,} of {len(wanted):,} answers are there and kept, {len(wanted) - there:,} are missing; "
            "run again to go on from there"
        )

    def _describe_missing(self, missing: Sequence[Prompt]) -> str:
        first = missing[0].question.splitlines()[0]
        return (
            f"{len(missing)} answers are missing in {self.cache.path}: {_count_tasks(missing)}; first: "
            f"{first[:100]!r} for model {self.model}; record them with teacher: live or offline"
        )


def cache_path(params: Params) -> Path:
    """Return the cache file of a study; `recorded` without one replays the recording we ship."""
    if params.teacher == "recorded" and not params.teacher_cache:
        return Path(str(files("cfdistill.teacher"))) / "recorded" / "offline.sqlite"
    return runs.resolve(params.teacher_cache or f"{params.run_root}/teacher/cache.sqlite")


def _budget(model: str, params: Params, cache: Cache) -> Budget:
    """Return the cap for a live model, less what its answers in the cache have cost already."""
    if params.teacher != "live" or not params.teacher_budget_usd:
        return Budget(0.0, None)
    price = prices.find(model, params)
    if price is None:
        raise ParamsError(
            f"teacher_budget_usd: the price of {model} is not known; give it by teacher_prices, a YAML file "
            "like cfdistill/teacher/prices.yaml, or set teacher_budget_usd to 0 for no cap"
        )
    spent = (spending.dollars(total, params) or 0.0 for total in cache.totals() if total.model == model)
    return Budget(params.teacher_budget_usd, price, sum(spent))


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
