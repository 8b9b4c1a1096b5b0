"""A contestant: lm-evaluation-harness's Hugging Face backend, asked for the likelihood of every option."""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

from lm_eval.api.instance import Instance
from lm_eval.models.huggingface import HFLM

from peers.contest import serve


def main() -> None:
    """Load the student and wait for tasks: {"items": how many, "batch_size": options at once}."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", required=True)
    parser.add_argument("--items", type=Path, required=True, help="JSON list of [prompt, options]")
    parser.add_argument("--dtype", default="float32")
    args = parser.parse_args()
    items = json.loads(args.items.read_text(encoding="utf-8"))
    backend = HFLM(pretrained=args.model, device="cpu", dtype=args.dtype)

    def work(task: dict[str, Any]) -> dict[str, Any]:
        backend.batch_size_per_gpu = task["batch_size"]
        requests = [
            Instance("loglikelihood", {}, (prompt, f" {option}"), i)
            for i, (prompt, options) in enumerate(items[: task["items"]])
            for option in options
        ]
        answers = iter(backend.loglikelihood(requests, disable_tqdm=True))
        return {"scores": [[next(answers)[0] for _ in options] for _, options in items[: task["items"]]]}

    serve(work)


if __name__ == "__main__":
    main()
