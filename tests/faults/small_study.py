"""The smallest study that goes through all seven notebooks, run by the command line."""

import hashlib
import subprocess
import sys
from pathlib import Path

from cfdistill import runs
from cfdistill.params import Params

PROFILE = runs.project_root() / "params" / "smoke.yaml"
SMALL = {
    "methods": "ft,cf-distill",
    "test_datasets": "weasel-commonsense",
    "train_questions": "6",
    "test_questions": "4",
    "new_questions": "4",
    "counterfactuals_per_question": "1",
    "epochs": "1",
    "max_new_tokens": "4",
}
TIMED = {"cost.csv", "cost.png", "cost.pdf", "manifest.json", "alt_texts.json"}  # hold seconds


def overrides(folder: Path, **more: str) -> dict[str, str]:
    return {**SMALL, "run_root": str(folder / "runs"), "results_root": str(folder / "results"), **more}


def params(folder: Path, **more: str) -> Params:
    return Params.from_yaml(PROFILE, overrides(folder, **more))


def start(folder: Path, **more: str) -> subprocess.Popen[str]:
    """Start `cfdistill run` in a process of its own."""
    flags = [word for pair in overrides(folder, **more).items() for word in ("-p", *pair)]
    code = "from cfdistill.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "run", str(PROFILE), *flags]
    return subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)


def finish(process: subprocess.Popen[str]) -> None:
    """Wait for a run and make sure that it ended well."""
    _, told = process.communicate(timeout=600)
    assert process.returncode == 0, told[-3000:]


def made(folder: Path) -> dict[str, str]:
    """Return the hash of every file of the complete stages, without those that hold seconds."""
    found = {}
    for manifest in (folder / "runs").glob("*/*/manifest.json"):
        if manifest.parent.suffix != ".partial":
            outputs = runs.Stage(manifest.parts[-3], {}, manifest.parent).manifest()["outputs"]
            found |= {f"{manifest.parent}/{k}": v["sha256"] for k, v in outputs.items() if k != "log.csv"}
    return {str(Path(name).relative_to(folder)): digest for name, digest in found.items()}


def hashes(folder: Path, **more: str) -> dict[str, str]:
    """Return the hash of every result that holds no times."""
    results = runs.results_folder(params(folder, **more))
    files = [path for path in results.rglob("*") if path.is_file() and path.name not in TIMED]
    return {str(path.relative_to(results)): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}
