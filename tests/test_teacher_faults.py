"""The teacher when things go wrong: faulty servers, kills, two runs at once, and keys that must not leak."""

import random
import re
import signal
import sqlite3
import subprocess
import sys
import time
from contextlib import closing

import httpx2
import pytest
from loopback import FAULTS, KEY, Loopback, ask, completion, some_prompts

from cfdistill import pipeline
from cfdistill.errors import ParamsError, StageError, TeacherError
from cfdistill.files import project_root
from cfdistill.params import Params
from cfdistill.study import run
from cfdistill.teacher import Teacher, cache_path, endpoint, offline
from cfdistill.teacher.outcomes import EMPTY

BAD = {"fault_rate": 1.0}
PRICE = (200 * 1.75 + 20 * 14) / 1e6  # of one answer of the server


@pytest.fixture
def live(small_params, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    given = small_params.model_dump() | {"teacher": "live", "teacher_model": "some-model"}
    return lambda server, **more: Params.build(given | {"teacher_base_url": server.url, **more})


def rows(params):
    with closing(sqlite3.connect(cache_path(params))) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        return db.execute("SELECT count(*) FROM answers").fetchone()[0]


def always(status, told):
    return lambda body: (status, completion(told) if status == 200 else {"error": {"message": told}})


@pytest.mark.parametrize("count", [60, pytest.param(2000, marks=pytest.mark.slow)])
def test_every_answer_arrives_once_in_spite_of_faults_and_no_key_is_logged(live, count, caplog):
    caplog.set_level("DEBUG")
    asked = some_prompts(count)
    with Loopback(0.01, fault_rate=0.3, retry_after_s=0.1) as server:
        answers, teacher = ask(params := live(server, teacher_timeout_s=1.0), asked)
    assert set(server.met) >= set(FAULTS) or count < 2000
    assert set(server.answered.values()) == {1}  # nothing was asked again once it was answered
    assert len(server.answered) == rows(params) == count
    refused = server.met["refusal"]
    assert server.requests == count + server.met.total() - refused
    assert teacher.usage.requests >= server.requests  # a server that is slow to accept has not seen them all
    assert answers.count(EMPTY) == refused
    assert {head.splitlines()[0] for head in server.heads} == {"POST /v1/chat/completions HTTP/1.1"}
    assert all(f"authorization: bearer {KEY}" in head.lower() for head in server.heads)
    assert server.met["server error"]  # whose body quotes the key
    assert KEY not in caplog.text + str(cache_path(params).read_bytes())
    for text, prompt in zip(answers, asked, strict=True):
        assert text in (EMPTY, f"echo {prompt.question}")


@pytest.mark.parametrize(
    ("serving", "attempts", "message"),
    [
        (BAD | {"faults": ["wrong content type"]}, 2, "answered no chat completion; check teacher_base_u"),
        (BAD | {"faults": ["rate limit"]}, 2, r"429.*lower teacher_requests_per_minute.*0 of 50 answers"),
        ({"latency_s": 3.0}, 2, r"127\.0\.0\.1:.*/v1, model some-model, cannot .*APITimeout"),
    ],
)
def test_what_cannot_work_is_told_soon_and_without_the_key(live, monkeypatch, serving, attempts, message):
    monkeypatch.setattr(endpoint, "FIRST_RETRIES", 1)
    with Loopback(**serving) as server, pytest.raises(TeacherError, match=message) as caught:
        ask(live(server, teacher_timeout_s=1.0), some_prompts(50, "mask"))
    assert server.requests == attempts  # by the first prompt, before any other is sent
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__  # the SDK's own error is not shown either


def test_a_fault_that_lasts_stops_the_run_and_keeps_everything(live, monkeypatch):
    monkeypatch.setattr(endpoint, "RETRIES", 1)
    with Loopback(0.01) as server:
        server.answer = lambda body: always(429 if len(server.answered) >= 20 else 200, "over")(body)
        with pytest.raises(TeacherError, match=r"\(20 of 24 answers are there and kept, 4 are missing"):
            ask(live(server), some_prompts(24))
        server.answer = always(200, "fine")
        ask(live(server), some_prompts(24))
        assert set(server.answered.values()) == {1}


def test_what_an_endpoint_refuses_is_learnt_by_the_requests_under_way_and_is_part_of_no_key(live, caplog):
    def answer(body):
        schemas.append(body.get("response_format", {}).get("json_schema"))
        return always(422 if schemas[-1] else 200, "Unexpected fields: {'response_format'}")(body)

    schemas, asked = [], [*some_prompts(30, "mask"), *some_prompts(1)]
    with Loopback(answer=answer) as server:
        _, teacher = ask(live(server), asked)
        refused = [schema["schema"]["required"] for schema in schemas if schema]
        assert refused == [["spans"]]  # one request teaches it
        assert teacher.summary()["without"] == {"response_format": 30}
        assert caplog.text.count("refuses response_format, and is asked without it") == 1
        assert server.requests == 31 + len(refused)
        _, teacher = ask(live(server), asked)  # the same wish, so the same key
        assert (teacher.usage.requests, teacher.usage.cache_hits) == (0, 31)


# An answer takes 220 tokens, whatever was estimated before: about 45 of them a second.
@pytest.mark.parametrize(("unit", "limit", "shortest_s"), [("requests", 3000, 0.78), ("tokens", 594000, 0.7)])
def test_requests_and_tokens_per_minute_are_kept(live, unit, limit, shortest_s):
    with Loopback() as server:
        began = time.perf_counter()
        ask(live(server, **{f"teacher_{unit}_per_minute": limit}), some_prompts(40))
        assert shortest_s < time.perf_counter() - began < 6  # a second on an idle machine


def test_a_budget_stops_the_run_before_it_is_passed_over_all_runs(live):
    with Loopback(0.01) as server:
        params = live(server, teacher_model="gpt-5.2", teacher_budget_usd=30 * PRICE, teacher_concurrency=2)
        for _ in range(2):  # the second run finds the money spent
            with pytest.raises(TeacherError, match=r"_budget_usd is reached: .* of 200 answers are there"):
                ask(params, some_prompts(200))
        assert 20 <= rows(params) <= 30
        assert server.requests == rows(params)
        ask(params.model_copy(update={"teacher_budget_usd": 250 * PRICE}), some_prompts(200))
        assert set(server.answered.values()) == {1}


def test_a_budget_holds_to_the_last_token_where_answers_have_a_longest(live):
    longest = completion("long", usage={"prompt_tokens": 100, "completion_tokens": 1000})
    price = (100 * 1.75 + 1000 * 14) / 1e6  # of the longest answer, eight times the usual estimate
    with Loopback(0.01, answer=lambda body: (200, longest)) as server:
        params = live(server, teacher_model="gpt-5.2", teacher_budget_usd=10 * price, teacher_max_tokens=1000)
        with pytest.raises(TeacherError, match="teacher_budget_usd is reached"):
            ask(params, some_prompts(40))
    assert 8 <= rows(params) <= 10


def test_processes_share_one_budget_and_a_dead_ones_reservations_lapse(live):
    with Loopback(0.02) as server:
        given = {"teacher_budget_usd": 100 * PRICE, "teacher_timeout_s": 0.5}
        params = live(server, teacher_model="gpt-5.2", **given)
        processes = [start(params, 200) for _ in range(3)]  # the same at once, so that some pay twice
        for process in processes:
            assert "teacher_budget_usd is reached" in process.communicate(timeout=60)[1]
        assert 25 < server.requests <= 100  # 24 under way may hold 72 of it when the first is refused
        assert 8 < rows(params) <= server.requests
        tokens = some_prompts(1)[0].estimate()
        set_aside = (tokens[0] * 1.75 + tokens[1] * 14) / 1e6  # for one request
        cap = server.requests * PRICE + 1.5 * set_aside
        server.latency_s, params = 5.0, params.model_copy(update={"teacher_budget_usd": cap})
        process = start(params, 200, server, server.requests + 1)
        process.kill()
        process.communicate()
        server.latency_s = 0.0
        with pytest.raises(TeacherError, match=r"set aside or lost, .*lapses in minutes"):
            ask(params, some_prompts(200)[150:])
        time.sleep(2.1)  # four times teacher_timeout_s
        ask(params, some_prompts(200)[150:151])


def test_a_budget_needs_a_price_which_a_file_may_give(live, tmp_path):
    with Loopback() as server:
        params = live(server, teacher_budget_usd=1.0)
        with pytest.raises(ParamsError, match="the price of some-model is not known; give it by teacher_pr"):
            Teacher(params)
        prices = tmp_path / "prices.yaml"
        params = params.model_copy(update={"teacher_prices": str(prices)})
        prices.write_text("some-model: {input: 0, output: 0, recorded: 2026-01-31}\n")
        ask(params, some_prompts(1))
        prices.write_text("some-model: cheap\n")
        with pytest.raises(ParamsError, match=r"prices.yaml, some-model: no price; write"):
            Teacher(params)


SCRIPT = """
import json, sys
from cfdistill.params import Params
from loopback import ask, some_prompts
ask(Params.build(json.loads(sys.argv[1])), some_prompts(int(sys.argv[2])))
"""


def start(params, count, server=None, requests=0):
    """Ask in another process, and return it once the server has met that many requests."""
    command = [sys.executable, "-c", SCRIPT, params.model_dump_json(), str(count)]
    process = subprocess.Popen(command, cwd=project_root() / "tests", stderr=subprocess.PIPE, text=True)
    while server and server.requests < requests and process.poll() is None:
        time.sleep(0.01)
    return process


@pytest.mark.parametrize(("count", "kills"), [(150, 1), pytest.param(2000, 20, marks=pytest.mark.slow)])
def test_a_killed_run_repeats_at_most_what_was_under_way(live, count, kills):
    rng = random.Random(1)
    with Loopback(0.005) as server:
        params = live(server)
        for _ in range(kills):
            process = start(params, count, server, server.requests + 1)
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
            process.communicate()
        ask(params, some_prompts(count))
        assert len(server.answered) == rows(params) == count
        assert server.answered.total() <= count + kills * params.teacher_concurrency


def test_ctrl_c_lets_requests_under_way_finish_and_says_where_it_stands(live):
    with Loopback(0.4) as server:
        process = start(params := live(server), 100, server, 9)  # the first, and 8 at once
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
        assert "KeyboardInterrupt: stopped (9 of 100 answers are there and kept, 91 are missing" in told
        assert rows(params) == server.requests == 9


@pytest.mark.slow
def test_the_key_is_found_in_no_file_of_a_live_study(live, tmp_path, capfd):
    scenes = offline.SceneTeacher(noise=0.0, seed=0)
    betray = always(400, f"the key {KEY} is not liked")
    with Loopback(fault_rate=0.1, faults=["server error", "rate limit", "refusal"], answer=betray) as server:
        given = {"teacher": "live", "teacher_base_url": server.url, "teacher_concurrency": "32"}
        given |= {"run_root": str(tmp_path / "runs"), "results_root": str(tmp_path / "results")}
        with pytest.raises(StageError, match="the key … is not liked") as caught:
            run.run(project_root() / "params" / "smoke.yaml", given, ["01", "02"])
        server.answer = lambda body: (200, scenes(httpx2.Request("POST", "http://u", json=body)).json())
        params = run.run(project_root() / "params" / "smoke.yaml", given, ["02", "03"])
    assert pipeline.find("rationales", params)
    found = {path: path.read_bytes() for path in tmp_path.rglob("*") if path.is_file()}
    assert {path.suffix for path in found} >= {".ipynb", ".sqlite", ".jsonl", ".csv", ".json"}
    assert [path for path, content in found.items() if re.search(rb"sk-[\w-]{8}", content)] == []
    assert KEY not in str(caught.value) + "".join(capfd.readouterr())
