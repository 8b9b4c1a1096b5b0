"""CommonsenseQA (Talmor et al., 2019): five options.

The labels of the official test file are hidden, so, as the community does, the official dev file is
the test split, and a fixed tenth of the training file (by a hash of the id) is the validation split.
"""

from cfdistill.data.benchmark import Benchmark, Source, read_nested

BENCHMARK = Benchmark(
    "CommonsenseQA",
    "csqa",
    ("tau/commonsense_qa", "94630fe30dad47192a8546eb75f094926d47e155", None),
    {
        "train": Source("train_rand_split.jsonl", "train", 9741),
        "test": Source("dev_rand_split.jsonl", "validation", 1221),
    },
    read_nested,
)
