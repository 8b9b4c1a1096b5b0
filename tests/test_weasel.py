import json
import math
import re
from collections import Counter

import pytest

from cfdistill import data
from cfdistill.data import weasel
from cfdistill.errors import DataError
from cfdistill.params import Params

SPLITS = ("train", "validation", *weasel.TEST_SPLITS)
COUNTS = dict(zip(weasel.FORMATS, [(246, 5, 5), (100, 2, 2), (100, 8, 4), (100, 4, 4)], strict=True))

ALL_OF_IT = {"train_scenes": 0, "train_questions": 100, "test_questions": 10_000, "new_questions": 10_000}


@pytest.mark.parametrize("format", weasel.FORMATS)
def test_scene_bank_follows_its_own_rules(format):
    (count, options, answerable), scenes = COUNTS[format], weasel.load_scenes(format)
    assert len(scenes) == len({s.id for s in scenes}) == count
    for scene in scenes:
        assert len(set(scene.options)) == options, scene.id
        assert len(scene.cues) == len(scene.why) == len(scene.why_not) == answerable, scene.id
        assert scene.stereotype < answerable, scene.id
        assert all(frame.count("{cue}") == 1 for frame in scene.frames), scene.id
        assert len({cue for pair in scene.cues for cue in pair}) == 2 * answerable, scene.id
        for right, row in enumerate(scene.why_not):
            assert [wrong is None for wrong in row] == [i == right for i in range(options)], scene.id
        if format != "qualitative":  # its two options are the two things compared
            frames = " ".join(scene.frames).lower()
            assert not any(re.search(rf"\b{re.escape(o.lower())}\b", frames) for o in scene.options), scene.id


@pytest.mark.parametrize("name", [f"weasel-{format}" for format in weasel.FORMATS])
@pytest.mark.parametrize("data_seed", [0, 1, 2])
def test_no_test_wording_nor_held_out_variant_is_trained_on_and_new_scenes_are_never_seen(name, data_seed):
    questions = {s: data.load(name, s, Params(data_seed=data_seed, **ALL_OF_IT)) for s in SPLITS}
    stems = {split: {q.stem for q in questions[split]} for split in SPLITS}
    assert stems["train"].isdisjoint(stems["validation"])
    for split in weasel.TEST_SPLITS:
        assert (stems["train"] | stems["validation"]).isdisjoint(stems[split]), split
    # Counterfactuals keep their original's frame, and test frames are never an original's.
    assert {q.id.split(".")[1] for q in questions["train"]} <= {"f0", "f1"}
    scenes = {split: {q.scene for q in questions[split]} for split in SPLITS}
    assert scenes.pop("new").isdisjoint(set.union(*scenes.values()))
    assert scenes["shift"] >= scenes["train"]
    # Variants that are held out are never targets nor trained on.
    heldout = {(q.scene, q.options[q.answer]) for q in questions["shift"] if q.subset == "heldout"}
    assert bool(heldout) == (name != "weasel-qualitative")  # two options leave nothing to hold out
    for q in (q for split in ("train", "validation", "id") for q in questions[split]):
        assert heldout.isdisjoint((q.scene, q.options[i]) for i in (q.answer, *q.targets))
        assert q.answer not in (q.targets or (q.answer,))


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 1.0])
def test_stereotype_guesser_scores_what_spurious_rate_says(rate):
    for split in ("train", "validation", "id", "shift"):
        questions = data.load("weasel-commonsense", split, Params(spurious_rate=rate))
        right = sum(q.stereotype == q.answer for q in questions)
        assert right == (0 if split == "shift" else round(rate * len(questions))), split


def test_tests_show_cues_that_training_does_not():
    params = Params()
    asked = {split: data.load("weasel-commonsense", split, params) for split in weasel.REACHING}
    others = [q for split in ("more", "balanced") for q in asked[split] if q.subset != "stereotype"]
    shown = {(q.scene, q.options[q.answer], q.cue) for q in [*asked["train"], *others]}
    for split in ("id", "shift"):
        assert shown.isdisjoint((q.scene, q.options[q.answer], q.cue) for q in asked[split]), split
    stereotypes = {(q.scene, q.cue) for q in asked["id"] if q.subset == "stereotype"}
    again = {split: {(q.scene, q.cue) for q in asked[split]} & stereotypes for split in ("more", "balanced")}
    assert not again["balanced"]
    assert len(again["more"]) < 30  # of 108: there are too few wordings to leave out all
    stems = {split: {q.stem for q in asked[split]} for split in ("train", "more")}
    assert len(stems["more"]) == 240
    assert stems["more"].isdisjoint(stems["train"])
    balanced = asked["balanced"]
    assert len({q.scene for q in balanced}) == len(balanced) == 120  # no two questions of one scene
    share = 108 / (120 + 228)  # of stereotypes among originals and rewrites
    assert sum(q.subset == "stereotype" for q in balanced) == round(120 * share)
    held_out = {q.scene for q in asked["development"]}
    trained = {q.scene for split in ("train", "validation", "more", "balanced") for q in asked[split]}
    assert held_out.isdisjoint(trained | {q.scene for q in asked["new"]})


