"""Training and answering on one CUDA card, beside SFTTrainer (or Trainer) and `generate`, in one run.

    benchmarks/gpu.sh [--rounds 5]

A model of SmolLM2-135M's shape with random weights learns from 120 examples of the testbed's questions, 16 a
step, all layers, in bf16; then it answers 128 prompts in batches of 64. Sides take turns; the first turn is
not timed, but its operations are counted for the MFU, whose peak is that of a large bf16 product, measured
here. Writes results/bench/gpu.csv.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import tempfile
import time
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch
from peers import trainers
from peers.contest import faster, row, write_table
from torch.utils.flop_counter import FlopCounterMode
from transformers import LlamaConfig, LlamaForCausalLM

from cfdistill.data import weasel
from cfdistill.params import Params
from cfdistill.schema import STRATEGY, Example, Question, answer_text, prompt_text
from cfdistill.student import decode, models, train
from cfdistill.student.examples import count_steps
from cfdistill.student.models import Student
from cfdistill.student.packing import encode

SMOLLM2 = {"vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30}
SMOLLM2 |= {"num_attention_heads": 9, "num_key_value_heads": 3, "tie_word_embeddings": True}
BATCH = 64  # prompts answered together


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--tiny", action="store_true", help="a tiny student, also without a card: for tests")
    parser.add_argument("--out", default="gpu.csv", help="table to write, under results/bench/")
    args = parser.parse_args()
    if not torch.cuda.is_available() and not args.tiny:
        raise SystemExit("PyTorch sees no CUDA card here; benchmarks/gpu.sh measures one")
    params = Params(
        precision="bf16", frozen_layers=0, batch_size=16, epochs=1.0, validations=0, max_length=1024
    )
    questions = weasel.load(params.train_dataset, "train", params)[: 8 if args.tiny else None]
    rows = compare_training(examples_of(questions), params, args.rounds, tiny=args.tiny)
    rows += compare_answers(questions, params, args.rounds, tiny=args.tiny)
    card = torch.cuda.get_device_name() if torch.cuda.is_available() else "no card"
    write_table(args.out, [(f"{card}: {name}", *facts) for name, *facts in rows])


def random_student(*, tiny: bool) -> Student:
    """Return a student of SmolLM2-135M's shape (or a tiny one) with random weights."""
    known = models.load(Params(student="tiny-random"))
    model, tokenizer = known.model, known.tokenizer
    if not tiny:
        ends = {"bos_token_id": tokenizer.eos_token_id, "eos_token_id": tokenizer.eos_token_id}
        model = LlamaForCausalLM(LlamaConfig(**SMOLLM2, **ends, max_position_embeddings=8192))
    return Student(model.eval().to("cuda" if torch.cuda.is_available() else "cpu"), tokenizer)


def examples_of(questions: list[Question]) -> list[Example]:
    """Return two examples of each question, about as long as the study's."""
    made = []
    for question in questions:
        answer = answer_text(question.options, question.answer)
        texts = {"positive": f" {question.stem} {answer}", "negative": f" {question.stem} Not so. {answer}"}
        made += [Example(question.id, k, prompt_text(question, STRATEGY[k]), t) for k, t in texts.items()]
    return made


