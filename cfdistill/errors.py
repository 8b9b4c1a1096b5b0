"""Errors a user can mend: each message says what is wrong, where, and what to do."""


class CfdistillError(Exception):
    """Base of every error that is the input's fault, not the program's."""


class ParamsError(CfdistillError):
    """A parameter is unknown, of the wrong type or out of range."""


class DataError(CfdistillError):
    """A question file is missing, malformed or empty."""


class StageError(CfdistillError):
    """A stage directory is missing, damaged, locked, or cannot be written."""


class TeacherError(CfdistillError):
    """The teacher cannot answer: no key, no recorded answer, or a failing server."""


class TrainingError(CfdistillError):
    """The training examples or the student do not fit the request."""
