"""Counterfactuals: targets, masks, fills, checks, votes, and the stage."""

import csv
import json
import re
from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx2
import pandas as pd
import pytest
from loopback import Loopback, completion
from studies import write_csqa

from cfdistill import counterfactual, data, rationale, results, runner, runs, training
from cfdistill.counterfactual import Candidate
from cfdistill.data.weasel import Scene, load_scenes
from cfdistill.errors import StageError, TrainingError
from cfdistill.masking import MASK, mask_spans, random_span
from cfdistill.params import Params
from cfdistill.schema import Counterfactual, Question
from cfdistill.teacher import Teacher

LAMP = Question("q1", "toy", "train", "Eli needs a lamp to read. What is it?", ("day", "night", "noon"), 1)


def scenes(format: str = "commonsense") -> dict[str, Scene]:
    return {scene.id: scene for scene in load_scenes(format)}


def truth(question: Question, format: str = "commonsense") -> int:
    """Return the option that the scene bank says is right."""
    scene = scenes(format)[question.scene]
    for frame in range(3):
        for variant, cues in enumerate(scene.cues):
            for cue in range(len(cues)):
                if scene.stem(frame, variant, cue) == question.stem:
                    return question.options.index(scene.options[variant])
    raise AssertionError(f"not in the scene bank: {question.stem}")


def built(params: Params) -> tuple[list[Counterfactual], list[dict[str, str]], dict[str, Any]]:
    data.build(params.train_dataset, params)
    stage = counterfactual.build(params)
    with (stage.path / "funnel.csv").open(encoding="utf-8") as file:
        return (
            stage.read("counterfactuals.train.jsonl", Counterfactual),
            list(csv.DictReader(file)),
            stage.manifest(),
        )


def larger(params: Params, noise: float, **more: Any) -> Params:
    return params.model_copy(
        update={"train_scenes": 40, "train_questions": 80, "teacher_noise": noise, **more}
    )


def filled(stem: str, target: int = 0, original: Question = LAMP) -> Candidate:
    return Candidate(original, target, stem=stem)


# targets


def test_targets_rotate_within_a_scene_and_never_are_held_out(small_params: Params) -> None:
    questions = data.load("weasel-commonsense", "train", larger(small_params, 0.0, train_questions=160))
    candidates = counterfactual.propose(questions, per_question=1)
    used: dict[str, Counter[str]] = {}
    for c in candidates:
        scene = scenes()[c.original.scene]
        variant = scene.options.index(c.original.options[c.target])
        assert variant in scene.reachable()
        assert c.target != c.original.answer
        if c.original.subset == "stereotype":
            used.setdefault(scene.id, Counter())[c.original.options[c.target]] += 1
    several = [counts for counts in used.values() if counts.total() >= 4]
    assert several
    assert all(len(counts) == 2 for counts in several)  # both reachable answers get their turn


def test_real_questions_may_turn_to_any_wrong_option() -> None:
    (first,) = counterfactual.propose([LAMP], per_question=1)
    assert first.target in (0, 2)
    assert {c.target for c in counterfactual.propose([LAMP], per_question=5)} == {0, 2}


def test_a_counterfactual_question_keeps_what_is_known_of_its_original(small_params: Params) -> None:
    original = data.load("weasel-commonsense", "train", small_params)[0]
    target = original.targets[0]
    question = Candidate(original, target, fills=("at sea",), stem="New?").question()
    assert question.id == f"{original.id}.cf{target}"
    assert (question.options, question.scene, question.split) == (original.options, original.scene, "train")
    assert (question.answer, question.cue, question.subset) == (target, "at sea", "reachable")
    assert target not in question.targets
    assert Candidate(LAMP, 0, stem="New?").question().subset == ""


# masks and fills


def test_masked_spans_are_whole_words_of_the_question() -> None:
    assert mask_spans("Ham for the hamster?", ["hamster"]) == "Ham for the [MASK]?"
    assert mask_spans("A big mask, a red hat.", ["A big", "mask"]) == "[MASK] [MASK], a red hat."
    with pytest.raises(ValueError, match="not in the question"):
        mask_spans("Ham for the hamster?", ["hams"])
    with pytest.raises(ValueError, match="nothing of the question is left"):
        mask_spans("Why, then?", ["Why, then"])


