"""Every answer the teacher ever gave, in one SQLite file.

An answer is committed before anything uses it, so a killed run never pays for it again. The file can
be copied, shared and replayed. `PRAGMA user_version` holds the layout's version; a file of an older
layout is brought up to date when it is opened.
"""

from __future__ import annotations

import functools
import json
import sqlite3
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, closing, contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, NamedTuple, Self, get_type_hints

from filelock import FileLock

from cfdistill.errors import TeacherError

# Step i takes a file from layout i to layout i + 1. Files out there have every layout since the first,
# so a step is never changed: a new layout is a new step, and a new field of Answer at its end.
MIGRATIONS = (
    """
    CREATE TABLE answers (
      key TEXT PRIMARY KEY, task TEXT NOT NULL, base_url TEXT NOT NULL, model TEXT NOT NULL,
      response TEXT NOT NULL, served_model TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
      completion_tokens INTEGER NOT NULL, latency_s REAL NOT NULL, created TEXT NOT NULL
    )
    """,
    "ALTER TABLE answers ADD COLUMN batched INTEGER NOT NULL DEFAULT 0",
)
LAYOUT = len(MIGRATIONS)
BUSY_TIMEOUT_S = 30.0
NO_COMPLETION = (LookupError, ValueError, ArithmeticError, TypeError, AttributeError, RecursionError)


class Answer(NamedTuple):
    """One row of the table `answers`; the columns in order."""

    key: str  # SHA-256 of everything that can change the answer
    task: str
    base_url: str
    model: str  # as asked for
    response: str  # raw response body, JSON
    served_model: str  # as the response names it
    prompt_tokens: int
    completion_tokens: int
    latency_s: float
    created: str  # ISO 8601, UTC
    batched: int = 0  # 1: bought through the Batch API, at its price

    @classmethod
    def read(
        cls,
        response: str,
        *,
        key: str = "",
        task: str = "",
        base_url: str = "",
        model: str = "",
        latency_s: float = 0.0,
        batched: int = 0,
    ) -> Self:
        """Build an answer from a raw response body.

        A refusal, or a message without text, is an answer: it was paid for, and its reader rejects it.

        Raises:
            ValueError: it is no chat completion.
        """
        try:
            body = json.loads(response)
            usage = body.get("usage") or {}
            answer = cls(
                key=key,
                task=task,
                base_url=base_url,
                model=model,
                response=response,
                served_model=str(body.get("model") or ""),
                prompt_tokens=_count(usage.get("prompt_tokens")),
                completion_tokens=_count(usage.get("completion_tokens")),
                latency_s=latency_s,
                created=datetime.now(UTC).isoformat(timespec="seconds"),
                batched=batched,
            )
            _ = answer.text
        except NO_COMPLETION as error:
            raise ValueError(f"no chat completion ({type(error).__name__})") from error
        return answer

    @property
    def text(self) -> str:
        """The message of the response; empty when the model refused."""
        content = json.loads(self.response)["choices"][0]["message"].get("content") or ""
        if not isinstance(content, str):
            raise TypeError("a message that is no text")
        return content.encode("utf-8", "replace").decode()  # half an emoji cannot be written to a file


def _count(tokens: Any) -> int:
    count = int(tokens or 0)
    if not 0 <= count < 2**63:  # what SQLite can hold
        raise ValueError("no number of tokens")
    return count


class Total(NamedTuple):
    """How many answers of one kind a cache holds; the first five fields are the kind."""

    model: str
    base_url: str
    served_model: str
    task: str
    batched: int
    answers: int
    prompt_tokens: int
    completion_tokens: int


class Source(NamedTuple):
    """Whose answers a cache holds."""

    base_url: str
    model: str


@functools.cache
def _types(kind: type) -> tuple[type, ...]:
    return tuple(get_type_hints(kind).values())


COLUMNS = ", ".join(Answer._fields)
KIND = ", ".join(Total._fields[:5])


