"""Run a study: the notebooks in order through papermill, each only when its result is not there yet."""

from __future__ import annotations

import hashlib
import json
import logging
import os
import shlex
import sys
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from filelock import FileLock, Timeout

from cfdistill import data, runs
from cfdistill.errors import BusyError, CfdistillError, ParamsError, StageError
from cfdistill.params import Params
from cfdistill.progress import PROGRESS_FILE

if TYPE_CHECKING:
    from tqdm import tqdm
    from traitlets.config import Config

NOTEBOOKS = (
    "01_data_preparation",
    "02_counterfactual_generation",
    "03_rationale_generation",
    "04_training",
    "05_evaluation",
    "06_qualitative_analysis",
    "07_paper_figures",
)


def run(
    profile: Path, overrides: Mapping[str, str], only: Sequence[str] = (), *, force: bool = False
) -> Params:
    """Execute the notebooks of a study and return its parameters.

    A notebook is reused when its source, the package and the parameters are as they were when it last
    ran to its end, and its stages are still complete; `force` executes it again (stages are reused).

    Other runs may go on at the same time: one with the same results waits for its turn, others share
    the stages, each of which one of them makes.

    Raises:
        ParamsError: a bad parameter or notebook number.
        StageError: a notebook failed; the message is the failing cell's own sentence.
    """
    params = Params.from_yaml(profile, overrides)
    chosen = select(only, params)
    folder = executed_folder(params)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StageError(f"cannot make {folder}: {error.strerror}; choose another run_root") from error
    with _bar(len(chosen)) as bar, _turn(_lock(params), bar):
        for done, name in enumerate(chosen):
            bar.set_postfix_str("")
            bar.set_description_str(name)
            if force or not is_current(name, params):
                _execute(name, params, bar, done)
            bar.n = done + 1
            bar.refresh()
    return params


def select(only: Sequence[str], params: Params) -> list[str]:
    """Return the notebooks whose names begin with one of `only` ("04", "05_eval…").

    If `only` is empty: all that the study needs, which may be without the second.

    Raises:
        ParamsError: a prefix fits no notebook.
    """
    for prefix in only:
        if not any(name.startswith(prefix) for name in NOTEBOOKS):
            raise ParamsError(f"--only {prefix}: no such notebook; there are {', '.join(NOTEBOOKS)}")
    if only:
        return [name for name in NOTEBOOKS if name.startswith(tuple(only))]
    return [name for name in NOTEBOOKS if params.has_counterfactuals or name[:2] != "02"]


def executed_folder(params: Params) -> Path:
    """Return where the executed notebooks of these parameters are kept."""
    digest = hashlib.sha256(params.model_dump_json().encode()).hexdigest()[:8]
    return runs.resolve(params.run_root) / "notebooks" / f"{params.profile}-{digest}"


def stages(name: str, params: Params) -> list[runs.Stage]:
    """Return the stages that notebook `name` makes."""
    tested = [
        runs.stage("evaluation", params, method=method, dataset=dataset)
        for method in params.methods
        for dataset in params.test_datasets
    ]
    made: dict[str, list[runs.Stage]] = {
        "01": [data.stage(d, params) for d in dict.fromkeys([params.train_dataset, *params.test_datasets])],
        "02": [runs.stage("counterfactuals", variant) for variant in params.variants()],
        "03": [runs.stage("rationales", variant) for variant in params.variants()],
        "04": [runs.stage("training", params, method=method) for method in params.methods],
        "05": [*tested, runs.stage("metrics", params)],
    }
    return made.get(name[:2], [])


def is_current(name: str, params: Params) -> bool:
    """Tell whether the notebook ran to its end with this source, package and parameters."""
    record = executed_folder(params) / f"{name}.json"
    if not record.is_file() or record.read_text(encoding="utf-8") != _fingerprint(name, params):
        return False
    return all(stage.is_complete() for stage in stages(name, params)) and (
        name[:2] != "07" or _is_whole(runs.results_folder(params))
    )


def commands(profile: Path, overrides: Mapping[str, str], only: Sequence[str] = ()) -> list[str]:
    """Return the plain papermill commands that do what `run` does."""
    params = Params.from_yaml(profile, overrides)
    folder = executed_folder(params)
    given = "".join(f" -p {key} {shlex.quote(str(value))}" for key, value in overrides.items())
    return [
        f"papermill {_word(source_path(name))} {_word(folder / f'{name}.ipynb')} -f {_word(profile)}{given}"
        for name in select(only, params)
    ]


def source_path(name: str) -> Path:
    """Return the path of a notebook's source."""
    return runs.project_root() / "notebooks" / f"{name}.ipynb"


def _execute(name: str, params: Params, bar: tqdm[Any], done: int) -> None:
    """Execute a notebook; when another run is making a stage of it, wait and use what that one makes."""
    while True:
        try:
            return _try_to_execute(name, params, bar, done)
        except BusyError:
            for stage in stages(name, params):
                with _turn(stage.lock, bar):
                    pass


