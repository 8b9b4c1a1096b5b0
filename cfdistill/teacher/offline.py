"""The stand-in teacher: answers our real prompts by looking the question up in the scene bank.

It speaks the same protocol as a real endpoint, through an in-process transport, so nothing else in the
project knows the difference. A share `noise` of its fills, reasoning paths and views is wrong, so
that the filters have real work. Its texts were written by a large language model for this project;
its answers are looked up. Results made with it show the method at work, not a teacher's skill.
"""

from __future__ import annotations

import hashlib
import json
import random
import re
from importlib.resources import files
from typing import TYPE_CHECKING, Any, NamedTuple

from cfdistill.data.weasel import FORMATS, Scene, load_scenes
from cfdistill.params import Params
from cfdistill.schema import answer_text
from cfdistill.teacher import prompts

if TYPE_CHECKING:
    import httpx2

BASE_URL = "http://offline.invalid/v1"
ASKED = re.compile(
    r"(?:Question|Masked question): (?P<stem>.*)\nOptions: (?P<options>.*)"
    r"(?:\n(?:Right|New) answer: (?P<told>.*))?"
)


def model_name(params: Params) -> str:
    """Return the stand-in's model name, which names all that its answers depend on."""
    digest = hashlib.sha256()
    for format in FORMATS:
        digest.update(files("cfdistill.data").joinpath(f"scenes/{format}.jsonl").read_bytes())
    return f"scene-bank-{digest.hexdigest()[:8]}-noise{params.teacher_noise:g}-seed{params.data_seed}"


class Place(NamedTuple):
    """Where a question stands in the scene bank; a masked one has no variant."""

    scene: Scene
    frame: int
    variant: int = -1
    cue: int = -1


class UnknownQuestion(LookupError):
    """The request is none of our prompts, or its question is not in the scene bank."""


class SceneTeacher:
    """A request handler for `httpx2.MockTransport`, deterministic in (seed, request).

    Args:
        noise: share of wrong fills, reasoning paths and views, 0 to 1.
        seed: which ones are wrong.
    """

    def __init__(self, noise: float, seed: int) -> None:
        self._noise, self._seed = noise, seed
        self._tasks = {prompts.load(task)[0][1]: task for task in prompts.TASKS}  # by instructions
        self._places: dict[str, Place] = {}
        self._scenes: dict[tuple[str, ...], Scene] = {}  # no two have the same options
        for scene in (scene for format in FORMATS for scene in load_scenes(format)):
            self._scenes[tuple(sorted(scene.options))] = scene
            for frame, text in enumerate(scene.frames):
                self._places[text.replace("{cue}", "[MASK]")] = Place(scene, frame)
                for variant, cues in enumerate(scene.cues):
                    for cue in range(len(cues)):
                        stem = scene.stem(frame, variant, cue)
                        self._places[stem] = Place(scene, frame, variant, cue)

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Answer a chat-completion request; HTTP 422 for a question that is not in the scene bank."""
        import httpx2

        body = json.loads(request.content)
        try:
            content = self._answer(body)
        except UnknownQuestion as error:
            return httpx2.Response(422, json={"error": {"message": str(error)}})
        sent = sum(len(message["content"]) for message in body["messages"])
        return httpx2.Response(200, json=_completion(body["model"], content, sent))

    def _answer(self, body: dict[str, Any]) -> str:
        task = self._tasks.get(body["messages"][0]["content"])
        asked = ASKED.fullmatch(body["messages"][-1]["content"])
        if task is None or asked is None:
            raise UnknownQuestion("this is none of our prompts")
        options = asked["options"].split("; ")
        rng = random.Random(f"{self._seed}/{task}/{asked[0]}/{body['seed']}")
        place = self._places.get(asked["stem"])
        if place is None and task != "mask":
            place = self._rewritten(asked["stem"], options, rng)
        if place is None:
            raise UnknownQuestion("this question is not in the scene bank")
        if sorted(options) != sorted(place.scene.options):
            raise UnknownQuestion("these options do not belong to the question")
        errs = rng.random() < self._noise
        if task == "mask":
            return json.dumps({"spans": [_cue_as_written(place, asked["stem"])]})
        right = place.variant if task == "reason" else _variant(place.scene, asked["told"])
        if task == "fill":
            variant = _other(place.scene, right, rng) if errs else right
            return json.dumps({"fills": [rng.choice(place.scene.cues[variant])]})
        return _argue(task, place.scene, _lure(place.scene, right, rng) if errs else right, options)

    def _rewritten(self, stem: str, options: list[str], rng: random.Random) -> Place | None:
        """Return the place of a question that was masked or rewritten at random words, None for any other.

        It has a scene's options and a third of its words. Where it holds the cues of several answers, or of
        none, one of them decides by chance.
        """
        scene = self._scenes.get(tuple(sorted(options)))
        written = set(stem.split())
        if scene is None or not any(
            len(written & set(scene.stem(frame, variant, cue).split())) >= len(written) / 3
            for frame in range(len(scene.frames))
            for variant, cues in enumerate(scene.cues)
            for cue in range(len(cues))
        ):
            return None
        standing = [v for v, cues in enumerate(scene.cues) if any(c.lower() in stem.lower() for c in cues)]
        return Place(scene, 0, -1 if "[MASK]" in stem else rng.choice(standing or range(len(scene.cues))))


def _variant(scene: Scene, option: str) -> int:
    variant = scene.options.index(option)
    if variant >= len(scene.cues):
        raise UnknownQuestion(f"the scene bank has no question with the answer {option!r}")
    return variant


def _other(scene: Scene, right: int, rng: random.Random) -> int:
    return rng.choice([v for v in range(len(scene.cues)) if v != right])


def _lure(scene: Scene, right: int, rng: random.Random) -> int:
    """Return a wrong answer: the stereotype, as a careless reasoner would say, or any other."""
    return scene.stereotype if scene.stereotype != right else _other(scene, right, rng)


def _cue_as_written(place: Place, stem: str) -> str:
    if place.variant < 0:
        raise UnknownQuestion("this question is masked already")
    start = place.scene.frames[place.frame].index("{cue}")
    return stem[start : start + len(place.scene.cues[place.variant][place.cue])]


def _argue(task: str, scene: Scene, variant: int, options: list[str]) -> str:
    """Return the scene bank's case for `variant`, ending in the answer sentence."""
    case = scene.why[variant]
    if task == "negative":
        reasons = dict(zip(scene.options, scene.why_not[variant], strict=True))
        case = " ".join(f"Not {option}: {reasons[option]}." for option in options if reasons[option])
    return f"{case} {answer_text(tuple(options), options.index(scene.options[variant]))}"


def _completion(model: str, content: str, sent: int) -> dict[str, Any]:
    """Return a chat completion; tokens are estimated at four characters each."""
    usage = {"prompt_tokens": sent // 4, "completion_tokens": len(content) // 4}
    return {
        "id": "offline",
        "object": "chat.completion",
        "created": 0,
        "model": model,
        "choices": [
            {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        ],
        "usage": {**usage, "total_tokens": sum(usage.values())},
    }