class Cache:
    """An open cache file; one connection, used by one thread at a time."""

    def __init__(self, path: Path, *, read_only: bool = False, durable: bool = True) -> None:
        """Open the file, creating it or bringing its layout up to date unless it is only to be read.

        Args:
            path: the file.
            read_only: never change it.
            durable: wait for the disk at each commit, so that answers outlive a power cut, too.

        Raises:
            TeacherError: it is missing, damaged, of a newer layout, or not a teacher cache; the file
                is left as it was.
        """
        self.path = path
        if read_only and not path.is_file():
            raise TeacherError(f"{path} is missing; set teacher_cache to a file of recorded answers")
        with self._errors():
            if not read_only:
                path.parent.mkdir(parents=True, exist_ok=True)
            self._db = sqlite3.connect(
                f"{path.absolute().as_uri()}?mode={'ro' if read_only else 'rwc'}",
                uri=True,
                timeout=BUSY_TIMEOUT_S,
                isolation_level=None,  # every statement commits at once
                check_same_thread=False,  # the client's event loop runs in a thread of its own
            )
            with ExitStack() as unless_opened:
                unless_opened.callback(self.close)
                self._check_layout(read_only)
                self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
                unless_opened.pop_all()

    def _check_layout(self, read_only: bool) -> None:
        layout = self._layout()
        if layout > LAYOUT:
            raise TeacherError(
                f"teacher cache {self.path} has layout {layout}, this version knows {LAYOUT}; update "
                "cfdistill or choose another teacher_cache (the file was left as it is)"
            )
        if layout < LAYOUT and read_only:
            self._copy_into_memory(layout)
        elif layout < LAYOUT:
            # SQLite's own timeout does not cover the switch to WAL, so openers take turns.
            with FileLock(f"{self.path}.lock", timeout=BUSY_TIMEOUT_S):
                self._migrate()

    def _layout(self) -> int:
        """Return the file's layout; 0 for a file without tables."""
        tables = {name for (name,) in self._db.execute("SELECT name FROM sqlite_master")}
        layout: int = self._db.execute("PRAGMA user_version").fetchone()[0]
        if tables and (layout < 1 or "answers" not in tables):
            raise TeacherError(f"{self.path} is no teacher cache; choose another teacher_cache")
        return layout

    def _copy_into_memory(self, layout: int) -> None:
        """Read a file of an older layout through a copy that can be changed."""
        if layout < 1:
            raise TeacherError(f"{self.path} is no teacher cache; choose another teacher_cache")
        file, self._db = self._db, sqlite3.connect(":memory:", isolation_level=None, check_same_thread=False)
        with closing(file):
            file.backup(self._db)
        self._migrate()

    def _migrate(self) -> None:
        """Take the missing steps in one transaction: all of them or, after any error, none."""
        if self._layout() == 0:
            self._db.execute("PRAGMA journal_mode = WAL")
        with self._transaction():
            for step in MIGRATIONS[self._layout() :]:
                self._db.execute(step)
            self._db.execute(f"PRAGMA user_version = {LAYOUT}")

    def get(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Return the answers that are there, by key, in one query."""
        with self._errors():
            rows = self._db.execute(
                f"SELECT {COLUMNS} FROM answers WHERE key IN (SELECT value FROM json_each(?))",
                (json.dumps(list(keys)),),
            )
            return {row[0]: self._answer(row) for row in rows}

    def put(self, answer: Answer) -> bool:
        """Store and commit an answer; the first one to a key stays. Tells whether this was the first."""
        with self._errors():
            marks = ", ".join("?" * len(answer))
            done = self._db.execute(f"INSERT OR IGNORE INTO answers ({COLUMNS}) VALUES ({marks})", answer)
            return done.rowcount == 1

    def put_all(self, answers: Iterable[Answer]) -> Counter[str]:
        """Store answers in one transaction: all of them or, after any error, none.

        Returns:
            How many were `new`, `known` (the same response was there) and `conflicting` (another one was
            there, and stays).
        """
        counts: Counter[str] = Counter(new=0, known=0, conflicting=0)
        with self._errors(), self._transaction():
            for answer in answers:
                if self.put(answer):
                    counts["new"] += 1
                else:
                    same = self.get([answer.key])[answer.key].response == answer.response
                    counts["known" if same else "conflicting"] += 1
        return counts

    def answers(self) -> Iterator[Answer]:
        """Yield every answer, by key, as they are at one moment."""
        with self._errors():
            for row in self._db.execute(f"SELECT {COLUMNS} FROM answers ORDER BY key"):
                yield self._answer(row)

    def totals(self) -> list[Total]:
        """Return how many answers and tokens there are, one row per kind of answer."""
        with self._errors():
            rows = self._db.execute(
                f"SELECT {KIND}, count(*), sum(prompt_tokens), sum(completion_tokens) "
                f"FROM answers GROUP BY {KIND} ORDER BY {KIND}"
            )
            return [Total(*self._checked(row, Total)) for row in rows]

    def sources(self) -> list[Source]:
        """Return whose answers the file holds."""
        with self._errors():
            rows = self._db.execute("SELECT DISTINCT base_url, model FROM answers ORDER BY 1, 2")
            return [Source(*self._checked(row, Source)) for row in rows]

    def _answer(self, row: tuple[Any, ...]) -> Answer:
        answer = Answer(*self._checked(row, Answer))
        try:
            _ = answer.text
        except NO_COMPLETION as error:
            raise self._damaged(f"answer {answer.key} is no chat completion") from error
        return answer

    def _checked(self, row: tuple[Any, ...], kind: type) -> tuple[Any, ...]:
        """Return a row whose values have their types, which SQLite does not enforce."""
        if tuple(map(type, row)) != _types(kind):
            raise self._damaged(f"a row of {str(row[:5])[:200]}")
        return row

    def _damaged(self, reason: object) -> TeacherError:
        return TeacherError(
            f"teacher cache {self.path} is damaged ({reason}); it was left as it is: move it away or "
            "put back a copy, then run again"
        )

    def close(self) -> None:
        """Close the file."""
        self._db.close()

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._db.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._db.execute("COMMIT")
        except BaseException:
            self._db.rollback()  # does nothing when SQLite has done so itself, as on a full disk
            raise

    @contextmanager
    def _errors(self) -> Iterator[None]:
        """Turn SQLite's errors into one sentence."""
        try:
            yield
        except (sqlite3.OperationalError, OSError) as error:
            raise TeacherError(
                f"teacher cache {self.path} cannot be used ({error}); check its folder, permissions, free "
                "space and whether another program holds it, then run again"
            ) from error
        except sqlite3.DatabaseError as error:
            raise self._damaged(error) from error
