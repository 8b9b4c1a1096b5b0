"""Evaluation speed on the default study's own questions, beside `generate`, CTranslate2 and lm-eval.

    python benchmarks/evaluation.py [--items 64] [--rounds 5] [--peers-python .venv-bench/bin/python]

The student has learned from ft-cot's examples for one epoch, so that its answers have the study's form and
length. Generation is greedy, in the number format that `precision: auto` takes, and beside transformers' own
`generate` in the same format at batch 1 (on an eighth of the prompts), 16 and 64, and beside CTranslate2 in
float32 (it knows no bfloat16 on CPUs) and int8. It takes llama, GPT-2, OPT, BART and T5, converted before,
and only decodes: it has no scores of given options that share a prompt, and no training. Likelihoods are
beside lm-evaluation-harness's Hugging Face backend, in its faster batch size. Every round asks all sides in
turn; medians over the rounds, and the p of a one-sided sign test that ours is faster. The rows "same
answers" compare item by item; one of them is ours in fp32. Writes results/bench/evaluation.csv.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from peers.contest import Contestant, faster, peers_python, row, write_table

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
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--peers-python", default="", help="interpreter of the peers' environment")
    args = parser.parse_args()
    python, params = peers_python(args.peers_python), Params()
    for name in ("data", "counterfactuals", "rationales"):
        for part in pipeline.parts(name, params):
            pipeline.build(name, params, **part)
    questions = pipeline.questions(params.train_dataset, "id", params)[: args.items]
    with tempfile.TemporaryDirectory() as folder:
        learned = train_briefly(params, Path(folder))
        student = models.answering(params, Path(folder) / "model")
        rows = compare_generation(student, learned, questions, params, args.rounds, python, Path(folder))
        rows += compare_likelihood(student, questions, params, args.rounds, python, Path(folder))
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
    student: Student,
    learned: Student,
    questions: Sequence[Question],
    params: Params,
    rounds: int,
    python: Path,
    folder: Path,
) -> list[tuple[str, ...]]:
    """Return rows of items per second, and of how many answers are the same to the token."""
    prompts, new_tokens = [prompt_text(question, DIRECT) for question in questions], params.max_new_tokens
    few = prompts[: max(1, len(prompts) // 8)]
    (folder / "prompts.json").write_text(json.dumps(prompts))
    task = {"items": len(prompts), "new_tokens": new_tokens}
    engines = {
        name: Contestant(
            python, "peers.ctranslate", model=folder / "model", prompts=folder / "prompts.json", compute=name
        )
        for name in ("float32", "int8")
    }
    turns: dict[str, Callable[[], list[str]]] = {
        "ours": lambda: decode.generate(student, prompts, new_tokens, params.eval_batch_size),
        "generate, batch 1": lambda: plain_generate(student, few, new_tokens, 1),
        "generate, batch 16": lambda: plain_generate(student, prompts, new_tokens, 16),
        "generate, batch 64": lambda: plain_generate(student, prompts, new_tokens, 64),
        "CTranslate2, float32": lambda: engines["float32"].turn(task)["answers"],
        "CTranslate2, int8": lambda: engines["int8"].turn(task)["answers"],
    }
    for engine in engines.values():
        engine.turn({"items": 1, "new_tokens": 1})  # it converts and loads first
    speeds, answers = take_turns(turns, rounds)
    for engine in engines.values():
        engine.stop()
    plain = decode.generate(learned, prompts, new_tokens, params.eval_batch_size)
    rows = [faster(peer, speeds["ours"], speeds[peer], "items/s") for peer in turns if peer != "ours"]
    for name, own in ({"ours in fp32": plain} | answers).items():
        same = sum(a == b for a, b in zip(answers["ours"], own, strict=False))
        rows += [row(f"{name}: same answers", same, len(own), "items")] if name != "ours" else []
    return rows


def plain_generate(student: Student, prompts: Sequence[str], new_tokens: int, batch: int) -> list[str]:
    """Return greedy answers by transformers' `generate` as its documentation shows it, padded on the left."""
    tokenizer, texts = student.tokenizer, []
    for start in range(0, len(prompts), batch):
        inputs = tokenizer(
            list(prompts[start : start + batch]),
            padding=True,
            padding_side="left",
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
    rounds: int,
    python: Path,
    folder: Path,
) -> list[tuple[str, ...]]:
    """Return rows of items per second, of accuracy, and of how many choices are the same."""
    prompts = [prompt_text(question) for question in questions]
    options = [question.options for question in questions]
    (folder / "items.json").write_text(json.dumps(list(zip(prompts, options, strict=True))))
    dtype = str(student.model.dtype).removeprefix("torch.")
    harness = Contestant(
        python, "peers.lm_eval_hf", model=folder / "model", items=folder / "items.json", dtype=dtype
    )
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
        rounds,
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
        faster(title, speeds["ours"], speeds["harness"], "items/s"),
        row(f"{title}: right answers", right[0], right[1], "items"),
        row(f"{title}: same choices", same, len(peer), "items"),
    ]


def take_turns(
    turns: dict[str, Callable[[], Any]], rounds: int
) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Return each contestant's speed in every round, in answers per second, and its last answers."""
    speeds: dict[str, list[float]] = {name: [] for name in turns}
    answers = {}
    for _ in range(rounds):
        for name, work in turns.items():
            began = time.perf_counter()
            answers[name] = work()
            speeds[name].append(len(answers[name]) / (time.perf_counter() - began))
            print(f"{name}: {speeds[name][-1]:.2f} items/s", flush=True)
    return speeds, answers


if __name__ == "__main__":
    main()
