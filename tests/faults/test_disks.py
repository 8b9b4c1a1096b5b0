"""Disks that are full or read-only: every stage refuses in one sentence, and is made once there is room.

The full disk is a real one of a few megabytes, which only root can mount.
"""

import os
import re
import shutil
import subprocess
from collections import Counter
from functools import partial

import pytest

from cfdistill import pipeline
from cfdistill.cli import main
from cfdistill.errors import CfdistillError, StageError
from cfdistill.study import results

from .small_study import PROFILE, flags, made, params

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]
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


def steps(params):
    """Yield the name of every step of a study with what makes it."""
    for name in pipeline.STAGES:
        for part in pipeline.parts(name, params):
            yield " ".join([name, *part.values()]), partial(pipeline.build, name, params, **part)
    yield "results", partial(results.collect, params)
    yield "figures", lambda: results.draw(results.folder(params))


def test_every_step_refuses_a_full_disk_and_is_made_when_there_is_room(disk, tmp_path):
    for _, make in steps(params(tmp_path)):
        make()
    refused, ballast = Counter(), disk / "ballast"
    for name, make in steps(params(disk)):
        for free in (0, *(PAGE * 2**i for i in range(20))):  # fails at another place of the step
            ballast.unlink(missing_ok=True)
            with ballast.open("wb") as file:
                os.posix_fallocate(file.fileno(), 0, max(shutil.disk_usage(disk).free - free, 1))
            try:
                make()
                break
            except CfdistillError:
                refused[name] += 1
        else:
            pytest.fail(f"{name} is refused whatever the room")
        assert refused[name], name
    print("refusals of a full disk, by step:", refused)
    assert made(disk) == made(tmp_path)


def test_a_read_only_disk_is_one_sentence_and_what_is_there_can_be_read(disk, capsys):
    pipeline.build("data", params(disk), dataset="weasel-commonsense")
    subprocess.run(["mount", "-o", "remount,ro", disk], check=True)
    assert pipeline.build("data", params(disk), dataset="weasel-commonsense").is_complete()
    with pytest.raises(StageError, match="Read-only file system"):
        pipeline.build("counterfactuals", params(disk))
    assert main(["run", str(PROFILE), *flags(disk), "--only", "01"]) == 1
    assert re.match("error: .*Read-only file system", capsys.readouterr().err.strip().splitlines()[-1])
