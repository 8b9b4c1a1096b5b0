"""Stage directories: content-addressed, written aside, complete only when their manifest says so.

A stage's result lives in `<run_root>/<stage>/<readable>-<hash8>/`, where the hash covers only the
parameters that can change it. Work happens in `<that>.partial/`; the manifest is written last
and the directory is then renamed, so a directory without the suffix is whole or damaged from outside.
Each step waits until the one before is on the disk, so that this outlives a power cut, too.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import platform
import shutil
import subprocess
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cfdistill.errors import BusyError, ParamsError, StageError
from cfdistill.params import STAGES, Params
from cfdistill.schema import R, Record, read_jsonl, write_jsonl

NOTEBOOKS = {
    "data": "01_data_preparation",
    "counterfactuals": "02_counterfactual_generation",
    "rationales": "03_rationale_generation",
    "training": "04_training",
    "evaluation": "05_evaluation",
    "audits": "05_evaluation",
    "metrics": "05_evaluation",
}
FORMAT = 1  # raise when a stage's files change meaning, so that old directories are not reused
PACKAGES = ("torch", "transformers", "openai", "datasets", "numpy", "pandas", "papermill")


def project_root() -> Path:
    """Return the checkout the package lives in, or the working directory if it is not in one."""
    checkout = Path(__file__).resolve().parent.parent
    return checkout if (checkout / "pyproject.toml").is_file() else Path.cwd()


def resolve(path: str) -> Path:
    """Return an absolute path; relative ones start at the project root, not the working directory."""
    try:
        return project_root() / Path(path).expanduser()
    except RuntimeError as error:  # "~name" of nobody
        raise ParamsError(f"{path}: {error}; write the folder out") from error


@dataclass
class Draft:
    """A stage directory being written: files go into `path`, dropped items into `drops`."""

    path: Path
    drops: Counter[str] = field(default_factory=Counter)
    notes: dict[str, Any] = field(default_factory=dict)

    def write(self, name: str, records: Iterable[Record]) -> int:
        """Write records to the JSON Lines file `name` and return their number."""
        return write_jsonl(self.path / name, records)


@dataclass(frozen=True)
class Stage:
    """One result: its stage name, the parameters that determine it, and its directory."""

    name: str
    key: dict[str, Any]
    path: Path

    def manifest(self) -> dict[str, Any]:
        """Return the manifest of a complete stage.

        Raises:
            StageError: the stage is not complete, or its manifest cannot be read.
        """
        try:
            loaded: dict[str, Any] = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
            return loaded
        except FileNotFoundError as error:
            raise StageError(f"{self.path} is not complete: it has no manifest.json") from error
        except ValueError as error:
            raise StageError(f"{self.path}/manifest.json is damaged; delete the directory") from error

    def is_complete(self) -> bool:
        """Tell whether the stage is there, checking every output's hash.

        Raises:
            StageError: the directory is there, but a file was changed or lost since.
        """
        if not self.path.is_dir():
            return False
        hashes = {name: facts["sha256"] for name, facts in self.manifest()["outputs"].items()}
        if file := first_changed(self.path, hashes):
            raise StageError(f"{file} was changed or lost after the stage finished; delete {self.path}")
        return True

    @property
    def partial(self) -> Path:
        """Where the stage is being made."""
        return self.path.with_name(self.path.name + ".partial")

    @property
    def lock(self) -> FileLock:
        """The lock that whoever makes the stage holds; the system frees it when a process dies."""
        return FileLock(self.path.with_name(self.path.name + ".lock"))

    def read(self, name: str, kind: type[R]) -> list[R]:
        """Read one of the stage's JSON Lines files."""
        return read_jsonl(self.path / name, kind)

    @contextmanager
    def draft(self, params: Params, inputs: Sequence[Stage] = (), *, resume: bool = False) -> Iterator[Draft]:
        """Make the stage: yields a Draft, and completes it when the block ends without error.

        Args:
            params: recorded in the manifest.
            inputs: the complete stages this one reads.
            resume: keep what an interrupted attempt left in the partial directory.

        Raises:
            BusyError: another process is making it, or has just finished it.
            StageError: the disk is full or read-only.
        """
        partial = self.partial
        try:
            with writing(self.path):
                partial.parent.mkdir(parents=True, exist_ok=True)
                with self.lock.acquire(timeout=0):
                    if self.path.exists():
                        raise BusyError(f"another process has just finished {self.path}; run again to use it")
                    if partial.exists() and not resume:
                        shutil.rmtree(partial)
                    partial.mkdir(exist_ok=True)
                    for left in partial.glob("manifest.json*"):  # of an attempt that ended at its last step
                        left.unlink()
                    draft, began, clock = Draft(partial), datetime.now(UTC), time.monotonic()
                    yield draft
                    seconds = time.monotonic() - clock  # which no change of the clock can make wrong
                    sync_tree(partial)
                    manifest = _describe(self, params, inputs, draft, began, seconds)
                    write_text(partial / "manifest.json", json.dumps(manifest, indent=1, ensure_ascii=False))
                    publish(partial, self.path)
        except Timeout as error:
            raise BusyError(f"another process is making {self.path}; wait for it, then run again") from error


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one sentence that names what could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        raise StageError(
            f"cannot write {target}: {error.strerror}; make room or choose another folder, then run again "
            "(nothing half-written counts as complete)"
        ) from error