def test_unseen_answers_are_all_asked_once_before_one_is_asked_under_its_other_cue():
    asked = data.load("weasel-science", "new", Params(new_questions=10_000))
    answers = [(q.scene, q.options[q.answer]) for q in asked]
    half = len(answers) // 2
    assert set(answers[:half]) == set(answers[half:])
    assert len(set(answers)) == half
    assert len({q.stem for q in asked}) == 2 * half == 216


def test_scenes_of_ones_own_are_all_unseen_and_a_bad_one_is_one_sentence(tmp_path):
    rows = [json.loads(line) for line in (weasel.BANK / "science.jsonl").read_text().splitlines()[:3]]
    lines = [json.dumps(row | {"frames": [f"Own {frame}" for frame in row["frames"]]}) for row in rows]
    path = tmp_path / "scenes.jsonl"
    params = Params(scene_bank=str(path), test_datasets=["weasel-user"])
    path.write_text("\n".join(lines))
    asked = data.load("weasel-user", "new", params)
    assert (len(asked), len({q.scene for q in asked})) == (3 * 4 * 2, 3)
    assert {q.subset for q in asked} == {"", "stereotype"}
    before = data.facts("weasel-user", params)
    path.write_text("\n".join(lines[:2]))
    assert data.facts("weasel-user", params) != before
    for change, told in (
        ({"cues": rows[0]["cues"][:1]}, r"scenes\.jsonl, line 1: .*need one entry for each answer"),
        ({"frames": ["no slot"] * 3}, r"scenes\.jsonl, line 1: .*three frames, each with one"),
        ({"options": "four"}, r"scenes\.jsonl, line 1: .*no valid Scene"),
        ({"options": ["sand", "clay", "chalk", "Sand"]}, "two of its options are equal"),
        ({"frames": rows[0]["frames"]}, "scene ar-001 stands in the shipped bank, too"),
    ):
        path.write_text(json.dumps(json.loads(lines[0]) | change))
        with pytest.raises(DataError, match=told):
            data.load("weasel-user", "new", params)
    path.unlink()
    with pytest.raises(DataError, match="weasel-user needs scene_bank"):
        data.load("weasel-user", "new", params)


def test_test_answers_are_spread_evenly():
    shift = data.load("weasel-commonsense", "shift", Params(**ALL_OF_IT))
    scenes, letters = Counter(q.scene for q in shift), Counter(q.answer for q in shift)
    assert set(scenes.values()) == {4}
    assert Counter(q.subset for q in shift) == {"reachable": 2 * len(scenes), "heldout": 2 * len(scenes)}
    assert max(letters.values()) < 1.5 * min(letters.values())


def test_sampling_is_seeded_and_what_cannot_be_sampled_is_one_sentence():
    params = [Params(data_seed=seed, train_scenes=60, train_questions=60) for seed in (0, 0, 1)]
    first, again, other = (data.load("weasel-science", "train", own) for own in params)
    assert first == again != other
    drawn = ["ar-093.f0.v2.c0", "ar-048.f1.v1.c1", "ar-058.f0.v3.c0"]
    assert [q.id for q in first[:3]] == drawn  # for good: recorded answers hang on it
    with pytest.raises(DataError, match="has no split 'tset'; it has train"):
        data.load("weasel-science", "tset", Params())
    with pytest.raises(DataError, match=r"train: 5 scenes supply 20 of the 27 questions wanted"):
        data.load("weasel-science", "train", Params(train_scenes=5, train_questions=30))


def test_cue_stands_in_the_stem_and_decides_and_gets_a_capital_where_a_sentence_starts():
    for q in data.load("weasel-commonsense", "new", Params()):
        assert q.cue.lower() in q.stem.lower()
        assert weasel.makes_right(q.id, q.options[q.answer], q.cue.capitalize()) == 1.0
        assert weasel.makes_right(q.id, q.options[q.answer - 1], q.cue) == 0.0
    assert math.isnan(weasel.makes_right("csqa-row", "barn", "a hen"))
    for before, cue in (("", "A dog"), ("Look. ", "Look. A dog"), ("If ", "If a dog")):
        assert weasel.fill_slot(f"{before}{{}} ran.", "{}", "a dog") == f"{cue} ran."
