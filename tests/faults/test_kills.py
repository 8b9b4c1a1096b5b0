"""A study killed at any moment, stopped, or run twice at once ends in the same results.

`KILLS` (default 10) is the number of random moments; `SEED` draws other ones.
"""

import os
import random
import signal
import subprocess
import sys
import time
from collections import Counter
from contextlib import suppress

import psutil
import pytest

from cfdistill import leftovers, results, runner, runs
from cfdistill.params import STAGES

from .small_study import finish, hashes, made, params, start

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(3600)]
KILLS, SEED = int(os.environ.get("KILLS", "10")), int(os.environ.get("SEED", "0"))
AIMS = {*STAGES, "07_paper_figures"}


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Run the study once and return the hashes of its results and stages, and how long it took."""
    folder, began = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    finish(start(folder))
    found = everything(folder)
    assert "metrics.csv" in found
    assert {name.split("/")[1] for name in found if name.startswith("runs/")} == set(STAGES)
    return found, time.monotonic() - began


def everything(folder, **more):
    """Return the hashes of results and stages, a trained student's weights among them."""
    return hashes(folder, **more) | made(folder)


def check_stages(folder):
    """Whatever happened, what counts as complete is whole, and the rest is listed as left over."""
    root = folder / "runs"
    for manifest in root.glob("*/*/manifest.json"):
        if manifest.parent.suffix != ".partial":
            assert runs.Stage(manifest.parts[-3], {}, manifest.parent).is_complete()
    for stage in root.glob("[!ns]*/*/"):  # all but notebooks and students
        assert stage.suffix == ".partial" or (stage / "manifest.json").is_file() or "teacher" in stage.parts
    for manifest in folder.glob("results/*/manifest.json"):
        assert runs.first_changed(manifest.parent, results.read_manifest(manifest.parent)["files"]) is None
    listed = leftovers.clean(root, dry_run=True)
    assert set(listed) <= set(root.rglob("*"))
    return {str(path.relative_to(root)) for path in listed}


def under_way(folder, since):
    """Return which stage a process has been writing since a time, or which notebook it was in."""
    names = "*/*.partial", "*/*.partial/*", "*/*.partial/checkpoints/*", "notebooks/*/*.unfinished.ipynb"
    for path in (path for name in names for path in (folder / "runs").glob(name)):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime >= since:
                name, *_, last = path.relative_to(folder / "runs").parts
                return last.partition(".")[0] if name == "notebooks" else name
    return "start"


def kill(process, folder, rng, seconds, seen):
    """Kill a process at a random moment, or soon after it begins what was not killed yet.

    Returns:
        What it was doing, or None if it ended before.
    """
    since, began = time.time() - 0.02, time.monotonic()
    random_moment, aimed = began + rng.uniform(0, seconds / 2), rng.random() < 0.75
    while process.poll() is None:
        if (under_way(folder, since) in AIMS - seen) if aimed else (time.monotonic() > random_moment):
            break
        time.sleep(0.01)
    time.sleep(seconds / 50 * rng.random() ** 6 if aimed else 0)  # most stages take less than a second
    if process.poll() is not None:
        finish(process)
        return None
    process.send_signal(signal.SIGSTOP)
    kernels = psutil.Process(process.pid).children(recursive=True)
    for kernel in kernels:
        with suppress(psutil.NoSuchProcess):
            kernel.suspend()
    now = under_way(folder, since)
    process.kill()
    both = rng.random() < 0.5  # the kernel at the same moment, or left to end by itself
    for kernel in kernels:
        with suppress(psutil.NoSuchProcess):
            kernel.kill() if both else kernel.resume()
    process.communicate()
    if both:
        psutil.wait_procs(kernels)
        left = {str(path.relative_to(folder / "runs")) for path in (folder / "runs").glob("*/*.partial")}
        assert left <= check_stages(folder)
    return now


def test_a_study_killed_at_random_moments_ends_in_the_same_results(undisturbed, tmp_path):
    expected, seconds = undisturbed
    rng, fell, chains = random.Random(SEED), Counter(), 0
    while fell.total() < KILLS:
        folder, seen, chains = tmp_path / str(chains), set(), chains + 1
        while fell.total() < KILLS and (doing := kill(start(folder), folder, rng, seconds, seen)):
            fell[doing] += 1
            seen.add(doing)
            check_stages(folder)
        finish(start(folder))
        assert everything(folder) == expected
        check_stages(folder)
        leftovers.clean(folder / "runs")
        assert not list(folder.rglob("*.partial"))
    print(f"{fell.total()} kills in {chains} studies, all of which ended in the undisturbed results; {fell}")


STEPS = """
import json, sys
from cfdistill import counterfactual, data, rationale
from cfdistill.params import Params
params = Params.build(json.loads(sys.argv[1]))
data.build(params.train_dataset, params)
counterfactual.build(params)
rationale.build(params)
"""


