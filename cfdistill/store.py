"""Stage folders: named by a hash of all they are made from; complete once renamed, with their manifest."""

import hashlib
import json
import platform
import shutil
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from cfdistill import files
from cfdistill.errors import StageError
from cfdistill.params import Params
from cfdistill.schema import R, Record, read_jsonl, write_jsonl

FORMAT = 4  # raise when a stage's files change meaning, so that old folders are not reused


@dataclass
class Draft:
    """A stage folder being written: files go into `path`, dropped items into `drops`."""

    path: Path
    drops: Counter[str] = field(default_factory=Counter)
    notes: dict[str, Any] = field(default_factory=dict)

    def write(self, name: str, records: Iterable[Record]) -> None:
        """Write records to the JSON Lines file `name`."""
        write_jsonl(self.path / name, records)


@dataclass(frozen=True)
class Read:
    """Files of a complete stage that another one reads, with their hashes."""

    stage: "Stage"
    files: Mapping[str, str]


@dataclass(frozen=True)
class Stage:
    """One result: its stage name, what it is made from, and its folder."""

    name: str
    key: dict[str, Any]
    path: Path
    inputs: tuple[Read, ...] = ()

    def manifest(self) -> dict[str, Any]:
        """Return the manifest of a complete stage; raises StageError when there is none."""
        try:
            loaded: dict[str, Any] = json.loads((self.path / "manifest.json").read_text(encoding="utf-8"))
            return loaded
        except FileNotFoundError as error:
            raise StageError(f"{self.path} is not complete: it has no manifest.json") from error
        except ValueError as error:
            raise StageError(f"{self.path}/manifest.json is damaged; delete the folder") from error

    def is_complete(self) -> bool:
        """Tell whether the stage is there; raises StageError when a file was changed or lost since."""
        if not self.path.is_dir():
            return False
        hashes = {name: facts["sha256"] for name, facts in self.manifest()["outputs"].items()}
        if file := files.first_changed(self.path, hashes):
            raise StageError(f"{file} was changed or lost after the stage finished; delete {self.path}")
        return True

    def reads(self, *patterns: str) -> Read:
        """Return those files of this complete stage that fit a pattern, for a later stage's key."""
        outputs = self.manifest()["outputs"]
        wanted = [name for name in outputs if any(fnmatch(name, pattern) for pattern in patterns)]
        return Read(self, {name: outputs[name]["sha256"] for name in wanted})

    def read(self, name: str, kind: type[R]) -> list[R]:
        """Read one of the stage's JSON Lines files."""
        return read_jsonl(self.path / name, kind)

    @property
    def place(self) -> str:
        """The folder's place under run_root."""
        return f"{self.name}/{self.path.name}"

    @contextmanager
    def draft(self, params: Params, *, resume: bool = False) -> Iterator[Draft]:
        """Yield a Draft (with `resume`, what is left of one); complete the stage if the block ends well."""
        partial, lock = (self.path.with_name(self.path.name + end) for end in (".partial", ".lock"))
        with files.writing(self.path), files.held(lock, self.path):
            if self.path.exists():
                raise StageError(f"another process has just made {self.path}; run again to use it")
            if partial.exists() and not resume:
                shutil.rmtree(partial)
            partial.mkdir(exist_ok=True)
            (partial / "manifest.json").unlink(missing_ok=True)  # of an attempt that nearly ended
            draft, began, clock = Draft(partial), datetime.now(UTC), time.monotonic()
            yield draft
            manifest = _describe(self, params, draft, began, time.monotonic() - clock)
            files.write_json(partial / "manifest.json", manifest)
            partial.rename(self.path)


def stage(
    name: str, label: Sequence[str], params: Params, values: Mapping[str, Any], inputs: Sequence[Read] = ()
) -> Stage:
    """Return the stage as it would be made from `values` and `inputs`; `label` is for its folder's name."""
    read = [[one.stage.name, dict(sorted(one.files.items()))] for one in inputs]
    key = {"format": FORMAT, "stage": name, **values, "inputs": read}
    readable = "".join(c if c.isalnum() or c in "-_." else "_" for c in "-".join(label))[:80]
    folder = files.resolve(params.run_root) / name / f"{readable}-{key_hash(key)[:8]}"
    return Stage(name, key, folder, tuple(inputs))


def key_hash(key: Mapping[str, Any]) -> str:
    """Return the SHA-256 of a key, or of anything else that JSON can hold."""
    return hashlib.sha256(json.dumps(key, sort_keys=True).encode()).hexdigest()


def _describe(made: Stage, params: Params, draft: Draft, began: datetime, seconds: float) -> dict[str, Any]:
    """Return the manifest of a stage whose files are written."""
    written = sorted(p for p in draft.path.rglob("*") if p.is_file())
    return {
        "status": "complete",
        "stage": made.name,
        "key": made.key,
        "params": params.model_dump(),
        "inputs": {read.stage.place: dict(read.files) for read in made.inputs},
        "outputs": {str(p.relative_to(draft.path)): _facts(p) for p in written},
        "drops": dict(sorted(draft.drops.items())),
        "notes": draft.notes,
        "git": files.git_state(),
        "versions": files.versions(),
        "machine": {"processor": platform.machine(), "cores": files.cores()},
        "started": began.isoformat(timespec="seconds"),
        "seconds": round(seconds, 1),
    }


def _facts(path: Path) -> dict[str, Any]:
    facts: dict[str, Any] = {"sha256": files.sha256(path), "bytes": path.stat().st_size}
    if path.suffix in (".jsonl", ".csv"):
        with path.open("rb") as lines:
            facts["rows"] = sum(1 for _ in lines) - (path.suffix == ".csv")
    return facts
