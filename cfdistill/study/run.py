"""Run a study: the notebooks in order through papermill, each only when its result is not there yet."""

import json
import logging
import os
import shlex
import shutil
import signal
import sys
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from traitlets.config import Config

from cfdistill import files, pipeline, store, teacher
from cfdistill.errors import CfdistillError, ParamsError, StageError, Terminated
from cfdistill.params import TESTBED, Params
from cfdistill.progress import PAUSE, StandardError, tell
from cfdistill.student import models
from cfdistill.study import results

CHAPTERS = dict.fromkeys(step.notebook for step in pipeline.STAGES.values())  # those that make stages
NOTEBOOKS = (*CHAPTERS, "06_qualitative_analysis", "07_paper_figures")


def run(
    profile: Path, overrides: Mapping[str, str], only: Sequence[str] = (), *, force: bool = False
) -> Params:
    """Execute the notebooks of a study that are not current (or all, with `force`); returns its parameters.

    Raises StageError with the sentence of a cell that failed, or when another run makes these results.
    """
    params = Params.from_yaml(profile, overrides)
    chosen, folder = select(only, params), executed_folder(params)
    _check_teacher(params)
    folder.mkdir(parents=True, exist_ok=True)
    with files.held(lock(params), results.folder(params)), _environment(folder):
        for name in chosen:
            if force or not is_current(name, params):
                began = time.monotonic()
                left = _left(chosen[chosen.index(name) :], params)
                tell(f"{name} with {params.student_name} … {left}")
                _execute(name, params)
                tell(f"{name}: {time.monotonic() - began:.0f} s")
    return params


def command(
    profile: Path, overrides: Mapping[str, str], only: Sequence[str], *, force: bool, verbose: bool
) -> str:
    """Execute a study's notebooks, as `run`, in threads and with progress as fit here; tell what is made."""
    signal.signal(signal.SIGTERM, _terminate)
    # Set before any kernel starts: more threads than cores make a CPU study ten times slower.
    os.environ.setdefault("OMP_NUM_THREADS", str(files.cores()))
    # For the kernels, which do not see where their progress goes: lines, few of them in a file.
    os.environ |= {"TQDM_DISABLE": "1", PAUSE: "0" if sys.stderr.isatty() else "60"}
    if verbose:
        tell("\n  ".join(["The same by hand:", *commands(profile, overrides, only)]))
    params = run(profile, overrides, only, force=force)
    told = [f"\nExecuted notebooks: {executed_folder(params)}"]
    if results.is_whole(folder := results.folder(params)):
        told.append(
            f"Tables and figures: {folder}\n\n{(folder / 'figures' / 'table1.md').read_text('utf-8')}"
        )
    return "\n".join(told)


def _terminate(*_: Any) -> None:
    raise Terminated


def _check_teacher(params: Params) -> None:
    """Raise an error where nobody can explain the questions, before the first notebook asks for it."""
    if not params.has_counterfactuals:
        return
    known = teacher.cache_path(params).is_file()  # raises TeacherError where no recording is shipped
    able = {"offline": params.train_dataset in TESTBED, "live": known or "OPENAI_API_KEY" in os.environ}
    if not able.get(params.teacher, True):
        told = "offline, the stand-in, knows only the testbed; live needs a key in OPENAI_API_KEY"
        raise ParamsError(f"teacher: {told}; or give published rationales (docs/your_own_data.md)")


def select(only: Sequence[str], params: Params) -> list[str]:
    """Return the notebooks whose names begin with one of `only`; without any, all that the study needs."""
    for prefix in only:
        if not any(name.startswith(prefix) for name in NOTEBOOKS):
            raise ParamsError(f"--only {prefix}: no such notebook; there are {', '.join(NOTEBOOKS)}")
    if only:
        return [name for name in NOTEBOOKS if name.startswith(tuple(only))]
    return [name for name in NOTEBOOKS if params.has_counterfactuals or name[:2] != "02"]


def executed_folder(params: Params) -> Path:
    """Return where the executed notebooks of these parameters are kept."""
    digest = store.key_hash(params.model_dump())[:8]
    return files.resolve(params.run_root) / "notebooks" / f"{params.profile}-{digest}"


def lock(params: Params) -> Path:
    """Return the lock of a study's results, which one run makes at a time."""
    folder = results.folder(params)
    return executed_folder(params).with_name(f"{folder.name}-{store.key_hash({'': str(folder)})[:8]}.lock")


def is_current(name: str, params: Params) -> bool:
    """Tell whether the notebook ran to its end with this source, package, parameters and stages."""
    record = executed_folder(params) / f"{name}.json"
    try:
        same = record.read_text(encoding="utf-8") == _fingerprint(name, params)
    except (FileNotFoundError, CfdistillError):  # it never did, or a stage is missing or damaged
        return False
    return same and (name != NOTEBOOKS[-1] or results.is_whole(results.folder(params)))


def commands(profile: Path, overrides: Mapping[str, str], only: Sequence[str] = ()) -> list[str]:
    """Return the plain papermill commands that do what `run` does."""
    params = Params.from_yaml(profile, overrides)
    given = [word for name, value in overrides.items() for word in ("-r", name, str(value))]  # -r: as text
    paths = [(source_path(n), executed_folder(params) / f"{n}.ipynb") for n in select(only, params)]
    return [shlex.join(["papermill", str(a), str(b), "-f", str(profile), *given]) for a, b in paths]


