"""Long use does not fill memory or run out of file handles."""

import json
import os

import psutil
import pytest

from cfdistill import runner
from cfdistill.params import Params
from cfdistill.teacher import Teacher
from cfdistill.teacher.cache import Answer
from cfdistill.teacher.prompts import render

from .small_study import PROFILE, finish, overrides, start

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]
ANSWERS, BATCH = int(os.environ.get("ANSWERS", "100000")), 1000
ALLOWED_MIB = 8  # what the allocator may keep; a leak of 100 bytes an answer would be more


def held():
    """Return the resident memory in MiB, and the open files."""
    me = psutil.Process()
    return me.memory_info().rss / 2**20, me.num_fds()


def prompts(first):
    return [render("reason", f"Where is number {i}?", ("here", "there")) for i in range(first, first + BATCH)]


def test_a_teacher_with_many_answers_stays_as_small_as_it_was(small_params: Params):
    response = json.dumps({"model": "m", "choices": [{"message": {"content": "So the answer is here."}}]})
    params = small_params.model_copy(update={"teacher": "offline"})
    with Teacher(params) as teacher:
        for first in range(0, ANSWERS, BATCH):
            teacher.cache.put_all(
                Answer.read(response, key=teacher.key(p), task=p.task, base_url="u", model="m")
                for p in prompts(first)
            )
    measured = []
    with Teacher(params) as teacher:
        for first in range(0, ANSWERS, BATCH):
            assert teacher.ask(prompts(first)) == ["So the answer is here."] * BATCH
            measured.append(held())
    assert teacher.usage.cache_hits == ANSWERS
    (began, files), (ended, files_then) = measured[len(measured) // 10], measured[-1]
    print(
        f"{ANSWERS} cached answers: {began:.1f} MiB after a tenth, {ended:.1f} at the end; {files_then} files"
    )
    assert ended - began < ALLOWED_MIB
    assert files_then == files


def test_running_a_study_again_and_again_leaves_nothing_open(tmp_path):
    finish(start(tmp_path))
    measured = []
    for _ in range(20):
        runner.run(PROFILE, overrides(tmp_path))
        measured.append(held())
    (began, files), (ended, files_then) = measured[2], measured[-1]
    print(f"20 runs of a finished study: {began:.1f} MiB after 3, {ended:.1f} at the end; {files_then} files")
    assert ended - began < ALLOWED_MIB
    assert files_then == files


def test_executing_a_notebook_again_and_again_leaves_nothing_open(tmp_path):
    measured = []
    for _ in range(5):
        runner.run(PROFILE, overrides(tmp_path), ["01"], force=True)
        measured.append(held())
    (began, files), (ended, files_then) = measured[1], measured[-1]
    print(f"5 executions of a notebook: {began:.1f} MiB after 2, {ended:.1f} at the end; {files_then} files")
    assert ended - began < ALLOWED_MIB
    assert files_then <= files
