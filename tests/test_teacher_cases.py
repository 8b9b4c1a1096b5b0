"""What real endpoints do: each line of teacher_cases.jsonl is a case with its right outcome.

`responses` are [status, body], one for each of the `requests` made. What comes of them is a `text`, the
`reason` why there is none, an `error` (a pattern), or the `failure` of a batch's row.
"""

import json
import re
import zlib
from collections import Counter
from contextlib import closing
from pathlib import Path

import httpx2
import pandas as pd
import pytest
from loopback import KEY, Loopback, some_prompts

from cfdistill import pipeline
from cfdistill.errors import StageError, TeacherError
from cfdistill.teacher import Teacher, batch, cache_path, offline
from cfdistill.teacher.cache import Cache
from cfdistill.teacher.outcomes import CUT, FILTERED, NoAnswer
from cfdistill.teacher.prompts import render

CASES = [json.loads(line) for line in Path(__file__).with_name("teacher_cases.jsonl").open(encoding="utf-8")]


@pytest.mark.parametrize("case", CASES, ids=[case["case"] for case in CASES])
def test_every_oddity_of_an_endpoint_has_its_outcome(small_params, monkeypatch, tmp_path, case):
    for name, value in {"OPENAI_API_KEY": KEY, **case.get("env", {})}.items():
        monkeypatch.setenv(name, value)
    live = {"teacher": "live", "teacher_model": "some-model", **case.get("params", {})}
    params, asked = small_params.model_copy(update=live), some_prompts(1, case.get("task", "reason"))
    sent = []

    def answer(request):
        sent.append(json.loads(request.content))
        status, body = case["responses"][len(sent) - 1]
        given = {"text": body} if isinstance(body, str) else {"json": body}
        return httpx2.Response(status, headers={"Retry-After": "0.01"}, **given)

    with Teacher(params, answer if case["responses"] else None) as teacher:
        if "batch" in case:
            ((status, body),) = case["responses"]
            row = {"custom_id": teacher.key(asked[0]), "response": {"status_code": status, "body": body}}
            row = row if status else {"custom_id": row["custom_id"], "error": body}
            (results := tmp_path / "results.jsonl").write_text(json.dumps(row))
            _, failure = batch.import_results(teacher, {row["custom_id"]: asked[0]}, results)
            assert re.search(case.get("failure", "^$"), failure)
        if "error" in case:
            with pytest.raises(TeacherError, match=case["error"]) as caught:
                teacher.ask(asked)
            assert "hush" not in str(caught.value)
        elif "failure" not in case:
            for _ in range(2):  # the second time from the cache
                (text,) = teacher.ask(asked)
                assert text == case.get("text", case.get("reason"))
                assert isinstance(text, NoAnswer) == ("reason" in case)
            assert teacher.usage.thought == 2 * case.get("thought", 0)
            assert sorted(teacher.usage.without) == case.get("without", [])
            (stored,) = teacher.cache.answers()
            tokens = [stored.prompt_tokens, stored.completion_tokens]
            assert tokens == case.get("tokens", tokens)
    assert len(sent) == ("batch" not in case and case["requests"])
    assert not set(case.get("without", [])) & (sent or [{}])[-1].keys()


ODDITIES = ("filter", "length", "elsewhere", "thinking", "chunks", "invalid", "no usage", "plain", "carried")
REASONS = {"filter": FILTERED, "length": CUT}  # of what is odd every time it is asked


def oddity(question):
    return ODDITIES[zlib.crc32(question.encode()) % len(ODDITIES)]


