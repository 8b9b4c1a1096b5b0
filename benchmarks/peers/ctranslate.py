"""A contestant: CTranslate2, an inference engine for CPUs, which decodes greedily what it is given."""

from __future__ import annotations

import argparse
import json
import tempfile
from pathlib import Path
from typing import Any

import ctranslate2
from transformers import AutoTokenizer

from peers.contest import serve


def main() -> None:
    """Convert and load the student, and wait for tasks: {"items": how many, "new_tokens": at most}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--prompts", type=Path, required=True, help="JSON list of prompts")
    parser.add_argument("--compute", default="float32", help="float32, or int8, which changes answers")
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    prompts = [tokenizer.tokenize(prompt) for prompt in json.loads(args.prompts.read_text(encoding="utf-8"))]
    with tempfile.TemporaryDirectory() as folder:
        converter = ctranslate2.converters.TransformersConverter(args.model)
        engine = ctranslate2.Generator(
            converter.convert(f"{folder}/engine"), compute_type=args.compute, inter_threads=1
        )

    def work(task: dict[str, Any]) -> dict[str, Any]:
        made = engine.generate_batch(
            prompts[: task["items"]],
            max_batch_size=args.batch_size,  # of the longest prompts first
            max_length=task["new_tokens"],
            sampling_topk=1,
            include_prompt_in_result=False,
            end_token=tokenizer.eos_token,
        )
        return {"answers": [tokenizer.decode(result.sequences_ids[0]).strip() for result in made]}

    serve(work)


if __name__ == "__main__":
    main()
