"""What the machine has, and what a study would use of it."""

import os
import shutil

from cfdistill import files
from cfdistill.params import Params
from cfdistill.student import models
from cfdistill.teacher import cache_path, identity


def report(params: Params) -> dict[str, str]:
    """Return findings by subject for the parameters of a study."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    root, key = files.resolve(params.run_root), "set" if os.environ.get("OPENAI_API_KEY") else "not set"
    asked = f" at {identity(params, ())['base_url']}" if params.teacher == "live" else ""
    there = next(folder for folder in (root, *root.parents) if folder.is_dir())
    return {
        "versions": ", ".join(f"{name} {number}" for name, number in files.versions().items()),
        "processor": f"{files.cores()} cores, {memory:.0f} GiB memory, {torch.cuda.device_count()} GPU",
        "precision": f"{models.precision(params)} (precision: {params.precision})",
        "teacher": f"{params.teacher}{asked}; cache {cache_path(params)}; OPENAI_API_KEY {key}",
        "disk": f"{shutil.disk_usage(there).free / 1e9:.0f} GB free for {root} (the default study: 3 GB)",
    }