def compare_training(
    examples: list[Example], params: Params, rounds: int, *, tiny: bool
) -> list[tuple[str, ...]]:
    """Return rows of training speed, MFU and peak memory at equal batches and updates."""
    ours, theirs = random_student(tiny=tiny), random_student(tiny=tiny)
    pairs = [encode(example, ours.tokenizer) for example in examples]
    tokens = sum(len(pair.prompt) + len(pair.target) for pair in pairs)
    peer = "SFTTrainer" if find_spec("trl") else "Trainer"
    make = trainers.sft_trainer if peer == "SFTTrainer" else trainers.plain_trainer
    texts = [example.to_json() for example in examples]

    def train_ours() -> float:
        with (
            tempfile.TemporaryDirectory() as folder,
            patch.object(train.StudentTrainer, "_save_checkpoint"),  # the peer saves nothing either
        ):
            log, _ = train.train(ours, examples, count_steps(examples, params), params, Path(folder))
        return sum(step["seconds"] for step in log)

    def train_peer() -> float:
        with tempfile.TemporaryDirectory() as folder:
            options = {"output_dir": folder, "per_device_train_batch_size": params.batch_size, "bf16": True}
            options |= {
                "num_train_epochs": 1,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
            }
            options |= {"learning_rate": params.learning_rate, "use_cpu": not torch.cuda.is_available()}
            trainer = make(theirs.model, theirs.tokenizer, texts, options, flat=False)
            return float(trainer.train().metrics["train_runtime"])

    seconds, flops, memory = take_turns([train_ours, train_peer], rounds)
    title, peak = f"training, batch {params.batch_size}, bf16, beside {peer}", matmul_peak(tiny=tiny)
    speeds = [[tokens / own for own in side] for side in seconds]
    mfu = [count / statistics.median(side) / peak for count, side in zip(flops, seconds, strict=True)]
    return [
        faster(title, *speeds, "tokens of examples/s"),
        row(title, *mfu, f"MFU of {peak / 1e12:.3g} TFLOP/s"),
        row(title, *memory, "GiB peak memory", less_is_better=True),
    ]


def compare_answers(
    questions: list[Question], params: Params, rounds: int, *, tiny: bool
) -> list[tuple[str, ...]]:
    """Return rows of answering speed and peak memory, both sides with bf16 weights."""
    student = random_student(tiny=tiny)
    student.model.bfloat16()
    texts = [prompt_text(question, STRATEGY[kind]) for question in questions for kind in STRATEGY]
    prompts = texts[: 2 * BATCH]
    length = params.max_new_tokens

    def generate_plainly() -> None:
        tokenizer, model = student.tokenizer, student.model
        for start in range(0, len(prompts), BATCH):
            batch = prompts[start : start + BATCH]
            inputs = tokenizer(batch, padding=True, padding_side="left", return_tensors="pt").to(model.device)
            mask = inputs["attention_mask"]
            model.generate(inputs["input_ids"], attention_mask=mask, max_new_tokens=length, do_sample=False)

    turns = [lambda: decode.generate(student, prompts, length, BATCH, label=""), generate_plainly]
    seconds, _, memory = take_turns(turns, rounds)
    title = f"answering, bf16, beside generate at batch {BATCH}"
    speeds = [[len(prompts) / own for own in side] for side in seconds]
    return [
        faster(title, *speeds, "items/s"),
        row(title, *memory, "GiB peak memory", less_is_better=True),
    ]


def take_turns(
    turns: list[Callable[[], Any]], rounds: int
) -> tuple[list[list[float]], list[int], list[float]]:
    """Return each side's seconds (as it tells, else of the call), operations of a turn, and peak GiB."""
    seconds: list[list[float]] = [[] for _ in turns]
    flops, memory = [], [0.0 for _ in turns]
    for work in turns:
        with FlopCounterMode(display=False) as counter:
            work()
        flops.append(counter.get_total_flops())
    for _ in range(rounds):
        for i, work in enumerate(turns):
            gc.collect()  # of the turn before
            if torch.cuda.is_available():
                torch.cuda.reset_peak_memory_stats()
            synchronize()
            began = time.perf_counter()
            told = work()
            synchronize()
            seconds[i].append(told if isinstance(told, float) else time.perf_counter() - began)
            memory[i] = max(memory[i], train.peak_memory_gib())
    return seconds, flops, memory


def synchronize() -> None:
    """Wait until the card has done all that it was given."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def matmul_peak(*, tiny: bool) -> float:
    """Return the most FLOP/s of ten bf16 products of large square matrices."""
    size = 256 if tiny else 8192
    device = "cuda" if torch.cuda.is_available() else "cpu"
    one, other = (torch.randn(size, size, dtype=torch.bfloat16, device=device) for _ in range(2))
    rates = []
    for _ in range(10):
        synchronize()
        began = time.perf_counter()
        one @ other
        synchronize()
        rates.append(2 * size**3 / (time.perf_counter() - began))
    return max(rates)


if __name__ == "__main__":
    main()
