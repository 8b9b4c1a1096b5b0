"""The `weasel` testbed: questions whose causal words, lures and counterfactuals are known.

A scene (see `scenes/README.md`) has a topic that suggests one option, its stereotype, and cues that
decide the answer. Swapping the cue flips the answer. `spurious_rate` sets how often the stereotype is
right in training; the test splits then break that correlation.
"""

from __future__ import annotations

import hashlib
import json
import random
from dataclasses import dataclass, replace
from functools import cache
from importlib.resources import files
from typing import NamedTuple

from cfdistill.errors import DataError
from cfdistill.params import Params
from cfdistill.schema import Question

FORMATS = ("commonsense", "qualitative", "composition", "science")
ALL = "weasel-all"  # the four together, for joint training
TEST_SPLITS = ("id", "shift", "new")
TRAIN_FRAMES, TEST_FRAME = (0, 1), 2  # no wording of a test question is ever trained on


@dataclass(frozen=True, eq=False)  # scenes are compared by identity
class Scene:
    """One line of the scene bank; `scenes/README.md` explains the fields."""

    id: str
    format: str
    topic: str
    options: list[str]
    stereotype: int
    frames: list[str]
    cues: list[list[str]]
    why: list[str]
    why_not: list[list[str | None]]

    def stem(self, frame: int, variant: int, cue: int) -> str:
        """Return the question text in which the cue decides for option `variant`."""
        return fill_slot(self.frames[frame], "{cue}", self.cues[variant][cue])

    def is_seen(self) -> bool:
        """Tell whether the scene is among the 70 % that training may use (a fixed hash decides)."""
        return _hash(self.id) % 10 < 7

    def reachable(self) -> list[int]:
        """Return the non-stereotype variants that counterfactuals may show; the rest is held out."""
        variants = [v for v in range(len(self.cues)) if v != self.stereotype]
        variants.sort(key=lambda v: _hash(f"{self.id}/{v}"))
        return sorted(variants[: (len(variants) + 1) // 2])


def makes_right(question_id: str, option: str, words: str) -> float:
    """Tell by the scene bank whether words put into a question's slot make an option right.

    Returns:
        1.0 if they are one of the option's cues, 0.0 if not, NaN if the question is no testbed's.
    """
    scenes = {s.id: s for format in FORMATS for s in load_scenes(format)}
    scene = scenes.get(question_id.partition(".")[0])
    if scene is None:
        return float("nan")
    return float(words.lower() in (cue.lower() for cue in scene.cues[scene.options.index(option)]))


def fill_slot(text: str, slot: str, words: str) -> str:
    """Put words into a slot, with a capital where the slot opens a sentence."""
    before = text.partition(slot)[0].rstrip()
    if not before or before[-1] in ".?!":
        words = words[:1].upper() + words[1:]
    return text.replace(slot, words, 1)


@cache
def load_scenes(format: str) -> tuple[Scene, ...]:
    """Return all scenes of one format ("commonsense", "qualitative", "composition", "science")."""
    text = files("cfdistill.data").joinpath(f"scenes/{format}.jsonl").read_text(encoding="utf-8")
    return tuple(Scene(**json.loads(line)) for line in text.splitlines())


def load(name: str, split: str, params: Params) -> list[Question]:
    """Sample one split of `weasel-<format>`.

    Splits: `train` and `validation` (seen scenes, training wordings, spurious_rate ρ), `id` (seen
    scenes, test wording, same ρ), `shift` (seen scenes, test wording, answers uniform over the
    non-stereotype variants), `new` (unseen scenes, answers uniform over all variants). `weasel-all`
    puts the four formats together, each with as many scenes and questions as it has alone.

    Raises:
        DataError: the split is unknown, or the scenes cannot supply the questions asked for.
    """
    if name == ALL:
        parts = [load(f"weasel-{format}", split, params) for format in FORMATS]
        return [replace(question, dataset=ALL) for part in parts for question in part]
    seen = seen_scenes(name, params)
    if split == "train":
        picks = _train_picks(name, seen, params)
    elif split == "validation":
        used = set(_train_picks(name, seen, params))
        picks = _mixed_picks(f"{name}.{split}", seen, params, params.validation_questions, TRAIN_FRAMES, used)
    elif split == "id":
        wanted = min(params.test_questions, 2 * len(seen))  # a scene has two cues for its stereotype
        picks = _mixed_picks(f"{name}.{split}", seen, params, wanted, (TEST_FRAME,), set())
    elif split == "shift":
        pools = [(s, [v for v in range(len(s.cues)) if v != s.stereotype]) for s in seen]
        picks = _uniform_picks(f"{name}.{split}", pools, params.data_seed, params.test_questions)
    elif split == "new":
        pools = [(s, list(range(len(s.cues)))) for s in load_scenes(_format(name)) if not s.is_seen()]
        picks = _uniform_picks(f"{name}.{split}", pools, params.data_seed, params.new_questions)
    else:
        raise DataError(f"{name} has no split {split!r}; it has train, validation, {', '.join(TEST_SPLITS)}")
    return [make_question(name, split, pick, params.data_seed) for pick in picks]


def seen_scenes(name: str, params: Params) -> list[Scene]:
    """Return the seen scenes that a study trains on: `train_scenes` of them, drawn by `data_seed`."""
    seen = [scene for scene in load_scenes(_format(name)) if scene.is_seen()]
    random.Random(f"{params.data_seed}/{name}").shuffle(seen)
    return seen[: params.train_scenes or None]


class Pick(NamedTuple):
    """The surface form of one question: which frame, which answer, which of its two cues."""

    scene: Scene
    frame: int
    variant: int
    cue: int


def _train_picks(name: str, seen: list[Scene], params: Params) -> list[Pick]:
    return _mixed_picks(f"{name}.train", seen, params, params.train_questions, TRAIN_FRAMES, set())


def _mixed_picks(
    label: str, scenes: list[Scene], params: Params, wanted: int, frames: tuple[int, ...], used: set[Pick]
) -> list[Pick]:
    """Draw questions of which a share of exactly `spurious_rate` has the stereotype as answer.

    Scenes take turns, so that each appears about equally often. A scene that has run out of the
    wanted kind of wording passes its turn on; too few in all is a DataError.
    """
    rng = random.Random(f"{params.data_seed}/{label}")
    picks: list[Pick] = []
    stereotypes = round(params.spurious_rate * wanted)
    for kind, count in ((True, stereotypes), (False, wanted - stereotypes)):
        left = {scene: _wordings(scene, kind, frames, used, rng) for scene in scenes}
        turns = [scene for scene in scenes if left[scene]]
        rng.shuffle(turns)
        chosen: list[Pick] = []
        while turns and len(chosen) < count:
            chosen += [left[scene].pop() for scene in turns[: count - len(chosen)]]
            turns = [scene for scene in turns if left[scene]]
        if len(chosen) < count:
            raise DataError(
                f"{label}: {len(scenes)} scenes supply {len(chosen)} of the {count} questions wanted whose "
                f"answer is {'' if kind else 'not '}the stereotype; raise train_scenes or ask for fewer"
            )
        picks += chosen
    rng.shuffle(picks)
    return picks


def _wordings(
    scene: Scene, stereotype: bool, frames: tuple[int, ...], used: set[Pick], rng: random.Random
) -> list[Pick]:
    variants = [scene.stereotype] if stereotype else scene.reachable()
    picks = [Pick(scene, f, v, c) for f in frames for v in variants for c in range(2)]
    picks = [pick for pick in picks if pick not in used]
    rng.shuffle(picks)
    return picks


def _uniform_picks(label: str, pools: list[tuple[Scene, list[int]]], seed: int, wanted: int) -> list[Pick]:
    """Draw test questions with answers uniform over each scene's pool; scenes take turns."""
    rng = random.Random(f"{seed}/{label}")
    for _, variants in pools:
        rng.shuffle(variants)
    rounds = [
        Pick(scene, TEST_FRAME, variants[turn], rng.randrange(2))
        for turn in range(max(len(variants) for _, variants in pools))
        for scene, variants in rng.sample(pools, len(pools))
        if turn < len(variants)
    ]
    return rounds[:wanted]


def make_question(name: str, split: str, pick: Pick, seed: int) -> Question:
    """Return the question of a pick, its options shuffled by `seed` and the question's id."""
    scene, frame, variant, cue = pick
    question_id = f"{scene.id}.f{frame}.v{variant}.c{cue}"
    order = list(range(len(scene.options)))
    random.Random(f"{seed}/{question_id}").shuffle(order)
    if variant == scene.stereotype:
        subset = "stereotype"
    elif scene.is_seen():
        subset = "reachable" if variant in scene.reachable() else "heldout"
    else:
        subset = ""
    return Question(
        id=question_id,
        dataset=name,
        split=split,
        stem=scene.stem(frame, variant, cue),
        options=tuple(scene.options[i] for i in order),
        answer=order.index(variant),
        targets=tuple(sorted(order.index(v) for v in _targets(scene, variant))),
        scene=scene.id,
        cue=scene.cues[variant][cue],
        stereotype=order.index(scene.stereotype),
        subset=subset,
    )


def _targets(scene: Scene, variant: int) -> list[int]:
    """Return what a counterfactual may turn to; with two options, back to the stereotype."""
    return [v for v in scene.reachable() if v != variant] or [scene.stereotype]


def _format(name: str) -> str:
    return name.removeprefix("weasel-")


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)
