"""The teacher when things go wrong: faulty servers, kills, two runs at once, and keys that must not leak."""

import random
import re
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx2
import pytest
from loopback import FAULTS, Loopback, completion

from cfdistill import runner, runs
from cfdistill.errors import ParamsError, StageError, TeacherError
from cfdistill.params import Params
from cfdistill.teacher import Teacher, client, endpoint, offline
from cfdistill.teacher.prompts import Prompt, render

KEY = "sk-test-planted-0123456789abcdef"


def some_prompts(count: int, task: str = "reason") -> list[Prompt]:
    return [render(task, f"Where is number {i}?", ("here", "there"), 0) for i in range(count)]


@pytest.fixture
def live(small_params: Params, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Params]:
    """Return a maker of parameters that ask a loopback server."""
    monkeypatch.setenv("OPENAI_API_KEY", KEY)

    def make(server: Loopback, **more: Any) -> Params:
        given = {"teacher": "live", "teacher_model": "some-model", "teacher_base_url": server.url, **more}
        return Params.build(small_params.model_dump() | given)

    return make


def rows(params: Params) -> int:
    with sqlite3.connect(client.cache_path(params)) as db:
        assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
        (count,) = db.execute("SELECT count(*) FROM answers").fetchone()
    db.close()
    return int(count)


def ask_all(params: Params, prompts: list[Prompt]) -> tuple[list[str], float, Teacher]:
    began = time.perf_counter()
    with Teacher(params) as teacher:
        answers = teacher.ask(prompts)
    return answers, time.perf_counter() - began, teacher


# faults


def check_faulty_run(params: Params, server: Loopback, count: int) -> float:
    """Ask a faulty server, check that every answer came once, and return the seconds it took."""
    asked = some_prompts(count)
    answers, seconds, teacher = ask_all(params, asked)
    assert set(server.answered.values()) == {1}  # nothing was asked again once it was answered
    assert len(server.answered) == rows(params) == count
    refused = server.met["refusal"]
    assert server.requests == count + server.met.total() - refused
    assert teacher.usage.requests >= server.requests  # a server that is slow to accept has not seen them all
    assert teacher.usage.broken == sum(
        server.met[fault] for fault in ("truncated JSON", "wrong content type", "empty choices")
    )
    assert answers.count("") == refused
    assert all(text in ("", f"echo {prompt.question}") for text, prompt in zip(answers, asked, strict=True))
    return seconds


def test_every_answer_arrives_once_in_spite_of_faults(live: Any) -> None:
    with Loopback(0.01, fault_rate=0.3, retry_after_s=0.1) as server:
        check_faulty_run(live(server, teacher_timeout_s=1.0), server, 60)


@pytest.mark.slow
def test_two_thousand_requests_with_faults_take_at_most_twice_as_long(live: Any, tmp_path: Path) -> None:
    limits = {"teacher_requests_per_minute": 9000, "teacher_concurrency": 32, "teacher_timeout_s": 0.5}
    ratios: list[float] = []
    while len(ratios) < 2:  # a machine busy with something else gets a second chance
        roots = [str(tmp_path / f"{name}{len(ratios)}") for name in ("clean", "faulty")]
        with Loopback(0.02) as server:
            _, clean_s, _ = ask_all(live(server, run_root=roots[0], **limits), some_prompts(2000))
            assert server.requests == 2000
        with Loopback(0.02, fault_rate=0.3) as server:
            faulty_s = check_faulty_run(live(server, run_root=roots[1], **limits), server, 2000)
            assert set(server.met) >= set(FAULTS)
        print(f"{clean_s:.1f} s without faults, {faulty_s:.1f} s with {server.met.total()} of them")
        ratios.append(faulty_s / clean_s)
        if ratios[-1] <= 2:
            return
    pytest.fail(f"faults made the run longer by the factors {ratios}")


