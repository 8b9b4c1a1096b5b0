"""The AI2 Reasoning Challenge (Clark et al., 2018): mostly four options, sometimes three or five.

Some rows label their options 1 to 4 instead of A to D; their order is what counts. The official splits
are used as they are. `arc-challenge-dev` has the official dev file as its test split, for studies that
neither train nor choose anything on ARC.
"""

from dataclasses import replace

from cfdistill.data.benchmark import Benchmark, Source, read_nested


def _arc(config: str, train: int, dev: int, test: int) -> Benchmark:
    return Benchmark(
        config,
        "arc",
        ("allenai/ai2_arc", "210d026faf9955653af8916fad021475a3f00453", config),
        {
            "train": Source(f"{config}-Train.jsonl", "train", train),
            "validation": Source(f"{config}-Dev.jsonl", "validation", dev),
            "test": Source(f"{config}-Test.jsonl", "test", test),
        },
        read_nested,
    )


CHALLENGE = _arc("ARC-Challenge", 1119, 299, 1172)
EASY = _arc("ARC-Easy", 2251, 570, 2376)
CHALLENGE_DEV = replace(
    CHALLENGE,
    sources={"train": CHALLENGE.sources["train"], "test": CHALLENGE.sources["validation"]},
)