def _try_to_execute(name: str, params: Params, bar: tqdm[Any], done: int) -> None:
    import papermill
    from papermill.exceptions import PapermillExecutionError

    folder = executed_folder(params)
    record, unfinished = folder / f"{name}.json", folder / f"{name}.unfinished.ipynb"
    record.unlink(missing_ok=True)
    # Papermill warns of every parameter that a notebook uses without declaring it; ours may. Its errors are
    # raised, too.
    logging.getLogger("papermill").setLevel(logging.CRITICAL)
    try:
        with _shown_progress(bar, done, folder / "progress.json"):
            papermill.execute_notebook(
                _plain(source_path(name)),
                _plain(unfinished),
                parameters=params.model_dump(),
                kernel_name="python3",
                progress_bar=False,
                # The kernel warns of its transport, and when it is stopped, of a socket it has just closed.
                extra_arguments=["--log-level=CRITICAL"],
                config=_patience(name, params),
            )
    except RuntimeError as error:  # what a cell raises arrives as the next kind; this is the kernel's end
        raise StageError(
            f"{name}: its process was killed, as when memory runs out ({error}); run again"
        ) from error
    except PapermillExecutionError as error:
        if error.ename == BusyError.__name__:
            raise BusyError(error.evalue) from error
        known = error.ename in {kind.__name__ for kind in CfdistillError.__subclasses__()}
        what = error.evalue if known else f"{error.ename}: {error.evalue}"
        raise StageError(f"{name}: {what} (executed so far: {unfinished})") from error
    unfinished.rename(folder / f"{name}.ipynb")
    runs.write_text(record, _fingerprint(name, params))


def _patience(name: str, params: Params) -> Config:
    """Return how long a kernel may go on after Ctrl-C.

    Until a live teacher's requests under way are stored; elsewhere as long as jupyter_client gives it, since
    nothing paid can be lost and a kernel sometimes hangs while it ends (1 of 120 stops, ipykernel 7.4).
    """
    from traitlets.config import Config

    if params.teacher != "live" or name[:2] not in ("02", "03"):
        return Config()
    # At half of this time the kernel is asked once more to end, less politely.
    return Config(KernelManager={"shutdown_wait_time": 2 * params.teacher_timeout_s + 10})


def _fingerprint(name: str, params: Params) -> str:
    package = Path(__file__).parent
    sources = {str(p.relative_to(package)): runs.sha256(p) for p in sorted(package.rglob("*.py"))}
    notebook = runs.sha256(source_path(name))
    return json.dumps({"params": params.model_dump(), "notebook": notebook, "sources": sources})


def _is_whole(results: Path) -> bool:
    """Tell whether a results folder has its figures, and all that its manifest names, unchanged."""
    try:
        manifest = json.loads((results / "manifest.json").read_text(encoding="utf-8"))
        drawn = "figures/alt_texts.json" in manifest["files"]  # which is written after all figures
        return drawn and runs.first_changed(results, manifest["files"]) is None
    except (FileNotFoundError, ValueError, KeyError, TypeError):  # no manifest of ours
        return False


def _lock(params: Params) -> FileLock:
    """Return the lock of the results that these parameters lead to."""
    results = runs.results_folder(params)
    digest = hashlib.sha256(str(results).encode()).hexdigest()[:8]
    return FileLock(executed_folder(params).with_name(f"{results.name}-{digest}.lock"))


@contextmanager
def _turn(lock: FileLock, bar: tqdm[Any]) -> Iterator[None]:
    """Hold a lock; while another process has it, say so and wait."""
    try:
        lock.acquire(timeout=0)
    except Timeout:
        bar.set_postfix_str(f"waits for another run ({Path(lock.lock_file).stem})")
        lock.acquire(poll_interval=1)
    try:
        yield
    finally:
        lock.release()


class _Shown:
    """Standard error, for the bar: a study goes on when nobody reads it any more, as behind `| head`."""

    def write(self, text: str) -> None:
        with suppress(BrokenPipeError):
            sys.stderr.write(text)

    def flush(self) -> None:
        with suppress(BrokenPipeError):
            sys.stderr.flush()


@contextmanager
def _bar(total: int) -> Iterator[tqdm[Any]]:
    from tqdm import tqdm

    layout = "{desc:<30} {percentage:3.0f}% |{bar:20}| {elapsed} {postfix}"
    with tqdm(total=total, bar_format=layout, file=_Shown()) as bar:
        yield bar
        bar.set_postfix_str("")


@contextmanager
def _shown_progress(bar: tqdm[Any], done: int, file: Path) -> Iterator[None]:
    """Show on the bar what the notebook's kernel writes to its progress file."""
    stop = threading.Event()

    def watch() -> None:
        while not stop.wait(1):
            if file.is_file():
                news = json.loads(file.read_text())
                bar.n = done + news["fraction"]
                bar.set_postfix_str(news["text"])

    os.environ[PROGRESS_FILE] = str(file)
    watcher = threading.Thread(target=watch, daemon=True)
    watcher.start()
    try:
        yield
    finally:
        stop.set()
        watcher.join()
        del os.environ[PROGRESS_FILE]
        file.unlink(missing_ok=True)


def _word(path: Path) -> str:
    """Return a path as a word of a shell command, relative if it is below the working directory."""
    path = path.absolute()
    return shlex.quote(str(path.relative_to(Path.cwd()) if path.is_relative_to(Path.cwd()) else path))


def _plain(path: Path) -> str:
    """Return a path as papermill takes it, which fills in parameters where it sees braces."""
    return str(path).replace("{", "{{").replace("}", "}}")
