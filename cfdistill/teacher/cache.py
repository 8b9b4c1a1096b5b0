"""Every answer the teacher ever gave, in one SQLite file.

An answer is committed before anything uses it, so a killed run never pays for it again. The file can
be copied, shared and replayed. `PRAGMA user_version` holds the layout's version.
"""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from filelock import FileLock

from cfdistill.errors import TeacherError

LAYOUT = 1
BUSY_TIMEOUT_S = 30.0


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

    @property
    def text(self) -> str:
        """The message of the response; empty when the model refused."""
        return str(json.loads(self.response)["choices"][0]["message"].get("content") or "")


CREATE = """
CREATE TABLE answers (
  key TEXT PRIMARY KEY, task TEXT NOT NULL, base_url TEXT NOT NULL, model TEXT NOT NULL,
  response TEXT NOT NULL, served_model TEXT NOT NULL, prompt_tokens INTEGER NOT NULL,
  completion_tokens INTEGER NOT NULL, latency_s REAL NOT NULL, created TEXT NOT NULL
)
"""


class Cache:
    """An open cache file; one connection, used by one thread at a time."""

    def __init__(self, path: Path, *, read_only: bool = False, durable: bool = True) -> None:
        """Open the file, creating it unless it is only to be read.

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
            try:
                self._check_layout(read_only)
                self._db.execute(f"PRAGMA synchronous = {'FULL' if durable else 'NORMAL'}")
            except BaseException:
                self._db.close()
                raise

    def _check_layout(self, read_only: bool) -> None:
        if not read_only and self._is_empty():
            # SQLite's own timeout does not cover the switch to WAL, so creators take turns.
            with FileLock(f"{self.path}.lock", timeout=BUSY_TIMEOUT_S):
                if self._is_empty():
                    self._create()
        layout = self._db.execute("PRAGMA user_version").fetchone()[0]
        if layout > LAYOUT:
            raise TeacherError(
                f"teacher cache {self.path} has layout {layout}, this version knows {LAYOUT}; update "
                "cfdistill or choose another teacher_cache (the file was left as it is)"
            )
        if layout < LAYOUT:
            raise TeacherError(f"{self.path} is no teacher cache; choose another teacher_cache")

    def _create(self) -> None:
        self._db.execute("PRAGMA journal_mode = WAL")
        self._db.execute("BEGIN")
        self._db.execute(CREATE)
        self._db.execute(f"PRAGMA user_version = {LAYOUT}")
        self._db.execute("COMMIT")

    def _is_empty(self) -> bool:
        return not self._db.execute("SELECT 1 FROM sqlite_master").fetchall()

    def get(self, keys: Iterable[str]) -> dict[str, Answer]:
        """Return the answers that are there, by key, in one query."""
        with self._errors():
            rows = self._db.execute(
                "SELECT * FROM answers WHERE key IN (SELECT value FROM json_each(?))",
                (json.dumps(list(keys)),),
            )
            return {row[0]: Answer(*row) for row in rows}

    def put(self, answer: Answer) -> None:
        """Store and commit an answer; the first one to a key stays."""
        with self._errors():
            self._db.execute(f"INSERT OR IGNORE INTO answers VALUES ({', '.join('?' * len(answer))})", answer)

    def sources(self) -> list[tuple[str, str]]:
        """Return the (base_url, model) pairs whose answers the file holds."""
        with self._errors():
            return list(self._db.execute("SELECT DISTINCT base_url, model FROM answers ORDER BY 1, 2"))

    def close(self) -> None:
        """Close the file."""
        self._db.close()

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
            raise TeacherError(
                f"teacher cache {self.path} is damaged ({error}); it was left as it is: move it away or "
                "put back a copy, then run again"
            ) from error
