"""Long use does not fill memory or run out of file handles."""

import json
import os

import psutil
import pytest

from cfdistill.params import Params
from cfdistill.study import run
from cfdistill.teacher import Teacher
from cfdistill.teacher.cache import Answer
from cfdistill.teacher.prompts import render

from .small_study import PROFILE, finish, overrides, start

pytestmark = [pytest.mark.faults, pytest.mark.slow, pytest.mark.timeout(900)]
ANSWERS, BATCH = int(os.environ.get("ANSWERS", "100000")), 1000
ALLOWED_MIB = 8  # what the allocator may keep
NOTED_MIB = 300 * ANSWERS / 2**20  # of every answer its key and its digest, which `answers.csv` will hold
TEXT = f"{'It is here. ' * 100}So the answer is here."


def held():
    """Return the resident memory in MiB, and the open files."""
    me = psutil.Process()
    return me.memory_info().rss / 2**20, me.num_fds()


def check_growth(measured, warm, allowed=ALLOWED_MIB):
    (began, files), (ended, files_then) = measured[warm], measured[-1]
    print(f"{began:.1f} MiB after {warm + 1}, {ended:.1f} after {len(measured)}; {files_then} files")
    assert ended - began < allowed
    assert files_then <= files


def prompts(first):
    return [render("reason", f"Where is number {i}?", ("here", "there")) for i in range(first, first + BATCH)]


def test_a_teacher_with_many_answers_keeps_none_of_their_texts(small_params: Params):
    response = json.dumps({"model": "m", "choices": [{"message": {"content": TEXT}}]})
    params = small_params.model_copy(update={"teacher": "offline"})
    with Teacher(params) as teacher:
        for first in range(0, ANSWERS, BATCH):
            known_as = (teacher.base_url, teacher.model)
            teacher.cache.put_all(Answer.to(p, response, *known_as) for p in prompts(first))
    measured = []
    with Teacher(params) as teacher:
        for first in range(0, ANSWERS, BATCH):
            assert teacher.ask(prompts(first)) == [TEXT] * BATCH
            measured.append(held())
    assert teacher.usage.cache_hits == ANSWERS
    check_growth(measured, len(measured) // 10, ALLOWED_MIB + NOTED_MIB)


@pytest.mark.parametrize(("times", "only", "force"), [(20, [], False), (5, ["01"], True)])
def test_running_a_study_or_a_notebook_again_and_again_leaves_nothing_open(tmp_path, times, only, force):
    finish(start(tmp_path))
    measured = []
    for _ in range(times):
        run.run(PROFILE, overrides(tmp_path), only, force=force)
        measured.append(held())
    check_growth(measured, 2)
