"""Every answer the teacher ever gave, in one SQLite file, committed before anything uses it."""

import json
import os
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any, NamedTuple, Self, get_type_hints

from filelock import FileLock
from pydantic import Field

from cfdistill.errors import TeacherError

LAYOUT = 2  # of the table; stands in the file as `PRAGMA user_version`
TABLE = f"""
    BEGIN IMMEDIATE;
    CREATE TABLE IF NOT EXISTS answers (
      key TEXT PRIMARY KEY, task TEXT NOT NULL, base_url TEXT NOT NULL, model TEXT NOT NULL,
      response TEXT NOT NULL, served_model TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
      completion_tokens INTEGER NOT NULL, latency_s REAL NOT NULL, created TEXT NOT NULL,
      batched INTEGER NOT NULL DEFAULT 0
    );
    PRAGMA user_version = {LAYOUT};
    COMMIT;
"""
KIND = "model, base_url, served_model, task, batched"  # what totals tell apart
BUSY_TIMEOUT_S = 30.0
NO_COMPLETION = (LookupError, ValueError, ArithmeticError, TypeError, AttributeError, RecursionError)
Count = Annotated[int, Field(ge=0, lt=2**63)]  # what SQLite can hold


class Answer(NamedTuple):
    """One row of the table `answers`; the columns in order."""

    key: Annotated[str, Field(pattern="^[0-9a-f]{64}$")]  # SHA-256 of all that can change the answer
    task: str
    base_url: str
    model: str  # as asked for
    response: str  # raw response body, JSON
    served_model: str  # as the response names it
    prompt_tokens: Count
    completion_tokens: Count
    latency_s: Annotated[float, Field(ge=0, allow_inf_nan=False)]
    created: str  # ISO 8601, UTC
    batched: Annotated[int, Field(ge=0, le=1)] = 0  # 1: bought through the Batch API, at its price

    @classmethod
    def read(cls, body: str, key: str, task: str, base_url: str, model: str, latency_s: float = 0.0) -> Self:
        """Build an answer from a raw response body; ValueError when it is no chat completion."""
        _, served, sent, written = read_completion(body)
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(key, task, base_url, model, body, served, sent, written, latency_s, created)

    @property
    def text(self) -> str:
        """The message of the response; empty when the model refused."""
        return read_completion(self.response)[0]

    @property
    def digest(self) -> str:
        """The SHA-256 of the response, which tells answers to one key apart."""
        return sha256(self.response.encode()).hexdigest()


def read_completion(response: str) -> tuple[str, str, int, int]:
    """Return text, model, prompt tokens and completion tokens; ValueError when it is no chat completion."""
    try:
        body = json.loads(response)
        # A refusal has no content, but is an answer: it was paid for, and its reader rejects it.
        content, usage = body["choices"][0]["message"].get("content") or "", body.get("usage") or {}
        sent, written = (int(usage.get(name) or 0) for name in ("prompt_tokens", "completion_tokens"))
        if not (isinstance(content, str) and 0 <= sent < 2**63 and 0 <= written < 2**63):
            raise ValueError("no text, or no number of tokens")
        # half an emoji cannot be written to a file
        text, model = (t.encode("utf-8", "replace").decode() for t in (content, str(body.get("model") or "")))
        return text, model, sent, written
    except NO_COMPLETION as error:
        raise ValueError(f"no chat completion ({type(error).__name__})") from error


TYPES = tuple(get_type_hints(Answer).values())
COLUMNS = ", ".join(Answer._fields)
INSERT = f"INSERT OR IGNORE INTO answers ({COLUMNS}) VALUES ({', '.join('?' * len(TYPES))})"


class Cache:
    """An open cache file, used by one thread at a time; made when missing, unless `read_only`."""

    def __init__(self, path: Path, *, read_only: bool = False) -> None:
        self.path, mode = path, "ro" if read_only else "rwc"
        if read_only and not path.is_file():
            raise TeacherError(f"{path} is missing; set teacher_cache to a file of recorded answers")
        with self._errors():
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            elif not os.access(path.parent, os.W_OK) and not path.with_name(f"{path.name}-wal").exists():
                mode = "ro&immutable=1"  # or SQLite would write beside the file
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={mode}",
                uri=True,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,  # every statement commits at once, and waits for the disk
                check_same_thread=False,  # the client's event loop runs in a thread of its own
            )
            tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
            (layout,) = self._db.execute("PRAGMA user_version").fetchone()
            if (tables or layout or read_only) and ("answers" not in tables or layout != LAYOUT):
                told = f"{path} (left as it was) is no teacher cache of layout {LAYOUT} (its layout: {layout}"
                raise TeacherError(f"{told}); choose another teacher_cache, or the cfdistill that made it")
            if not tables:
                with FileLock(f"{path}.lock", timeout=BUSY_TIMEOUT_S):  # switching to WAL does not wait
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._db.executescript(TABLE)

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    def get(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Return the answers that are there, by key, in one query."""
        wanted = "WHERE key IN (SELECT value FROM json_each(?))"
        return {answer.key: answer for answer in self.answers(wanted, json.dumps(list(keys)))}

    def answers(self, which: str = "ORDER BY key", *values: str) -> Iterator[Answer]:
        """Yield every answer, by key, as they are at one moment."""
        with self._errors():
            for row in self._db.execute(f"SELECT {COLUMNS} FROM answers {which}", values):
                try:
                    if tuple(map(type, row)) != TYPES:  # which SQLite does not enforce
                        raise ValueError("a value of another type")
                    _ = Answer(*row).text
                except ValueError as error:
                    raise sqlite3.DatabaseError(f"answer {row[0]!r:.80}: {error}") from error
                yield Answer(*row)

    def put_all(self, answers: Iterable[Answer]) -> Counter[str]:
        """Store all answers or, after any error, none; the first to a key stays, others are `conflicting`."""
        counts: Counter[str] = Counter(new=0, known=0, conflicting=0)
        with self._errors(), self._db:  # which commits, or rolls back
            self._db.execute("BEGIN IMMEDIATE")
            for answer in answers:
                if self._db.execute(INSERT, answer).rowcount == 1:
                    counts["new"] += 1
                else:
                    same = self.get([answer.key])[answer.key].response == answer.response
                    counts["known" if same else "conflicting"] += 1
        return counts

    def totals(self) -> list[dict[str, Any]]:
        """Return how many answers and tokens there are, one row for each KIND of answers."""
        counted = "count(*) AS answers, sum(prompt_tokens) AS prompt_tokens, sum(completion_tokens) AS "
        query = f"SELECT {KIND}, {counted} completion_tokens FROM answers GROUP BY {KIND} ORDER BY {KIND}"
        with self._errors():
            found = self._db.execute(query)
            names = [name for name, *_ in found.description]
            return [dict(zip(names, row, strict=True)) for row in found]

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into one sentence."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            told = f"teacher cache {self.path} cannot be used ({error}); it was left as it is; check"
            raise TeacherError(f"{told} folder, permissions, free space and other programs") from error
