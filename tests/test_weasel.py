"""The testbed keeps its promises: which text, which answers, in which split."""

import math
import re
from collections import Counter

import pytest

from cfdistill import data
from cfdistill.data import weasel
from cfdistill.errors import DataError
from cfdistill.params import Params

NAMES = [f"weasel-{format}" for format in weasel.FORMATS]
SPLITS = ("train", "validation", *weasel.TEST_SPLITS)
SIZES = {
    "commonsense": (246, 5, 5),
    "qualitative": (100, 2, 2),
    "composition": (100, 8, 4),
    "science": (100, 4, 4),
}


def stereotype_guesser(questions):
    return [q.stereotype for q in questions]


@pytest.mark.parametrize("format", weasel.FORMATS)
def test_scene_bank_follows_its_own_rules(format):
    count, options, answerable = SIZES[format]
    scenes = weasel.load_scenes(format)
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


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("data_seed", [0, 1, 2])
def test_no_test_wording_is_trained_on(name, data_seed):
    params = Params(
        data_seed=data_seed, train_scenes=0, train_questions=100, test_questions=10_000, new_questions=10_000
    )
    stems = {split: {q.stem for q in data.load(name, split, params)} for split in SPLITS}
    trained = stems["train"] | stems["validation"]
    assert stems["train"].isdisjoint(stems["validation"])
    for split in weasel.TEST_SPLITS:
        assert trained.isdisjoint(stems[split]), split
    # Counterfactuals keep their original's frame, and test frames are never an original's.
    assert {q.id.split(".")[1] for q in data.load(name, "train", params)} <= {"f0", "f1"}


@pytest.mark.parametrize("name", NAMES)
def test_new_scenes_are_never_seen(name):
    params = Params(train_scenes=0, test_questions=10_000, new_questions=10_000)
    scenes = {split: {q.scene for q in data.load(name, split, params)} for split in SPLITS}
    assert scenes["new"].isdisjoint(scenes["train"] | scenes["validation"] | scenes["id"] | scenes["shift"])
    assert scenes["shift"] >= scenes["train"]


@pytest.mark.parametrize("name", NAMES)
def test_held_out_variants_are_never_targets_nor_trained(name):
    params = Params(train_scenes=0, train_questions=120, test_questions=10_000, new_questions=10_000)
    heldout = {
        (q.scene, q.options[q.answer]) for q in data.load(name, "shift", params) if q.subset == "heldout"
    }
    assert bool(heldout) == (name != "weasel-qualitative")  # two options leave nothing to hold out
    for split in ("train", "validation", "id"):
        for q in data.load(name, split, params):
            shown = {(q.scene, q.options[i]) for i in (q.answer, *q.targets)}
            assert shown.isdisjoint(heldout)
            assert q.targets
            assert q.answer not in q.targets


@pytest.mark.parametrize("rate", [0.0, 0.5, 0.9, 1.0])
def test_stereotype_guesser_scores_what_spurious_rate_says(rate):
    params = Params(spurious_rate=rate)
    for split in ("train", "validation", "id"):
        questions = data.load("weasel-commonsense", split, params)
        right = sum(g == q.answer for g, q in zip(stereotype_guesser(questions), questions, strict=True))
        assert right == round(rate * len(questions)), split
    shift = data.load("weasel-commonsense", "shift", params)
    assert all(guess != q.answer for guess, q in zip(stereotype_guesser(shift), shift, strict=True))


def test_test_answers_are_spread_evenly():
    params = Params(train_scenes=0, test_questions=10_000)
    shift = data.load("weasel-commonsense", "shift", params)
    per_scene = Counter(q.scene for q in shift)
    assert set(per_scene.values()) == {4}
    assert Counter(q.subset for q in shift) == {
        "reachable": 2 * len(per_scene),
        "heldout": 2 * len(per_scene),
    }
    letters = Counter(q.answer for q in shift)
    assert max(letters.values()) < 1.5 * min(letters.values())


def test_sampling_is_seeded():
    first, again = (data.load("weasel-science", "id", Params()) for _ in range(2))
    assert first == again
    assert first != data.load("weasel-science", "id", Params(data_seed=1))


def test_cue_stands_in_the_stem_and_decides():
    for q in data.load("weasel-commonsense", "new", Params()):
        assert q.cue.lower() in q.stem.lower()
        scene = next(s for s in weasel.load_scenes("commonsense") if s.id == q.scene)
        assert q.cue in scene.cues[scene.options.index(q.options[q.answer])]


def test_slot_at_the_start_of_a_sentence_gets_a_capital():
    assert weasel.fill_slot("{cue} ran.", "{cue}", "a dog") == "A dog ran."
    assert weasel.fill_slot("Look. {cue} ran.", "{cue}", "a dog") == "Look. A dog ran."
    assert weasel.fill_slot("When {cue} ran", "{cue}", "a dog") == "When a dog ran"


def test_unknown_split_is_one_sentence():
    with pytest.raises(DataError, match="has no split 'tset'; it has train"):
        data.load("weasel-science", "tset", Params())


def test_the_bank_knows_which_words_make_an_option_right():
    scene = weasel.load_scenes("science")[0]
    assert weasel.makes_right(f"{scene.id}.f0.v0.c0", scene.options[1], scene.cues[1][0].capitalize()) == 1.0
    assert weasel.makes_right(f"{scene.id}.f0.v0.c0", scene.options[1], scene.cues[0][0]) == 0.0
    assert math.isnan(weasel.makes_right("csqa-row", "barn", "a hen"))


def test_more_questions_than_wordings_is_one_sentence():
    with pytest.raises(DataError, match=r"train: 5 scenes supply 20 of the 27 questions wanted"):
        data.load("weasel-science", "train", Params(train_scenes=5, train_questions=30))


def test_weasel_all_is_the_four_mini_benchmarks_together():
    params = Params(train_dataset="weasel-all")
    for split in SPLITS:
        together = data.load("weasel-all", split, params)
        alone = [q for name in NAMES for q in data.load(name, split, params)]
        assert [q.id for q in together] == [q.id for q in alone]
        assert {q.dataset for q in together} == {"weasel-all"}
    assert data.test_splits("weasel-science", params) == weasel.TEST_SPLITS
    assert data.stage("weasel-science", params) == data.stage("weasel-science", Params())
