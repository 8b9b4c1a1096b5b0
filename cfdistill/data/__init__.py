"""Questions from the built-in testbed and from real benchmarks, behind one `load`.

Adding a benchmark is one small module that makes a `Benchmark`, a line in `BENCHMARKS`, and its name in
`params.DATASETS`.
"""

from __future__ import annotations

from typing import Any

from cfdistill import runs
from cfdistill.data import arc, benchmark, csqa, openbookqa, qasc, quarel, user, weasel
from cfdistill.errors import DataError
from cfdistill.params import Params
from cfdistill.schema import Question

BENCHMARKS = {
    "csqa": csqa.BENCHMARK,
    "quarel": quarel.BENCHMARK,
    "qasc": qasc.BENCHMARK,
    "arc-challenge": arc.CHALLENGE,
    "arc-challenge-dev": arc.CHALLENGE_DEV,
    "arc-easy": arc.EASY,
    "openbookqa": openbookqa.BENCHMARK,
    "user": user.BENCHMARK,
}


def load(name: str, split: str, params: Params) -> list[Question]:
    """Load one split of a data set.

    Args:
        name: a data set of `params.DATASETS`.
        split: `train`, `validation`, or one of `test_splits`.
        params: sizes, seeds, `data_root`.

    Raises:
        DataError: the split is unknown, empty, malformed, or holds a question twice.
    """
    if name in BENCHMARKS:
        questions = benchmark.load(BENCHMARKS[name], name, split, params)
    else:
        questions = weasel.load(name, split, params)
    if not questions:
        raise DataError(f"{name}: split {split!r} is empty with these parameters; raise the sizes")
    if len({q.id for q in questions}) < len(questions):
        raise DataError(f"{name}: split {split!r} holds a question id twice")
    return questions


def test_splits(name: str, params: Params) -> tuple[str, ...]:
    """Return the splits to test on: all of a testbed that was trained on, `new` of another one."""
    if name in BENCHMARKS:
        return ("test",)
    own = name == params.train_dataset or params.train_dataset == weasel.ALL
    return weasel.TEST_SPLITS if own else ("new",)


def survey(name: str, params: Params) -> list[dict[str, Any]]:
    """Return what `benchmark.survey` counts, or nothing for the testbed, which has no odd rows."""
    return benchmark.survey(BENCHMARKS[name], params) if name in BENCHMARKS else []


def stage(name: str, params: Params) -> runs.Stage:
    """Return the stage directory of one data set."""
    return runs.stage("data", params, dataset=name)


def build(name: str, params: Params) -> runs.Stage:
    """Reuse or make the stage `data` of one data set: `questions.<split>.jsonl` for every split."""
    made = stage(name, params)
    if made.is_complete():
        return made
    with made.draft(params) as draft:
        test = ("test",) if name in BENCHMARKS else weasel.TEST_SPLITS
        for split in ("train", "validation", *test):
            draft.write(f"questions.{split}.jsonl", load(name, split, params))
        if rows := survey(name, params):
            draft.notes["files"] = rows
    return made


def questions(name: str, split: str, params: Params) -> list[Question]:
    """Read one split from the finished stage `data`."""
    return runs.require(stage(name, params)).read(f"questions.{split}.jsonl", Question)


def chance(name: str, params: Params) -> float:
    """Return the accuracy of guessing on the last test split of a data set, as a share; needs no stage."""
    tested = load(name, test_splits(name, params)[-1], params)
    return sum(1 / len(question.options) for question in tested) / len(tested)
