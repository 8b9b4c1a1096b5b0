"""The `weasel` testbed: questions whose causal words, lures and counterfactuals are known."""

import hashlib
import json
import random
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cfdistill.errors import DataError
from cfdistill.files import sha256
from cfdistill.params import Params
from cfdistill.schema import Question

BANK = Path(__file__).with_name("scenes")
FORMATS = ("commonsense", "qualitative", "composition", "science")
TEST_SPLITS = ("id", "shift", "new")
TRAIN_FRAMES, TEST_FRAME = (0, 1), 2  # no wording of a test question is ever trained on
REACHING = {  # the parameters that change a split, beside data_seed
    "train": ("train_scenes", "spurious_rate", "train_questions"),
    "validation": ("train_scenes", "spurious_rate", "train_questions", "validation_questions"),
    "id": ("train_scenes", "spurious_rate", "test_questions"),
    "shift": ("train_scenes", "test_questions"),
    "new": ("new_questions",),
}


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
        others = (v for v in range(len(self.cues)) if v != self.stereotype)
        variants = sorted(others, key=lambda v: _hash(f"{self.id}/{v}"))
        return sorted(variants[: (len(variants) + 1) // 2])


class Pick(NamedTuple):
    """The surface form of one question: which frame, which answer, which of its two cues."""

    scene: Scene
    frame: int
    variant: int
    cue: int


def load_scenes(format: str) -> tuple[Scene, ...]:
    """Return all scenes of one of FORMATS."""
    path = BANK / f"{format}.jsonl"
    return _read_scenes(path, sha256(path))


@cache
def _read_scenes(path: Path, digest: str) -> tuple[Scene, ...]:
    return tuple(Scene(**json.loads(line)) for line in path.read_text(encoding="utf-8").splitlines())


def bank_hash(formats: Sequence[str] = FORMATS) -> str:
    """Return the SHA-256 of the bank's files of these formats, one after the other."""
    return hashlib.sha256(b"".join((BANK / f"{name}.jsonl").read_bytes() for name in formats)).hexdigest()


def makes_right(question_id: str, option: str, words: str) -> float:
    """Return 1.0 if the words are a cue for the option in the question's scene, else 0.0; NaN: no scene."""
    for scene in (scene for format in FORMATS for scene in load_scenes(format)):
        if scene.id == question_id.partition(".")[0]:
            return float(words.lower() in map(str.lower, scene.cues[scene.options.index(option)]))
    return float("nan")


def fill_slot(text: str, slot: str, words: str) -> str:
    """Put words into a slot, with a capital where the slot opens a sentence."""
    before = text.partition(slot)[0].rstrip()
    opens = not before or before[-1] in ".?!"
    return text.replace(slot, words[:1].upper() + words[1:] if opens else words, 1)


def facts(name: str, splits: Sequence[str], params: Params) -> dict[str, Any]:
    """Return what reaches these splits: the parameters that change them, and the scenes by content."""
    names = {"data_seed", *(parameter for split in splits for parameter in REACHING[split])}
    return {"bank": bank_hash([name.removeprefix("weasel-")]), **params.model_dump(include=names)}


def load(name: str, split: str, params: Params) -> list[Question]:
    """Sample a split of `weasel-<format>`; docs/data.md says what each split is for."""
    if split not in REACHING:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(REACHING)}")
    return [make_question(name, split, pick, params.data_seed) for pick in _picks(name, split, params)]


def seen_scenes(name: str, params: Params) -> list[Scene]:
    """Return the seen scenes that a study trains on: `train_scenes` of them, drawn by `data_seed`."""
    seen = [scene for scene in load_scenes(name.removeprefix("weasel-")) if scene.is_seen()]
    random.Random(f"{params.data_seed}/{name}").shuffle(seen)
    return seen[: params.train_scenes or None]


def _picks(name: str, split: str, params: Params) -> list[Pick]:
    """Draw the surface forms of a split."""
    label, seen = f"{name}.{split}", seen_scenes(name, params)
    if split == "new":
        unseen = [scene for scene in load_scenes(name.removeprefix("weasel-")) if not scene.is_seen()]
        return _uniform_picks(label, unseen, params.data_seed, params.new_questions)
    if split == "shift":
        return _uniform_picks(label, seen, params.data_seed, params.test_questions)
    if split == "id":
        wanted = min(params.test_questions, 2 * len(seen))  # a scene has two cues for its stereotype
        return _mixed_picks(label, seen, params, wanted, (TEST_FRAME,), [])
    used = _picks(name, "train", params) if split == "validation" else []
    wanted = params.validation_questions if split == "validation" else params.train_questions
    return _mixed_picks(label, seen, params, wanted, TRAIN_FRAMES, used)


def _mixed_picks(
    label: str, scenes: list[Scene], params: Params, wanted: int, frames: Sequence[int], used: list[Pick]
) -> list[Pick]:
    """Draw questions, `spurious_rate` of them with the stereotype as answer; scenes take turns."""
    rng = random.Random(f"{params.data_seed}/{label}")
    picks: list[Pick] = []
    stereotypes = round(params.spurious_rate * wanted)
    for kind, count in (("", stereotypes), ("not ", wanted - stereotypes)):
        left = {}
        for scene in scenes:
            variants = scene.reachable() if kind else [scene.stereotype]
            wordings = (Pick(scene, f, v, c) for f in frames for v in variants for c in range(2))
            left[scene] = [pick for pick in wordings if pick not in used]
            rng.shuffle(left[scene])
        turns = [scene for scene in scenes if left[scene]]
        rng.shuffle(turns)
        chosen: list[Pick] = []
        while turns and len(chosen) < count:
            chosen += [left[scene].pop() for scene in turns[: count - len(chosen)]]
            turns = [scene for scene in turns if left[scene]]
        if len(chosen) < count:
            told = f"{label}: {len(scenes)} scenes supply {len(chosen)} of the {count} questions wanted"
            raise DataError(f"{told} whose answer is {kind}the stereotype; raise train_scenes")
        picks += chosen
    rng.shuffle(picks)
    return picks


def _uniform_picks(label: str, scenes: list[Scene], seed: int, wanted: int) -> list[Pick]:
    """Draw test questions with any answer equally often, but never the stereotype of a seen scene."""
    rng = random.Random(f"{seed}/{label}")
    pools = [(s, [v for v in range(len(s.cues)) if v != s.stereotype or not s.is_seen()]) for s in scenes]
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
    subset = ("reachable" if variant in scene.reachable() else "heldout") if scene.is_seen() else ""
    targets = [v for v in scene.reachable() if v != variant] or [scene.stereotype]  # with two options: back
    return Question(
        id=question_id,
        dataset=name,
        split=split,
        stem=scene.stem(frame, variant, cue),
        options=tuple(scene.options[i] for i in order),
        answer=order.index(variant),
        targets=tuple(sorted(order.index(v) for v in targets)),
        scene=scene.id,
        cue=scene.cues[variant][cue],
        stereotype=order.index(scene.stereotype),
        subset="stereotype" if variant == scene.stereotype else subset,
    )


def _hash(text: str) -> int:
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)
