"""Evaluation speed on the default study's own questions, beside `generate` and lm-evaluation-harness.

    python benchmarks/evaluation.py [--items 64] [--repeats 3] [--peers-python .venv-bench/bin/python]

The student has learned from ft-cot's examples for one epoch, so that its answers have the study's form and
length. Generation is greedy, in fp32, and beside transformers' own `generate` at batch 1 (on an eighth of
the prompts) and 16; likelihoods are beside the harness's Hugging Face backend. All are compared item by
item. Medians over the repeats. Writes results/bench/evaluation.csv.
"""

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peers.contest import Contestant, peers_python, row, write_table

from cfdistill import pipeline
from cfdistill.params import Params
from cfdistill.schema import DIRECT, Question, prompt_text
from cfdistill.student import decode, models
from cfdistill.student.examples import count_steps
from cfdistill.student.models import Student

HARNESS_BATCHES = (1, 16, 64)  # the harness runs with the fastest of these


def main() -> None:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("--items", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--peers-python", default="", help="interpreter of the peers' environment")
    args = parser.parse_args()
    python, params = peers_python(args.peers_python), Params()
    for name in ("data", "counterfactuals", "rationales"):
        for part in pipeline.parts(name, params):
            pipeline.build(name, params, **part)
    questions = pipeline.questions(params.train_dataset, "id", params)[: args.items]
    with tempfile.TemporaryDirectory() as folder:
        student = train_briefly(params, Path(folder))
        rows = compare_generation(student, questions, params, args.repeats)
        rows += compare_likelihood(student, questions, params, args.repeats, python, Path(folder))
    write_table("evaluation.csv", rows)


def train_briefly(params: Params, folder: Path) -> Student:
    """Return a student after one epoch of ft-cot, saved in `folder`/model."""
    from cfdistill.student.train import train

    student = models.load(params)
    examples = pipeline.examples("ft-cot", params)
    once = params.model_copy(update={"epochs": 1.0})
    train(student, examples, count_steps(examples, once), once, folder / "checkpoints")
    student.save(folder / "model")
    return student


def compare_generation(
    student: Student, questions: Sequence[Question], params: Params, repeats: int
) -> list[tuple[str, ...]]:
    """Return rows of items per second, and of how many answers are the same to the token."""
    prompts = [prompt_text(question, DIRECT) for question in questions]
    few = prompts[: max(1, len(prompts) // 8)]
    turns: dict[str, Callable[[], list[str]]] = {
        "ours": lambda: decode.generate(student, prompts, params.max_new_tokens, params.eval_batch_size),
        "batch 1": lambda: plain_generate(student, few, params.max_new_tokens, 1),
        "batch 16": lambda: plain_generate(student, prompts, params.max_new_tokens, 16),
    }
    speeds, answers = take_turns(turns, repeats)
    rows = []
    for peer in ("batch 1", "batch 16"):
        same = sum(a == b for a, b in zip(answers["ours"], answers[peer], strict=False))
        rows.append(row(f"generate, {peer}", speeds["ours"], speeds[peer], "items/s"))
        rows.append(row(f"generate, {peer}: same answers", same, len(answers[peer]), "items"))
    return rows


def plain_generate(student: Student, prompts: Sequence[str], new_tokens: int, batch: int) -> list[str]:
    """Return greedy answers by transformers' `generate` as its documentation shows it, padded on the left."""
    tokenizer, texts = student.tokenizer, []
    for start in range(0, len(prompts), batch):
        inputs = tokenizer(
            list(prompts[start : start + batch]),
            padding=True,
            padding_side="left",
            add_special_tokens=False,
            return_tensors="pt",
        )
        out = student.model.generate(
            input_ids=inputs["input_ids"],
            attention_mask=inputs["attention_mask"],
            max_new_tokens=new_tokens,
            do_sample=False,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.eos_token_id,
        )
        new = out[:, inputs["input_ids"].shape[1] :].tolist()
        ends = [ids.index(tokenizer.eos_token_id) if tokenizer.eos_token_id in ids else None for ids in new]
        texts += [tokenizer.decode(ids[:end]).strip() for ids, end in zip(new, ends, strict=True)]
    return texts


def compare_likelihood(
    student: Student,
    questions: Sequence[Question],
    params: Params,
    repeats: int,
    python: Path,
    folder: Path,
) -> list[tuple[str, ...]]:
    """Return rows of items per second, of accuracy, and of how many choices are the same."""
    prompts = [prompt_text(question) for question in questions]
    options = [question.options for question in questions]
    (folder / "items.json").write_text(json.dumps(list(zip(prompts, options, strict=True))))
    harness = Contestant(python, "peers.lm_eval_hf", model=folder / "model", items=folder / "items.json")
    trial = {}
    for size in HARNESS_BATCHES:
        trial[size] = harness.turn({"items": 8, "batch_size": size})["seconds"]
    fastest = min(trial, key=lambda size: trial[size])
    task = {"items": len(questions), "batch_size": fastest}
    speeds, answers = take_turns(
        {
            "ours": lambda: decode.option_scores(student, prompts, options, params.eval_batch_size),
            "harness": lambda: harness.turn(task)["scores"],
        },
        repeats,
    )
    harness.stop()
    ours = answers["ours"].argmax(axis=1)
    peer = [
        int(np.argmax([score / len(option) for score, option in zip(scores, own, strict=True)]))
        for scores, own in zip(answers["harness"], options, strict=True)
    ]
    gold = [question.answer for question in questions]
    right = [sum(int(a == b) for a, b in zip(chosen, gold, strict=True)) for chosen in (ours, peer)]
    same = sum(int(a == b) for a, b in zip(ours, peer, strict=True))
    title = f"likelihood, lm-eval at batch {fastest}"
    return [
        row(title, speeds["ours"], speeds["harness"], "items/s"),
        row(f"{title}: right answers", right[0], right[1], "items"),
        row(f"{title}: same choices", same, len(peer), "items"),
    ]


def take_turns(turns: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, float], dict[str, Any]]:
    """Return each contestant's median speed in answers per second, and its last answers."""
    seconds: dict[str, list[float]] = {name: [] for name in turns}
    answers = {}
    for _ in range(repeats):
        for name, work in turns.items():
            began = time.perf_counter()
            answers[name] = work()
            seconds[name].append(time.perf_counter() - began)
            print(f"{name}: {seconds[name][-1]:.2f} s", flush=True)
    return {name: len(answers[name]) / statistics.median(own) for name, own in seconds.items()}, answers


if __name__ == "__main__":
    main()
