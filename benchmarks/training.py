"""Training speed on the default study's own examples, beside Trainer and SFTTrainer, in one run.

    python benchmarks/training.py [--examples 32] [--rounds 5] [--peers-python .venv-bench/bin/python]

All sides see the same examples of cf-distill, the same student, every layer trained, the same batch size
and number of updates, and save nothing; the time is that of the training loop. Each peer runs in the
precision (fp32 or bf16) and layout (padded or padding-free) that it is fastest in, ours in what `precision:
auto` takes. Medians over the rounds, and the p of a one-sided sign test that ours is faster. Writes
results/bench/training.csv.
"""

from __future__ import annotations

import argparse
import itertools
import math
import statistics
import sys
import tempfile
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any
from unittest.mock import patch

from peers.contest import Contestant, faster, peers_python, row, serve, write_table

from cfdistill import files, pipeline
from cfdistill.params import Params
from cfdistill.schema import write_jsonl
from cfdistill.student import models
from cfdistill.student.examples import count_steps
from cfdistill.student.packing import encode

PEERS = {"plain": "Trainer", "trl": "SFTTrainer"}
TRIAL = 8  # examples on which a peer's settings are compared


def main() -> None:
    """Measure, print and write the table; as `--serve` be one of our two contestants."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers-python", default="", help="interpreter of the peers' environment")
    parser.add_argument("--serve", choices=("full", "frozen"), help=argparse.SUPPRESS)
    args = parser.parse_args()
    params = Params()
    if args.serve:
        return serve_ours(params, frozen=args.serve == "frozen")
    python = peers_python(args.peers_python)
    for name in ("data", "counterfactuals", "rationales"):
        for part in pipeline.parts(name, params):
            pipeline.build(name, params, **part)
    student = models.load(params)
    examples = pipeline.examples("cf-distill", params)[: args.examples]
    targets = sum(len(encode(example, student.tokenizer).target) for example in examples)
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "examples.jsonl"
        write_jsonl(file, examples)
        peers = {name: fastest(python, name, file, params) for name in PEERS}
        ours = {kind: Contestant(sys.executable, "training", serve=kind) for kind in ("full", "frozen")}
        contestants = ours | {name: contestant for name, (contestant, _) in peers.items()}
        flops = {
            name: contestant.turn({"examples": len(examples), "count": True})["flops"]
            for name, contestant in contestants.items()
            if name != "frozen"
        }
        turns = measure(contestants, len(examples), args.rounds)
        for contestant in contestants.values():
            contestant.stop()
    peak = matmul_peak(student.model.config)
    print(f"peak of matrix products: {peak / 1e9:.0f} GFLOP/s")
    seconds = {name: [turn["seconds"] / turn.get("epochs", 1) for turn in own] for name, own in turns.items()}
    memory = {name: max(t["peak_gib"] for t in own) for name, own in turns.items()}
    rows = []
    for name, (_, settings) in peers.items():
        title = f"beside {PEERS[name]} ({settings})"
        for unit, amount in (("examples/s", len(examples)), ("target tokens/s", targets)):
            speeds = [[amount / own for own in seconds[side]] for side in ("full", name)]
            rows.append(faster(title, *speeds, unit))
        rows.append(row(title, memory["full"], memory[name], "GiB peak memory", less_is_better=True))
        mfu = [flops[side] / statistics.median(seconds[side]) / peak for side in ("full", name)]
        rows.append(row(title, mfu[0], mfu[1], "MFU"))
        frozen = f"{title}, {params.frozen_layers} layers frozen as in the study"
        speeds = [[len(examples) / own for own in seconds[side]] for side in ("frozen", name)]
        rows.append(faster(frozen, *speeds, "examples/s"))
    write_table("training.csv", rows)
    return None


def fastest(python: Path, name: str, file: Path, params: Params) -> tuple[Contestant, str]:
    """Return a peer in the settings it is fastest in, and these in words."""
    folder = files.resolve(params.run_root) / "students" / params.student
    options = {"model": folder, "examples": file, "batch_size": params.batch_size}
    options["learning_rate"] = params.learning_rate
    best, chosen, least = None, "", math.inf
    for precision, layout in itertools.product(("fp32", "bf16"), ("padded", "flat")):
        own = {"trainer": name, "precision": precision, "layout": layout}
        peer = Contestant(python, "peers.trainers", **own, **options)
        seconds = peer.turn({"examples": TRIAL, "count": False})["seconds"]
        print(f"{PEERS[name]} {precision} {layout}: {TRIAL / seconds:.2f} examples/s", flush=True)
        slower = best if seconds < least else peer
        if seconds < least:
            best, chosen, least = peer, f"{precision}, {layout}", seconds
        if slower:
            slower.stop()
    assert best is not None
    return best, chosen


def measure(
    contestants: dict[str, Contestant], examples: int, rounds: int
) -> dict[str, list[dict[str, Any]]]:
    """Return the facts of every turn, each contestant having one a round, in turn."""
    turns: dict[str, list[dict[str, Any]]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            turns[name].append(contestant.turn({"examples": examples, "count": False}))
            print(f"{name}: {turns[name][-1]['seconds']:.2f} s", flush=True)
    return turns


def serve_ours(params: Params, *, frozen: bool) -> None:
    """Be our contestant: one epoch with all layers trained, or the study's epochs with its frozen layers.

    In the second the time is that of the whole call, with the pass through the frozen layers.
    """
    from torch.utils.flop_counter import FlopCounterMode

    from cfdistill.student import train

    params = params if frozen else params.model_copy(update={"frozen_layers": 0, "epochs": 1.0})
    student = models.load(params)
    examples = pipeline.examples("cf-distill", params)

    def work(task: dict[str, Any]) -> dict[str, Any]:
        chosen = examples[: task["examples"]]
        steps = count_steps(chosen, params)
        with (
            tempfile.TemporaryDirectory() as folder,
            patch.object(train.StudentTrainer, "_save_checkpoint"),  # the peers save nothing either
            FlopCounterMode(display=False) if task["count"] else nullcontext() as counter,
        ):
            log, _ = train.train(student, chosen, steps, params, Path(folder))
        facts = {"epochs": params.epochs, "flops": counter.get_total_flops() if counter else 0}
        return facts if frozen else facts | {"seconds": sum(step["seconds"] for step in log)}

    serve(work)


def matmul_peak(shape: Any, tokens: int = 320, repeats: int = 10) -> float:
    """Return the most FLOP/s that torch reaches in fp32 on any product of a layer's or the head's shape."""
    import torch

    rates = []
    for inner, outer in (
        (shape.hidden_size, shape.hidden_size),
        (shape.hidden_size, shape.intermediate_size),
        (shape.intermediate_size, shape.hidden_size),
        (shape.hidden_size, shape.vocab_size),
    ):
        x, w = torch.randn(tokens, inner), torch.randn(outer, inner)
        for _ in range(repeats):
            began = time.perf_counter()
            torch.nn.functional.linear(x, w)
            rates.append(2 * tokens * inner * outer / (time.perf_counter() - began))
    return max(rates)


if __name__ == "__main__":
    main()
