"""Every answer the teacher ever gave, in one SQLite file, committed before anything uses it."""

import json
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
from cfdistill.teacher.outcomes import LIMITED, read_completion
from cfdistill.teacher.prompts import Prompt

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
    def to(cls, prompt: Prompt, body: str, url: str, model: str, limit: int = 0, took_s: float = 0.0) -> Self:
        """Build the answer to a prompt from a raw response body; ValueError when it is no chat completion."""
        text, _, served, sent, written = read_completion(body, prompt.task)
        key = prompt.key(url, model, limit if text in LIMITED else None)
        sent = sent or prompt.estimate()[0] * (written > 0)  # where the endpoint does not count
        created = datetime.now(UTC).isoformat(timespec="seconds")
        return cls(key, prompt.task, url, model, body, served, sent, written, took_s, created)

    @property
    def text(self) -> str:
        """The message of the response, or a NoAnswer."""
        return read_completion(self.response, self.task)[0]

    @property
    def digest(self) -> str:
        """The SHA-256 of the response, which tells answers to one key apart."""
        return sha256(self.response.encode()).hexdigest()


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
            try:
                tables = self._open(mode)
            except sqlite3.OperationalError:
                wal = path.with_name(f"{path.name}-wal")
                if not read_only or (wal.is_file() and wal.stat().st_size):
                    raise
                tables = self._open("ro&immutable=1")  # where SQLite may write nothing beside the file
            (layout,) = self._db.execute("PRAGMA user_version").fetchone()
            if (tables or layout or read_only) and ("answers" not in tables or layout != LAYOUT):
                told = f"{path} (left as it was) is no teacher cache of layout {LAYOUT} (its layout: {layout}"
                raise TeacherError(f"{told}); choose another teacher_cache, or the cfdistill that made it")
            if not tables:
                with FileLock(f"{path}.lock", timeout=BUSY_TIMEOUT_S):  # switching to WAL does not wait
                    self._db.execute("PRAGMA journal_mode = WAL")
                    self._db.executescript(TABLE)

    def _open(self, mode: str) -> set[str]:
        """Connect to the file, and return the names of its tables."""
        self._db = sqlite3.connect(
            f"{self.path.absolute().as_uri()}?mode={mode}",
            uri=True,
            timeout=BUSY_TIMEOUT_S,
            isolation_level=None,  # every statement commits at once, and waits for the disk
            check_same_thread=False,  # the client's event loop runs in a thread of its own
        )
        return {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}

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
        with self.transaction() as db:
            for answer in answers:
                if db.execute(INSERT, answer).rowcount == 1:
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
    def transaction(self) -> Iterator[sqlite3.Connection]:
        """Yield the connection; what is done with it is committed as one, or after an error not at all."""
        with self._errors(), self._db:
            self._db.execute("BEGIN IMMEDIATE")
            yield self._db

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into one sentence."""
        try:
            yield
        except (sqlite3.Error, OSError) as error:
            told = f"teacher cache {self.path} cannot be used ({error}); it was left as it is; check"
            raise TeacherError(f"{told} folder, permissions, free space and other programs") from error
