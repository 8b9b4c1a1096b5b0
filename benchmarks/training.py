"""Training speed on the default study's own examples, beside Hugging Face's plain Trainer, in one run.

    python benchmarks/training.py [--examples 32] [--repeats 3]

Both sides see the same examples, the same batch size and the same number of updates, in fp32 or bf16 as
`choose_precision` finds faster; medians over the repeats. Writes results/bench/training.csv.
"""

from __future__ import annotations

import argparse
import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from cfdistill import counterfactual, data, rationale, runs, students, training
from cfdistill.encoding import IGNORED, encode
from cfdistill.params import Params
from cfdistill.schema import Example

COLUMNS = ("name", "ours", "peer", "ratio", "unit")


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--examples", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    params = Params()
    for build in (lambda p: data.build(p.train_dataset, p), counterfactual.build, rationale.build):
        build(params)
    examples = training.make_examples(*training.read_material(params), "cf-distill")[: args.examples]
    full = params.model_copy(update={"frozen_layers": 0})
    plain, ours, frozen = [], [], []
    for _ in range(args.repeats):  # in turn, so that a drifting machine is fair to all
        plain.append(timed(lambda: train_plainly(examples, full)))
        ours.append(timed(lambda: train_ours(examples, full)))
        frozen.append(timed(lambda: train_ours(examples, params)))
    peer = len(examples) / statistics.median(plain)
    rows = []
    for name, seconds in (("all layers", ours), (f"{params.frozen_layers} layers frozen, one epoch", frozen)):
        speed = len(examples) / statistics.median(seconds)
        rows.append((name, f"{speed:.3f}", f"{peer:.3f}", f"{speed / peer:.2f}", "examples/s"))
    target = runs.project_root() / "results" / "bench" / "training.csv"
    target.parent.mkdir(parents=True, exist_ok=True)
    with target.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows([COLUMNS, *rows])
    print(target.read_text(encoding="utf-8"))


def timed(work: Callable[[], Callable[[], None]]) -> float:
    """Prepare with `work`, then return the seconds that what it returns takes."""
    run = work()
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def train_ours(examples: list[Example], params: Params) -> Callable[[], None]:
    """Return one epoch of this project's training, the pass through frozen layers included."""
    student = students.load(params.student, params)
    one = params.model_copy(update={"epochs": 1.0})

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            training.train(student, examples, training.count_steps(examples, one), one, Path(folder))

    return run


def train_plainly(examples: list[Example], params: Params) -> Callable[[], None]:
    """Return one epoch of Trainer as its documentation shows it, padding to the longest of a batch."""
    from transformers import DataCollatorForSeq2Seq, Trainer, TrainingArguments

    student = students.load(params.student, params)
    pairs = [encode(example, student.tokenizer) for example in examples]
    rows = [{"input_ids": p.prompt + p.target, "labels": [IGNORED] * len(p.prompt) + p.target} for p in pairs]

    def run() -> None:
        with tempfile.TemporaryDirectory() as folder:
            arguments = TrainingArguments(
                output_dir=folder,
                num_train_epochs=1,
                per_device_train_batch_size=params.batch_size,
                learning_rate=params.learning_rate,
                bf16=students.choose_precision().name == "bf16",
                save_strategy="no",
                report_to="none",
                disable_tqdm=True,
            )
            collator = DataCollatorForSeq2Seq(student.tokenizer, label_pad_token_id=IGNORED)
            Trainer(student.model, arguments, data_collator=collator, train_dataset=rows).train()

    return run


if __name__ == "__main__":
    main()
