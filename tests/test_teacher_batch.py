"""The Batch API: rounds of export, import and rerun, by hand and over a loopback endpoint."""

import email
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import threading
import zlib
from collections import Counter
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx2
import pytest
import yaml
from filelock import FileLock

from cfdistill import counterfactual, data, rationale, runs
from cfdistill.cli import main
from cfdistill.errors import CfdistillError, ParamsError, StageError, TeacherError
from cfdistill.params import Params
from cfdistill.teacher import Teacher, batch, client, offline
from cfdistill.teacher.cache import Cache

KEY = "sk-test-batch-secret-0987654321"
RESULTS = {
    "counterfactuals": ("counterfactuals.train.jsonl", "funnel.csv"),
    "rationales": ("rationales.train.jsonl", "ledger.csv"),
}


class Clumsy(offline.SceneTeacher):
    """The stand-in, but every fourth first answer cannot be read."""

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        if body["seed"] == 0 and zlib.crc32(body["messages"][-1]["content"].encode()) % 4 == 0:
            return httpx2.Response(200, json=offline._completion(body["model"], "Well …", 40))
        return super().__call__(request)


@pytest.fixture(scope="module")
def engine() -> Clumsy:
    return Clumsy(0.1, seed=0)


@pytest.fixture
def batched(small_params: Params, monkeypatch: pytest.MonkeyPatch) -> Params:
    """Return parameters of a study whose answers come in batches; there is no key."""
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    for dataset in small_params.test_datasets:
        data.build(dataset, small_params)
    return small_params.model_copy(
        update={"teacher": "live", "teacher_model": "some-model", "teacher_batch": True}
    )


