"""What interrupted runs leave behind: half-made stages, unfinished notebooks, locks that nobody holds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path

from filelock import FileLock, Timeout

from cfdistill.params import STAGES

MADE_UNDER_LOCK = (*STAGES, "students")  # folders of `<name>/`, `<name>.partial/` and `<name>.lock`


def clean(run_root: Path, *, dry_run: bool = False) -> list[Path]:
    """Remove what interrupted runs left below a folder of stages.

    Complete stages, everything of the teacher, and whatever a living process works on are not touched.
    A training that was interrupted starts anew afterwards, instead of going on from its checkpoint.

    Args:
        run_root: the parameter of that name.
        dry_run: only list it.

    Returns:
        The files and folders removed, or that would be.
    """
    with ExitStack() as locks:
        found = list(_find(run_root, locks))
        for path in [] if dry_run else found:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
    return found


def _find(run_root: Path, locks: ExitStack) -> Iterator[Path]:
    """Yield leftovers, locks last, and hold the lock of each, so that nobody starts to use it meanwhile."""
    for folder in MADE_UNDER_LOCK:
        for partial in sorted((run_root / folder).glob("*.partial")):
            if _take(partial.with_suffix(".lock"), locks):
                yield partial
    notebooks = run_root / "notebooks"
    if all(_take(lock, locks) for lock in notebooks.glob("*.lock")):  # no run is under way
        for pattern in ("*/*.unfinished.ipynb", "*/*.new", "*/progress.json"):
            yield from sorted(notebooks.glob(pattern))
    for folder in (*MADE_UNDER_LOCK, "notebooks"):
        for lock in sorted((run_root / folder).glob("*.lock")):
            if _take(lock, locks):
                yield lock


def _take(lock: Path, locks: ExitStack) -> bool:
    """Hold a lock, if there is one, until the stack is closed; tells whether nobody else has it."""
    try:
        if lock.exists():
            locks.enter_context(FileLock(lock, is_singleton=True).acquire(timeout=0))
    except Timeout:
        return False
    return True
