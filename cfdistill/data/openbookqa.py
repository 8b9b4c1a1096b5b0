"""OpenBookQA (Mihaylov et al., 2018): four options, without the open book; an extra OOD test."""

from cfdistill.data.benchmark import Benchmark, Source, read_nested

BENCHMARK = Benchmark(
    "OpenBookQA",
    "openbookqa",
    ("allenai/openbookqa", "388097ea7776314e93a529163e0fea805b8a6454", "main"),
    {
        "train": Source("train.jsonl", "train", 4957),
        "validation": Source("dev.jsonl", "validation", 500),
        "test": Source("test.jsonl", "test", 500),
    },
    read_nested,
)