def rows(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def result(engine: Clumsy, request: dict[str, Any]) -> dict[str, Any]:
    """Return a request's row of the result file."""
    response = engine(httpx2.Request("POST", "http://engine", json=request["body"]))
    return {
        "id": "batch_req_1",
        "custom_id": request["custom_id"],
        "response": {"status_code": response.status_code, "request_id": "r", "body": response.json()},
        "error": None,
    }


def write(file: Path, results: list[dict[str, Any]]) -> Path:
    file.write_text("".join(json.dumps(row) + "\n" for row in results), encoding="utf-8")
    return file


def contents(params: Params) -> dict[str, bytes]:
    return {
        name: (runs.stage(stage, params).path / name).read_bytes()
        for stage, names in RESULTS.items()
        for name in names
    }


def direct(params: Params, monkeypatch: pytest.MonkeyPatch) -> dict[str, bytes]:
    """Return what the same teacher's answers lead to when they are asked for directly."""
    monkeypatch.setattr(offline, "SceneTeacher", Clumsy)
    asked = params.model_copy(update={"teacher": "offline", "teacher_batch": False})
    counterfactual.build(asked)
    rationale.build(asked)
    return contents(asked)


def rerun(params: Params) -> str:
    """Run both stages and return the sentence that stopped them, empty when both are complete."""
    try:
        counterfactual.build(params)
        rationale.build(params)
    except CfdistillError as error:
        return str(error)
    return ""


# by hand


def test_rounds_of_export_and_import_end_where_a_direct_run_does(
    batched: Params, engine: Clumsy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    requests, results = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    asked: Counter[str] = Counter()
    tasks: list[dict[str, int]] = []
    stopped = [rerun(batched)]
    while stopped[-1] and len(tasks) < 10:
        written, left = batch.export(batched, requests)
        exported = rows(requests)
        assert (written.total(), left) == (len(exported), 0)
        asked.update(row["custom_id"] for row in exported)
        tasks.append(dict(written))
        write(results, [result(engine, row) for row in reversed(exported)])  # in no particular order
        counts = batch.import_results(batched, results).counts
        assert counts == {"new": len(exported), "known": 0, "failed": 0, "unknown": 0}
        stopped.append(rerun(batched))
    assert tasks[0] == {"mask": 12, "positive": 12, "negative": 12}  # the originals' views at once
    assert {"mask", "fill", "positive"} <= tasks[1].keys()  # second attempts beside what comes next
    assert 4 <= len(tasks) <= 8
    for text in stopped[:-1]:
        assert re.match(r"^\d+ answers are missing in .*; export, run, import, rerun", text), text
        assert "\n" not in text
    assert set(asked.values()) == {1}  # no answer was bought twice
    assert contents(batched) == direct(batched, monkeypatch)
    assert batch.export(batched, requests) == (Counter(), 0)
    assert requests.read_bytes() == b""


def test_requests_are_what_a_direct_call_sends_and_keys_are_the_caches(
    batched: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent: list[dict[str, Any]] = []

    def echo(request: httpx2.Request) -> httpx2.Response:
        sent.append(json.loads(request.content))
        return httpx2.Response(200, json=offline._completion("m", "fine", 4))

    with batch.Collector(batched) as collector:
        collector.collect()
        wanted = dict(list(collector.missing.items())[:3])
    batch.export(batched, tmp_path / "out.jsonl")
    exported = rows(tmp_path / "out.jsonl")
    assert [set(row) for row in exported[:3]] == [{"custom_id", "method", "url", "body"}] * 3
    assert {(row["method"], row["url"]) for row in exported} == {("POST", "/v1/chat/completions")}
    direct = batched.model_copy(update={"teacher_batch": False})
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with Teacher(direct, handler=echo) as teacher:
        teacher.ask(list(wanted.values()))
        assert [teacher.key(prompt) for prompt in wanted.values()] == list(wanted)
    by_text = {json.dumps(body, sort_keys=True) for body in sent}
    assert by_text == {json.dumps(row["body"], sort_keys=True) for row in exported[:3]}
    assert [row["custom_id"] for row in exported[:3]] == list(wanted)


def test_failed_and_unknown_rows_are_counted_and_failed_ones_are_asked_again(
    batched: Params, engine: Clumsy, tmp_path: Path
) -> None:
    requests = tmp_path / "requests.jsonl"
    batch.export(batched, requests)
    results = [result(engine, row) for row in rows(requests)]
    refused = {"status_code": 429, "body": {"error": {"message": "slow\ndown"}}}
    results[0]["response"] = refused
    results[1] |= {"response": None, "error": {"code": "batch_expired", "message": "too late"}}
    results[2]["response"]["body"] = {"choices": []}
    results[3]["response"] |= {"status_code": 500, "body": "<html>"}
    results[4]["response"]["body"]["choices"][0]["message"]["content"] += "\ud83d"  # half an emoji
    failed = {row["custom_id"] for row in results[:4]}
    stranger = results[4] | {"custom_id": "of-another-study"}
    imported = batch.import_results(batched, write(tmp_path / "r.jsonl", [*results, results[5], stranger]))
    assert imported.counts == {"new": 32, "known": 1, "failed": 4, "unknown": 1}
    assert imported.failure == "HTTP 429: slow down"
    again = batch.import_results(batched, tmp_path / "r.jsonl")
    assert again.counts == {"new": 0, "known": 33, "failed": 4, "unknown": 1}
    batch.export(batched, requests)
    assert failed <= {row["custom_id"] for row in rows(requests)}
    cache = Cache(client.cache_path(batched), read_only=True)
    assert {(answer.batched, answer.model) for answer in cache.answers()} == {(1, "some-model")}
    cache.close()


@pytest.mark.parametrize("bad", ["{", "[]", "{}", '{"custom_id": 3}', '{"custom_id": "a", "response": 3}'])
def test_a_bad_result_line_is_named_and_nothing_is_imported(
    batched: Params, engine: Clumsy, tmp_path: Path, bad: str
) -> None:
    batch.export(batched, tmp_path / "requests.jsonl")
    file = write(tmp_path / "r.jsonl", [result(engine, rows(tmp_path / "requests.jsonl")[0])])
    file.write_text(file.read_text() + bad)
    with pytest.raises(TeacherError, match=r"r\.jsonl, line 2: no result row of the Batch API"):
        batch.import_results(batched, file)
    cache = Cache(client.cache_path(batched), read_only=True)
    assert list(cache.answers()) == []
    cache.close()


def test_what_does_not_fit_into_one_file_is_left_for_the_next(
    batched: Params, engine: Clumsy, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    file = tmp_path / "requests.jsonl"
    monkeypatch.setattr(batch, "MAX_REQUESTS", 30)
    assert batch.export(batched, file) == (Counter(mask=12, positive=9, negative=9), 6)
    batch.import_results(batched, write(tmp_path / "r.jsonl", [result(engine, row) for row in rows(file)]))
    monkeypatch.setattr(batch, "MAX_BYTES", len(file.read_bytes()) // 10)
    written, left = batch.export(batched, file)
    assert file.stat().st_size <= batch.MAX_BYTES
    assert written.total() > 0
    assert left > 0


def test_batches_need_a_live_teacher_and_the_questions(batched: Params, tmp_path: Path) -> None:
    with pytest.raises(ParamsError, match="teacher_batch: needs teacher: live, not offline"):
        Params.build({"teacher_batch": True})
    offline_params = batched.model_copy(update={"teacher": "offline"})
    with pytest.raises(TeacherError, match="a batch needs teacher: live, not offline"):
        batch.export(offline_params, tmp_path / "out.jsonl")
    elsewhere = batched.model_copy(update={"run_root": str(tmp_path / "elsewhere")})
    with pytest.raises(StageError, match="stage data is missing"):
        batch.export(elsewhere, tmp_path / "out.jsonl")
    assert not (tmp_path / "out.jsonl").exists()


# over an endpoint


class Server(ThreadingHTTPServer):
    """Plays OpenAI's files and batches endpoints; batches end when the test says so."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.files: dict[str, bytes] = {}
        self.batches: dict[str, dict[str, Any]] = {}
        self.keys: set[str] = set()
        self.after: dict[str, Callable[[], Any]] = {}  # by path: called before the response is sent

    def add_file(self, content: bytes) -> dict[str, Any]:
        name = f"file-{len(self.files)}"
        self.files[name] = content
        return {"id": name, "object": "file", "bytes": len(content), "created_at": 0, "purpose": "batch"}

    def add_batch(self, asked: dict[str, Any]) -> dict[str, Any]:
        assert asked["endpoint"] == "/v1/chat/completions"
        assert asked["completion_window"] == "24h"
        total = len(self.files[asked["input_file_id"]].splitlines())
        made = {"id": f"batch_{len(self.batches)}", "object": "batch", "created_at": 0, **asked}
        made |= {"status": "in_progress", "request_counts": {"total": total, "completed": 0, "failed": 0}}
        self.batches[made["id"]] = made
        return made

    def finish(self, engine: Clumsy, status: str = "completed", answered: int = 10**6) -> None:
        """End the newest batch; what is beyond `answered` goes into the error file."""
        newest = list(self.batches.values())[-1]
        requests = [json.loads(line) for line in self.files[newest["input_file_id"]].splitlines()]
        good = [result(engine, row) for row in requests[:answered]]
        expired = {"code": "batch_expired", "message": "not in time"}
        bad = [{"custom_id": r["custom_id"], "response": None, "error": expired} for r in requests[answered:]]
        for name, results in (("output_file_id", good), ("error_file_id", bad)):
            if results:
                content = "".join(json.dumps(row) + "\n" for row in results)
                newest[name] = self.add_file(content.encode())["id"]
        newest["status"] = status
        newest["request_counts"] |= {"completed": len(good), "failed": len(bad)}


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        if self.path == "/v1/files":
            head = f"Content-Type: {self.headers['Content-Type']}\r\n\r\n".encode()
            parts = email.message_from_bytes(head + body).walk()
            fields = {
                p.get_param("name", header="content-disposition"): p.get_payload(decode=True) for p in parts
            }
            purpose, file = fields["purpose"], fields["file"]
            assert purpose == b"batch"
            assert isinstance(file, bytes)
            self._send(self.server.add_file(file))
        else:
            self._send(self.server.add_batch(json.loads(body)))

    def do_GET(self) -> None:
        parts = self.path.partition("?")[0].split("/")[2:]
        if parts == ["batches"]:
            made = list(self.server.batches.values())
            self._send({"object": "list", "data": made, "has_more": False})
        elif parts[0] == "batches":
            self._send(self.server.batches[parts[1]])
        else:
            self._send(self.server.files[parts[1]])

    def _send(self, told: Any) -> None:
        self.server.keys.add(self.headers["Authorization"])
        after = self.server.after.pop(self.path, None)
        if after and after() == "drop":
            self.close_connection = True
            return
        payload = told if isinstance(told, bytes) else json.dumps(told).encode()
        try:
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(payload)))
            self.end_headers()
            self.wfile.write(payload)
        except (BrokenPipeError, ConnectionResetError):
            return  # the client was killed

    def log_message(self, format: str, *args: Any) -> None:
        return


@pytest.fixture
def server() -> Iterator[Server]:
    server = Server()
    threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.02}, daemon=True).start()
    yield server
    server.shutdown()
    server.server_close()


@pytest.fixture
def remote(batched: Params, server: Server, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return batched.model_copy(update={"teacher_base_url": f"http://127.0.0.1:{server.server_port}/v1"})


def test_the_endpoint_answers_a_study_and_the_key_stays_out_of_every_file(
    remote: Params,
    server: Server,
    engine: Clumsy,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    profile = tmp_path / "study.yaml"
    profile.write_text(yaml.safe_dump(remote.model_dump()))
    while rerun(remote):
        assert main(["teacher", "batch-submit", str(profile)]) == 0
        assert main(["teacher", "batch-submit", str(profile)]) == 0  # goes on with the same one
        assert main(["teacher", "batch-status", str(profile)]) == 0
        assert main(["teacher", "batch-fetch", str(profile)]) == 1
        server.finish(engine)
        assert main(["teacher", "batch-fetch", str(profile)]) == 0
        assert len(server.batches) < 10
    told = capsys.readouterr()
    assert "batch batch_0 is under way: 36 requests" in told.out
    assert "batch batch_0 is in_progress, 0 of 36 answered, 0 failed" in told.out
    assert "error: batch batch_0 is in_progress, 0 of 36 answered, 0 failed; fetch it later" in told.err
    assert "batch batch_0 is completed, 36 of 36 answered, 0 failed\n36 answers stored" in told.out
    assert main(["teacher", "batch-fetch", str(profile)]) == 1
    assert "no batch is under way" in capsys.readouterr().err
    assert main(["teacher", "batch-submit", str(profile)]) == 1
    assert "nothing to submit" in capsys.readouterr().err
    sent = [json.loads(line)["custom_id"] for b in server.batches.values() for line in requests_of(server, b)]
    assert len(sent) == len(set(sent))
    assert contents(remote) == direct(remote, monkeypatch)
    assert server.keys == {f"Bearer {KEY}"}
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert len(files) > 10
    assert not any(KEY.encode() in path.read_bytes() for path in files)
    assert KEY not in told.out + told.err


def requests_of(server: Server, made: dict[str, Any]) -> list[bytes]:
    return server.files[made["input_file_id"]].splitlines()


@pytest.mark.parametrize("moment", ["/v1/files", "/v1/batches"])
def test_a_process_killed_while_submitting_never_pays_twice(
    remote: Params, server: Server, moment: str
) -> None:
    script = textwrap.dedent(f"""
        import json
        from cfdistill.params import Params
        from cfdistill.teacher import batch
        batch.submit(Params.build(json.loads({remote.model_dump_json()!r})))
    """)
    started = threading.Event()
    victim: list[subprocess.Popen[bytes]] = []

    def kill() -> None:
        started.wait()
        os.kill(victim[0].pid, signal.SIGKILL)

    server.after[moment] = kill  # the server has done its part, the process has not heard of it
    victim.append(subprocess.Popen([sys.executable, "-c", script]))
    started.set()
    assert victim[0].wait(timeout=30) == -signal.SIGKILL
    made = batch.submit(remote)
    assert made == batch.submit(remote)
    assert list(server.batches) == [made.batch_id] == ["batch_0"]
    assert made.file_id == server.batches["batch_0"]["input_file_id"]


def test_a_lost_response_is_an_error_and_the_next_submit_finds_the_batch(
    remote: Params, server: Server
) -> None:
    server.after["/v1/batches"] = lambda: "drop"
    with pytest.raises(TeacherError, match=r"cannot be reached \(APIConnectionError\)") as caught:
        batch.submit(remote)
    assert KEY not in str(caught.value)
    assert len(server.batches) == 1  # not tried again by itself
    assert batch.submit(remote).batch_id == "batch_0"
    assert len(server.batches) == 1


def test_an_expired_batch_gives_what_it_has_and_the_rest_is_sent_again(
    remote: Params, server: Server, engine: Clumsy
) -> None:
    batch.submit(remote)
    server.finish(engine, "expired", answered=30)
    ended, imported = batch.fetch(remote)
    assert batch.describe(ended) == "batch batch_0 is expired, 30 of 36 answered, 6 failed"
    assert (imported.counts["new"], imported.counts["failed"]) == (30, 6)
    assert imported.failure == "not in time"
    kept = client.cache_path(remote).with_name("cache.sqlite.batch.batch_0.jsonl")
    assert len(rows(kept)) == 36
    batch.submit(remote)
    again = {json.loads(line)["custom_id"] for line in requests_of(server, server.batches["batch_1"])}
    assert {row["custom_id"] for row in rows(kept)[30:]} <= again
    assert not {row["custom_id"] for row in rows(kept)[:30]} & again


def test_a_batch_that_the_endpoint_turns_down_is_told_and_given_up(remote: Params, server: Server) -> None:
    batch.submit(remote)
    reason = {"object": "list", "data": [{"code": "token_limit", "message": "enqueued token limit reached"}]}
    server.batches["batch_0"] |= {"status": "failed", "errors": reason}
    ended, imported = batch.fetch(remote)
    assert "is failed" in batch.describe(ended)
    assert "enqueued token limit reached" in batch.describe(ended)
    assert imported.counts.total() == 0
    assert batch.submit(remote).batch_id == "batch_1"


def test_submitting_needs_a_key_one_endpoint_and_a_turn(
    remote: Params, server: Server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")
    with pytest.raises(TeacherError, match="needs a key in the environment variable OPENAI_API_KEY"):
        batch.submit(remote)
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    with pytest.raises(TeacherError, match="no batch is under way; send one"):
        batch.status(remote)
    batch.submit(remote)
    with pytest.raises(TeacherError, match=r"is under way at http://127.0.0.1:\d+/v1, not http://other"):
        batch.submit(remote.model_copy(update={"teacher_base_url": "http://other/v1"}))
    state = client.cache_path(remote).with_name("cache.sqlite.batch.json")
    with (
        FileLock(state.with_name("cache.sqlite.batch.lock")),
        pytest.raises(TeacherError, match="another process is submitting"),
    ):
        batch.fetch(remote)
    state.write_text("{")
    with pytest.raises(TeacherError, match=r"cache.sqlite.batch.json is damaged"):
        batch.submit(remote)
    assert len(server.batches) == 1


def test_a_batch_beyond_the_budget_is_not_sent(remote: Params, server: Server) -> None:
    priced = remote.model_copy(update={"teacher_model": "gpt-5.2", "teacher_budget_usd": 0.001})
    with pytest.raises(TeacherError, match="teacher_budget_usd is reached"):
        batch.submit(priced)
    assert not server.files
    assert batch.submit(priced.model_copy(update={"teacher_budget_usd": 1.0})).batch_id == "batch_0"