def test_a_dead_server_and_a_wrong_address_are_told_soon(live: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_RETRIES", 1)
    with Loopback(fault_rate=1.0, faults=["wrong content type"]) as server:
        with pytest.raises(TeacherError, match="answered 2 times, but not with a chat completion"):
            ask_all(live(server), some_prompts(50))
        assert server.requests == 2
    with Loopback(fault_rate=1.0, faults=["rate limit"]) as server:
        with pytest.raises(TeacherError, match=r"429.*lower teacher_requests_per_minute.*0 of 50 answers"):
            ask_all(live(server), some_prompts(50))
        assert server.requests == 2


def test_a_fault_that_lasts_stops_the_run_and_keeps_everything(
    live: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "RETRIES", 1)
    with Loopback(0.01) as server:

        def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
            ended = len(server.answered) >= 20
            return (429, {"error": {"message": "over"}}) if ended else (200, completion("fine"))

        server.answer = answer
        params = live(server)
        with pytest.raises(TeacherError, match=r"\(20 of 24 answers are there and kept, 4 are missing"):
            ask_all(params, some_prompts(24))
        server.answer = lambda body: (200, completion("fine"))
        ask_all(params, some_prompts(24))
        assert set(server.answered.values()) == {1}
        assert rows(params) == 24


def test_a_rate_limit_we_were_not_told_of_does_not_end_the_run(live: Any) -> None:
    granted = 0.0

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        nonlocal granted
        if time.monotonic() < granted + 0.015:
            return 429, {"error": {"message": "slow down"}}
        granted = time.monotonic()
        return 200, completion("fine")

    with Loopback(retry_after_s=0.1, answer=answer) as server:
        ask_all(live(server, teacher_concurrency=4), some_prompts(30))
        assert set(server.answered.values()) == {1}


# structured output


def test_json_tasks_ask_for_their_schema_and_others_do_not(live: Any) -> None:
    seen: list[dict[str, Any]] = []

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        seen.append(body)
        return 200, completion('{"spans": ["number"]}')

    with Loopback(answer=answer) as server:
        ask_all(live(server), [*some_prompts(1, "mask"), *some_prompts(1)])
    schemas = [body["response_format"]["json_schema"] for body in seen if "response_format" in body]
    assert [(schema["name"], schema["strict"]) for schema in schemas] == [("spans", True)]
    assert schemas[0]["schema"]["required"] == ["spans"]


@pytest.mark.parametrize("status", [400, 422])
def test_a_server_that_refuses_the_schema_is_asked_without_it(live: Any, status: int) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        if "response_format" in body:
            return status, {"error": {"message": "Unexpected fields: {'response_format'}"}}
        return 200, completion('{"spans": ["number"]}')

    asked = some_prompts(30, "mask")
    with Loopback(answer=answer) as server:
        answers, _, teacher = ask_all(live(server), asked)
        assert server.requests == 31  # one refusal taught it
        assert set(server.answered.values()) == {1}
        assert teacher.summary()["without_schema"] == 30
        assert answers == ['{"spans": ["number"]}'] * 30
        again, _, teacher = ask_all(live(server), asked)  # the same wish, so the same key
        assert (again, server.requests, teacher.usage.cache_hits) == (answers, 31, 30)


def test_another_bad_request_is_no_refusal_of_the_schema(live: Any) -> None:
    with Loopback(answer=lambda body: (400, {"error": {"message": "no such model"}})) as server:
        with pytest.raises(TeacherError, match="no such model"):
            ask_all(live(server), some_prompts(5, "mask"))
        assert server.requests == 1


# limits


def test_requests_and_tokens_per_minute_are_kept(live: Any, tmp_path: Path) -> None:
    with Loopback() as server:
        _, seconds, _ = ask_all(
            live(server, teacher_requests_per_minute=3000, run_root=str(tmp_path / "requests")),
            some_prompts(40),
        )
        assert seconds > 39 / 50
        # An answer takes 220 tokens, whatever was estimated before: about 45 of them a second.
        _, seconds, _ = ask_all(
            live(server, teacher_tokens_per_minute=60 * 220 * 45, run_root=str(tmp_path / "tokens")),
            some_prompts(40),
        )
        assert 0.7 < seconds < 4  # a second on an idle machine


def test_a_budget_stops_the_run_before_it_is_passed_over_all_runs(live: Any) -> None:
    price = (200 * 1.75 + 20 * 14) / 1e6  # of one answer of the server
    with Loopback(0.01) as server:
        params = live(server, teacher_model="gpt-5.2", teacher_budget_usd=30 * price, teacher_concurrency=2)
        for _ in range(2):  # the second run finds the money spent
            with pytest.raises(
                TeacherError, match=r"teacher_budget_usd is reached: .* of 200 answers are there"
            ):
                ask_all(params, some_prompts(200))
        assert 20 <= rows(params) <= 30
        assert server.requests == rows(params)
        more = params.model_copy(update={"teacher_budget_usd": 250 * price})
        ask_all(more, some_prompts(200))
        assert set(server.answered.values()) == {1}


def test_no_answer_is_longer_than_allowed_so_that_a_budget_holds_to_the_last_token(live: Any) -> None:
    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 200, completion(
            "long", usage={"prompt_tokens": 100, "completion_tokens": body["max_completion_tokens"]}
        )

    price = (100 * 1.75 + 1000 * 14) / 1e6  # of the longest answer, eight times the usual estimate
    with Loopback(0.01, answer=answer) as server:
        params = live(server, teacher_model="gpt-5.2", teacher_budget_usd=10 * price, teacher_max_tokens=1000)
        with pytest.raises(TeacherError, match="teacher_budget_usd is reached"):
            ask_all(params, some_prompts(40))
        assert 8 <= rows(params) <= 10


def test_a_budget_needs_a_price_which_a_file_may_give(live: Any, tmp_path: Path) -> None:
    with Loopback() as server:
        params = live(server, teacher_budget_usd=1.0)
        with pytest.raises(
            ParamsError, match="the price of some-model is not known; give it by teacher_pric"
        ):
            ask_all(params, some_prompts(1))
        prices = tmp_path / "prices.yaml"
        prices.write_text("some-model: {input: 0, output: 0, recorded: 2026-01-31}\n")
        ask_all(params.model_copy(update={"teacher_prices": str(prices)}), some_prompts(1))
        prices.write_text("some-model: cheap\n")
        with pytest.raises(ParamsError, match=r"prices.yaml, some-model: no price; write"):
            ask_all(params.model_copy(update={"teacher_prices": str(prices)}), some_prompts(2))


# processes

SCRIPT = textwrap.dedent("""
    import json, sys
    from cfdistill.params import Params
    from cfdistill.teacher import Teacher
    from cfdistill.teacher.prompts import render
    prompts = [render("reason", f"Where is number {i}?", ("here", "there")) for i in range(int(sys.argv[2]))]
    with Teacher(Params.build(json.loads(sys.argv[1]))) as teacher:
        teacher.ask(prompts)
""")


def start(params: Params, count: int) -> subprocess.Popen[str]:
    command = [sys.executable, "-c", SCRIPT, params.model_dump_json(), str(count)]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True)


