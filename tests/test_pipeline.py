"""The table of stages: a stage is its inputs' content, whatever the input and wherever it lies."""

import shutil
import sqlite3
from contextlib import closing

import pytest
from studies import changed, write_user_files

from cfdistill import pipeline, store
from cfdistill.data import weasel
from cfdistill.errors import DataError, StageError, TrainingError
from cfdistill.student import models
from cfdistill.teacher import prompts

EDITED = [("user/train.jsonl", b"lost", "data"), ("user/validation.jsonl", b"lost", "data")]
EDITED += [("rationales.jsonl", b"is", "rationales"), ("student/model.safetensors", b"\0\0", "ft-cot")]


def user_study(params, root):
    """Write all files that a study of one's own rows reads into a folder, and return its parameters."""
    models.load(params).save(root / "student")
    places = {"student": str(root / "student"), "teacher_cache": str(root / "cache.sqlite")}
    return changed(params, methods=["ft-cot"], profile=root.name, **write_user_files(root), **places)


def keys(params):
    """Return the key of every stage up to the training, making those before it."""
    made = {
        f"{name} {sorted(part.values())}": pipeline.build(name, params, **part)
        for name in ("data", "counterfactuals", "rationales")
        for part in pipeline.parts(name, params)
    }
    made |= {m: pipeline.locate("training", params, method=m) for m in params.methods}
    return {name: store.key_hash(stage.key) for name, stage in made.items()}


def replace_word(path, old, new):
    content = path.read_bytes()
    assert old in content
    path.write_bytes(content.replace(old, new, 1))


def test_further_questions_are_as_many_as_the_rewrites_and_base_is_not_trained(small_params):
    methods = ["base", "multi-view-more", "ft-cot-balanced", "cf-distill"]
    sizes = {"train_scenes": 12, "train_questions": 10, "validation_questions": 4, "max_steps": 1}
    sizes |= {"methods": methods, "test_datasets": ["weasel-commonsense"]}
    params = changed(small_params, **sizes)
    keys(changed(params, methods=methods[1:]))
    kept, own = pipeline.rewrites(params), pipeline.originals(params)
    more, balanced = (pipeline.originals(params, method) for method in methods[1:3])
    assert more[: len(own)] == own
    assert len(more) == len(own) + len(kept) > len(own)
    assert {q.id for q in balanced} - {q.id for q in own}
    assert pipeline.planned_steps("ft-cot-balanced", params) == pipeline.planned_steps("cf-distill", params)
    assert {r.question_id for r in pipeline.rationales(params, "multi-view-more")} <= {q.id for q in more}
    assert len(pipeline.examples("multi-view-more", params)) > 2 * len(own)
    assert [part["method"] for part in pipeline.parts("training", params)] == methods[1:]
    pipeline.build("evaluation", params, method="base", dataset="weasel-commonsense")
    steps = pipeline.steps(params)
    assert {step for (_, _), step in steps.items()} <= {"cue", "answer", "cause", "scene"}
    tested = [pipeline.questions("weasel-commonsense", split, params) for split in weasel.TEST_SPLITS]
    assert len(steps) == sum(map(len, tested))


@pytest.mark.parametrize(("file", "word", "first_changed"), EDITED)
def test_a_word_edited_in_place_changes_what_reads_it(small_params, tmp_path, file, word, first_changed):
    params = user_study(small_params, tmp_path)
    before = keys(params)
    replace_word(tmp_path / file, word, word[::-1] if word.isalpha() else b"\0\1")
    after = keys(params)
    differ = [name for name in before if before[name] != after[name]]
    assert differ[0].startswith(first_changed)
    assert "ft-cot" in differ


def test_an_edited_prompt_or_scene_bank_remakes_what_it_reaches(small_params, tmp_path, monkeypatch):
    before, load = keys(small_params), prompts.load
    stages = dict.fromkeys(["mask", "fill", "reason"], "counterfactuals []")
    stages |= dict.fromkeys(["positive", "negative"], "rationales []")
    for task, stage in stages.items():
        (role, text), *rest = load(task)
        edited = {task: ((role, f"{text} "), *rest)}
        with monkeypatch.context() as patch:
            patch.setattr(prompts, "load", lambda name, edited=edited: edited.get(name) or load(name))
            assert keys(small_params)[stage] != before[stage]
    bank = shutil.copytree(weasel.BANK, tmp_path / "bank")
    monkeypatch.setattr(weasel, "BANK", bank)
    file = bank / "commonsense.jsonl"
    file.write_bytes(file.read_bytes().replace(b"?", b"??"))  # in every scene
    after = keys(small_params)
    assert {name for name in before if before[name] == after[name]} == {"data ['weasel-science']"}


