"""A contestant: Hugging Face's Trainer, or TRL's SFTTrainer, as their documentation shows them.

Both train on prompt and target with the loss on the target. What differs from the documented example is
said in comments. `--precision bf16` computes in bfloat16 (autocast), `--layout flat` puts the examples of a
batch into one row without padding (padding-free), whose examples do not see each other. SFTTrainer's packing
lays tokens out in the same way, but makes other batches; so it is not compared.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from contextlib import nullcontext
from pathlib import Path
from typing import Any

from torch.utils.flop_counter import FlopCounterMode
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    DataCollatorForSeq2Seq,
    DataCollatorWithFlattening,
    Trainer,
    TrainingArguments,
)

from peers.contest import serve

IGNORED = -100


def main() -> None:
    """Load the student and wait for tasks: {"examples": how many, "count": whether to count FLOPs}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--trainer", choices=("plain", "trl"), required=True)
    parser.add_argument("--precision", choices=("fp32", "bf16"), required=True)
    parser.add_argument("--layout", choices=("padded", "flat"), required=True)
    parser.add_argument("--model", required=True)
    parser.add_argument("--examples", type=Path, required=True)
    parser.add_argument("--batch-size", type=int, required=True)
    parser.add_argument("--learning-rate", type=float, required=True)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype="float32")
    with args.examples.open(encoding="utf-8") as file:
        examples = [json.loads(line) for line in file]

    def work(task: dict[str, Any]) -> dict[str, Any]:
        with tempfile.TemporaryDirectory() as folder:
            options = {
                "output_dir": folder,
                "num_train_epochs": 1,
                "per_device_train_batch_size": args.batch_size,
                "learning_rate": args.learning_rate,
                "bf16": args.precision == "bf16",
                "use_cpu": True,
                "save_strategy": "no",
                "report_to": "none",
                "disable_tqdm": True,
            }
            make, flat = plain_trainer if args.trainer == "plain" else sft_trainer, args.layout == "flat"
            trainer = make(model, tokenizer, examples[: task["examples"]], options, flat=flat)
            return train(trainer, count=task["count"])

    serve(work)


def train(trainer: Any, *, count: bool) -> dict[str, Any]:
    """Train and return the loop's seconds; with `count` the operations of all matrix products too."""
    with FlopCounterMode(display=False) if count else nullcontext() as counter:
        seconds = trainer.train().metrics["train_runtime"]
    return {"seconds": seconds, "flops": counter.get_total_flops() if counter else 0}


def plain_trainer(
    model: Any, tokenizer: Any, examples: list[dict[str, str]], options: dict[str, Any], *, flat: bool
) -> Any:
    """Return a Trainer over tokenized rows, padded to the longest of a batch or flattened."""
    rows = []
    for example in examples:
        prompt = tokenizer(example["prompt"])["input_ids"]
        target = [*tokenizer(example["target"])["input_ids"], tokenizer.eos_token_id]
        rows.append({"input_ids": prompt + target, "labels": [IGNORED] * len(prompt) + target})
    padded = DataCollatorForSeq2Seq(tokenizer, label_pad_token_id=IGNORED)
    collator = DataCollatorWithFlattening() if flat else padded
    return Trainer(model, TrainingArguments(**options), data_collator=collator, train_dataset=rows)


def sft_trainer(
    model: Any, tokenizer: Any, examples: list[dict[str, str]], options: dict[str, Any], *, flat: bool
) -> Any:
    """Return an SFTTrainer; prompt and completion are enough for it to train on completions only."""
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    rows = Dataset.from_list([{"prompt": e["prompt"], "completion": e["target"]} for e in examples])
    # Its default, gradient checkpointing, saves memory for a third more work; there is memory enough here.
    own = {
        "completion_only_loss": True,
        "gradient_checkpointing": False,
        "padding_free": flat,
        "max_length": None,
    }
    config = SFTConfig(**options, **own)
    return SFTTrainer(model, args=config, train_dataset=rows, processing_class=tokenizer)


if __name__ == "__main__":
    main()
