"""The stand-in teacher: answers our real prompts from the scene bank, whose texts a language model wrote."""

import json
import random
import re
from typing import Any

import httpx2

from cfdistill.data.weasel import FORMATS, Scene, bank_hash, load_scenes
from cfdistill.params import Params
from cfdistill.schema import answer_text
from cfdistill.teacher import prompts

BASE_URL = "http://offline.invalid/v1"
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
        options = asked["options"].split("; ") if asked else []
        scene = self._scenes.get(tuple(sorted(options)))
        if task is None or asked is None or scene is None:
            return None
        rng = random.Random(f"{self._seed}/{task}/{asked[0]}/{body.get('seed', 0)}")
        variant, cue = _wordings(scene).get(asked["stem"]) or (_guess(scene, asked["stem"], rng), "")
        errs = rng.random() < self._noise
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
        chosen = wrong if errs else right
        case = scene.why[chosen]
        if task == "negative":
            reasons = dict(zip(scene.options, scene.why_not[chosen], strict=True))
            case = " ".join(f"Not {option}: {reasons[option]}." for option in options if reasons[option])
        return f"{case} {answer_text(tuple(options), options.index(scene.options[chosen]))}"


def _wordings(scene: Scene) -> dict[str, tuple[int, str]]:
    """Return the answer (-1: masked) and the cue as written of every wording of a scene's question."""
    found = {}
    for frame, text in enumerate(scene.frames):
        found[text.replace("{cue}", "[MASK]")] = (-1, "")
        start = text.index("{cue}")
        for variant, cues in enumerate(scene.cues):
            for cue, words in enumerate(cues):
                stem = scene.stem(frame, variant, cue)
                found[stem] = (variant, stem[start : start + len(words)])
    return found


def _guess(scene: Scene, stem: str, rng: random.Random) -> int:
    """Return the answer of a question that was masked (-1) or rewritten at random words."""
    # Where it holds the cues of several answers, or of none, one of them decides by chance.
    standing = [v for v, cues in enumerate(scene.cues) if any(c.lower() in stem.lower() for c in cues)]
    return -1 if "[MASK]" in stem else rng.choice(standing or range(len(scene.cues)))