def _left(names: Sequence[str], params: Params) -> str:
    """Tell how long these notebooks took when the results were made that are there, if any."""
    if not results.is_whole(folder := results.folder(params)):
        return ""
    made = results.read_manifest(folder)["stages"].items()
    ours = [stage for stage, step in pipeline.STAGES.items() if step.notebook in names]
    taken = sum(s["seconds"] for place, s in made if place.split("/")[0] in ours)
    return f"(this and the rest took {taken / 60:.0f} minutes the last time)"


def doctor(params: Params) -> str:
    """Return what this machine has, and what a study with these parameters would use of it, by subject."""
    import torch

    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30
    root, key = files.resolve(params.run_root), "set" if os.environ.get("OPENAI_API_KEY") else "not set"
    asked = f" at {teacher.identity(params, ())['base_url']}" if params.teacher == "live" else ""
    there = next(folder for folder in (root, *root.parents) if folder.is_dir())
    found = {
        "versions": ", ".join(f"{name} {number}" for name, number in files.versions().items()),
        "processor": f"{files.cores()} cores, {memory:.0f} GiB memory, {torch.cuda.device_count()} GPU",
        "precision": f"{models.precision(params)} (precision: {params.precision})",
        "teacher": f"{params.teacher}{asked}; cache {teacher.cache_path(params)}; OPENAI_API_KEY {key}",
        "disk": f"{shutil.disk_usage(there).free / 1e9:.0f} GB free for {root} (the default study: 3 GB)",
    }
    return "\n".join(f"{subject:>10}  {finding}" for subject, finding in found.items())


def source_path(name: str) -> Path:
    """Return the path of a notebook's source."""
    return files.project_root() / "notebooks" / f"{name}.ipynb"


def _execute(name: str, params: Params) -> None:
    import papermill  # which takes a second, and most runs of a finished study need it not
    from papermill.exceptions import PapermillExecutionError

    folder = executed_folder(params)
    record, unfinished = folder / f"{name}.json", folder / f"{name}.unfinished.ipynb"
    record.unlink(missing_ok=True)
    # Papermill warns of each parameter that a notebook does not declare; ours were checked before.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    try:
        papermill.execute_notebook(
            _plain(source_path(name)),
            _plain(unfinished),
            parameters={key: value for key, value in params if value != getattr(Params(), key)},
            kernel_name="python3",
            progress_bar=False,
            stderr_file=StandardError(),  # of kernels: their progress
            # The kernel warns of its transport, and when it is stopped, of a socket it has just closed; and
            # IPython's own kind of traceback fails where an interrupt has no line.
            extra_arguments=["--log-level=CRITICAL", "--InteractiveShell.xmode=Plain"],
            config=_patience(name, params),
        )
    except RuntimeError as error:  # what a cell raises arrives as the next kind; this is the kernel's end
        told = f"{name}: its process was killed, as when memory runs out ({error}); run again"
        raise StageError(told) from error
    except PapermillExecutionError as error:
        known = error.ename in {kind.__name__ for kind in CfdistillError.__subclasses__()}
        what = error.evalue if known else f"{error.ename}: {error.evalue}"
        raise StageError(f"{name}: {what} (executed so far: {unfinished})") from error
    unfinished.rename(folder / f"{name}.ipynb")
    files.write_text(record, _fingerprint(name, params))


def _plain(path: Path) -> str:
    """Return a path as papermill takes it, which fills in parameters where it sees braces."""
    return str(path).replace("{", "{{").replace("}", "}}")


def _patience(name: str, params: Params) -> Config:
    """Return how long a kernel may go on after Ctrl-C: until a live teacher's paid answers are stored."""
    if params.teacher != "live" or name[:2] not in ("02", "03"):
        return Config()
    # At half of this time the kernel is asked once more to end, less politely.
    return Config(KernelManager={"shutdown_wait_time": 2 * params.teacher_timeout_s + 10})


def _fingerprint(name: str, params: Params) -> str:
    """Return all that an executed notebook hangs on; raises StageError when a stage up to it is missing."""
    chapters = NOTEBOOKS[: NOTEBOOKS.index(name) + 1]
    stages = [
        pipeline.find(stage, params, **part).place
        for stage, step in pipeline.STAGES.items()
        if step.notebook in chapters
        for part in pipeline.parts(stage, params)
    ]
    package = Path(__file__).parents[1]
    code = sorted(path for kind in ("py", "yaml", "html", "tex") for path in package.rglob(f"*.{kind}"))
    sources = {str(path.relative_to(package)): files.sha256(path) for path in code}
    facts = {"params": params.model_dump(), "notebook": files.sha256(source_path(name)), "stages": stages}
    return json.dumps({**facts, "sources": sources})


@contextmanager
def _environment(folder: Path) -> Iterator[None]:
    """Let `python3` be this interpreter: a kernelspec of that name may be another checkout's."""
    spec = folder / "kernels" / "python3" / "kernel.json"
    spec.parent.mkdir(parents=True, exist_ok=True)
    argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    files.write_json(spec, {"argv": argv, "display_name": "Python 3", "language": "python"})
    before = os.environ.get("JUPYTER_PATH")
    os.environ["JUPYTER_PATH"] = str(folder)
    try:
        yield
    finally:
        del os.environ["JUPYTER_PATH"]
        os.environ |= {"JUPYTER_PATH": before} if before else {}
