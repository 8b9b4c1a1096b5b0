"""The `weasel` testbed: questions whose causal words, lures and counterfactuals are known."""

import hashlib
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

from cfdistill.errors import DataError
from cfdistill.files import resolve, sha256
from cfdistill.params import Params
from cfdistill.schema import LETTERS, Question, Record, option_key, read_jsonl

BANK = Path(__file__).with_name("scenes")
FORMATS = ("commonsense", "qualitative", "composition", "science")
USER = "user"  # the format of a reader's own scenes, those of `scene_bank`: all are unseen
TEST_SPLITS = ("id", "shift", "new")
UNSEEN = ("new", "development")  # splits of scenes that training has not
DEVELOPMENT = 0.15  # share of the seen scenes on which recipes are chosen, and nothing is trained
TEST_FRAME = 2  # of 3: no wording of a test question is ever trained on
REACHING = {  # the parameters that change a split, beside data_seed
    "train": ("train_scenes", "spurious_rate", "train_questions"),
    "validation": ("train_scenes", "spurious_rate", "train_questions", "validation_questions"),
    "more": ("train_scenes", "spurious_rate", "train_questions", "counterfactuals_per_question"),
    "balanced": ("train_scenes", "spurious_rate", "train_questions", "counterfactuals_per_question"),
    "id": ("train_scenes", "spurious_rate", "train_questions", "test_questions"),
    "shift": ("train_scenes", "spurious_rate", "train_questions", "test_questions"),
    "new": ("new_questions",),
    "development": ("train_dataset", "new_questions"),
}


