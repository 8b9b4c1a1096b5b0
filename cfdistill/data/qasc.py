"""QASC (Khot et al., 2020): eight options; the facts that compose the answer are not shown.

The labels of the official test file are hidden, so, as the community does, the official dev file is
the test split, and a fixed tenth of the training file (by a hash of the id) is the validation split.
"""

from cfdistill.data.benchmark import Benchmark, Source, read_nested

BENCHMARK = Benchmark(
    "QASC",
    "qasc",
    ("allenai/qasc", "a34ba204eb9a33b919c10cc08f4f1c8dae5ec070", None),
    {
        "train": Source("train.jsonl", "train", 8134),
        "test": Source("dev.jsonl", "validation", 926),
    },
    read_nested,
)
