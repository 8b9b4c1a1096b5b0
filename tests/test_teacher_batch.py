"""Answers by files: batches, the way from cache to cache, and a cache's `stats`."""

import json
import multiprocessing
import zlib
from collections import Counter
from contextlib import closing

import httpx2
import pytest
from loopback import completion, some_prompts

from cfdistill import pipeline
from cfdistill.errors import TeacherError
from cfdistill.generate import counterfactual, rationale
from cfdistill.params import Params
from cfdistill.schema import Counterfactual
from cfdistill.study import answers
from cfdistill.teacher import Teacher, batch, budget, cache_path, offline
from cfdistill.teacher.cache import Answer, Cache

STAND_IN, (MASK,) = offline.SceneTeacher(0.1, seed=0), some_prompts(1, "mask")


def clumsy(request):
    """Answer as the stand-in does, but every fourth first answer cannot be read."""
    body = json.loads(request.content)
    if body["seed"] == 0 and zlib.crc32(body["messages"][-1]["content"].encode()) % 4 == 0:
        return httpx2.Response(200, json=completion("Well …"))
    return STAND_IN(request)


@pytest.fixture
def batched(small_params, monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    return small_params.model_copy(update={"teacher": "live", "teacher_model": "some-model"})


def made(params, handler=None):
    originals, held_out = pipeline.originals_and_held_out(params)
    with Teacher(params, handler) as teacher:
        candidates = counterfactual.make(params, teacher, originals, held_out)
        kept = [c.question() for c in candidates if not c.reason]
        return candidates, rationale.views([*originals, *kept], teacher)


def export(params, target):
    with answers.collect(params) as teacher:
        return batch.write_requests(teacher, teacher.missing, target)[0]


def load(params, source):
    with answers.collect(params) as teacher:
        return batch.import_results(teacher, teacher.missing, source)


def rows(file):
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def answered(requests):
    """Return the rows of a result file."""
    results = []
    for row in rows(requests):
        response = clumsy(httpx2.Request("POST", "http://engine", json=row["body"]))
        told = {"status_code": response.status_code, "request_id": "r", "body": response.json()}
        results.append({"id": "b", "custom_id": row["custom_id"], "response": told, "error": None})
    return results


def write(file, results):
    file.write_text("".join(json.dumps(row) + "\n" for row in results), encoding="utf-8")
    return file


def test_rounds_of_export_and_import_end_where_a_direct_run_does(batched, tmp_path):
    requests, results = tmp_path / "requests.jsonl", tmp_path / "results.jsonl"
    asked, tasks = Counter(), []
    while written := export(batched, requests):
        with pytest.raises(TeacherError, match=r"needs a key .* answers are there and kept, \d+ are missing"):
            made(batched)
        exported = rows(requests)
        with answers.collect(batched) as teacher:  # what a direct call would send
            bodies = {key: prompt.request(teacher.model) for key, prompt in teacher.missing.items()}
        assert {row["custom_id"]: row["body"] for row in exported} == bodies
        assert {(row["method"], row["url"]) for row in exported} == {("POST", "/v1/chat/completions")}
        asked.update(row["custom_id"] for row in exported)
        tasks.append(written)
        write(results, answered(requests)[::-1])  # in no particular order
        assert load(batched, results) == (Counter(new=written.total(), known=0, failed=0, unknown=0), "")
    assert tasks[0] == {"mask": 12, "positive": 12, "negative": 12}  # the originals' views at once
    assert {"mask", "fill", "positive"} <= tasks[1].keys()  # second attempts beside what comes next
    assert 4 <= len(tasks) <= 8
    assert set(asked.values()) == {1}  # no answer was bought twice
    assert made(batched) == made(batched.model_copy(update={"teacher": "offline"}), clumsy)
    assert requests.read_bytes() == b""
    more = batched.model_copy(update={"methods": ["multi-view-more", "cf-distill"]})
    assert export(more, requests) == {}  # how many more questions it has, follows from the rewrites
    wanted = len(pipeline.build("counterfactuals", more).read("counterfactuals.train.jsonl", Counterfactual))
    assert export(more, requests) == {"positive": wanted, "negative": wanted}


def test_failed_and_unknown_rows_are_counted_and_failed_ones_are_asked_again(batched, tmp_path):
    requests = tmp_path / "requests.jsonl"
    export(batched, requests)
    results = answered(requests)
    results[0]["response"] = {"status_code": 429, "body": {"error": {"message": "slow\ndown"}}}
    results[1] |= {"response": None, "error": {"code": "batch_expired", "message": "too late"}}
    results[2]["response"]["body"] = {"choices": []}
    results[3]["response"] |= {"status_code": 500, "body": "<html>"}
    results[4]["response"]["body"]["choices"][0]["message"]["content"] += "\ud83d"  # half an emoji
    stranger = results[4] | {"custom_id": "of-another-study"}
    file = write(tmp_path / "r.jsonl", [*results, results[5], stranger])
    assert load(batched, file) == (Counter(new=32, known=1, failed=4, unknown=1), "HTTP 429: slow down")
    assert load(batched, file)[0] == Counter(new=0, known=33, failed=4, unknown=1)
    export(batched, requests)
    assert {row["custom_id"] for row in results[:4]} <= {row["custom_id"] for row in rows(requests)}
    with closing(Cache(cache_path(batched), read_only=True)) as cache:
        assert {(answer.batched, answer.model) for answer in cache.answers()} == {(1, "some-model")}


def test_result_files_are_read_as_endpoints_write_and_people_join_them(batched, tmp_path):
    export(batched, tmp_path / "requests.jsonl")
    results = answered(tmp_path / "requests.jsonl")
    results[-1] |= {"response": None, "error": {"message": "expired"}}  # of the error file
    lines = [json.dumps(row) for row in results]
    crlf, joined = "\r\n".join(lines[:9]), lines[9] + "\n".join(lines[10:-1])
    for bad in ("{", "[]", "{}", '{"custom_id": 3}', '{"custom_id": "a", "response": 3}'):
        (tmp_path / "r.jsonl").write_text(f"{lines[0]}\n{bad}")
        with pytest.raises(TeacherError, match=r"jsonl, line 2: .* should hold results of a batch; nothing"):
            load(batched, tmp_path / "r.jsonl")
    whole = f"\ufeff{crlf}\n\n \n{joined}\n\n\ufeff{lines[-1]}"  # the last line without a newline
    (tmp_path / "r.jsonl").write_bytes(whole.encode())
    assert load(batched, tmp_path / "r.jsonl") == (Counter(new=35, known=0, failed=1, unknown=0), "expired")


def test_a_live_teacher_exports_what_fits_into_a_file_and_the_rest_next_time(batched, tmp_path, monkeypatch):
    file = tmp_path / "requests.jsonl"
    with pytest.raises(TeacherError, match="a batch needs teacher: live, not offline"):
        export(batched.model_copy(update={"teacher": "offline"}), file)
    assert not file.exists()
    monkeypatch.setattr(batch, "MAX_REQUESTS", 30)
    assert export(batched, file) == Counter(mask=12, positive=9, negative=9)
    load(batched, write(tmp_path / "r.jsonl", answered(file)))
    monkeypatch.setattr(batch, "MAX_BYTES", len(file.read_bytes()) // 10)
    assert 0 < export(batched, file).total() < 10
    with answers.collect(batched) as teacher:
        tokens = sum(next(iter(teacher.missing.values())).estimate())
        written, estimated = batch.write_requests(teacher, teacher.missing, file, max_tokens=tokens)
        assert (written.total(), estimated) == (1, tokens)
        assert batch.write_requests(teacher, teacher.missing, file, max_requests=2)[0].total() == 2
    assert file.stat().st_size <= batch.MAX_BYTES


def answer(number, content="fine", **changes):
    read = Answer.to(MASK, json.dumps(completion(content)), "http://u/v1", "m")
    given = {"key": f"{number:064x}", "created": "2026-01-31T12:00:00+00:00"}
    return read._replace(**{**given, **changes})


def filled(path, *answers):
    cache = Cache(path)
    cache.put_all(answers)
    return cache


def test_processes_that_create_a_cache_at_once_take_turns(tmp_path):
    context, path = multiprocessing.get_context("fork"), tmp_path / "deep" / "new.sqlite"
    start = context.Barrier(4)

    def create_and_add(number):
        start.wait()
        filled(path, answer(number)).close()

    workers = [context.Process(target=create_and_add, args=(number,)) for number in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join(timeout=20)
    with closing(Cache(path, read_only=True)) as cache:
        assert list(cache.answers()) == [answer(number) for number in range(4)]


def test_answers_survive_the_journey_and_the_first_to_a_key_stays(tmp_path):
    strange = answer(1, "emoji 🦡, العربية, NUL \0, <b>html</b>, a line\nbreak, \u2028", batched=1)
    one, two = filled(tmp_path / "one.sqlite", strange, answer(2, latency_s=0.25)), Cache(tmp_path / "two")
    three = filled(tmp_path / "three", strange, answer(2, "other"), answer(3))
    assert batch.export_cache(one, tmp_path / "one.jsonl") == 2
    assert batch.import_cache(tmp_path / "one.jsonl", two) == {"new": 2, "known": 0, "conflicting": 0}
    assert list(two.answers()) == list(one.answers()) == [strange, answer(2, latency_s=0.25)]
    batch.export_cache(two, tmp_path / "two.jsonl")
    assert (tmp_path / "two.jsonl").read_bytes() == (tmp_path / "one.jsonl").read_bytes()
    batch.export_cache(three, tmp_path / "3.jsonl")
    assert batch.import_cache(tmp_path / "3.jsonl", one) == {"new": 1, "known": 1, "conflicting": 1}
    assert batch.import_cache(tmp_path / "3.jsonl", one) == {"new": 0, "known": 2, "conflicting": 1}
    assert list(one.answers()) == [strange, answer(2, latency_s=0.25), answer(3)]


def line(number, **changes):
    return json.dumps({"schema_version": 1, **answer(number)._asdict(), **changes})


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("{", "Expecting property name"),
        (line(2, schema_version=2), "needs schema_version 1"),
        (line(2, key="short"), "key: String should match pattern"),
        (line(2, task="\ud800"), "Invalid JSON"),
        (line(2, prompt_tokens=-1), "prompt_tokens: Input should be greater than or equal to 0"),
        (line(2, prompt_tokens=2**63), "prompt_tokens: Input should be less than"),
        (line(2, completion_tokens="3"), "completion_tokens: Input should be a valid integer"),
        (line(2, latency_s=float("nan")), "latency_s: Input should be "),
        (line(2, response='{"choices": []}'), "no chat completion"),
        (line(2, colour="red"), "colour: Extra inputs are not permitted"),
    ],
)
def test_a_bad_line_is_named_and_nothing_is_imported(tmp_path, bad, message):
    (tmp_path / "file.jsonl").write_text(f"{line(1)}\n{bad}\n")
    cache = filled(tmp_path / "cache.sqlite", answer(9))
    with pytest.raises(TeacherError, match=rf"file\.jsonl, line 2: .*{message}") as caught:
        batch.import_cache(tmp_path / "file.jsonl", cache)
    assert "\n" not in str(caught.value)
    assert list(cache.answers()) == [answer(9)]
    assert cache.put_all([answer(1)])["new"] == 1  # the transaction is over


def test_stats_count_tokens_and_dollars_by_model_and_task(tmp_path):
    cache = Cache(tmp_path / "cache.sqlite")
    assert "Empty" in budget.stats(cache, Params())
    million = {"model": "gpt-5.2", "served_model": "dated", "prompt_tokens": 1_000_000}
    cache.put_all([answer(1, **million), answer(2, **million), answer(3, **million, batched=1)])
    cache.put_all([answer(4, task="fill")])  # by a model without a price
    direct, by_batch = 2 * (1.75 + 20 * 14e-6), (1.75 + 20 * 14e-6) / 2
    assert [line.split()[1:] for line in budget.stats(cache, Params()).splitlines()[2:]] == [
        ["gpt-5.2", "http://u/v1", "dated", "mask", "no", "2", "2000000", "40", f"{direct:.4f}"],
        ["gpt-5.2", "http://u/v1", "dated", "mask", "yes", "1", "1000000", "20", f"{by_batch:.4f}"],
        ["m", "http://u/v1", "served-model", "fill", "no", "1", "200", "20"],
        ["4", "3000200", "80", f"{direct + by_batch:.4f}"],
    ]