def test_the_teachers_stages_killed_at_random_moments_end_in_the_same_files(tmp_path):
    def steps(folder):
        asked = params(folder, train_questions="60", train_scenes="0", counterfactuals_per_question="2")
        command = [sys.executable, "-c", STEPS, asked.model_dump_json()]
        return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)

    began = time.monotonic()
    assert steps(tmp_path / "undisturbed").wait() == 0
    seconds, rng, fell, ended = time.monotonic() - began, random.Random(SEED), Counter(), 0
    expected = made(tmp_path / "undisturbed")
    while fell.total() < KILLS:
        folder, seen = tmp_path / str(ended), set()
        while doing := kill(steps(folder), folder, rng, 2 * seconds, seen):
            fell[doing] += 1
            seen.add(doing)
            check_stages(folder)
        assert made(folder) == expected
        ended += 1
    print(f"{fell.total()} kills of the teacher's stages, {ended} times made in spite of them; {fell}")


@pytest.mark.parametrize(
    ("signals", "code"),
    [([signal.SIGTERM], 143), ([signal.SIGINT], 130), ([signal.SIGINT, signal.SIGINT], 130)],
)
def test_a_stopped_study_says_so_and_goes_on(undisturbed, tmp_path, signals, code):
    process = start(tmp_path)
    while not list(tmp_path.glob("runs/data/*/manifest.json")):
        time.sleep(0.05)
        assert process.poll() is None
    for number in signals:
        process.send_signal(number)
        time.sleep(0.5)
    _, told = process.communicate(timeout=120)
    assert process.returncode == code
    assert told.splitlines()[-1].startswith("stopped; what is finished is kept")
    assert "Traceback" not in told
    assert any(name.endswith((".partial", ".unfinished.ipynb")) for name in check_stages(tmp_path))
    finish(start(tmp_path))
    assert everything(tmp_path) == undisturbed[0]


def test_stops_at_random_moments_are_one_sentence_and_lose_nothing(undisturbed, tmp_path):
    expected, seconds = undisturbed
    rng, stops, studies, slowest = random.Random(SEED), 0, 0, 0.0
    while stops < KILLS:
        folder, ended, studies = tmp_path / str(studies), False, studies + 1
        while stops < KILLS and not ended:
            process = start(folder)
            process.stderr.read(1)  # from its first word on it is ready to be stopped
            with suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, seconds / 3))
            number, code = rng.choice([(signal.SIGTERM, 143), (signal.SIGINT, 130)])
            process.send_signal(number)
            began = time.monotonic()
            _, told = process.communicate(timeout=60)
            ended = process.returncode == 0  # before the signal came
            if not ended:
                stops, slowest = stops + 1, max(slowest, time.monotonic() - began)
                assert process.returncode == code, told
                assert told.splitlines()[-1].startswith("stopped; what is finished is kept"), told
            assert not any(word in told for word in ("Traceback", "Warning", "Error")), told
            check_stages(folder)
        finish(start(folder))
        assert everything(folder) == expected
    print(f"{stops} stops in {studies} studies, the slowest took {slowest:.0f} s; the same results")


def test_a_study_whose_progress_nobody_reads_goes_on(undisturbed, tmp_path):
    process = start(tmp_path)
    process.stderr.read(1)
    process.stderr.close()
    assert process.wait(600) == 0
    assert everything(tmp_path) == undisturbed[0]


def test_a_kernel_that_is_killed_is_one_sentence(tmp_path):
    process = start(tmp_path)
    while not (kernels := psutil.Process(process.pid).children()):
        time.sleep(0.05)
    time.sleep(2)
    kernels[0].kill()
    _, told = process.communicate(timeout=120)
    assert process.returncode == 1
    assert "01_data_preparation: its process was killed, as when memory runs out" in told
    assert "Traceback" not in told


@pytest.mark.parametrize("second", [{}, {"seed": "1"}])
def test_two_runs_at_once_both_end_in_the_results_of_one_alone(undisturbed, tmp_path, second):
    alone = undisturbed[0]
    if second:
        finish(start(tmp_path / "alone", **second))
        alone = everything(tmp_path / "alone", **second)
    processes = [start(tmp_path / "shared"), start(tmp_path / "shared", **second)]
    for process in processes:
        finish(process)
    assert everything(tmp_path / "shared").items() >= undisturbed[0].items()
    assert everything(tmp_path / "shared", **second).items() >= alone.items()
    check_stages(tmp_path / "shared")
    shared = params(tmp_path / "shared")
    assert all(runner.is_current(name, shared) for name in runner.NOTEBOOKS)


def test_a_run_that_waits_for_another_says_so(tmp_path, capfd):
    with runner._lock(params(tmp_path)):
        process = start(tmp_path)
        deadline, told = time.monotonic() + 60, ""
        while "waits for another run" not in told and time.monotonic() < deadline:
            told += os.read(process.stderr.fileno(), 1000).decode()
        process.kill()
    assert "waits for another run" in told
