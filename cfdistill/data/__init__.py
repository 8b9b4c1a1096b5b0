"""Questions from the built-in testbed and from real benchmarks, behind one `load`.

Adding a benchmark is one module with `load` and `TEST_SPLITS`, and one line in `_module`.
"""

from __future__ import annotations

from collections.abc import Mapping
from types import ModuleType

from cfdistill import runs
from cfdistill.data import csqa, weasel
from cfdistill.errors import DataError
from cfdistill.params import Params
from cfdistill.schema import Question


def _module(name: str) -> ModuleType:
    modules: Mapping[str, ModuleType] = {"weasel": weasel, "csqa": csqa}
    return modules[name.partition("-")[0]]


def load(name: str, split: str, params: Params) -> list[Question]:
    """Load one split of a data set.

    Args:
        name: a data set of `params.DATASETS`.
        split: `train`, `validation`, or one of `test_splits`.
        params: sizes, seeds, `data_root`.

    Raises:
        DataError: the split is unknown, empty, malformed, or holds a question twice.
    """
    questions: list[Question] = _module(name).load(name, split, params)
    if not questions:
        raise DataError(f"{name}: split {split!r} is empty with these parameters; raise the sizes")
    if len({q.id for q in questions}) < len(questions):
        raise DataError(f"{name}: split {split!r} holds a question id twice")
    return questions


def test_splits(name: str, params: Params) -> tuple[str, ...]:
    """Return the splits to test on: all of the training data set's own, `new` of another testbed."""
    splits: tuple[str, ...] = _module(name).TEST_SPLITS
    return splits if name == params.train_dataset or "new" not in splits else ("new",)


def stage(name: str, params: Params) -> runs.Stage:
    """Return the stage directory of one data set."""
    return runs.stage("data", params, dataset=name)


def build(name: str, params: Params) -> runs.Stage:
    """Reuse or make the stage `data` of one data set: `questions.<split>.jsonl` for every split."""
    made = stage(name, params)
    if made.is_complete():
        return made
    with made.draft(params) as draft:
        for split in ("train", "validation", *_module(name).TEST_SPLITS):
            draft.write(f"questions.{split}.jsonl", load(name, split, params))
    return made


def questions(name: str, split: str, params: Params) -> list[Question]:
    """Read one split from the finished stage `data`."""
    return runs.require(stage(name, params)).read(f"questions.{split}.jsonl", Question)


def chance(name: str, params: Params) -> float:
    """Return the accuracy of guessing on the last test split of a data set, as a share; needs no stage."""
    tested = load(name, test_splits(name, params)[-1], params)
    return sum(1 / len(question.options) for question in tested) / len(tested)
