"""Questions from the built-in testbed and from real benchmarks, behind one `load`."""

from collections.abc import Sequence
from typing import Any

from cfdistill.data import benchmarks, weasel
from cfdistill.data.benchmarks import text_of
from cfdistill.errors import DataError
from cfdistill.methods import METHODS
from cfdistill.params import BENCHMARKS, Params
from cfdistill.schema import Question

MOST_OVERLAP = 0.25  # of the tested or the validation questions; our choice


def load(name: str, split: str, params: Params) -> list[Question]:
    """Load one split; DataError when it is unknown, empty, malformed, or holds a question id twice."""
    read = benchmarks.load if name in BENCHMARKS else weasel.load
    questions = read(name, split, params)
    if not questions:
        raise DataError(f"{name}: split {split!r} is empty with these parameters; change the sizes")
    if len({question.id for question in questions}) < len(questions):
        raise DataError(f"{name}: split {split!r} holds a question id twice")
    return questions


def test_splits(name: str, params: Params) -> tuple[str, ...]:
    """Return the splits to test on: all of a testbed that was trained on, `new` of another one."""
    if params.tested == "development":
        return ("development",)
    if name in BENCHMARKS:
        trained = name == params.train_dataset and "pool" in BENCHMARKS[name]
        return ("test", "unused") if trained else ("test",)
    return weasel.TEST_SPLITS if name == params.train_dataset else ("new",)


def splits(name: str, params: Params) -> tuple[str, ...]:
    """Return the splits that a study needs: of a data set that is not trained on, those to test on."""
    return (*trained_splits(name, params), *test_splits(name, params))


def trained_splits(name: str, params: Params) -> tuple[str, ...]:
    """Return the splits that a study's methods are trained and validated on."""
    used = [split for method in params.methods for split in METHODS[method].splits]
    return tuple(dict.fromkeys(["train", "validation", *used])) if name == params.train_dataset else ()


def facts(name: str, params: Params) -> dict[str, Any]:
    """Return all that reaches the questions of `splits`: parameters, and files by content; no paths."""
    wanted = splits(name, params)
    read = benchmarks.facts if name in BENCHMARKS else weasel.facts
    return {"splits": list(wanted), **read(name, wanted, params)}


def check_overlap(name: str, trained: Sequence[Question], tested: Sequence[Question]) -> list[str]:
    """Return the ids of tested questions that are trained or validated on, by their texts (`text_of`).

    Raises DataError when they are over MOST_OVERLAP of the tested or validation questions.
    """
    known, asked = ({text_of(question) for question in own} for own in (trained, tested))
    found = [question.id for question in tested if text_of(question) in known]
    validating = [question for question in trained if question.split == "validation"]
    leaked = sum(text_of(question) in asked for question in validating)
    if len(found) > MOST_OVERLAP * len(tested) or leaked > MOST_OVERLAP * len(validating):
        told = f"{len(found)} of {len(tested)} test questions are also trained or validated on"
        told += f" (and {leaked} of {len(validating)} validation questions tested on)"
        raise DataError(f"{name}: {told}; test on another data set")
    return found