def test_fills_go_into_their_masks_in_order() -> None:
    text = counterfactual.fill_masks("[MASK] ran to [MASK]?", ["the cat", "a tree"])
    assert text == "The cat ran to a tree?"


def scripted(answers: dict[tuple[str, int], str]) -> Any:
    """Return a handler that answers by (task, sample); tasks are told apart by what they ask for."""

    def handler(request: httpx2.Request) -> httpx2.Response:
        body = json.loads(request.content)
        system = body["messages"][0]["content"]
        task = "mask" if '"spans"' in system else "fill" if '"fills"' in system else "reason"
        message = {"role": "assistant", "content": answers[task, body["seed"]]}
        return httpx2.Response(200, json={"model": "m", "choices": [{"message": message}]})

    return handler


def test_random_masks_depend_on_question_and_seed_and_ask_nobody(small_params: Params) -> None:
    params = small_params.model_copy(update={"mask_source": "random"})
    data.build(params.train_dataset, params)
    candidates = counterfactual.propose(data.questions(params.train_dataset, "train", params), 1)
    with Teacher(params, handler=lambda request: pytest.fail("asked")) as teacher:
        masked = counterfactual.masked(candidates, params, teacher)
    for c in masked:
        assert c.spans == (random_span(c.original.stem, params.data_seed),)
        assert c.masked_stem.count(MASK) == 1
        share = len(c.spans[0].split()) / len(c.original.stem.split())
        assert 0.1 < share < 0.4
    assert masked == counterfactual.mask_randomly(candidates, params.data_seed)
    other = counterfactual.mask_randomly(candidates, params.data_seed + 1)
    assert sum(a.spans != b.spans for a, b in zip(masked, other, strict=True)) > len(masked) / 2


@pytest.mark.parametrize("stem", ["Why?", "…", "💤 💤", "[is] [it]"])
def test_a_question_too_short_to_mask_at_random_is_dropped(stem: str) -> None:
    question = Question("q", "toy", "train", stem, ("day", "night"), 0)
    (dropped,) = counterfactual.mask_randomly([Candidate(question, 1)], 0)
    assert dropped.reason == "mask: nothing of the question is left"


@pytest.fixture
def live(small_params: Params, monkeypatch: pytest.MonkeyPatch) -> Params:
    monkeypatch.setenv("OPENAI_API_KEY", "none")
    return small_params.model_copy(update={"teacher": "live"})


def test_malformed_answers_are_asked_again_once_and_then_dropped(live: Params) -> None:
    handler = scripted(
        {
            ("mask", 0): '{"spans": ["a torch"]}',  # not in the question
            ("mask", 1): 'Of course: {"spans": ["to read", "a lamp"]}',
            ("fill", 0): '{"fills": ["one only"]}',
            ("fill", 1): "I cannot.",
        }
    )
    with Teacher(live, handler=handler) as teacher:
        (masked,) = counterfactual.mask([Candidate(LAMP, 0)], teacher)
        assert masked.masked_stem == "Eli needs [MASK] [MASK]. What is it?"
        assert masked.spans == ("a lamp", "to read")  # in order of appearance
        (dropped,) = counterfactual.fill([masked], teacher)
        assert dropped.reason == "fill: no JSON of the form asked for"
        assert teacher.usage.requests == 4
        later = counterfactual.vote(counterfactual.check([dropped], live, [], []), teacher, live)
        assert later == [dropped]  # nothing more is paid for it
        assert teacher.usage.requests == 4


