"""A study killed at any moment, stopped, or run twice at once ends in the same results.

`KILLS` (default 10) is the number of random moments; `SEED` draws other ones.
"""

import os
import random
import signal
import subprocess
import time
from collections import Counter
from contextlib import suppress

import psutil
import pytest

from cfdistill import files
from cfdistill.pipeline import STAGES
from cfdistill.study import results, run

from .small_study import everything, finish, params, stages, start

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


def check_stages(folder):
    """Assert that what counts as complete is whole, and that the rest is listed as left over."""
    assert all(stage.is_complete() for stage in stages(folder))
    for stage in (folder / "runs").glob("[!ns]*/*/"):  # all but notebooks and students
        assert stage.suffix == ".partial" or (stage / "manifest.json").is_file() or "teacher" in stage.parts
    for manifest in folder.glob("results/*/manifest.json"):
        named = results.read_manifest(manifest.parent).get("files", {})  # none before it is finished
        assert files.first_changed(manifest.parent, named) is None


def under_way(folder, since):
    """Return which stage a process has been writing since a time, or which notebook it was in."""
    names = "*/*.partial", "*/*.partial/*", "*/*.partial/checkpoints/*", "notebooks/*/*.unfinished.ipynb"
    for path in (path for name in names for path in (folder / "runs").glob(name)):
        with suppress(FileNotFoundError):
            if path.stat().st_mtime >= since:
                name, *_, last = path.relative_to(folder / "runs").parts
                return last.partition(".")[0] if name == "notebooks" else name
    return "start"


def to_each(kernels, signal_name):
    for kernel in kernels:
        with suppress(psutil.NoSuchProcess):
            getattr(kernel, signal_name)()


def kill(process, folder, rng, seconds, seen):
    """Kill a process at random, or soon after it begins what was not killed yet; None if it ended before."""
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
    to_each(kernels, "suspend")
    now = under_way(folder, since)
    process.kill()
    to_each(kernels, rng.choice(["kill", "resume"]))  # at the same moment, or left to end by itself
    process.communicate()
    psutil.wait_procs(kernels, timeout=60)
    check_stages(folder)
    return now


def test_a_study_killed_at_random_moments_ends_in_the_same_results(undisturbed, tmp_path):
    expected, seconds = undisturbed
    rng, fell, ended = random.Random(SEED), Counter(), 0
    while fell.total() < KILLS:
        folder, seen, ended = tmp_path / str(ended), set(), ended + 1
        while doing := kill(start(folder), folder, rng, seconds, seen):
            fell[doing] += 1
            seen.add(doing)
        check_stages(folder)
        assert everything(folder) == expected
    print(f"{fell.total()} kills, {ended} times made in spite of them; {fell}")


def test_stops_at_random_moments_are_one_sentence_and_lose_nothing(undisturbed, tmp_path):
    kinds = [([signal.SIGTERM], 143), ([signal.SIGINT], 130), ([signal.SIGINT, signal.SIGINT], 130)]
    expected, seconds = undisturbed
    rng, stops, studies = random.Random(SEED), 0, 0
    while stops < KILLS:
        folder, ended, studies = tmp_path / str(studies), False, studies + 1
        while stops < KILLS and not ended:
            process = start(folder)
            process.stderr.read(1)  # from its first word on it is ready to be stopped
            with suppress(subprocess.TimeoutExpired):
                process.wait(rng.uniform(0, seconds / 3))
            signals, code = kinds[stops % 3]
            for number in signals:
                process.send_signal(number)
                time.sleep(0.5)
            _, told = process.communicate(timeout=60)
            ended = process.returncode == 0  # before the signal came
            if not ended:
                stops += 1
                assert process.returncode == code, told
                assert told.splitlines()[-1].startswith("stopped; what is finished is kept"), told
            assert not any(word in told for word in ("Traceback", "Warning", "Error")), told
            check_stages(folder)
        finish(start(folder))
        assert everything(folder) == expected
    print(f"{stops} stops in {studies} studies; the same results")


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


def test_of_two_runs_at_once_one_ends_in_the_results_of_one_alone(undisturbed, tmp_path):
    processes = [start(tmp_path), start(tmp_path)]
    told = [process.communicate(timeout=600)[1] for process in processes]
    codes = [process.returncode for process in processes]
    assert sorted(codes) == [0, 1], told
    assert f"is being made by process {processes[codes.index(0)].pid} on " in told[codes.index(1)]
    assert everything(tmp_path) == undisturbed[0]
    finish(start(tmp_path))
    assert all(run.is_current(name, params(tmp_path)) for name in run.NOTEBOOKS)


def test_runs_with_other_parameters_share_stages_and_never_mix_them(undisturbed, tmp_path):
    finish(start(tmp_path / "alone", seed="1"))
    alone = everything(tmp_path / "alone", seed="1")
    processes = [start(tmp_path / "shared"), start(tmp_path / "shared", seed="1")]
    for process, seed in zip(processes, ("0", "1"), strict=True):
        _, told = process.communicate(timeout=600)
        if process.returncode:  # it needed a stage that the other one was making
            assert "is being made by process" in told or "has just made" in told
            finish(start(tmp_path / "shared", seed=seed))
    assert everything(tmp_path / "shared").items() >= undisturbed[0].items()
    assert everything(tmp_path / "shared", seed="1").items() >= alone.items()
    check_stages(tmp_path / "shared")