def stage(name: str, params: Params, **extra: str) -> Stage:
    """Return the stage `name` for these parameters; `extra` tells its parts apart (method, dataset)."""
    key = {"format": FORMAT, **params.key(name, **extra)}
    digest = hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]
    readable = [extra.get("dataset", params.train_dataset)]
    if "method" in extra:
        readable = [params.train_dataset, extra["method"], params.student_name, f"seed{params.seed}"]
        readable += [extra["dataset"]] if "dataset" in extra else []
    return Stage(name, key, resolve(params.run_root) / name / f"{'-'.join(readable)}-{digest}")


def require(wanted: Stage) -> Stage:
    """Return a stage that must be there already.

    Raises:
        StageError: it is not; says which notebook makes it.
    """
    if not wanted.is_complete():
        number = NOTEBOOKS[wanted.name][:2]
        raise StageError(
            f"stage {wanted.name} is missing ({wanted.path}); make it with "
            f"`cfdistill run PARAMS.yaml --only {number}` or notebook {NOTEBOOKS[wanted.name]}"
        )
    return wanted


def results_folder(params: Params) -> Path:
    """Return `<results_root>/<profile>`, or `<profile>-<hash8>` when results differ from the profile's.

    So a run with `-p seed 1` never overwrites the results of the profile it started from.
    """
    name, file = params.profile, project_root() / "params" / f"{params.profile}.yaml"
    key = params.key(STAGES[-1])
    if file.is_file() and Params.from_yaml(file).key(STAGES[-1]) != key:
        name += f"-{hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()[:8]}"
    return resolve(params.results_root) / name


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def first_changed(folder: Path, hashes: Mapping[str, str]) -> Path | None:
    """Return the first file that is not there or has not the hash given for its name, if any."""
    files = ((folder / name, digest) for name, digest in hashes.items())
    return next((file for file, digest in files if not file.is_file() or sha256(file) != digest), None)


def sync(path: Path) -> None:
    """Wait until what a file or folder holds is on the disk."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_tree(folder: Path) -> None:
    """Wait until a folder and everything below it is on the disk."""
    for path in folder.rglob("*"):
        sync(path)
    sync(folder)


def publish(partial: Path, folder: Path) -> None:
    """Give a folder that was written aside its name, once all that it holds is on the disk."""
    sync_tree(partial)
    partial.rename(folder)
    sync(folder.parent)


def write_text(path: Path, text: str) -> None:
    """Write a file that has its old content or the new one at any moment, even after a power cut."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(text, encoding="utf-8")
    sync(aside)
    aside.replace(path)
    sync(path.parent)


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    found = {"python": platform.python_version()}
    for package in PACKAGES:
        try:
            found[package] = version(package)
        except PackageNotFoundError:
            found[package] = "not installed"
    return found


def git_state() -> dict[str, Any]:
    """Return the commit and whether code, notebooks or parameters differ from it (None: no git)."""
    state: dict[str, Any] = {"commit": None, "dirty": None}
    try:
        code = ["cfdistill", "notebooks", "params"]
        commands = (("commit", ["rev-parse", "HEAD"]), ("dirty", ["status", "--porcelain", "--", *code]))
        for name, command in commands:
            done = subprocess.run(["git", *command], cwd=project_root(), capture_output=True, text=True)
            if done.returncode == 0:
                state[name] = done.stdout.strip() if name == "commit" else bool(done.stdout.strip())
    except FileNotFoundError:  # no git on this machine
        return state
    return state


def _describe(
    made: Stage, params: Params, inputs: Sequence[Stage], draft: Draft, began: datetime, seconds: float
) -> dict[str, Any]:
    """Return the manifest of a stage whose files are written."""
    files = sorted(p for p in draft.path.rglob("*") if p.is_file())
    return {
        "status": "complete",
        "stage": made.name,
        "key": made.key,
        "params": params.model_dump(),
        "inputs": {
            str(s.path.relative_to(s.path.parents[1])): sha256(s.path / "manifest.json") for s in inputs
        },
        "outputs": {str(p.relative_to(draft.path)): _facts(p) for p in files},
        "drops": dict(sorted(draft.drops.items())),
        "notes": draft.notes,
        "git": git_state(),
        "versions": versions(),
        "machine": {"processor": platform.machine(), "cores": os.cpu_count()},
        "started": began.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"sha256": sha256(path), "bytes": path.stat().st_size}
    if path.suffix in (".jsonl", ".csv"):
        with path.open("rb") as lines:
            facts["rows"] = sum(1 for _ in lines) - (path.suffix == ".csv")
    return facts
