"""The smallest study that goes through all seven notebooks, run by the command line."""

import subprocess
import sys
from pathlib import Path

from cfdistill import files, store
from cfdistill.params import Params
from cfdistill.study import results

PROFILE = files.project_root() / "params" / "smoke.yaml"
SMALL = {"methods": "ft,cf-distill", "test_datasets": "weasel-commonsense"}
SMALL |= {"train_questions": "6", "counterfactuals_per_question": "1", "epochs": "1"}
SMALL |= {"test_questions": "4", "new_questions": "4", "max_new_tokens": "4"}
# They hold seconds.
TIMED = {"cost.csv", "cost.png", "cost.pdf", "cost.tex", "log.csv", "manifest.json", "captions.json"}


def overrides(folder: Path, **more: str) -> dict[str, str]:
    return {**SMALL, "run_root": str(folder / "runs"), "results_root": str(folder / "results"), **more}


def flags(folder: Path, **more: str) -> list[str]:
    return [word for pair in overrides(folder, **more).items() for word in ("-p", *pair)]


def params(folder: Path, **more: str) -> Params:
    return Params.from_yaml(PROFILE, overrides(folder, **more))


def start(folder: Path, only: str = "", **more: str) -> subprocess.Popen[str]:
    """Start `cfdistill run` in a process of its own, from a folder that is not the project's."""
    code = "from cfdistill.cli import main; raise SystemExit(main())"
    command = [sys.executable, "-c", code, "run", str(PROFILE), *flags(folder, **more), "--only", only]
    folder.mkdir(parents=True, exist_ok=True)
    quiet, told = subprocess.DEVNULL, subprocess.PIPE
    return subprocess.Popen(command, stdout=quiet, stderr=told, text=True, cwd=folder)


def finish(process: subprocess.Popen[str]) -> str:
    _, told = process.communicate(timeout=600)
    assert process.returncode == 0, told[-3000:]
    return told


def stages(folder: Path) -> list[store.Stage]:
    """Return the stages that count as complete."""
    found = [path.parent for path in (folder / "runs").glob("*/*/manifest.json")]
    return [store.Stage(path.parent.name, {}, path) for path in found if path.suffix != ".partial"]


def made(folder: Path) -> dict[str, str]:
    """Return the hash of every file of the complete stages, without those that hold seconds."""
    found = {}
    for stage in stages(folder):
        outputs = stage.manifest()["outputs"]
        found |= {f"runs/{stage.place}/{name}": facts["sha256"] for name, facts in outputs.items()}
    return {name: digest for name, digest in found.items() if Path(name).name not in TIMED}


def everything(folder: Path, **more: str) -> dict[str, str]:
    """Return the hashes of results and stages, a trained student's weights among them."""
    place = results.folder(params(folder, **more))
    found = [path for path in place.rglob("*") if path.is_file() and path.name not in TIMED]
    return made(folder) | {str(path.relative_to(place)): files.sha256(path) for path in found}
