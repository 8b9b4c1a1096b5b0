"""The teacher's client: the cache first, then an endpoint (`live`), the stand-in (`offline`) or nobody."""

import gzip
import hashlib
import json
import os
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import closing
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import pandas as pd

from cfdistill.errors import TeacherError
from cfdistill.files import resolve, sha256
from cfdistill.params import Params
from cfdistill.teacher import offline, prompts
from cfdistill.teacher.budget import Budget, Usage
from cfdistill.teacher.cache import Answer, Cache
from cfdistill.teacher.outcomes import read_completion
from cfdistill.teacher.prompts import Prompt


class Teacher:
    """Answers prompts; a context manager, which closes the cache file."""

    def __init__(self, params: Params, handler: Callable[..., Any] | None = None) -> None:
        """Open the cache; `handler` answers HTTP requests in process instead of an endpoint."""
        self.params, self.usage, self._handler = params, Usage(), handler
        self.used: dict[str, str] = {}  # by key: the digest of every answer handed out
        self._endpoint: Any = None  # once somebody was asked: what we know of it
        self.cache = Cache(cache_path(params), read_only=params.teacher == "recorded")
        self.base_url, self.model = _source(params, self.cache)
        capped = params.teacher == "live" and params.teacher_budget_usd
        self.budget = Budget(self.model, params, self.cache) if capped else None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.cache.close()

    def summary(self) -> dict[str, Any]:
        """Return who answered and what it took, for a stage's manifest."""
        who = {"backend": self.params.teacher, "base_url": self.base_url, "model": self.model}
        return who | asdict(self.usage)

    def costs(self) -> pd.DataFrame:
        """Return the tokens that each task took, paid for or in the cache, as `cost.csv` holds them."""
        rows = [(task, self.model, *tokens) for task, tokens in self.usage.tokens.items()]
        return pd.DataFrame(rows, columns=["step", "model", "prompt_tokens", "completion_tokens"])

    def ask(self, prompts: Sequence[Prompt]) -> list[str]:
        """Return one answer per prompt, in order; TeacherError when one is missing and cannot be had."""
        keys = [self.key(prompt) for prompt in prompts]
        wanted = dict(zip(keys, prompts, strict=True))
        answers = self.known(wanted)
        self.usage.cache_hits += len(answers)
        if missing := {key: prompt for key, prompt in wanted.items() if key not in answers}:
            if self.params.teacher == "recorded":
                counts = Counter(prompt.task for prompt in missing.values()).items()
                tasks = ", ".join(f"{count} {task}" for task, count in counts)
                first = next(iter(missing.values())).question.splitlines()[0]
                told = f"recorded answers do not cover this: {len(missing)} answers are missing in "
                told += f"{self.cache.path}: {tasks}; first: {first[:100]!r} for {self.model}"
                raise TeacherError(f"{told}; use the recording's parameters, or teacher: offline or live")
            self._fetch(missing, len(answers))
            answers |= self.known(missing)  # use what was committed, whoever came first
        for answer in answers.values():
            sent, written = self.usage.tokens.get(answer.task, (0, 0))
            self.usage.tokens[answer.task] = (sent + answer.prompt_tokens, written + answer.completion_tokens)
            self.usage.thought += read_completion(answer.response, answer.task)[1]
            self.used[answer.key] = answer.digest
        return [answers[key].text for key in keys]

    def known(self, prompts: Mapping[str, Prompt]) -> dict[str, Answer]:
        """Return the answers that are there, by key; of those missing, what the limit in force cut off."""
        found, limit = self.cache.get(prompts), self.params.teacher_max_tokens
        missing = {key: prompt for key, prompt in prompts.items() if key not in found}
        cut = {prompt.key(self.base_url, self.model, limit): key for key, prompt in missing.items()}
        return found | {cut[key]: answer for key, answer in self.cache.get(cut).items()}

    def key(self, prompt: Prompt) -> str:
        """Return the cache key of a prompt's whole answer."""
        return prompt.key(self.base_url, self.model)

    def _fetch(self, missing: Mapping[str, Prompt], known: int) -> None:
        """Ask for answers and commit them; whatever ends it early says how many are there."""
        from cfdistill.teacher.endpoint import Endpoint  # the SDK takes long to import

        if not self._endpoint:
            handler = self._handler
            if self.params.teacher == "offline" and handler is None:
                handler = offline.SceneTeacher(self.params.teacher_noise, self.params.data_seed)
            known_as = (self.base_url, self.model)
            self._endpoint = Endpoint(self.params, *known_as, self.cache, self.budget, self.usage, handler)
        try:
            self._endpoint.fetch(missing)
        except (TeacherError, KeyboardInterrupt) as error:
            there, wanted = known + len(self.known(missing)), known + len(missing)
            told = f"{there:,} of {wanted:,} answers are there and kept, {wanted - there:,} are missing"
            raise type(error)(f"{str(error) or 'stopped'} ({told}; run again to go on from there)") from None


