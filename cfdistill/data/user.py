"""Your own questions, in three JSON Lines files (docs/your_own_data.md).

A row is `{"id", "stem", "options", "answer"}`; `answer` is the index of the right option, from 0.
"""

from typing import Any

from cfdistill.data.benchmark import Benchmark, Raw, Source
from cfdistill.schema import LETTERS


def read(row: dict[str, Any], name: str) -> Raw:
    """Read a row; raises ValueError when its answer counts no option."""
    answer, options = row.get("answer"), row["options"]
    if answer is not None and (type(answer) is not int or not 0 <= answer < len(options)):
        raise ValueError("with an answer that is no option's index")
    labels = list(LETTERS[: len(options)])
    return Raw(
        str(row.get("id", name)), row["stem"], labels, options, "" if answer is None else labels[answer]
    )


BENCHMARK = Benchmark(
    "user's",
    "user",
    None,
    {
        "train": Source("train.jsonl", "train", None),
        "validation": Source("validation.jsonl", "validation", None),
        "test": Source("test.jsonl", "test", None),
    },
    read,
)