def test_two_studies_that_differ_in_places_only_share_all(small_params, tmp_path):
    first, second = (user_study(small_params, tmp_path / name) for name in ("one", "two"))
    keys(first)
    with pipeline.locate("training", first, method="ft-cot").draft(first) as draft:
        models.load(first).save(draft.path / "model")  # which was not trained
    for name in ("evaluation", "metrics"):
        for part in pipeline.parts(name, first):
            pipeline.build(name, first, **part)
    for name in pipeline.STAGES:
        for part in pipeline.parts(name, second):
            assert pipeline.find(name, second, **part) == pipeline.locate(name, first, **part)


def test_the_number_format_is_in_the_key_and_auto_is_what_it_resolves_to(small_params, monkeypatch):
    keys(small_params)

    def key(given, processor):
        monkeypatch.setattr(models, "precision", lambda p: p.precision.replace("auto", processor))
        params = changed(small_params, precision=given)
        return store.key_hash(pipeline.locate("training", params, method="ft").key)

    assert key("auto", "bf16") == key("bf16", "fp32") != key("fp32", "bf16") == key("auto", "fp32")


def test_a_test_set_that_was_trained_on_is_refused(small_params, tmp_path):
    params = user_study(small_params, tmp_path)
    train, test = ((tmp_path / "user" / f"{kind}.jsonl").read_text() for kind in ("train", "test"))
    for text in (test + train.splitlines()[0], train):
        (tmp_path / "user" / "test.jsonl").write_text(text)
        pipeline.build("data", params, dataset="user")
        if text != train:
            assert pipeline.overlap("user", params) == ["train0"]
    with pytest.raises(DataError, match="4 of 4"):
        pipeline.overlap("user", params)


def test_controls_learn_from_their_own_rewrites_in_as_many_steps(small_params):
    methods = ["ft-cot", "ft-cot-long", "cf-unfiltered", "cf-random-mask", "cf-distill"]
    params = changed(small_params, methods=methods, teacher_noise=0.4)
    keys(params)
    steps = {method: pipeline.planned_steps(method, params) for method in methods}
    assert steps["ft-cot"] < steps["ft-cot-long"] == steps["cf-distill"]
    assert steps["cf-unfiltered"] == steps["cf-random-mask"] == steps["cf-distill"]
    made = {method: pipeline.rewrites(params, method) for method in methods}
    assert len(made["cf-unfiltered"]) > len(made["cf-distill"])
    masked = {method: {c.masked_stem for c in made[method]} for method in methods}
    assert not masked["cf-random-mask"] & masked["cf-distill"]
    for method in methods[2:]:
        learnt = {e.question_id for e in pipeline.examples(method, params) if e.counterfactual}
        assert learnt
        assert learnt <= {c.question.id for c in made[method]}


def test_rewrites_are_explained_and_rebuilt_ones_anew_and_a_study_without_any_says_so(small_params):
    before = keys(small_params)
    made, kept = pipeline.find("counterfactuals", small_params), pipeline.rewrites(small_params)
    assert {c.question.id for c in kept} <= {r.question_id for r in pipeline.rationales(small_params)}
    shutil.rmtree(made.path)  # rewrites made again must not meet the explanations of the old ones
    with made.draft(small_params) as draft:
        draft.write("counterfactuals.train.jsonl", kept[1:])
    assert store.key_hash(pipeline.locate("rationales", small_params).key) != before["rationales []"]
    with pytest.raises(StageError, match=r"stage rationales is missing .* --only 03"):
        pipeline.locate("training", small_params, method="cf-distill")
    strict = changed(small_params, min_edit_ratio=0.0, max_edit_ratio=0.0, allow_empty=True)
    keys(strict)
    assert pipeline.rewrites(strict) == []
    assert pipeline.find("counterfactuals", strict).manifest()["drops"]["changed too much"]
    assert pipeline.examples("ft-cot", strict)
    with pytest.raises(TrainingError, match="no counterfactuals"):
        pipeline.examples("cf-distill", strict)


def test_answers_changed_in_the_cache_are_never_mixed_with_stages_made_before(small_params):
    keys(small_params)
    with closing(sqlite3.connect(f"{small_params.run_root}/teacher/cache.sqlite")) as db, db:
        key, response = db.execute("SELECT key, response FROM answers WHERE task = 'fill'").fetchone()
        db.execute("UPDATE answers SET response = ? WHERE key = ?", (f"{response} ", key))
    with pytest.raises(StageError, match=r"was made from other answers .*\(1 differ\)"):
        pipeline.build("counterfactuals", small_params)
