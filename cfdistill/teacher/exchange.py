"""Moving answers between caches as JSON Lines: one answer a line, in the order of their keys.

Files can be joined, compared and kept under version control, and merge in any order: the first answer
to a key stays.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator

from cfdistill import runs
from cfdistill.errors import TeacherError, first_fault
from cfdistill.teacher.cache import Answer, Cache

SCHEMA_VERSION = 1
Count = Annotated[int, Field(ge=0, lt=2**63)]  # what SQLite can hold


class Line(BaseModel):
    """One line of a file: an answer, and the version of these fields."""

    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)

    schema_version: Literal[1]
    key: str = Field(pattern="^[0-9a-f]{64}$")
    task: str
    base_url: str
    model: str
    response: str
    served_model: str
    prompt_tokens: Count
    completion_tokens: Count
    latency_s: float = Field(ge=0, allow_inf_nan=False)
    created: str
    batched: int = Field(ge=0, le=1)

    @field_validator("response")
    @classmethod
    def _check_response(cls, value: str) -> str:
        Answer.read(value)  # raises when it is no chat completion
        return value

    def answer(self) -> Answer:
        """Return the answer as a row of a cache."""
        return Answer(**self.model_dump(exclude={"schema_version"}))


def export_cache(cache: Cache, target: Path) -> int:
    """Write every answer to a file, which appears when it is whole, and return their number."""
    lines = [
        json.dumps({"schema_version": SCHEMA_VERSION, **answer._asdict()}, ensure_ascii=False) + "\n"
        for answer in cache.answers()
    ]
    with runs.writing(target):
        runs.write_text(target, "".join(lines))
    return len(lines)


def import_cache(source: Path, cache: Cache) -> Counter[str]:
    """Add the answers of a file to a cache.

    Returns:
        How many were `new`, `known` and `conflicting` (another response was there, and stays).

    Raises:
        TeacherError: the file is missing or a line is no answer; the cache is as it was.
    """
    if not source.is_file():
        raise TeacherError(f"{source} is missing; make it with `cfdistill teacher export-cache`")
    return cache.put_all(_read(source))


def _read(source: Path) -> Iterator[Answer]:
    with source.open("rb") as lines:
        for number, line in enumerate(lines, 1):
            try:
                yield Line.model_validate_json(line).answer()
            except ValidationError as error:
                raise TeacherError(
                    f"{source}, line {number}: {_reason(error)}; nothing was imported, so mend or delete "
                    "the line and import again"
                ) from error


def _reason(error: ValidationError) -> str:
    if error.errors()[0]["loc"] == ("schema_version",):
        return f"needs schema_version {SCHEMA_VERSION} (update cfdistill if the file's is newer)"
    return first_fault(error)