def test_votes_count_paths_that_reach_the_target(live: Params) -> None:
    params = live.model_copy(update={"reasoning_paths": 3, "vote_threshold": 2})
    ends = ["So the answer is day.", "Hard to say.", "So the answer is day.", "So the answer is night."]
    candidate = filled("Eli needs a hat to read. What is it?")
    for texts, votes, reason in ((ends[:3], 2, ""), (ends[1:], 1, "too few votes")):
        handler = scripted({("reason", i): text for i, text in enumerate(texts)})
        fresh = params.model_copy(update={"teacher_cache": f"{params.run_root}/{votes}.sqlite"})
        with Teacher(fresh, handler=handler) as teacher:
            (voted,) = counterfactual.vote([candidate], teacher, fresh)
        assert (voted.votes, voted.paths, voted.reason) == (votes, 3, reason)


# checks


@pytest.mark.parametrize(
    ("stem", "reason"),
    [
        ("Eli needs a hat to read. What is it?", ""),
        ("Eli needs a day to read. What is it?", "answer leaked"),
        ("Eli needs a Day, to read. What is it?", "answer leaked"),
        ("Eli needs a birthday to read. What is it?", ""),
        (LAMP.stem.upper(), "unchanged"),
        ("Something else entirely was said by them yesterday, was it not?", "changed too much"),
        ("Eli needs a map to read. What is it?", "duplicate"),
        ("Eli needs a chair to read. What is it?", "held-out question"),
    ],
)
def test_checks_name_what_is_wrong(small_params: Params, stem: str, reason: str) -> None:
    training = [LAMP, Question("t", "toy", "train", "Eli needs a map to read; what is it", ("a", "b"), 0)]
    held_out = [Question("u", "toy", "id", "ELI needs a chair to read... What is it?", ("a", "b"), 0)]
    (checked,) = counterfactual.check([filled(stem)], small_params, training, held_out)
    assert checked.reason == reason


def test_an_answer_the_original_names_is_no_leak(small_params: Params) -> None:
    original = Question("q", "toy", "train", "By day Eli needs a lamp. What is it?", ("day", "night"), 1)
    same, more = (
        filled(stem, original=original)
        for stem in ("By day Eli needs a hat. What is it?", "By day Eli needs a day. What is it?")
    )
    assert [c.reason for c in counterfactual.check([same, more], small_params, [], [])] == [
        "",
        "answer leaked",
    ]


def test_the_second_of_two_equal_counterfactuals_is_a_duplicate(small_params: Params) -> None:
    twins = [filled("Eli needs a hat to read. What is it?")] * 2
    checked = counterfactual.check(twins, small_params, [LAMP], [])
    assert [c.reason for c in checked] == ["", "duplicate"]


def test_edit_ratio_counts_words() -> None:
    assert counterfactual.edit_ratio("a b c d", "A, b c d!") == 0.0
    assert counterfactual.edit_ratio("a b c d", "a x c d") == 0.25


# the round trip, and which checks there are


def test_another_order_moves_every_option() -> None:
    for options in (("a", "b"), ("a", "b", "c", "d", "e")):
        orders = {counterfactual.reorder(options, f"key{i}") for i in range(40)}
        assert len(orders) == len(options) - 1
        for order in orders:
            assert sorted(order) == list(options)
            assert all(before != after for before, after in zip(options, order, strict=True))
        assert counterfactual.reorder(options, "key") == counterfactual.reorder(options, "key")


def test_an_answer_that_depends_on_the_order_is_dropped(live: Params) -> None:
    params = live.model_copy(update={"round_trip_check": True})
    asked: list[str] = []

    def first_option(request: httpx2.Request) -> httpx2.Response:
        asked.append(json.loads(request.content)["messages"][-1]["content"])
        option = asked[-1].split("Options: ")[1].split("; ")[0]
        message = {"role": "assistant", "content": f"Hm. So the answer is {option}."}
        return httpx2.Response(200, json={"model": "m", "choices": [{"message": message}]})

    candidates = [filled("Eli needs a hat to read. What is it?", target) for target in (0, 2)]
    with Teacher(params, handler=first_option) as teacher:
        assert counterfactual.round_trip(candidates, teacher, live) == candidates  # off: asks nothing
        assert not asked
        checked = counterfactual.round_trip(candidates, teacher, params)
    orders = [counterfactual.reorder(LAMP.options, c.question().id) for c in candidates]
    assert sorted(asked) == sorted(
        f"Question: Eli needs a hat to read. What is it?\nOptions: {'; '.join(order)}"
        for order in set(orders)
    )
    agrees = [order[0] == LAMP.options[c.target] for c, order in zip(candidates, orders, strict=True)]
    assert [not c.reason for c in checked] == agrees
    assert {c.reason for c in checked} <= {"", "round trip: another answer"}