def kill_and_resume(live: Any, count: int, kills: int) -> None:
    rng = random.Random(1)
    with Loopback(0.005) as server:
        params = live(server)
        for _ in range(kills):
            before, process = server.requests, start(params, count)
            while server.requests == before and process.poll() is None:
                time.sleep(0.01)
            time.sleep(rng.uniform(0, 0.3))
            process.kill()
            process.communicate()
        assert start(params, count).wait() == 0
        assert len(server.answered) == rows(params) == count
        print(f"{server.answered.total()} answers to {count} prompts in spite of {kills} kills")
        assert server.answered.total() <= count + kills * params.teacher_concurrency


def test_a_killed_run_repeats_at_most_what_was_under_way(live: Any) -> None:
    kill_and_resume(live, 150, 1)


@pytest.mark.slow
def test_twenty_kills_of_a_run_repeat_at_most_what_was_under_way(live: Any) -> None:
    kill_and_resume(live, 2000, 20)


def test_ctrl_c_lets_requests_under_way_finish_and_says_where_it_stands(live: Any) -> None:
    with Loopback(0.4) as server:
        params = live(server)
        process = start(params, 100)
        while server.requests < 9:  # the first alone, then eight at once
            time.sleep(0.01)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=20)
        assert "KeyboardInterrupt: stopped: 9 of 100 answers are there and kept, 91 are missing" in told
        assert rows(params) == server.requests == 9


@pytest.mark.slow
def test_ctrl_c_on_a_study_lets_requests_under_way_finish(live: Any, tmp_path: Path) -> None:
    with Loopback(4.0) as server:
        params = live(server, profile="smoke", teacher_concurrency=4)
        given = {name: getattr(params, name) for name in ("teacher", "teacher_base_url", "run_root")}
        flags = [word for name, value in given.items() for word in ("-p", name, str(value))]
        command = [sys.executable, "-c", "from cfdistill.cli import main; raise SystemExit(main())", "run"]
        profile = str(runs.project_root() / "params" / "smoke.yaml")
        more = ["-p", "teacher_concurrency", "4", "--only", "01,02"]
        process = subprocess.Popen([*command, profile, *flags, *more], stderr=subprocess.PIPE, text=True)
        while server.requests < 5:  # the first alone, then four at once
            time.sleep(0.05)
        process.send_signal(signal.SIGINT)
        _, told = process.communicate(timeout=60)
        assert process.returncode == 130
        assert "what is finished is kept, the same command goes on from there" in told
        assert rows(params) == server.requests == 5


def test_two_runs_share_a_cache(live: Any) -> None:
    with Loopback(0.005) as server:
        params = live(server)
        processes = [start(params, 200) for _ in range(2)]
        for process in processes:
            _, told = process.communicate(timeout=60)
            assert process.returncode == 0, told
        assert len(server.answered) == rows(params) == 200


# keys


@pytest.mark.slow
def test_the_key_is_found_in_no_file_of_a_live_study(live: Any, tmp_path: Path, capfd: Any) -> None:
    scenes = offline.SceneTeacher(noise=0.0, seed=0)

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        response = scenes(httpx2.Request("POST", offline.BASE_URL, json=body))
        return response.status_code, response.json()

    def betray(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        return 400, {"error": {"message": f"the key {KEY} is not liked"}}

    with Loopback(fault_rate=0.1, faults=["server error", "rate limit", "refusal"], answer=betray) as server:
        given = {
            "teacher": "live",
            "teacher_base_url": server.url,
            "teacher_concurrency": "32",
            "run_root": str(tmp_path / "runs"),
            "results_root": str(tmp_path / "results"),
        }
        profile = runs.project_root() / "params" / "smoke.yaml"
        with pytest.raises(StageError, match="the key … is not liked") as caught:
            runner.run(profile, given, ["01", "02"])
        server.answer = answer
        params = runner.run(profile, given, ["02", "03"])
    assert runs.stage("rationales", params).is_complete()
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert {path.suffix for path in files} >= {".ipynb", ".sqlite", ".jsonl", ".csv", ".json"}
    for path in files:
        assert not re.search(rb"sk-[\w-]{8}", path.read_bytes()), path
    assert KEY not in str(caught.value) + "".join(capfd.readouterr())
