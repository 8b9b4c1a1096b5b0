"""The teacher's client, cache, prompts and stand-in."""

import asyncio
import json
import logging
import sqlite3
import subprocess
import sys
import textwrap
import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest

from cfdistill import data
from cfdistill.data.weasel import FORMATS, load_scenes
from cfdistill.errors import TeacherError
from cfdistill.params import Params
from cfdistill.schema import Question, answer_text, options_text, read_answer
from cfdistill.teacher import Teacher, client, endpoint, offline, prompts
from cfdistill.teacher.answers import ask_twice, read_strings
from cfdistill.teacher.cache import Answer, Cache
from cfdistill.teacher.prompts import Prompt, render

KEY = "sk-test-very-secret-1234567890"
BIKE = render("reason", "Where does the bicycle sleep?", ("shed", "bed"))


def completion(content: str | None) -> dict[str, Any]:
    return {
        "model": "served-model",
        "choices": [{"message": {"role": "assistant", "content": content}}],
        "usage": {"prompt_tokens": 7, "completion_tokens": 3},
    }


def question_of(request: httpx2.Request) -> str:
    return str(json.loads(request.content)["messages"][-1]["content"])


class Echo:
    """A transport handler that answers with the question and counts requests."""

    def __init__(self) -> None:
        self.requests: list[dict[str, Any]] = []

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        self.requests.append(json.loads(request.content))
        return httpx2.Response(200, json=completion(f"echo {question_of(request)}"))


def some_prompts(count: int) -> list[Prompt]:
    return [render("reason", f"Where is number {i}?", ("here", "there")) for i in range(count)]