def test_every_filter_is_an_option_with_its_reason_in_the_funnel(small_params: Params) -> None:
    noisy = larger(small_params, noise=0.4)
    ratios = sorted(float(row["edit_ratio"]) for row in built(noisy)[1])
    kept: dict[str, int] = {}
    drops: dict[str, Counter[str]] = {}
    for name, changes in {
        "default": {},
        "unfiltered": {"vote_threshold": 0},
        "one vote": {"vote_threshold": 1},
        "round trip": {"round_trip_check": True},
        "narrow": {"max_edit_ratio": ratios[len(ratios) // 2]},
    }.items():
        params = noisy.model_copy(update=changes)
        counterfactuals, rows, _ = built(params)
        kept[name] = len(counterfactuals)
        drops[name] = Counter(row["reason"] for row in rows if row["reason"])
        counts = counterfactual.funnel_counts(pd.DataFrame(rows), params)
        assert list(counts["left"])[-1] == kept[name]
        assert (counterfactual.VOTE in set(counts["step"])) == (name != "unfiltered")
        assert (counterfactual.ROUND_TRIP in set(counts["step"])) == (name == "round trip")
        assert drops[name]["too few votes"] > 0 or name == "unfiltered"
    assert drops["unfiltered"]["too few votes"] == 0
    assert kept["unfiltered"] == kept["default"] + drops["default"]["too few votes"]
    assert drops["round trip"]["round trip: another answer"] == kept["default"] - kept["round trip"] > 0
    assert drops["narrow"]["changed too much"] > drops["default"]["changed too much"]
    assert kept["default"] < kept["one vote"] < kept["unfiltered"]


def spoiling(spoiled: dict[str, str]) -> Callable[[dict[str, Any]], tuple[int, dict[str, Any]]]:
    """Return a teacher for `write_csqa` who is right, but spoils the questions with even numbers.

    Args:
        spoiled: what is answered to those, by task; `reorder` is reasoning over options in another order.
    """
    words = {"day": "a rope", "night": "a hat", "noon": "a map", "dawn": "a shoe", "never": "a cup"}
    targets: dict[str, str] = {}  # by rewritten question

    def answer(body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
        asked = body["messages"][-1]["content"]
        stem, options = re.findall(r"uestion: (.*)\nOptions: (.*)", asked)[0]
        given = {} if re.search(r"[13579]\b", stem) else spoiled
        if "response_format" not in body:
            task = "reason" if options == "; ".join(words) else "reorder"
            return 200, completion(f"Hm. So the answer is {given.get(task, targets[stem])}.")
        name, target = body["response_format"]["json_schema"]["name"], asked.rpartition("answer: ")[2]
        right = "lamp" if name == "spans" else words[target]
        text = given.get(name, right).format(number=re.sub(r"\D", "", stem), target=target)
        targets[stem.replace("[MASK]", text)] = target
        return 200, completion(json.dumps({name: [text]}))

    return answer


@pytest.mark.parametrize(
    ("reason", "step", "spoiled"),
    [
        ("mask: span is not in the question", "masked", {"spans": "a boat"}),
        ("fill: not one text per mask", "filled", {"fills": "[MASK]"}),
        ("answer leaked", "passed checks", {"fills": "{target}"}),
        ("unchanged", "passed checks", {"fills": "Lamp"}),
        ("changed too much", "passed checks", {"fills": "word " * 60}),
        ("duplicate", "passed checks", {"spans": "lamp {number}", "fills": "lamp TRAIN"}),
        ("held-out question", "passed checks", {"spans": "lamp {number}", "fills": "lamp VALIDATION"}),
        ("too few votes", counterfactual.VOTE, {"reason": "night"}),  # the answer of every original
        ("round trip: another answer", counterfactual.ROUND_TRIP, {"reorder": "night"}),
    ],
)
def test_each_check_counts_in_the_funnel_of_a_whole_stage(
    live: Params, tmp_path: Path, reason: str, step: str, spoiled: dict[str, str]
) -> None:
    write_csqa(tmp_path / "csqa", 100)
    changes = {"train_dataset": "csqa", "test_datasets": ["csqa"], "data_root": str(tmp_path)}
    params = live.model_copy(update=changes | {"round_trip_check": True})
    data.build("csqa", params)
    stems = {
        split: [q.stem for q in data.questions("csqa", split, params)] for split in ("train", "validation")
    }
    numbers = {split: [re.sub(r"\D", "", stem) for stem in stems[split]] for split in stems}
    odd = [number for number in numbers["train"] if int(number) % 2][-1]  # the first are in the test split
    texts = {
        task: text.replace("TRAIN", odd).replace("VALIDATION", numbers["validation"][0])
        for task, text in spoiled.items()
    }
    with Loopback(answer=spoiling(texts)) as server:
        kept, rows, manifest = built(params.model_copy(update={"teacher_base_url": server.url}))
    expected = sum(int(number) % 2 == 0 for number in numbers["train"])
    assert 0 < expected < len(rows) == 12
    assert manifest["drops"] == {reason: expected}
    assert Counter(row["reason"] for row in rows) == {reason: expected, "": len(kept)}
    counts = counterfactual.funnel_counts(pd.DataFrame(rows), params).set_index("step")
    assert counts.loc[step, "drops"] == f"{expected} {reason}"
    assert counts.loc[counterfactual.ROUND_TRIP, "left"] == len(kept) == 12 - expected


def test_without_votes_no_path_is_paid_for(small_params: Params) -> None:
    counterfactuals, rows, manifest = built(small_params.model_copy(update={"vote_threshold": 0}))
    assert {(c.votes, c.paths) for c in counterfactuals} == {(0, 0)}
    assert manifest["notes"]["teacher"]["requests"] <= 2 * len(rows) + 4  # masks, fills, second attempts


def test_the_leak_check_can_be_left_out(small_params: Params) -> None:
    leaky = [filled("Eli needs a day to read. What is it?")]
    for wanted, reason in ((True, "answer leaked"), (False, "")):
        params = small_params.model_copy(update={"leak_check": wanted})
        assert [c.reason for c in counterfactual.check(leaky, params, [LAMP], [])] == [reason]


def test_funnel_counts_by_hand(small_params: Params) -> None:
    reasons = ["", "", "", "mask: no JSON", "too few votes", "duplicate", "duplicate", "answer leaked", None]
    counts = counterfactual.funnel_counts(pd.DataFrame({"reason": reasons}), small_params)
    assert list(counts.left) == [9, 8, 8, 5, 4]
    assert list(counts.drops) == [
        "",
        "1 mask: no JSON",
        "",
        "2 duplicate, 1 answer leaked",
        "1 too few votes",
    ]


# the stage


def test_a_perfect_teacher_loses_candidates_to_checks_only(small_params: Params) -> None:
    params = larger(small_params, noise=0.0)
    kept, rows, manifest = built(params)
    assert list(rows[0]) == list(counterfactual.FUNNEL_COLUMNS)
    assert len(rows) == 80
    assert set(manifest["drops"]) <= {"duplicate", "held-out question"}
    assert manifest["drops"] == dict(Counter(row["reason"] for row in rows if row["reason"]))
    assert len(kept) == sum(row["verdict"] == "kept" for row in rows) == 80 - sum(manifest["drops"].values())
    for c in kept:
        assert c.votes == c.paths == params.reasoning_paths
        assert truth(c.question) == c.question.answer
        assert "[MASK]" in c.masked_stem
        assert params.min_edit_ratio <= c.edit_ratio <= params.max_edit_ratio


def test_the_filter_removes_a_noisy_teachers_wrong_fills(small_params: Params) -> None:
    params = larger(small_params, noise=0.5, reasoning_paths=7, vote_threshold=4)
    kept, rows, _ = built(params)
    voted = [row for row in rows if int(row["paths"])]
    questions = {q.id: q for q in data.questions(params.train_dataset, "train", params)}
    right = [
        truth(replace(questions[row["question_id"]], stem=row["stem"])) == int(row["target_index"])
        for row in voted
    ]
    assert 0.3 < sum(right) / len(right) < 0.7  # before the votes, about half are wrong
    assert len(kept) >= 10
    assert all(c.votes >= params.vote_threshold for c in kept)
    assert sum(truth(c.question) == c.question.answer for c in kept) / len(kept) > 0.9


@pytest.mark.parametrize("format", ["qualitative", "composition", "science"])
def test_other_formats_build_and_train_on_no_held_out_question(small_params: Params, format: str) -> None:
    params = small_params.model_copy(update={"train_dataset": f"weasel-{format}"})
    kept, rows, _ = built(params)
    assert kept
    assert len(rows) == params.train_questions
    seen = {counterfactual.normalize(c.question.stem) for c in kept}
    for split in ("validation", "id", "shift", "new"):
        stems = {
            counterfactual.normalize(q.stem) for q in data.questions(params.train_dataset, split, params)
        }
        assert not seen & stems


def test_the_stage_is_reused_and_deterministic(small_params: Params) -> None:
    kept, rows, manifest = built(small_params)
    assert manifest["notes"]["teacher"]["requests"] > 0
    stage = counterfactual.build(small_params)
    assert stage.manifest() == manifest
    other = small_params.model_copy(update={"run_root": f"{small_params.run_root}-2"})
    assert built(other)[:2] == (kept, rows)


def test_the_stage_needs_questions(small_params: Params) -> None:
    with pytest.raises(StageError, match="stage data is missing"):
        counterfactual.build(small_params)


def test_a_study_in_which_no_rewrite_passes_goes_on_without(small_params: Params) -> None:
    strict = small_params.model_copy(update={"min_edit_ratio": 0.99, "max_edit_ratio": 1.0})
    kept, rows, manifest = built(strict)
    assert not kept
    assert manifest["drops"] == {"unchanged": 12} == dict(Counter(row["reason"] for row in rows))
    rationale.build(strict)
    material = training.read_material(strict)
    assert len(training.make_examples(*material, "ft-cot")) > 0
    with pytest.raises(TrainingError, match="cf-distill: there are no counterfactuals to train on") as caught:
        training.make_examples(*material, "cf-distill")
    assert "\n" not in str(caught.value)


def test_chapters_two_and_three_say_that_nothing_was_kept(tmp_path: Path) -> None:
    profile = runs.project_root() / "params" / "smoke.yaml"
    given = {"run_root": str(tmp_path), "min_edit_ratio": "0.99", "max_edit_ratio": "1.0"}
    params = Params.from_yaml(profile, given)
    for name in (params.train_dataset, *params.test_datasets):
        data.build(name, params)
    runner.run(profile, given, ["02", "03"])
    told = [(runner.executed_folder(params) / f"{name}.ipynb").read_text() for name in runner.NOTEBOOKS[1:3]]
    candidates = len(results.funnel(params))
    assert f"0 of {candidates} candidates were kept" in told[0]
    assert "0 of 0 counterfactuals are explained" in told[1]


def test_the_shipped_recording_replays_the_default_study(tmp_path):
    offline, recorded = (Params(teacher=who, run_root=str(tmp_path / who)) for who in ("offline", "recorded"))
    made = []
    for params in (offline, recorded):
        data.build(params.train_dataset, params)
        counterfactual.build(params)
        made.append(rationale.build(params))
    for name in ("rationales.train.jsonl", "ledger.csv"):
        assert (made[0].path / name).read_bytes() == (made[1].path / name).read_bytes()
