"""What training has shown of a test question, from nearly all of it to nothing (our choice of steps)."""

from collections.abc import Iterable, Sequence

from cfdistill.schema import Question, bare, option_key

# this cue with this answer; this answer with another cue; its scene; its data set's format; nothing of it
STEPS = ("cue", "answer", "cause", "scene", "format")


def novelty(tested: Iterable[Question], trained: Sequence[Question]) -> dict[tuple[str, str], str]:
    """Return the first of STEPS that is new to training, by data set and id; "" where scenes are unknown."""
    shown: dict[str, list[Question]] = {}
    for question in trained:
        shown.setdefault(question.scene, []).append(question)
    return {(q.dataset, q.id): _step(q, trained[0].dataset, shown) for q in tested}


def _step(question: Question, trained_on: str, shown: dict[str, list[Question]]) -> str:
    if question.dataset == "weasel-user":  # scenes of one's own
        return "scene"
    if question.dataset != trained_on:
        return "format"
    if not question.scene:
        return ""
    if question.scene not in shown:
        return "scene"
    same = [q for q in shown[question.scene] if _answer(q) == _answer(question)]
    if any(question.cue and _plain(question.cue) in _plain(q.stem) for q in same):
        return "cue"
    return "answer" if same else "cause"


def _answer(question: Question) -> str:
    return option_key(question.options[question.answer])


def _plain(text: str) -> str:
    return bare(text).casefold()
