"""The stand-in teacher: answers our real prompts from the scene bank, whose texts a language model wrote."""

import json
import random
import re
from collections.abc import Iterator
from typing import Any

import httpx2

from cfdistill.data.weasel import FORMATS, Scene, bank_hash, load_scenes
from cfdistill.params import Params
from cfdistill.schema import answer_text
from cfdistill.teacher import prompts

BASE_URL = "http://offline.invalid/v1"
Place = tuple[Scene, int, str]  # of a question in the scene bank: variant (-1 when masked) and cue as written
ASKED = re.compile(
    r"(?:Question|Masked question): (?P<stem>.*)\nOptions: (?P<options>.*)"
    r"(?:\n(?:Right|New) answer: (?P<told>.*))?"
)


def model_name(params: Params) -> str:
    """Return the stand-in's model name, which names all that its answers depend on."""
    return f"scene-bank-{bank_hash()[:8]}-one-cue-noise{params.teacher_noise:g}-seed{params.data_seed}"


class SceneTeacher:
    """A request handler for `httpx2.MockTransport`, deterministic in (noise, seed, request)."""

    def __init__(self, noise: float, seed: int) -> None:
        self._noise, self._seed = noise, seed
        self._tasks = {prompts.load(task)[0][1]: task for task in prompts.TASKS}  # by instructions
        scenes = [scene for format in FORMATS for scene in load_scenes(format)]
        self._scenes = {tuple(sorted(scene.options)): scene for scene in scenes}  # no two have the same
        self._places = {stem: place for scene in scenes for stem, place in _wordings(scene)}

    def __call__(self, request: httpx2.Request) -> httpx2.Response:
        """Answer a chat-completion request; HTTP 422 for a question that is not in the scene bank."""
        body = json.loads(request.content)
        content = self._answer(body)
        if content is None:
            told = "the offline teacher knows only the weasel testbed; use teacher: live or recorded"
            return httpx2.Response(422, json={"error": {"message": told}})
        # tokens are estimated at four characters each
        sent, written = sum(len(message["content"]) for message in body["messages"]) // 4, len(content) // 4
        usage = {"prompt_tokens": sent, "completion_tokens": written, "total_tokens": sent + written}
        choice = {"index": 0, "finish_reason": "stop", "message": {"role": "assistant", "content": content}}
        head = {"id": "offline", "object": "chat.completion", "created": 0, "model": body["model"]}
        return httpx2.Response(200, json={**head, "choices": [choice], "usage": usage})

    def _answer(self, body: dict[str, Any]) -> str | None:
        task = self._tasks.get(body["messages"][0]["content"])
        asked = ASKED.fullmatch(body["messages"][-1]["content"])
        if task is None or asked is None:
            return None
        options = asked["options"].split("; ")
        rng = random.Random(f"{self._seed}/{task}/{asked[0]}/{body.get('seed', 0)}")
        place = self._places.get(asked["stem"])
        if place is None and task != "mask":
            place = self._rewritten(asked["stem"], options, rng)
        if place is None or sorted(options) != sorted(place[0].options):
            return None
        (scene, variant, cue), errs = place, rng.random() < self._noise
        if task == "mask":
            return json.dumps({"spans": [cue]}) if cue else None
        right = variant if task == "reason" else scene.options.index(asked["told"])
        if right >= len(scene.cues):  # an option that is never right
            return None
        others = [v for v in range(len(scene.cues)) if v != right]
        if task == "fill":
            told = rng.choice(others) if errs else right
            return json.dumps({"fills": [scene.cues[told][1 - scene.kept_cue(told)]]})
        # A careless reasoner falls for the stereotype, or for any other answer where that is right.
        wrong = scene.stereotype if scene.stereotype != right else rng.choice(others)
        return _argue(task, scene, wrong if errs else right, options)

    def _rewritten(self, stem: str, options: list[str], rng: random.Random) -> Place | None:
        """Return the place of a question that was masked or rewritten at random words, None for any other."""
        scene, written = self._scenes.get(tuple(sorted(options))), set(stem.split())
        known = [set(words.split()) for words, (*_, cue) in _wordings(scene) if cue] if scene else []
        if scene is None or not any(len(written & words) >= len(written) / 3 for words in known):
            return None
        # Where it holds the cues of several answers, or of none, one of them decides by chance.
        standing = [v for v, cues in enumerate(scene.cues) if any(c.lower() in stem.lower() for c in cues)]
        return scene, -1 if "[MASK]" in stem else rng.choice(standing or range(len(scene.cues))), ""


def _wordings(scene: Scene) -> Iterator[tuple[str, Place]]:
    """Yield every wording of a scene's question, masked ones included, and where it stands."""
    for frame, text in enumerate(scene.frames):
        yield text.replace("{cue}", "[MASK]"), (scene, -1, "")
        start = text.index("{cue}")
        for variant, cues in enumerate(scene.cues):
            for cue, words in enumerate(cues):
                stem = scene.stem(frame, variant, cue)
                yield stem, (scene, variant, stem[start : start + len(words)])


def _argue(task: str, scene: Scene, variant: int, options: list[str]) -> str:
    """Return the scene bank's case for `variant`, ending in the answer sentence."""
    case = scene.why[variant]
    if task == "negative":
        reasons = dict(zip(scene.options, scene.why_not[variant], strict=True))
        case = " ".join(f"Not {option}: {reasons[option]}." for option in options if reasons[option])
    return f"{case} {answer_text(tuple(options), options.index(scene.options[variant]))}"