@pytest.fixture
def live(small_params: Params, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return small_params.model_copy(update={"teacher": "live", "teacher_model": "some-model"})


# prompts


@pytest.mark.parametrize("task", prompts.TASKS)
def test_prompt_files_have_instructions_examples_and_a_question(task: str) -> None:
    roles = [role for role, _ in prompts.load(task)]
    assert roles == ["system", "user", "assistant", "user", "assistant", "user"]
    prompt = render(task, "What costs $5 here?", ("tea", "cake"), answer=1)
    assert "$5" in prompt.question
    assert options_text(("tea", "cake")) in prompt.question
    assert "$stem" not in prompt.question


@pytest.mark.parametrize("task", ["reason", "positive", "negative"])
def test_prompt_examples_end_in_the_answer_sentence(task: str) -> None:
    sections = prompts.load(task)
    for (_, asked), (role, shown) in zip(sections[1:-1:2], sections[2:-1:2], strict=True):
        options = tuple(asked.split("Options: ")[1].splitlines()[0].split("; "))
        answer = read_answer(shown, options)
        assert role == "assistant"
        assert answer is not None
        assert shown.endswith(answer_text(options, answer))


def test_the_answer_is_told_in_views_but_not_in_reasoning() -> None:
    told = {
        task: "ight answer: tea" in render(task, "q", ("tea", "cake"), 0).question for task in prompts.TASKS
    }
    assert told == {"mask": True, "fill": False, "reason": False, "positive": True, "negative": True}


def test_first_answers_are_greedy_and_further_samples_are_not() -> None:
    mask = render("mask", "q", ("tea", "cake"), 0)
    assert (mask.temperature, replace(mask, sample=1).temperature, BIKE.temperature) == (0.0, 0.7, 0.7)


# cache and client


def test_answers_keep_their_order_and_equal_prompts_are_asked_once(live: Params) -> None:
    echo = Echo()
    asked = some_prompts(30)
    with Teacher(live, handler=echo) as teacher:
        answers = teacher.ask([*asked, *asked])
        assert answers == [f"echo {prompt.question}" for prompt in [*asked, *asked]]
        assert len(echo.requests) == 30
        assert (teacher.usage.requests, teacher.usage.cache_hits) == (30, 0)
        assert (teacher.usage.prompt_tokens, teacher.usage.completion_tokens) == (210, 90)
    with Teacher(live, handler=echo) as teacher:
        assert teacher.ask(asked[:5]) == answers[:5]
        assert (teacher.usage.requests, teacher.usage.cache_hits) == (0, 5)
        assert teacher.ask([]) == []
    assert len(echo.requests) == 30


def test_key_covers_all_that_can_change_an_answer(live: Params) -> None:
    variants = [
        (live, BIKE),
        (live, replace(BIKE, sample=1)),
        (live, replace(BIKE, version="v2")),
        (live, render("reason", "Where does the bicycle sleep?", ("bed", "shed"))),
        (live.model_copy(update={"teacher_model": "other"}), BIKE),
        (live.model_copy(update={"teacher_base_url": "http://127.0.0.1:9/v1"}), BIKE),
        (live.model_copy(update={"teacher_max_tokens": 64}), BIKE),
        (live.model_copy(update={"teacher": "offline"}), BIKE),
        (live.model_copy(update={"teacher": "offline", "teacher_noise": 0.5}), BIKE),
        (live.model_copy(update={"teacher": "offline", "data_seed": 1}), BIKE),
    ]
    keys = set()
    for params, prompt in variants:
        with Teacher(params) as teacher:
            keys.add(teacher.key(prompt))
    assert len(keys) == len(variants)


def test_requests_carry_model_temperature_and_sample(live: Params) -> None:
    echo = Echo()
    with Teacher(live, handler=echo) as teacher:
        teacher.ask([replace(BIKE, sample=3)])
    request = echo.requests[0]
    assert "max_completion_tokens" not in request
    assert (request["model"], request["temperature"], request["seed"]) == ("some-model", 0.7, 3)
    assert request["messages"][0]["role"] == "system"


def test_concurrency_is_bounded(live: Params) -> None:
    under_way, most = 0, 0

    async def slow(request: httpx2.Request) -> httpx2.Response:
        nonlocal under_way, most
        under_way += 1
        most = max(most, under_way)
        await asyncio.sleep(0.01)
        under_way -= 1
        return httpx2.Response(200, json=completion("fine"))

    with Teacher(live.model_copy(update={"teacher_concurrency": 3}), handler=slow) as teacher:
        teacher.ask(some_prompts(12))
    assert most == 3


def test_ask_works_inside_a_running_event_loop(live: Params) -> None:
    async def notebook() -> list[str]:
        with Teacher(live, handler=Echo()) as teacher:
            return teacher.ask([BIKE])

    assert asyncio.run(notebook()) == [f"echo {BIKE.question}"]


def test_answers_outlive_a_failure_and_requests_under_way_are_kept(live: Params) -> None:
    async def third_fails(request: httpx2.Request) -> httpx2.Response:
        if "number 2" in question_of(request):
            await asyncio.sleep(0.02)
            return httpx2.Response(400, json={"error": {"message": f"bad request with {KEY}"}})
        await asyncio.sleep(0.05)
        return httpx2.Response(200, json=completion("fine"))

    asked = some_prompts(20)
    with Teacher(live.model_copy(update={"teacher_concurrency": 4}), handler=third_fails) as teacher:
        with pytest.raises(TeacherError, match="failed: Error code: 400") as caught:
            teacher.ask(asked)
        stored = teacher.cache.get(teacher.key(prompt) for prompt in asked)
    assert len(stored) == 4  # the first, and the three under way beside the failing one; no more
    assert "(4 of 20 answers are there and kept, 16 are missing; run again" in str(caught.value)
    assert KEY not in str(caught.value)
    echo = Echo()
    with Teacher(live, handler=echo) as teacher:
        teacher.ask(asked)
    assert len(echo.requests) == 20 - len(stored)


def test_answers_outlive_a_killed_process(live: Params) -> None:
    script = textwrap.dedent(f"""
        import httpx2, json, os
        from cfdistill.params import Params
        from cfdistill.teacher import Teacher
        from cfdistill.teacher.prompts import render
        count = 0
        def handler(request):
            global count
            count += 1
            if count == 4:
                os._exit(9)
            return httpx2.Response(200, json={completion("paid")!r})
        params = Params.build(json.loads({live.model_dump_json()!r}) | {{"teacher_concurrency": 1}})
        prompts = [render("reason", f"Where is number {{i}}?", ("here", "there")) for i in range(8)]
        Teacher(params, handler=handler).ask(prompts)
    """)
    assert subprocess.run([sys.executable, "-c", script]).returncode == 9
    echo = Echo()
    with Teacher(live, handler=echo) as teacher:
        answers = teacher.ask(some_prompts(8))
    assert answers[:3] == ["paid"] * 3
    assert len(echo.requests) == 5


def test_an_answer_that_is_no_chat_completion_is_an_error_and_not_stored(live: Params) -> None:
    with Teacher(live, handler=lambda request: httpx2.Response(200, text="<html>hello</html>")) as teacher:
        with pytest.raises(TeacherError, match="not with a chat completion"):
            teacher.ask([BIKE])
        assert not teacher.cache.get([teacher.key(BIKE)])


def test_a_refusal_without_text_is_an_empty_answer(live: Params) -> None:
    with Teacher(live, handler=lambda request: httpx2.Response(200, json=completion(None))) as teacher:
        assert teacher.ask([BIKE]) == [""]


def test_cache_rows_hold_the_raw_response(live: Params) -> None:
    with Teacher(live, handler=Echo()) as teacher:
        teacher.ask([BIKE])
        row = teacher.cache.get([teacher.key(BIKE)]).popitem()[1]
    assert json.loads(row.response)["choices"][0]["message"]["content"] == row.text
    assert (row.task, row.model, row.served_model, row.prompt_tokens) == (
        "reason",
        "some-model",
        "served-model",
        7,
    )
    assert row.latency_s >= 0
    assert row.created.endswith("+00:00")


def test_two_writers_share_a_cache_and_the_first_answer_stays(tmp_path: Path) -> None:
    row = Answer("k", "mask", "u", "m", json.dumps(completion("first")), "m", 1, 1, 0.1, "now")
    path = tmp_path / "deep" / "cache.sqlite"
    one, two = Cache(path), Cache(path)
    one.put(row)
    two.put(row._replace(response=json.dumps(completion("second"))))
    assert two.get(["k", "unknown"]) == {"k": row}
    one.close()
    two.close()


def damage_text(path: Path) -> None:
    path.write_bytes(b"this was never a database " * 100)


def damage_newer(path: Path) -> None:
    Cache(path).close()
    with sqlite3.connect(path) as db:
        db.execute("PRAGMA user_version = 99")
    db.close()


def damage_foreign(path: Path) -> None:
    with sqlite3.connect(path) as db:
        db.execute("CREATE TABLE recipes (name)")
    db.close()


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (damage_text, "damaged .*file is not a database"),
        (damage_newer, "layout 99"),
        (damage_foreign, "no teacher cache"),
    ],
)
@pytest.mark.parametrize("teacher", ["offline", "recorded"])
def test_a_cache_that_cannot_be_read_is_left_untouched(
    small_params: Params, tmp_path: Path, damage: Callable[[Path], None], message: str, teacher: str
) -> None:
    path = tmp_path / "cache.sqlite"
    damage(path)
    before = path.read_bytes()
    with pytest.raises(TeacherError, match=message):
        Teacher(small_params.model_copy(update={"teacher": teacher, "teacher_cache": str(path)}))
    assert path.read_bytes() == before


