"""Disks that are full or read-only: every stage refuses in one sentence, and is made once there is room.

The full disk is a real one of a few megabytes, which only root can mount.
"""

import os
import shutil
import subprocess
from functools import partial

import pytest

from cfdistill import (
    audit,
    counterfactual,
    data,
    evaluation,
    leftovers,
    metrics,
    rationale,
    results,
    runs,
    students,
    training,
)
from cfdistill.cli import main
from cfdistill.errors import CfdistillError, StageError
from cfdistill.params import Params

from .small_study import PROFILE, overrides

pytestmark = [
    pytest.mark.faults,
    pytest.mark.slow,
    pytest.mark.timeout(900),
]
PAGE = 4096


@pytest.fixture
def disk(tmp_path):
    """Mount a disk of 16 MB and return its folder."""
    if os.geteuid() != 0:
        pytest.skip("mounting a small disk needs root")
    folder = tmp_path / "disk"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "small", folder], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", folder], check=True)


def steps(params: Params):
    """Yield every step of a study with the folder that it makes."""
    yield "data", partial(data.build, params.train_dataset, params)
    yield "counterfactuals", partial(counterfactual.build, params)
    yield "rationales", partial(rationale.build, params)
    for method in params.methods:
        yield f"training {method}", partial(training.build, method, params)
        yield f"evaluation {method}", partial(evaluation.build_all, method, params)
        yield f"audits {method}", partial(audit.build, method, params)
    yield "metrics", partial(metrics.build, params)
    yield "results", partial(results.collect, params)
    yield "figures", lambda: results.draw(runs.results_folder(params))


def fill(folder, free):
    """Leave `free` bytes on a disk."""
    ballast = folder / "ballast"
    ballast.unlink(missing_ok=True)
    size = shutil.disk_usage(folder).free - free
    with ballast.open("wb") as file:
        os.posix_fallocate(file.fileno(), 0, max(size, 1))


def made(params):
    """Return the hash of every file that the stages hold, without those that hold times."""
    root = runs.resolve(params.run_root)
    files = [p for p in root.glob("*/*/**/*") if p.is_file() and p.name not in ("manifest.json", "log.csv")]
    return {str(p.relative_to(root)): runs.sha256(p) for p in files if "notebooks" not in p.parts}


def test_every_step_refuses_a_full_disk_and_is_made_when_there_is_room(disk, tmp_path):
    undisturbed, params = (Params.from_yaml(PROFILE, overrides(folder)) for folder in (tmp_path, disk))
    for _, make in steps(undisturbed):
        make()
    refused = {}
    for name, make in steps(params):
        free, refused[name] = 0, 0
        while True:
            fill(disk, free)
            try:
                make()
            except CfdistillError:
                refused[name] += 1
                left = set((disk / "runs").glob("*/*.partial"))
                assert left <= set(leftovers.clean(disk / "runs", dry_run=True))
            else:
                break
            free = max(PAGE, 2 * free)  # fails at another place of the step
    print("refusals of a full disk, by step:", refused)
    assert all(refused.values())
    assert made(params) == made(undisturbed)


def test_a_student_is_saved_or_refused_wherever_the_disk_becomes_full(disk):
    student, ended = students.load("tiny-random", Params()), []
    for free in range(0, 2**20, 2 * PAGE):
        shutil.rmtree(disk / "student", ignore_errors=True)
        fill(disk, free)
        try:
            with runs.writing(disk):
                student.save(disk / "student")
        except StageError:
            ended.append("refused")
        else:
            ended.append("saved")
    assert ended == sorted(ended)  # refused until there is room
    assert set(ended) == {"refused", "saved"}


@pytest.mark.parametrize("at", ["mkdir", "open"])
def test_a_read_only_folder_is_one_sentence(at, tmp_path, monkeypatch, capsys):
    """Root may write anywhere, so the refusal is injected."""

    def refuse(path, *arguments, **more):
        raise OSError(30, "Read-only file system", str(path))

    monkeypatch.setattr(os, at, refuse)
    flags = [word for pair in overrides(tmp_path).items() for word in ("-p", *pair)]
    assert main(["run", str(PROFILE), *flags, "--only", "01"]) == 1
    error = capsys.readouterr().err.strip().splitlines()[-1]
    assert "Read-only file system" in error
    assert error.startswith("error: ")


def test_a_stage_on_a_read_only_disk_is_one_sentence(disk):
    params = Params.from_yaml(PROFILE, overrides(disk))
    data.build(params.train_dataset, params)
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    with (
        pytest.raises(StageError, match="Read-only file system"),
        runs.stage("metrics", params).draft(params),
    ):
        pytest.fail("wrote")
    assert data.build(params.train_dataset, params).is_complete()  # what is there can be read