@dataclass(frozen=True, eq=False)  # scenes are compared by identity
class Scene(Record):
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

    def __post_init__(self) -> None:
        answers, per_answer = range(len(self.cues)), (self.why, self.why_not)
        if not (2 <= len(self.options) <= len(LETTERS) and self.stereotype in answers):
            raise DataError(f"scene {self.id}: needs 2 to {len(LETTERS)} options and a stereotype with cues")
        if len(set(map(option_key, self.options))) < len(self.options):
            raise DataError(f"scene {self.id}: two of its options are equal")
        if len(self.cues) > len(self.options) or any(len(part) != len(answers) for part in per_answer):
            raise DataError(f"scene {self.id}: cues, why and why_not need one entry for each answer")
        if len(self.frames) != 3 or any(frame.count("{cue}") != 1 for frame in self.frames):
            raise DataError(f"scene {self.id}: needs three frames, each with one {{cue}}")
        if any(len(pair) != 2 or not all(map(str.strip, pair)) for pair in self.cues):
            raise DataError(f"scene {self.id}: needs two cues for each answer")

    def stem(self, frame: int, variant: int, cue: int) -> str:
        """Return the question text in which the cue decides for option `variant`."""
        return fill_slot(self.frames[frame], "{cue}", self.cues[variant][cue])

    def kept_cue(self, variant: int) -> int:
        """Return the cue that is left to tests where training shows none, and the stand-in never writes."""
        return hashed(f"{self.id}/{variant}/cue") % 2

    def is_seen(self) -> bool:
        """Tell whether the scene is among the 70 % that training may use (a fixed hash decides)."""
        return hashed(self.id) % 10 < 7

    def reachable(self) -> list[int]:
        """Return the non-stereotype variants that counterfactuals may show; the rest is held out."""
        others = (v for v in range(len(self.cues)) if v != self.stereotype)
        variants = sorted(others, key=lambda v: hashed(f"{self.id}/{v}"))
        return sorted(variants[: (len(variants) + 1) // 2])


class Pick(NamedTuple):
    """The surface form of one question: which frame, which answer, which of its two cues."""

    scene: Scene
    frame: int
    variant: int
    cue: int


Rule = Callable[[Pick], bool]


def load_scenes(format: str, params: Params | None = None) -> tuple[Scene, ...]:
    """Return all scenes of one of FORMATS, or of the parameter `scene_bank`; DataError if one is none."""
    path = _bank(format, params)
    return _read_scenes(path, sha256(path))


def _bank(format: str, params: Params | None) -> Path:
    if format != USER or params is None:
        return BANK / f"{format}.jsonl"
    path = resolve(params.scene_bank)
    if not params.scene_bank or not path.is_file():
        raise DataError(f"weasel-{USER} needs scene_bank, a JSON Lines file of scenes (docs/data.md)")
    return path


@cache
def _read_scenes(path: Path, digest: str) -> tuple[Scene, ...]:
    return tuple(read_jsonl(path, Scene))


def bank_hash() -> str:
    """Return the SHA-256 of the files of all FORMATS, one after the other."""
    return hashlib.sha256(b"".join((BANK / f"{name}.jsonl").read_bytes() for name in FORMATS)).hexdigest()


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
    bank = sha256(_bank(name.removeprefix("weasel-"), params))
    return {"bank": bank, **params.model_dump(include=names)}


def load(name: str, split: str, params: Params) -> list[Question]:
    """Sample a split of `weasel-<format>`; docs/data.md says what each split is for."""
    if split not in REACHING:
        raise DataError(f"{name} has no split {split!r}; it has {', '.join(REACHING)}")
    draw = _unseen_picks if split in UNSEEN else _seen_picks
    return [make_question(name, split, pick, params.data_seed) for pick in draw(name, split, params)]


def seen_scenes(name: str, params: Params) -> tuple[list[Scene], list[Scene]]:
    """Return the seen scenes as `data_seed` orders them: those for training, and for development."""
    seen = [scene for scene in load_scenes(name.removeprefix("weasel-")) if scene.is_seen()]
    random.Random(f"{params.data_seed}/{name}").shuffle(seen)
    held_out = round(DEVELOPMENT * len(seen))
    return seen[:-held_out], seen[-held_out:]


def _unseen_picks(name: str, split: str, params: Params) -> list[Pick]:
    """Draw questions of unseen scenes: every answer with one of its cues, before any with its other one."""
    scenes: Sequence[Scene] = load_scenes(name.removeprefix("weasel-"), params)
    if name == f"weasel-{USER}":
        shipped = {frame for format in FORMATS for scene in load_scenes(format) for frame in scene.frames}
        if known := [scene.id for scene in scenes if not shipped.isdisjoint(scene.frames)]:
            told = f"{params.scene_bank}: scene {known[0]} stands in the shipped bank, too"
            raise DataError(f"{told}, and may have been trained on; leave it out")
    elif split == "new":
        scenes = [scene for scene in scenes if not scene.is_seen()]
    else:
        every, held_out = seen_scenes(name, params)
        scenes = held_out if name == params.train_dataset else every + held_out
    rng = random.Random(f"{params.data_seed}/{name}.{split}/cues")
    ones = [[Pick(s, TEST_FRAME, v, rng.randrange(2)) for v in range(len(s.cues))] for s in scenes]
    others = [[pick._replace(cue=1 - pick.cue) for pick in own] for own in ones]
    drawn = [pick for own in (ones, others) for pick in _in_turn(f"{name}.{split}", own, params.data_seed)]
    return drawn[: params.new_questions]


def _seen_picks(name: str, split: str, params: Params) -> list[Pick]:
    """Draw questions of scenes that training may use; tests show what it does not."""
    label, (every, _) = f"{name}.{split}", seen_scenes(name, params)
    seen, rewrites = every[: params.train_scenes or None], params.counterfactuals_per_question
    trained = [] if split == "train" else _seen_picks(name, "train", params)
    if split == "shift":
        wordings = [
            [Pick(s, TEST_FRAME, v, test_cue(s, v, trained)) for v in range(len(s.cues)) if v != s.stereotype]
            for s in seen
        ]
        return _in_turn(label, wordings, params.data_seed)[: params.test_questions]

    def fits(pick: Pick) -> bool:  # one wording is not used twice
        if split == "id":
            return pick.frame == TEST_FRAME and is_tested(pick)
        if pick.frame == TEST_FRAME or pick in trained:
            return False
        # there are too few wordings for `more` to leave all stereotypes' cues to tests
        left_to_tests = split == "balanced" or (split == "more" and pick.variant != pick.scene.stereotype)
        return not (left_to_tests and is_tested(pick))

    def is_tested(pick: Pick) -> bool:
        return pick.cue == test_cue(pick.scene, pick.variant, trained)

    scenes, wanted, rate = seen, params.train_questions, params.spurious_rate
    if split == "validation":
        wanted = params.validation_questions
    elif split == "id":
        wanted = min(params.test_questions, len(seen))
    elif split == "more":  # with more questions to pay for, a user would take further scenes, too
        scenes, wanted = every, rewrites * wanted
    elif split == "balanced":  # answers as in cf-distill's training, where two options leave but one target
        targets = [[v for v in p.scene.reachable() if v != p.variant] for p in trained]
        added = sum(min(rewrites, len(own) or 1) for own in targets)
        rate = (sum(p.variant == p.scene.stereotype for p in trained) + targets.count([])) / (wanted + added)
    counts = (round(rate * wanted), wanted - round(rate * wanted))
    last = is_tested if split == "more" else lambda _: False
    return _mixed_picks(label, scenes, params.data_seed, counts, fits, last, apart=split == "balanced")


def test_cue(scene: Scene, variant: int, trained: Sequence[Pick]) -> int:
    """Return the cue of an answer that training leaves to tests; one of both by chance if it shows none."""
    shown = {pick.cue for pick in trained if pick.scene is scene and pick.variant == variant}
    return 1 - min(shown) if len(shown) == 1 else scene.kept_cue(variant)


def _mixed_picks(
    label: str, scenes: list[Scene], seed: int, counts: Sequence[int], fits: Rule, last: Rule, *, apart: bool
) -> list[Pick]:
    """Draw so many questions with the stereotype as answer, and others (`apart`: of other scenes)."""
    rng = random.Random(f"{seed}/{label}")
    picks: list[Pick] = []
    for kind, count in zip(("", "not "), counts, strict=True):
        left, used = {}, {pick.scene for pick in picks}
        for scene in scenes:
            variants = scene.reachable() if kind else [scene.stereotype]
            wordings = (Pick(scene, f, v, c) for f in range(3) for v in variants for c in range(2))
            left[scene] = [pick for pick in wordings if fits(pick)]
            rng.shuffle(left[scene])
            left[scene].sort(key=last, reverse=True)  # drawn from the end
        turns = [scene for scene in scenes if left[scene] and not (apart and scene in used)]
        rng.shuffle(turns)
        chosen: list[Pick] = []
        while turns and len(chosen) < count:
            turns.sort(key=lambda scene: last(left[scene][-1]))
            chosen += [left[scene].pop() for scene in turns[: count - len(chosen)]]
            turns = [scene for scene in turns if left[scene]]
        if len(chosen) < count:
            told = f"{label}: {len(scenes)} scenes supply {len(chosen)} of the {count} questions wanted"
            raise DataError(f"{told} whose answer is {kind}the stereotype; raise train_scenes")
        picks += chosen
    rng.shuffle(picks)
    return picks


def _in_turn(label: str, pools: list[list[Pick]], seed: int) -> list[Pick]:
    """Return one wording of every scene, then the next of every scene, and so on, by chance."""
    rng = random.Random(f"{seed}/{label}")
    for own in pools:
        rng.shuffle(own)
    turns = range(max(map(len, pools), default=0))
    return [own[turn] for turn in turns for own in rng.sample(pools, len(pools)) if turn < len(own)]


def make_question(name: str, split: str, pick: Pick, seed: int) -> Question:
    """Return the question of a pick, its options shuffled by `seed` and the question's id."""
    scene, frame, variant, cue = pick
    question_id = f"{scene.id}.f{frame}.v{variant}.c{cue}"
    order = list(range(len(scene.options)))
    random.Random(f"{seed}/{question_id}").shuffle(order)
    subset = "reachable" if variant in scene.reachable() else "heldout"
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
        subset="stereotype" if variant == scene.stereotype else subset if split not in UNSEEN else "",
    )


def hashed(text: str) -> int:
    """Return the number that a text's SHA-256 is."""
    return int(hashlib.sha256(text.encode()).hexdigest(), 16)
