"""The teacher's client, cache, prompts and stand-in."""

import asyncio
import json
import os
import shutil
import sqlite3
import tempfile
import time
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from unittest.mock import Mock

import httpx2
import pytest
from loopback import KEY, ask, completion, some_prompts

from cfdistill.data import weasel
from cfdistill.errors import TeacherError
from cfdistill.params import Params
from cfdistill.schema import answer_text, options_text, read_answer
from cfdistill.teacher import Teacher, cache_path, cache_state, differing, identity, offline, prompts
from cfdistill.teacher.cache import Cache
from cfdistill.teacher.outcomes import NoAnswer

OPENAI = "https://api.openai.com/v1"
BIKE = prompts.render("reason", "Where does the bicycle sleep?", ("shed", "bed"))


def echo(request):
    asked = json.loads(request.content)["messages"][-1]["content"]
    return httpx2.Response(200, json=completion(f"echo {asked}"))


@pytest.fixture
def live(small_params, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    return changed(small_params, teacher="live", teacher_model="some-model")


def nobody(request):
    pytest.fail("asked")


def changed(params, **changes):
    return params.model_copy(update=changes)


def replay(params, **changes):
    return changed(params, **{"teacher": "recorded", "teacher_cache": str(cache_path(params)), **changes})


@pytest.mark.parametrize("task", prompts.TASKS)
def test_prompts_show_two_examples_in_the_wording_that_is_read(task):
    sections = prompts.load(task)
    assert [role for role, _ in sections] == ["system", "user", "assistant", "user", "assistant", "user"]
    prompt = prompts.render(task, "What costs $5 here?", ("tea", "cake"), answer=1)
    assert "$5" in prompt.question
    assert options_text(("tea", "cake")) in prompt.question
    assert ("ight answer: cake" in prompt.question) == (task in ("mask", "positive", "negative"))
    temperatures = [replace(prompt, sample=i).request("m")["temperature"] for i in (0, 1)]
    assert temperatures == [0.7 if task == "reason" else 0.0, 0.7]
    for (_, asked), (_, shown) in zip(sections[1:-1:2], sections[2:-1:2], strict=True):
        options = tuple(asked.split("Options: ")[1].splitlines()[0].split("; "))
        if task not in prompts.JSON_LISTS:
            assert shown.endswith(answer_text(options, read_answer(shown, options)))


def test_answers_keep_their_order_and_equal_prompts_are_asked_once_and_kept_raw(live):
    handler, asked = Mock(side_effect=echo), [replace(BIKE, sample=3), *some_prompts(29)]

    async def notebook():  # asks inside its running event loop
        return ask(live, [*asked, *asked], handler)

    answers, teacher = asyncio.run(notebook())
    assert answers == [f"echo {prompt.question}" for prompt in [*asked, *asked]]
    first = asked[0].request("some-model")
    assert first in [json.loads(call.args[0].content) for call in handler.call_args_list]
    assert [first[name] for name in ("model", "temperature", "seed")] == ["some-model", 0.7, 3]
    assert "max_completion_tokens" not in first
    usage = {"requests": 30, "cache_hits": 0, "tokens": {"reason": (6000, 600)}}
    assert teacher.summary().items() >= {"model": "some-model", "backend": "live", **usage}.items()
    with Teacher(live, nobody) as again:
        ((key, row),) = again.cache.get([again.key(asked[0]), "unknown"]).items()
    assert json.loads(row.response) == completion(answers[0])
    assert row[:4] + row[5:8] == (key, "reason", OPENAI, "some-model", "served-model", 200, 20)
    assert row.created.endswith("+00:00")
    assert teacher.used[key] == row.digest
    again, teacher = ask(live, asked[:5], nobody)
    assert again == answers[:5]
    assert (teacher.usage.requests, teacher.usage.cache_hits) == (0, 5)
    assert ask(live, [], nobody)[0] == []


def test_the_key_covers_all_that_can_change_an_answer(live):
    shuffled = prompts.render("reason", "Where does the bicycle sleep?", ("bed", "shed"))
    variants = [(live, p) for p in (BIKE, replace(BIKE, sample=1), replace(BIKE, version="v2"), shuffled)]
    changes = [{"teacher_model": "other"}, {"teacher_base_url": "http://u/v1"}]
    changes += [{"teacher": "offline"}, {"teacher": "offline", "data_seed": 1}]
    variants += [(changed(live, **change), BIKE) for change in changes]
    keys = set()
    for params, prompt in variants:
        with Teacher(params) as teacher:
            keys.add(teacher.key(prompt))
    assert len(keys) == len(variants)


def test_answers_outlive_a_failure_and_requests_under_way_are_kept(live):
    async def fourth_fails(request):
        if b"number 4" in request.content:  # which would wait for another attempt
            return httpx2.Response(429, headers={"Retry-After": "60"})
        if b"number 3" in request.content:
            await asyncio.sleep(0.02)
            return httpx2.Response(400, json={"error": {"message": f"bad request with {KEY}"}})
        await asyncio.sleep(0.05)
        return httpx2.Response(200, json=completion("fine"))

    began = time.monotonic()
    with pytest.raises(TeacherError, match="answered HTTP 400: bad request with … ") as caught:
        ask(changed(live, teacher_concurrency=4), some_prompts(20), fourth_fails)
    assert time.monotonic() - began < 30
    # the first, and the two under way beside the failing one and the waiting one; no more
    assert "(3 of 20 answers are there and kept, 17 are missing; run again" in str(caught.value)
    assert KEY not in str(caught.value)
    _, teacher = ask(live, some_prompts(20), echo)
    assert teacher.usage.requests == 17


def test_costs_are_those_of_each_task_whether_paid_or_replayed(live):
    lines = ["step,model,prompt_tokens,completion_tokens", "mask,some-model,400,40"]
    for handler in (echo, nobody):
        with Teacher(live, handler) as teacher:
            for task, count in (("mask", 2), ("reason", 1), ("reason", 3)):
                teacher.ask(some_prompts(count, task))
        table = teacher.costs().to_csv(index=False).splitlines()
        assert table == [*lines, "reason,some-model,800,80"]


def execute(path, script):
    with closing(sqlite3.connect(path)) as db:
        db.executescript(script)


DAMAGES = {
    "text": (lambda path: path.write_bytes(b"this was never a database " * 100), "file is not a database"),
    "newer": (lambda path: execute(path, "PRAGMA user_version = 99"), "its layout: 99"),
    "foreign": (lambda path: execute(path, "DROP TABLE answers; CREATE TABLE b (c)"), "no teacher cache"),
    "bytes": (lambda path: path.write_bytes(path.read_bytes()[:4096] + b"\xff" * 9000), "cannot be used"),
    "response": (lambda path: execute(path, "UPDATE answers SET response = '{}'"), "no chat completion"),
    "type": (lambda path: execute(path, "UPDATE answers SET latency_s = 'soon'"), "value of another type"),
}


@pytest.mark.parametrize(("damage", "message"), DAMAGES.values(), ids=DAMAGES)
@pytest.mark.parametrize("teacher", ["live", "recorded"])
def test_a_cache_that_cannot_be_read_is_left_untouched(live, damage, message, teacher):
    _, asked = ask(live, some_prompts(5), echo)
    damage(asked.cache.path)
    before = asked.cache.path.read_bytes()
    with pytest.raises(TeacherError, match=message):
        ask(replay(live, teacher=teacher), some_prompts(5), nobody)
    assert asked.cache.path.read_bytes() == before
    with pytest.raises(TeacherError, match=r"cannot be used|is missing"):
        Teacher(replay(live, teacher=teacher, teacher_cache=str(asked.cache.path / "in-a-file.sqlite")))


def test_a_recording_is_read_where_nothing_can_be_written(live):
    with tempfile.TemporaryDirectory() as folder:  # not tmp_path, which other users may not enter
        params, owner = changed(live, teacher_cache=f"{folder}/cache.sqlite"), os.geteuid()
        ask(params, some_prompts(2), echo)
        cache_path(params).with_name("cache.sqlite.lock").unlink()
        os.chmod(folder, 0o555)
        os.seteuid(owner or 65534)
        try:
            with Teacher(changed(params, teacher="recorded")) as teacher:
                assert len(teacher.ask(some_prompts(2))) == 2
                assert os.listdir(folder) == ["cache.sqlite"]  # SQLite wanted nothing beside it
        finally:
            os.seteuid(owner)
            os.chmod(folder, 0o755)


def test_another_limit_buys_no_answer_again_that_ended_by_itself(live):
    def answer(request):
        number, body = int(request.content.split(b"number ")[1][:1]), json.loads(request.content)
        limit = body.get("max_completion_tokens", 100)
        sent.append((number, limit))
        told = completion("So the answer is here.")
        told["choices"][0]["finish_reason"] = "length" if limit < 10 * number else "stop"
        return httpx2.Response(200, json=told)

    rounds = [(20, range(5), {3, 4}), (20, (), {3, 4}), (30, (3, 4), {4}), (20, (), {4}), (0, (4,), set())]
    for limit, asked, cut in [*rounds, (5, (), set())]:
        sent = []
        params = changed(live, teacher_max_tokens=limit, teacher_concurrency=1)
        texts, _ = ask(params, some_prompts(5), answer)
        assert sent == [(number, limit or 100) for number in asked]
        assert {number for number, text in enumerate(texts) if isinstance(text, NoAnswer)} == cut


def test_shipped_answers_are_found_by_the_training_data_set(tmp_path):
    usual = {"teacher": "recorded", "run_root": str(tmp_path)}
    for name, count in (("csqa", 11_691), ("weasel-commonsense", 3_967)):
        path = cache_path(Params(train_dataset=name, **usual))
        with closing(Cache(path, read_only=True)) as cache:
            assert sum(total["answers"] for total in cache.totals()) == count
        assert cache_path(Params(train_dataset=name, **usual)) == path
    with pytest.raises(TeacherError, match="csqa, weasel-commonsense are shipped, but none about qasc"):
        cache_path(Params(train_dataset="qasc", **usual))


def test_recorded_replays_and_names_all_that_is_missing(live):
    answers, _ = ask(live, some_prompts(3), echo)
    again, teacher = ask(replay(live, teacher_model="gpt-5.2"), some_prompts(3), nobody)
    assert again == answers
    assert teacher.model == "some-model"  # which needs no repeating: the file holds one model's answers
    masks = [prompts.render("mask", f"Is {i} odd?", ("yes", "no"), 0) for i in range(2)]
    with pytest.raises(TeacherError, match=r" 6 answers are missing .*: 2 mask, 4 reason; first: '.* Is 0"):
        ask(replay(live), [*some_prompts(3), *masks, *some_prompts(7)])


def test_recorded_without_a_file_or_with_two_models_says_so(live):
    recorded = replay(live)
    for fails in (Teacher, lambda params: identity(params, ["mask"])):
        with pytest.raises(TeacherError, match=r"cache.sqlite is missing; set teacher_cache"):
            fails(recorded)
    for model in ("model-a", "model-b"):
        ask(changed(live, teacher_model=model), [BIKE], echo)
    with pytest.raises(TeacherError, match=r"model-a at .* and model-b at .*choose one by teacher_model"):
        Teacher(recorded)
    assert ask(changed(recorded, teacher_model="model-b"), [BIKE])[0]


PROMPT, BANK = (prompts, "FOLDER", "mask.v1.txt"), (weasel, "BANK", "science.jsonl")
SAME = [("offline", {"teacher_cache": "x", "run_root": "y", "teacher_model": "z"}), ("live", BANK)]
SAME += [("live", {"teacher_cache": "x", "teacher_noise": 0.7, "teacher_base_url": f"{OPENAI}/"})]
OTHER = [("offline", change) for change in ({"teacher_noise": 0.7}, {"data_seed": 7}, PROMPT, BANK)]
OTHER += [("live", {"teacher_base_url": "http://other/v1"}), ("live", {"teacher_model": "other"})]
OTHER += [("live", {"teacher_max_tokens": 9}), ("live", PROMPT)]


@pytest.mark.parametrize(("backend", "change"), [*SAME, *OTHER])
def test_identity_is_what_reaches_the_answers(live, tmp_path, monkeypatch, backend, change):
    params = changed(live, teacher=backend)
    before, other = identity(params, ["mask", "fill"]), identity(params, ["fill"])
    if isinstance(change, dict):
        params = changed(params, **change)
    else:  # one of the package's files, in a copy of its folder
        module, folder, file = change
        path = Path(shutil.copytree(getattr(module, folder), tmp_path / folder)) / file
        path.write_text(path.read_text().replace(" the ", " a ", 1))
        monkeypatch.setattr(module, folder, tmp_path / folder)
        monkeypatch.setattr(prompts, "load", prompts.load.__wrapped__)
    assert (identity(params, ["mask", "fill"]) == before) == ((backend, change) in SAME)
    assert change is not PROMPT or identity(params, ["fill"]) == other  # a prompt that was not edited
    assert not Path(params.run_root).exists()  # nothing was opened or made


def test_a_recording_is_its_models_answers_and_those_it_now_holds_otherwise_are_counted(live, tmp_path):
    _, teacher = ask(live, some_prompts(3), echo)
    recorded = replay(live, teacher_model="some-model")
    before, state = identity(recorded, ["reason"]), cache_state(recorded)
    copy = changed(recorded, teacher_cache=str(tmp_path / "copy.sqlite"))
    shutil.copy(cache_path(live), cache_path(copy))
    execute(cache_path(copy), "UPDATE answers SET latency_s = 9.0; VACUUM")
    assert identity(copy, ["reason"]) == before  # another file, the same answers
    assert (len(teacher.used), differing(copy, teacher.used)) == (3, 0)
    execute(cache_path(copy), "UPDATE answers SET response = replace(response, 'number 1', 'number 9')")
    assert identity(copy, ["reason"]) != before
    execute(cache_path(copy), "DELETE FROM answers WHERE response LIKE '%number 2%'")
    assert differing(copy, teacher.used) == 1
    cache_path(copy).unlink()
    assert differing(copy, teacher.used) == 0
    assert not cache_path(copy).exists()
    ask(changed(live, teacher_model="another"), some_prompts(3), echo)
    assert cache_state(recorded) != state
    assert identity(recorded, ["reason"]) == before
    ask(live, some_prompts(4), echo)
    assert identity(recorded, ["reason"]) != before


def test_live_needs_a_key_and_no_password(live, monkeypatch):
    with pytest.raises(TeacherError, match="must not hold a user name or password") as caught:
        Teacher(changed(live, teacher_base_url="http://me:hush@host/v1"))
    assert "hush" not in str(caught.value)
    monkeypatch.setenv("OPENAI_BASE_URL", "http://from-the-environment/v1/")
    assert identity(live, [])["base_url"] == "http://from-the-environment/v1"
    assert identity(changed(live, teacher_base_url="http://b"), [])["base_url"] == "http://b"
    assert identity(changed(live, teacher="offline"), [])["base_url"] == offline.BASE_URL
    for value in ("", "two\nlines", "schlüssel"):
        monkeypatch.setenv("OPENAI_API_KEY", value)
        with pytest.raises(TeacherError, match="environment variable OPENAI_API_KEY"):
            ask(live, [BIKE])


def reply(teacher, prompt):
    response = teacher(httpx2.Request("POST", offline.BASE_URL, json=prompt.request("m")))
    return str(response.json()["choices"][0]["message"]["content"])


@pytest.mark.parametrize("noise", [0.0, 0.3])
def test_offline_errs_as_often_as_it_is_told_and_always_the_same_way(noise):
    teacher = offline.SceneTeacher(noise, seed=0)
    for format in weasel.FORMATS:
        asked = [(s, variant) for s in weasel.load_scenes(format) for variant in range(len(s.cues))]
        lured = []  # by each wrong path: whether it follows the stereotype
        for scene, variant in asked:
            prompt = prompts.render("reason", scene.stem(0, variant, 0), scene.options)
            answer = read_answer(reply(teacher, prompt), tuple(scene.options))
            lured += [answer == scene.stereotype] * (answer != variant)
        assert len(lured) / len(asked) == pytest.approx(noise, abs=0.04)
        assert sum(lured) >= len(lured) / 3
    seeds = [reply(offline.SceneTeacher(noise, seed), prompt) for seed in range(9)]
    assert seeds[0] == reply(teacher, prompt)
    assert (len(set(seeds)) > 1) == (noise > 0)


def test_offline_explains_the_option_told_and_excludes_all_others():
    teacher, scene = offline.SceneTeacher(0.0, seed=0), weasel.load_scenes("commonsense")[0]
    options = tuple(reversed(scene.options))  # shuffled ones are known, too
    right = options.index(scene.options[1])
    asked = [prompts.render(view, scene.stem(0, 1, 0), options, right) for view in ("positive", "negative")]
    positive, negative = (reply(teacher, prompt) for prompt in asked)
    assert positive == f"{scene.why[1]} {answer_text(options, right)}"
    excluded = [option for option in scene.options if f"Not {option}: " in negative]
    assert excluded == [option for option in scene.options if option != scene.options[1]]
    assert read_answer(negative, options) == right


def test_offline_knows_only_the_testbed(small_params):
    scene, composition = weasel.load_scenes("commonsense")[0], weasel.load_scenes("composition")[0]
    strangers = [
        BIKE,
        prompts.render("reason", scene.stem(0, 0, 0), ("shed", "bed")),
        replace(BIKE, messages=(("system", "Be kind."), ("user", "Hello?"))),
        prompts.render("mask", scene.frames[0].replace("{cue}", "[MASK]"), scene.options, 0),
        prompts.render("positive", composition.stem(0, 0, 0), composition.options, -1),  # never right
    ]
    for prompt in strangers:
        with pytest.raises(TeacherError, match=r"knows only the weasel testbed; use teacher: live or recor"):
            ask(small_params, [prompt])