class Menagerie:
    """Answers as the stand-in does, but as all kinds of endpoints would; counts what it was paid for."""

    def __init__(self):
        self.scenes, self.paid, self.met = offline.SceneTeacher(0.1, seed=0), Counter(), Counter()

    def __call__(self, body):
        question = body["messages"][-1]["content"]
        self.met[kind := oddity(question)] += 1
        if "temperature" in body:
            return 400, {"error": {"message": "temperature is not taken"}}
        if "response_format" in body:
            return 422, {"error": {"message": "features that the grammar lacks"}}
        if kind == "carried" and self.met[kind] % 3 == 0:
            return 200, {"error": {"code": 429, "message": "slow down"}}
        if kind == "filter":
            return 400, {"error": {"code": "content_filter", "message": "filtered"}}
        if kind == "invalid" and '"' in body["messages"][2]["content"] and body["seed"] == 0:
            return 400, {"error": {"code": "json_validate_failed", "message": "Failed to generate JSON"}}
        told = self.scenes(httpx2.Request("POST", "http://scenes", json=body)).json()
        self.paid[f"{question} {body['messages'][0]['content'][:40]} {body['seed']}"] += 1
        message, drafts = told["choices"][0]["message"], '<think>{"spans": ["a"]} The answer is b.</think>'
        changes = {
            "elsewhere": {"content": None, "reasoning_content": message["content"]},
            "thinking": {"content": drafts + message["content"]},
            "chunks": {"content": [{"type": "thinking"}, {"type": "text", "text": message["content"]}]},
        }
        message |= changes.get(kind, {})
        told["choices"][0]["finish_reason"] = "length" if kind == "length" else "stop"
        return 200, {name: told[name] for name in told if name != "usage" or kind != "no usage"}


def made(params):
    for part in pipeline.parts("data", params):
        pipeline.build("data", params, **part)
    return [pipeline.build(name, params) for name in ("counterfactuals", "rationales")]


def test_a_study_completes_with_an_endpoint_that_has_every_oddity(small_params, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    sizes = {"train_questions": 40, "train_scenes": 20, "vote_threshold": 1, "reasoning_paths": 2}
    plain = small_params.model_copy(update=sizes | {"teacher": "live", "teacher_model": "some-model"})
    with Loopback(answer=(zoo := Menagerie()), retry_after_s=0.01) as server:
        params = plain.model_copy(update={"teacher_base_url": server.url})
        stages, asked = made(params), server.requests
        elsewhere = {"run_root": f"{params.run_root}-2", "teacher_cache": str(cache_path(params))}
        remade = made(params.model_copy(update=elsewhere))
        assert server.requests == asked  # nothing is asked again, refused or not
    assert set(zoo.met) == set(ODDITIES)
    assert set(zoo.paid.values()) == {1}
    with closing(Cache(cache_path(params), read_only=True)) as cache:
        answers = list(cache.answers())
    assert sum('"dropped"' not in answer.response for answer in answers) == zoo.paid.total()
    assert all(a.prompt_tokens and a.completion_tokens for a in answers if '"dropped"' not in a.response)
    questions = {q.id: q for q in pipeline.questions(params.train_dataset, "train", params)}
    questions |= {c.question.id: c.question for c in pipeline.rewrites(params)}
    for stage, file, told in zip(stages, ("funnel.csv", "ledger.csv"), ("mask: ", ""), strict=True):
        for row in pd.read_csv(stage.path / file).fillna("").itertuples():
            q = questions[row.question_id]
            kind = oddity(render(getattr(row, "view", "mask"), q.stem, q.options, q.answer).question)
            assert (row.reason == f"{told}{REASONS.get(kind)}") == (kind in REASONS), (kind, row)
    assert [stage.manifest()["drops"] for stage in remade] == [stage.manifest()["drops"] for stage in stages]
    noted = [stage.manifest()["notes"]["teacher"] for stage in stages]
    assert noted[0]["without"].keys() == {"temperature", "response_format"}
    assert all(note["thought"] for note in noted)


def test_a_stage_that_keeps_nothing_says_so_unless_that_is_allowed(small_params, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", KEY)
    filtered = {"error": {"code": "content_filter", "message": "filtered"}}
    with Loopback(answer=lambda body: (400, filtered)) as server:
        given = {"teacher": "live", "teacher_model": "some-model", "teacher_base_url": server.url}
        params = small_params.model_copy(update=given)
        told = r"counterfactuals: nothing is kept \(12 mask: content filter\); "
        with pytest.raises(StageError, match=told):
            made(params)
        stages = made(params.model_copy(update={"allow_empty": True}))
    assert server.requests == 12 + 24  # each once, in both attempts
    drops = {f"{view}: content filter": 12 for view in ("negative", "positive")}
    assert [stage.manifest()["drops"] for stage in stages] == [{"mask: content filter": 12}, drops]