def test_a_cache_damaged_inside_is_an_error(live: Params) -> None:
    with Teacher(live, handler=Echo()) as teacher:
        teacher.ask(some_prompts(50))
    path = client.cache_path(live)
    content = bytearray(path.read_bytes())
    content[4096 : len(content) // 2] = b"\xff" * (len(content) // 2 - 4096)
    path.write_bytes(content)
    with Teacher(live, handler=Echo()) as teacher, pytest.raises(TeacherError, match="damaged"):
        teacher.ask(some_prompts(50))


def test_a_cache_in_an_impossible_place_is_an_error(small_params: Params, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder")
    with pytest.raises(TeacherError, match="cannot be used"):
        Teacher(small_params.model_copy(update={"teacher_cache": str(tmp_path / "file" / "cache.sqlite")}))


# recorded


def replay(params: Params, **changes: str) -> Params:
    """Return parameters that replay the answers `params` has collected so far."""
    cache = str(client.cache_path(params))
    return params.model_copy(update={"teacher": "recorded", "teacher_cache": cache, **changes})


def test_recorded_replays_without_asking(live: Params) -> None:
    asked = some_prompts(4)
    with Teacher(live, handler=Echo()) as teacher:
        answers = teacher.ask(asked)
    # teacher_model needs no repeating: the file holds one model's answers
    recorded = replay(live, teacher_model="gpt-5.2")
    with Teacher(recorded, handler=lambda request: pytest.fail("asked")) as teacher:
        assert teacher.ask(asked) == answers
        assert teacher.summary()["model"] == "some-model"


def test_recorded_counts_and_names_all_that_is_missing(live: Params) -> None:
    asked = some_prompts(3)
    with Teacher(live, handler=Echo()) as teacher:
        teacher.ask(asked)
    masks = [render("mask", f"Is {i} odd?", ("yes", "no"), 0) for i in range(2)]
    with (
        Teacher(replay(live)) as teacher,
        pytest.raises(
            TeacherError, match=r"^6 answers are missing in .*: 2 mask, 4 reason; first: 'Question: Is 0"
        ),
    ):
        teacher.ask([*asked, *masks, *some_prompts(7)])


def test_recorded_without_a_file_or_with_two_models_says_so(live: Params) -> None:
    recorded = replay(live)
    with pytest.raises(TeacherError, match=r"cache.sqlite is missing; set teacher_cache"):
        Teacher(recorded)
    for model in ("model-a", "model-b"):
        with Teacher(live.model_copy(update={"teacher_model": model}), handler=Echo()) as teacher:
            teacher.ask([BIKE])
    with pytest.raises(TeacherError, match=r"model-a at .* and model-b at .*choose one by teacher_model"):
        Teacher(recorded)
    with Teacher(recorded.model_copy(update={"teacher_model": "model-b"})) as teacher:
        assert teacher.ask([BIKE])


# live, over a loopback server


class Server(ThreadingHTTPServer):
    """Plays a list of (status, seconds to wait); the last one repeats."""

    def __init__(self, script: list[tuple[int, float]]) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.script, self.seen = script, []

    script: list[tuple[int, float]]
    seen: list[dict[str, Any]]


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        self.server.seen.append({"path": self.path, "headers": dict(self.headers), "body": body})
        status, wait_s = self.server.script.pop(0) if len(self.server.script) > 1 else self.server.script[0]
        time.sleep(wait_s)
        told = completion("fine") if status == 200 else {"error": {"message": f"no good: {KEY}"}}
        payload = json.dumps(told).encode()
        try:
            self.send_response(status)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)
        except (BrokenPipeError, ConnectionResetError):
            return  # the client gave up waiting

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def serve(live: Params) -> Iterator[Callable[[list[tuple[int, float]]], tuple[Params, Server]]]:
    servers: list[Server] = []

    def start(script: list[tuple[int, float]]) -> tuple[Params, Server]:
        server = Server(script)
        servers.append(server)
        threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
        return live.model_copy(
            update={"teacher_base_url": f"http://127.0.0.1:{server.server_port}/v1"}
        ), server

    yield start
    for server in servers:
        server.shutdown()
        server.server_close()


def test_live_retries_a_server_error_and_leaks_no_key(
    serve: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    params, server = serve([(500, 0), (200, 0)])
    with Teacher(params) as teacher:
        assert teacher.ask([BIKE]) == ["fine"]
    assert [request["path"] for request in server.seen] == ["/v1/chat/completions"] * 2
    headers = {name.lower(): value for name, value in server.seen[-1]["headers"].items()}
    assert headers["authorization"] == f"Bearer {KEY}"
    assert headers["content-type"] == "application/json"
    assert KEY not in caplog.text
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert files
    assert not any(KEY.encode() in path.read_bytes() for path in files)


def test_live_gives_up_on_a_silent_server(serve: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(endpoint, "FIRST_RETRIES", 0)
    params, _ = serve([(200, 0.8)])
    with (
        Teacher(params.model_copy(update={"teacher_timeout_s": 0.1})) as teacher,
        pytest.raises(TeacherError, match=r"cannot be reached \(APITimeoutError\)"),
    ):
        teacher.ask([BIKE])


@pytest.mark.parametrize(
    ("status", "message"),
    [(401, "refused the key in OPENAI_API_KEY"), (404, "model some-model, failed: .*404")],
)
def test_live_errors_are_one_sentence_without_the_key(serve: Any, status: int, message: str) -> None:
    params, server = serve([(status, 0)])
    with Teacher(params) as teacher, pytest.raises(TeacherError, match=message) as caught:
        teacher.ask(some_prompts(1))
    assert len(server.seen) == 1  # not retried
    assert KEY not in str(caught.value)
    assert caught.value.__suppress_context__  # the SDK's own error is not shown either


def test_live_unreachable_without_key_or_with_a_password(
    live: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(endpoint, "FIRST_RETRIES", 0)
    with (
        Teacher(live.model_copy(update={"teacher_base_url": "http://127.0.0.1:9/v1"})) as teacher,
        pytest.raises(TeacherError, match=r"http://127.0.0.1:9/v1 cannot be reached"),
    ):
        teacher.ask([BIKE])
    with pytest.raises(TeacherError, match="must not hold a user name or password") as caught:
        Teacher(live.model_copy(update={"teacher_base_url": "http://me:hush@host/v1"}))
    assert "hush" not in str(caught.value)
    for value in ("", "two\nlines", "schlüssel"):
        monkeypatch.setenv("OPENAI_API_KEY", value)
        with (
            Teacher(live) as teacher,
            pytest.raises(TeacherError, match="environment variable OPENAI_API_KEY"),
        ):
            teacher.ask([BIKE])


# reading answers


@pytest.mark.parametrize(
    "text",
    [
        "",
        "farm land",
        "{}",
        '{"spans": []}',
        '{"spans": "land"}',
        '{"spans": [""]}',
        '{"spans": [1]}',
        "[1]",
        "} {",
    ],
)
def test_malformed_json_is_refused(text: str) -> None:
    with pytest.raises(ValueError, match="no JSON of the form asked for"):
        read_strings(text, "spans")


def test_json_may_stand_in_a_fence() -> None:
    assert read_strings('Sure!\n```json\n{"spans": ["a\\n b", "c"]}\n```', "spans") == ("a b", "c")


def test_a_malformed_answer_is_asked_again_once_as_a_new_sample(live: Params) -> None:
    def handler(request: httpx2.Request) -> httpx2.Response:
        good = "number 0" in question_of(request)
        second = json.loads(request.content)["seed"] == 1 and "number 1" in question_of(request)
        return httpx2.Response(200, json=completion('{"x": ["yes"]}' if good or second else "mumble"))

    with Teacher(live, handler=handler) as teacher:
        replies = ask_twice(teacher, some_prompts(3), [lambda text: read_strings(text, "x")] * 3)
        assert teacher.usage.requests == 5
    assert [(r.value, r.attempts) for r in replies] == [(("yes",), 1), (("yes",), 2), (None, 2)]
    assert replies[2].reason == "no JSON of the form asked for"


# the offline stand-in


def training(params: Params, dataset: str = "weasel-commonsense") -> list[Question]:
    return data.load(dataset, "train", params)


def test_offline_is_deterministic_and_depends_on_the_seed(small_params: Params, tmp_path: Path) -> None:
    def answers(name: str, seed: int) -> list[str]:
        questions = training(small_params)  # the same ones; only the teacher's slips may differ
        params = small_params.model_copy(
            update={"run_root": str(tmp_path / name), "data_seed": seed, "teacher_noise": 0.5}
        )
        with Teacher(params) as teacher:
            return teacher.ask(
                [render("reason", q.stem, q.options, sample=s) for q in questions for s in range(3)]
            )

    assert answers("a", 0) == answers("b", 0)
    assert answers("a", 0) != answers("c", 1)


@pytest.mark.parametrize("format", FORMATS)
@pytest.mark.parametrize("noise", [0.0, 0.1, 0.5])
def test_offline_errs_as_often_as_it_is_told(format: str, noise: float) -> None:
    teacher = offline.SceneTeacher(noise, seed=0)
    wrong = asked = lured = 0
    for scene in load_scenes(format):
        options = tuple(scene.options)
        for variant in range(len(scene.cues)):
            for sample in range(3):
                prompt = render("reason", scene.stem(0, variant, 0), options, sample=sample)
                answer = read_answer(reply(teacher, prompt), options)
                asked += 1
                wrong += answer != variant
                lured += answer != variant and answer == scene.stereotype
    assert wrong / asked == pytest.approx(noise, abs=0.04)
    assert lured >= wrong / 3  # wrong paths prefer the stereotype


def reply(teacher: offline.SceneTeacher, prompt: Prompt) -> str:
    body = {
        "model": "m",
        "seed": prompt.sample,
        "messages": [{"role": role, "content": content} for role, content in prompt.messages],
    }
    response = teacher(httpx2.Request("POST", offline.BASE_URL, json=body))
    assert response.status_code == 200, response.text
    return str(response.json()["choices"][0]["message"]["content"])


def test_offline_answers_every_task_for_shuffled_options() -> None:
    teacher, scene = offline.SceneTeacher(0.0, seed=0), load_scenes("commonsense")[0]
    options = tuple(reversed(scene.options))
    stem, target = scene.stem(0, 1, 0), options.index(scene.options[3])
    (span,) = json.loads(reply(teacher, render("mask", stem, options, options.index(scene.options[1]))))[
        "spans"
    ]
    assert span.lower() == scene.cues[1][0]
    masked = stem.replace(span, "[MASK]")
    (filled,) = json.loads(reply(teacher, render("fill", masked, options, target)))["fills"]
    assert filled in scene.cues[3]
    positive = reply(teacher, render("positive", stem, options, options.index(scene.options[1])))
    assert positive == f"{scene.why[1]} {answer_text(options, options.index(scene.options[1]))}"
    negative = reply(teacher, render("negative", stem, options, options.index(scene.options[1])))
    for option, reason in zip(scene.options, scene.why_not[1], strict=True):
        assert (f"Not {option}: {reason}." in negative) == (option != scene.options[1])
    assert read_answer(negative, options) == options.index(scene.options[1])


def test_offline_knows_only_the_testbed(small_params: Params) -> None:
    scene = load_scenes("commonsense")[0]
    strangers = [
        BIKE,
        render("reason", scene.stem(0, 0, 0), ("shed", "bed")),
        replace(BIKE, messages=(("system", "Be kind."), ("user", "Hello?"))),
        render("mask", scene.frames[0].replace("{cue}", "[MASK]"), scene.options, 0),
    ]
    with Teacher(small_params) as teacher:
        for prompt in strangers:
            with pytest.raises(
                TeacherError, match=r"knows only the weasel testbed; use teacher: live or recorded"
            ):
                teacher.ask([prompt])
    composition = load_scenes("composition")[0]
    unanswerable = render(
        "positive", composition.stem(0, 0, 0), composition.options, len(composition.options) - 1
    )
    with Teacher(small_params) as teacher, pytest.raises(TeacherError, match="testbed"):
        teacher.ask([unanswerable])
