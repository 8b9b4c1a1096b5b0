"""Files and folders: where they are, what is in them (by hash), and how they are written safely."""

import errno
import hashlib
import json
import math
import os
import platform
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from cfdistill.errors import ParamsError, StageError

MARKER = ".cfdistill.json"  # in a folder that this program made and may empty: what it is
CGROUP_QUOTA = Path("/sys/fs/cgroup/cpu.max")
_hashes: dict[tuple[Any, ...], str] = {}  # of files by name, size and times


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


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file as hexadecimal text, remembered while nothing has touched the file."""
    facts = path.stat()
    key = (str(path), facts.st_ino, facts.st_size, facts.st_mtime_ns, facts.st_ctime_ns)
    if key not in _hashes:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
        if time.time() - facts.st_ctime < 2:  # a further change could come within the clock's grain
            return digest
        _hashes[key] = digest
    return _hashes[key]


def first_changed(folder: Path, hashes: Mapping[str, str]) -> Path | None:
    """Return the first file that is not there or has not the hash given for its name, if any."""
    files = ((folder / name, digest) for name, digest in hashes.items())
    return next((file for file, digest in files if not file.is_file() or sha256(file) != digest), None)


def write_text(path: Path, text: str) -> None:
    """Write a file that has its old content or the new one at any moment."""
    aside = path.with_name(path.name + ".new")
    aside.write_text(text, encoding="utf-8")
    aside.replace(path)


def write_json(path: Path, value: Any) -> None:
    """Write a value as indented JSON, as `write_text` does."""
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False) + "\n")


@contextmanager
def writing(target: Path) -> Iterator[None]:
    """Turn a full or read-only disk into one sentence that names what could not be written."""
    try:
        yield
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EACCES, errno.EPERM):
            raise
        advice = "make room or choose another folder, then run again: what is half-written does not count"
        raise StageError(f"cannot write {target}: {error.strerror}; {advice}") from error


@contextmanager
def held(lock: Path, what: object) -> Iterator[None]:
    """Hold a lock, which the system frees when a process dies; StageError says which process has it."""
    lock.parent.mkdir(parents=True, exist_ok=True)
    try:
        with FileLock(lock, timeout=0):
            lock.write_text(f"process {os.getpid()} on {socket.gethostname()}", encoding="utf-8")
            yield
    except Timeout as error:
        owner = lock.read_text(encoding="utf-8") or "another process"
        raise StageError(f"{what} is being made by {owner}; wait for it and run again") from error


def check_space(folder: Path, needed: int) -> None:
    """Make sure that `needed` bytes fit into `folder`, before hours of work or half a file."""
    folder.mkdir(parents=True, exist_ok=True)
    free = shutil.disk_usage(folder).free
    if free < needed:
        found = f"needs {needed / 1e9:.3g} GB, but its disk has {free / 1e9:.3g} GB free"
        raise StageError(f"{folder} {found}; make room or choose another run_root")


def empty(folder: Path, kind: str, what: str) -> None:
    """Empty a folder but for our marker; StageError if it holds what is not marked as `kind` of `what`."""
    marker, claim = folder / MARKER, {"made by": "cfdistill", "kind": kind, "what": what}
    new = not folder.exists() or {path.name for path in folder.iterdir()} <= {f"{MARKER}.new"}
    if not new:
        try:
            known = json.loads(marker.read_text(encoding="utf-8"))
        except (OSError, ValueError):
            known = None
        if known != claim:
            other = f"{folder} holds something else than {kind} of {what}, which would be deleted"
            raise StageError(f"{other}; choose another name or folder, or move it away")
        (folder / "manifest.json").unlink(missing_ok=True)  # first: what is left then is not complete
        for path in folder.iterdir():
            if path != marker:
                shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    folder.mkdir(parents=True, exist_ok=True)
    write_json(marker, claim)


def cores() -> int:
    """Return how many processor cores this process may use: its affinity, and its container's quota."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    try:
        quota, period = CGROUP_QUOTA.read_text().split()
        return max(1, min(allowed, math.ceil(int(quota) / int(period))))
    except (OSError, ValueError):  # no such file, or "max": no quota
        return allowed


def versions() -> dict[str, str]:
    """Return the versions of Python and of the packages that results depend on."""
    packages = ("torch", "transformers", "openai", "datasets", "numpy", "pandas", "papermill")
    return {"python": platform.python_version()} | {package: version(package) for package in packages}


def git_state() -> dict[str, Any]:
    """Return the commit and whether code, notebooks or parameters differ from it (None: no git)."""
    state: dict[str, Any] = {"commit": None, "dirty": None}
    commands = {"commit": "rev-parse HEAD", "dirty": "status --porcelain -- cfdistill notebooks params"}
    for name, command in commands.items() if shutil.which("git") else ():
        done = subprocess.run(["git", *command.split()], cwd=project_root(), capture_output=True, text=True)
        if done.returncode == 0:
            state[name] = done.stdout.strip() if name == "commit" else bool(done.stdout.strip())
    return state