def cache_path(params: Params) -> Path:
    """Return the cache file of a study; `recorded` without one unpacks the answers that we ship."""
    if params.teacher != "recorded" or params.teacher_cache:
        return resolve(params.teacher_cache or f"{params.run_root}/teacher/cache.sqlite")
    packed = Path(__file__).with_name("recorded") / f"{params.train_dataset}.answers.jsonl.gz"
    if not packed.is_file():
        shipped = ", ".join(sorted(path.name.split(".")[0] for path in packed.parent.glob("*.gz")))
        told = f"answers about {shipped} are shipped, but none about {params.train_dataset}"
        raise TeacherError(f"{told}; set teacher_cache, or use teacher: offline (the stand-in) or live")
    path = resolve(params.run_root) / "teacher" / f"{params.train_dataset}-{sha256(packed)[:8]}.sqlite"
    if not path.is_file():
        aside = path.with_name(f"{path.name}.{os.getpid()}")
        with closing(Cache(aside)) as cache, gzip.open(packed) as lines:
            rows = map(json.loads, lines)
            cache.put_all(Answer(**{name: row[name] for name in Answer._fields}) for row in rows)
        aside.rename(path)
    return path


def cache_state(params: Params) -> tuple[tuple[str, int, int], ...]:
    """Return name, size and time of the cache's files, which tell whether it may have changed."""
    path = cache_path(params)
    files = (path, path.with_name(f"{path.name}-wal"))
    return tuple((str(f), f.stat().st_size, f.stat().st_mtime_ns) for f in files if f.is_file())


def identity(params: Params, tasks: Iterable[str]) -> dict[str, Any]:
    """Return all that reaches the answers to prompts of these tasks, wherever the cache lies."""
    worded = {f"{task}.{prompts.VERSION}": json.dumps(prompts.load(task)).encode() for task in tasks}
    hashes = {name: hashlib.sha256(text).hexdigest() for name, text in worded.items()}
    facts: dict[str, Any] = {"max_tokens": params.teacher_max_tokens, "prompts": hashes}
    if params.teacher != "recorded":
        url, model = _source(params)
    else:
        with closing(Cache(cache_path(params), read_only=True)) as cache:
            url, model = _source(params, cache)
        facts["answers"] = _replayed(cache_path(params), url, model, cache_state(params))
    return facts | {"base_url": url, "model": model}


@lru_cache(maxsize=8)
def _replayed(path: Path, url: str, model: str, state: tuple[Any, ...]) -> str:
    """Return one digest of a model's answers in a recording, read once for every state of its files."""
    with closing(Cache(path, read_only=True)) as cache:
        found = cache.answers("WHERE base_url = ? AND model = ? ORDER BY key", url, model)
        digests = [f"{answer.key} {answer.digest}\n" for answer in found]
    return hashlib.sha256("".join(digests).encode()).hexdigest()


def differing(params: Params, used: Mapping[str, str]) -> int:
    """Return how many of the answers `used`, digests by key, the cache now holds otherwise."""
    if not cache_path(params).is_file():
        return 0
    with closing(Cache(cache_path(params), read_only=True)) as cache:
        return sum(answer.digest != used[key] for key, answer in cache.get(used).items())


def _source(params: Params, recording: Cache | None = None) -> tuple[str, str]:
    """Return base URL and model to ask; a recording has its own, `teacher_model` chooses among several."""
    if params.teacher == "offline":
        return offline.BASE_URL, offline.model_name(params)
    given = params.teacher_base_url or (params.teacher == "live" and os.environ.get("OPENAI_BASE_URL"))
    url, model = (given or "https://api.openai.com/v1").rstrip("/"), params.teacher_model
    if "@" in url:
        told = "teacher_base_url (or OPENAI_BASE_URL) must not hold a user name or password"
        raise TeacherError(f"{told}; use OPENAI_API_KEY")
    if params.teacher == "live" or recording is None:
        return url, model
    sources = sorted({(total["base_url"], total["model"]) for total in recording.totals()})
    named = [s for s in sources if s[1] == model and (s[0] == url or not params.teacher_base_url)]
    found = named or sources or [(url, model)]
    if len(found) > 1:
        told = f"{recording.path} holds answers of {' and '.join(f'{m} at {u}' for u, m in found)}"
        raise TeacherError(f"{told}; choose one by teacher_model and teacher_base_url")
    return found[0]
