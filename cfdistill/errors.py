"""Errors a user can mend: each message says what is wrong, where, and what to do."""

from typing import Any


class CfdistillError(Exception):
    """Base of every error that is the input's fault, not the program's."""


class ParamsError(CfdistillError):
    """A parameter is unknown, of the wrong type or out of range."""


class DataError(CfdistillError):
    """A question file is missing, malformed or empty."""


class StageError(CfdistillError):
    """A stage or folder is missing, damaged, in use, or cannot be written."""


class TeacherError(CfdistillError):
    """The teacher cannot answer: no key, no recorded answer, or a failing server."""


class TrainingError(CfdistillError):
    """The training examples or the student do not fit the request."""


class Terminated(KeyboardInterrupt):
    """SIGTERM, which ends a run as Ctrl-C does: gracefully."""


def first_fault(error: Any) -> str:
    """Return the first thing that a pydantic `ValidationError` names, as "field: what" on one line."""
    first = error.errors(include_input=False, include_url=False)[0]
    name = ".".join(map(str, first["loc"]))
    message = " ".join(first["msg"].removeprefix("Value error, ").split())
    return f"{name}: {message}" if name else message
