"""A study killed at any moment, stopped, or run twice at once ends in the same results.

`KILLS` (default 10) is the number of random moments; `SEED` draws other ones.
"""

import os
import random
import signal
import subprocess
import sys
import time

import psutil
import pytest

from cfdistill import leftovers, runner, runs

from .small_study import finish, hashes, params, start

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(3600)]
KILLS, SEED = int(os.environ.get("KILLS", "10")), int(os.environ.get("SEED", "0"))


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """Run the study once and return its results' hashes, and how long it took."""
    folder, began = tmp_path_factory.mktemp("undisturbed"), time.monotonic()
    finish(start(folder))
    found = hashes(folder)
    assert "metrics.csv" in found
    return found, time.monotonic() - began


def check_stages(folder):
    """Every folder without a suffix is whole, whatever happened."""
    root = folder / "runs"
    for manifest in root.glob("*/*/manifest.json"):
        if manifest.parent.suffix != ".partial":
            assert runs.Stage(manifest.parts[-3], {}, manifest.parent).is_complete()
    for made in root.glob("[!ns]*/*/"):  # all but notebooks and students
        assert made.suffix == ".partial" or (made / "manifest.json").is_file() or "teacher" in made.parts


def test_a_study_killed_at_random_moments_ends_in_the_same_results(undisturbed, tmp_path):
    expected, seconds = undisturbed
    rng, killed, chains = random.Random(SEED), 0, 0
    while killed < KILLS:
        folder, chains, alive = tmp_path / str(chains), chains + 1, True
        while alive and killed < KILLS:
            process = start(folder)
            try:
                process.wait(rng.uniform(0, seconds / 2))
                alive = False
            except subprocess.TimeoutExpired:
                kernels = psutil.Process(process.pid).children(recursive=True)
                process.kill()
                killed += 1
                if rng.random() < 0.5:  # the kernel at the same moment, or left to end by itself
                    for kernel in kernels:
                        kernel.kill()
            process.communicate()
            check_stages(folder)
        finish(start(folder))
        assert hashes(folder) == expected
        check_stages(folder)
        leftovers.clean(folder / "runs")
        assert not list(folder.rglob("*.partial"))
    print(f"{killed} kills in {chains} studies, all of which ended in the undisturbed results")


STEPS = """
import json, sys
from cfdistill import counterfactual, data, rationale
from cfdistill.params import Params
params = Params.build(json.loads(sys.argv[1]))
data.build(params.train_dataset, params)
counterfactual.build(params)
rationale.build(params)
"""


def made(folder):
    """Return the hash of every file of the stages."""
    files = [p for p in (folder / "runs").glob("[!t]*/*/*") if p.is_file() and p.name != "manifest.json"]
    return {str(path.relative_to(folder)): runs.sha256(path) for path in files}


def test_the_teachers_stages_killed_at_random_moments_end_in_the_same_files(tmp_path):
    def steps(folder):
        return subprocess.Popen([sys.executable, "-c", STEPS, params(folder).model_dump_json()])

    began = time.monotonic()
    assert steps(tmp_path / "undisturbed").wait() == 0
    seconds, rng, killed, ended = time.monotonic() - began, random.Random(SEED), 0, 0
    while killed < KILLS:
        folder, code = tmp_path / str(ended), None
        while code is None:
            process = steps(folder)
            try:
                code = process.wait(rng.uniform(0.2, 1.1) * seconds)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
                killed += 1
            check_stages(folder)
        assert code == 0
        assert made(folder) == made(tmp_path / "undisturbed")
        ended += 1
    print(f"{killed} kills of the teacher's stages, {ended} times made in spite of them")


@pytest.mark.parametrize(("signals", "code"), [([signal.SIGTERM], 143), ([signal.SIGINT], 130)])
def test_a_stopped_study_says_so_and_goes_on(undisturbed, tmp_path, signals, code):
    process = start(tmp_path)
    while not list(tmp_path.glob("runs/data/*/manifest.json")):
        time.sleep(0.05)
        assert process.poll() is None
    process.send_signal(signals[0])
    _, told = process.communicate(timeout=120)
    assert process.returncode == code
    assert told.splitlines()[-1].startswith("stopped; what is finished is kept")
    assert "Traceback" not in told
    finish(start(tmp_path))
    assert hashes(tmp_path) == undisturbed[0]


def test_a_study_whose_progress_nobody_reads_goes_on(undisturbed, tmp_path):
    process = start(tmp_path)
    process.stderr.read(1)
    process.stderr.close()
    assert process.wait(600) == 0
    assert hashes(tmp_path) == undisturbed[0]


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
        alone = hashes(tmp_path / "alone", **second)
    processes = [start(tmp_path / "shared"), start(tmp_path / "shared", **second)]
    for process in processes:
        finish(process)
    assert hashes(tmp_path / "shared") == undisturbed[0]
    assert hashes(tmp_path / "shared", **second) == alone
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
