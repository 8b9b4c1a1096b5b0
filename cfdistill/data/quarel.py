"""QuaRel (Tafjord et al., 2019): two options, "(A) … (B) …", which stand inside the question's text.

The official splits are used as they are. Rows without an id are named by file and line.
"""

import re
from typing import Any

from cfdistill.data.benchmark import Benchmark, Raw, Source

OPTIONS = re.compile(r"(.+?)\s*\(A\)\s*(.+?)\s*\(B\)\s*(.+)", re.DOTALL)


def read(row: dict[str, Any], name: str) -> Raw:
    """Take the options out of the text; raises ValueError when they are not in it."""
    found = OPTIONS.fullmatch(row["question"].strip())
    if found is None:
        raise ValueError("without options in the text")
    index = row.get("answer_index")
    return Raw(str(row.get("id", name)), found[1], ["A", "B"], [found[2], found[3]], _label(index))


def _label(index: Any) -> str:
    return "" if index is None else {0: "A", 1: "B"}[index]


BENCHMARK = Benchmark(
    "QuaRel",
    "quarel",
    ("community-datasets/quarel", "52be7f062d2c13d401a9e53b6963d8fbcc4abeb4", None),
    {
        "train": Source("train.jsonl", "train", 1941),
        "validation": Source("dev.jsonl", "validation", 278),
        "test": Source("test.jsonl", "test", 552),
    },
    read,
)
