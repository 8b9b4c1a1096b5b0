"""Counterfactual questions (paper, Figs. 3 and 4): mask → fill → check → vote → round trip.

A `Candidate` goes through the steps one after the other. Every step takes a list and returns a list of
the same length; a candidate that fails one carries the reason and is left alone from then on. What
is left at the end is kept, and every candidate has a row in the funnel.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any

from cfdistill import data, runs
from cfdistill.data.weasel import fill_slot
from cfdistill.masking import MASK, mask_spans, random_span, words
from cfdistill.params import Params
from cfdistill.schema import Counterfactual, Question, read_answer
from cfdistill.teacher import Teacher, spending
from cfdistill.teacher.answers import NOT_YET, NotYet, ask_twice, read_strings
from cfdistill.teacher.prompts import render
from cfdistill.teacher.spending import Meter

if TYPE_CHECKING:
    import pandas as pd

FUNNEL_COLUMNS = (
    "question_id",
    "target",
    "target_index",
    "masked_span",
    "masked_stem",
    "fill",
    "stem",
    "votes",
    "paths",
    "edit_ratio",
    "verdict",
    "reason",
)
VOTE, ROUND_TRIP = "agreed by vote", "agreed in another order"
FUNNEL_STEPS = ("masked", "filled", "passed checks", VOTE, ROUND_TRIP)


@dataclass(frozen=True)
class Candidate:
    """A counterfactual in the making: the original, the new answer, and what the steps found."""

    original: Question
    target: int  # index of the option that shall become right
    spans: tuple[str, ...] = ()  # causal words, in order of appearance
    masked_stem: str = ""
    fills: tuple[str, ...] = ()
    stem: str = ""  # the rewritten question
    edit_ratio: float = 0.0  # share of words changed, 0 to 1
    votes: int = 0
    paths: int = 0
    reason: str = ""  # why it was dropped; empty while it is in the race

    def question(self) -> Question:
        """Return the counterfactual as a question; its options stand in the original's order."""
        subset = "reachable" if self.target in self.original.targets else ""
        return replace(
            self.original,
            id=f"{self.original.id}.cf{self.target}",
            stem=self.stem,
            answer=self.target,
            targets=tuple(t for t in self.original.targets if t != self.target),
            cue=" … ".join(self.fills),
            subset="stereotype" if self.target == self.original.stereotype else subset,
        )

    def counterfactual(self) -> Counterfactual:
        """Return the record that training reads."""
        return Counterfactual(
            self.question(), self.original.id, self.masked_stem, self.votes, self.paths, self.edit_ratio
        )

    def row(self) -> dict[str, Any]:
        """Return the candidate's row of the funnel, keyed by FUNNEL_COLUMNS."""
        values = asdict(self) | {
            "question_id": self.original.id,
            "target": self.original.options[self.target],
            "target_index": self.target,
            "masked_span": " | ".join(self.spans),
            "fill": " | ".join(self.fills),
            "verdict": "dropped" if self.reason else "kept",
        }
        return {column: values[column] for column in FUNNEL_COLUMNS}


def propose(questions: Iterable[Question], per_question: int) -> list[Candidate]:
    """Choose the target answers: those a scene has used least come first, so that all get their turn.

    Allowed are `question.targets`, or every wrong option when there are none. Ties are broken by a
    hash, which favours no position and no wording. A question that itself holds `[MASK]` is dropped at
    once: its own could not be told from ours.
    """
    used: Counter[tuple[str, str]] = Counter()
    candidates: list[Candidate] = []
    for question in questions:
        scene = question.scene or question.id
        options = question.options
        pool = list(question.targets) or [i for i in range(len(options)) if i != question.answer]
        pool.sort(key=lambda i: (used[scene, options[i]], _hash(f"{scene}/{options[i]}")))
        for target in pool[:per_question]:
            used[scene, options[target]] += 1
            reason = f"{MASK} in the question" if MASK in question.stem else ""
            candidates.append(Candidate(question, target, reason=reason))
    return candidates


def masked(candidates: Sequence[Candidate], params: Params, teacher: Teacher) -> list[Candidate]:
    """Mask the words that the parameter `mask_source` asks for."""
    by_chance = params.mask_source == "random"
    return mask_randomly(candidates, params.data_seed) if by_chance else mask(candidates, teacher)


def mask(candidates: Sequence[Candidate], teacher: Teacher) -> list[Candidate]:
    """Let the teacher name each original's causal words, and mask them (paper, Fig. 3)."""
    live = _live(candidates)
    prompts = [render("mask", c.original.stem, c.original.options, c.original.answer) for c in live]
    replies = ask_twice(teacher, prompts, [partial(_read_mask, c.original.stem) for c in live])
    named = [
        replace(c, reason=f"mask: {reply.reason}")
        if reply.value is None
        else replace(c, spans=reply.value, masked_stem=mask_spans(c.original.stem, reply.value))
        for c, reply in zip(live, replies, strict=True)
    ]
    return _merge(candidates, named)


def mask_randomly(candidates: Sequence[Candidate], seed: int) -> list[Candidate]:
    """Mask a run of words at a random place of each original, a quarter of them (our choice).

    The control for `mask`: it depends on the question and the seed alone, and asks nobody.
    """
    drawn = [
        replace(c, spans=(span,), masked_stem=mask_spans(c.original.stem, [span]))
        if (span := random_span(c.original.stem, seed))
        else replace(c, reason="mask: nothing of the question is left")
        for c in _live(candidates)
    ]
    return _merge(candidates, drawn)


def fill(candidates: Sequence[Candidate], teacher: Teacher) -> list[Candidate]:
    """Let the teacher fill each masked question so that the target becomes right (paper, Fig. 4)."""
    live = _live(candidates)
    prompts = [render("fill", c.masked_stem, c.original.options, c.target) for c in live]
    replies = ask_twice(teacher, prompts, [partial(_read_fills, c.masked_stem) for c in live])
    filled = [
        replace(c, reason=f"fill: {reply.reason}")
        if reply.value is None
        else replace(c, fills=reply.value, stem=fill_masks(c.masked_stem, reply.value))
        for c, reply in zip(live, replies, strict=True)
    ]
    return _merge(candidates, filled)


def fill_masks(masked_stem: str, fills: Sequence[str]) -> str:
    """Put the fills into the masks, in order, with a capital where a mask opens a sentence."""
    for words_ in fills:
        masked_stem = fill_slot(masked_stem, MASK, words_)
    return masked_stem


def check(
    candidates: Sequence[Candidate],
    params: Params,
    training: Iterable[Question],
    held_out: Iterable[Question],
) -> list[Candidate]:
    """Drop what can be seen to be unfit without asking the teacher (our choice of checks).

    Args:
        candidates: filled ones.
        params: bounds of the edit ratio, and whether an answer may leak.
        training: the originals; a counterfactual must not repeat one.
        held_out: validation and test questions; none of them may enter the training data.
    """
    taken = {normalize(question.stem) for question in training}
    forbidden = {normalize(question.stem) for question in held_out}
    checked: list[Candidate] = []
    for c in _live(candidates):
        c = replace(c, edit_ratio=edit_ratio(c.original.stem, c.stem))
        stem = normalize(c.stem)
        if params.leak_check and leaks(c):
            c = replace(c, reason="answer leaked")
        elif c.edit_ratio < params.min_edit_ratio:
            c = replace(c, reason="unchanged")
        elif c.edit_ratio > params.max_edit_ratio:
            c = replace(c, reason="changed too much")
        elif stem in forbidden:
            c = replace(c, reason="held-out question")
        elif stem in taken:
            c = replace(c, reason="duplicate")
        else:
            taken.add(stem)
        checked.append(c)
    return _merge(candidates, checked)


def vote(candidates: Sequence[Candidate], teacher: Teacher, params: Params) -> list[Candidate]:
    """Keep the candidates whose reasoning paths agree on the target (the paper's consistency filter).

    The teacher answers each question `reasoning_paths` times without being told the target; at least
    `vote_threshold` answers must be the target. Numbers are our choice. A threshold of 0 asks nothing
    and keeps everything.
    """
    if not params.vote_threshold:
        return list(candidates)
    live, paths = _live(candidates), params.reasoning_paths
    prompts = [
        render("reason", c.stem, c.original.options, sample=sample) for c in live for sample in range(paths)
    ]
    answers = teacher.ask(prompts)
    voted: list[Candidate] = []
    for i, c in enumerate(live):
        texts = answers[i * paths : (i + 1) * paths]
        votes = sum(read_answer(text, c.original.options) == c.target for text in texts)
        reason = "" if votes >= params.vote_threshold else "too few votes"
        if reason and any(isinstance(text, NotYet) for text in texts):
            reason = f"vote: {NOT_YET}"
        voted.append(replace(c, votes=votes, paths=paths, reason=reason))
    return _merge(candidates, voted)


def round_trip(candidates: Sequence[Candidate], teacher: Teacher, params: Params) -> list[Candidate]:
    """Drop the candidates whose answer depends on the order of the options (our choice; off by default).

    The teacher answers each question once more, with every option in another place.
    """
    if not params.round_trip_check:
        return list(candidates)
    live = _live(candidates)
    orders = [reorder(c.original.options, c.question().id) for c in live]
    answers = teacher.ask([render("reason", c.stem, order) for c, order in zip(live, orders, strict=True)])
    checked: list[Candidate] = []
    for c, order, text in zip(live, orders, answers, strict=True):
        answer, target = read_answer(text, order), order.index(c.original.options[c.target])
        reason = NOT_YET if isinstance(text, NotYet) else "another answer"
        checked.append(c if answer == target else replace(c, reason=f"round trip: {reason}"))
    return _merge(candidates, checked)


def reorder(options: tuple[str, ...], key: str) -> tuple[str, ...]:
    """Turn the options round by a number of places that depends on `key`, so that none stays put."""
    turn = 1 + int(_hash(key), 16) % (len(options) - 1)
    return options[turn:] + options[:turn]


def normalize(text: str) -> str:
    """Return the form in which two questions count as the same: words only, lower case."""
    return " ".join(words(text))


def edit_ratio(before: str, after: str) -> float:
    """Return the word-level Levenshtein distance over the longer text's number of words, 0 to 1."""
    from rapidfuzz.distance import Levenshtein

    return round(float(Levenshtein.normalized_distance(words(before), words(after))), 4)


def leaks(candidate: Candidate) -> bool:
    """Tell whether the rewritten question names the target answer more often than the original did."""
    target = f" {normalize(candidate.original.options[candidate.target])} "
    before, after = (f" {normalize(stem)} " for stem in (candidate.original.stem, candidate.stem))
    return after.count(target) > before.count(target)


def make(params: Params, teacher: Teacher, meter: Meter) -> list[Candidate]:
    """Propose a study's candidates and take them through all steps; the meter notes what each took.

    Raises:
        StageError: the questions are not there yet.
    """
    name = params.train_dataset
    originals = data.questions(name, "train", params)
    held_out = [
        question
        for split in ("validation", *data.test_splits(name, params))
        for question in data.questions(name, split, params)
    ]
    candidates = masked(propose(originals, params.counterfactuals_per_question), params, teacher)
    meter.note("mask")
    candidates = fill(candidates, teacher)
    meter.note("fill")
    candidates = vote(check(candidates, params, originals, held_out), teacher, params)
    meter.note("vote")
    candidates = round_trip(candidates, teacher, params)
    meter.note("round trip")
    return candidates


def finished(params: Params) -> list[runs.Stage]:
    """Return the finished stage in a list, which is empty for a study without counterfactuals.

    Raises:
        StageError: the stage is missing.
    """
    return [runs.require(runs.stage("counterfactuals", params))] if params.has_counterfactuals else []


def read(params: Params) -> list[Counterfactual]:
    """Return what the finished stage kept; nothing for a study without counterfactuals."""
    return [
        c for stage in finished(params) for c in stage.read("counterfactuals.train.jsonl", Counterfactual)
    ]


def build(params: Params) -> runs.Stage:
    """Reuse or make the stage `counterfactuals`.

    Makes `counterfactuals.train.jsonl` (what is kept, which may be nothing), `funnel.csv` (one row per
    candidate) and `cost.csv` (tokens by step).

    Raises:
        StageError: the questions of `train_dataset` are not there yet.
        TeacherError: the teacher cannot answer.
    """
    import pandas as pd

    made = runs.stage("counterfactuals", params)
    if made.is_complete():
        return made
    source = runs.require(data.stage(params.train_dataset, params))
    with Teacher(params) as teacher, made.draft(params, inputs=[source]) as draft:
        meter = Meter(teacher)
        candidates = make(params, teacher, meter)
        draft.drops.update(c.reason for c in candidates if c.reason)
        draft.notes["teacher"] = teacher.summary()
        draft.write("counterfactuals.train.jsonl", [c.counterfactual() for c in _live(candidates)])
        funnel = pd.DataFrame([c.row() for c in candidates], columns=FUNNEL_COLUMNS)
        funnel.to_csv(draft.path / "funnel.csv", index=False)
        spending.write(draft.path, meter.rows)
    return made


def funnel_counts(funnel: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Count what each step of the filter keeps.

    Args:
        funnel: `funnel.csv`, one row per candidate; its column `reason` is empty for kept ones.
        params: which steps there are.

    Returns:
        One row per step with the columns step, left (candidates after it) and drops (by reason).
    """
    import pandas as pd

    asked = {VOTE: params.vote_threshold > 0, ROUND_TRIP: params.round_trip_check}
    reasons = funnel["reason"].fillna("")
    steps = reasons[reasons != ""].map(_step)
    rows, left = [("candidates", len(funnel), "")], len(funnel)
    for step in (step for step in FUNNEL_STEPS if asked.get(step, True)):
        dropped = reasons[steps[steps == step].index].value_counts()
        left -= int(dropped.sum())
        rows.append((step, left, ", ".join(f"{count} {reason}" for reason, count in dropped.items())))
    return pd.DataFrame(rows, columns=["step", "left", "drops"])


def _step(reason: str) -> str:
    """Return the step that drops candidates for this reason."""
    named = {"mask": "masked", "fill": "filled", "too few votes": VOTE, "round trip": ROUND_TRIP}
    return named.get(reason.partition(":")[0], "passed checks")


def _read_mask(stem: str, text: str) -> tuple[str, ...]:
    spans = sorted(read_strings(text, "spans"), key=lambda span: stem.lower().find(span.lower()))
    mask_spans(stem, spans)  # raises when they do not fit
    return tuple(spans)


def _read_fills(masked_stem: str, text: str) -> tuple[str, ...]:
    fills = read_strings(text, "fills")
    if len(fills) != masked_stem.count(MASK) or any(MASK in words_ for words_ in fills):
        raise ValueError("not one text per mask")
    return fills


def _live(candidates: Iterable[Candidate]) -> list[Candidate]:
    return [c for c in candidates if not c.reason]


def _merge(candidates: Iterable[Candidate], stepped: Iterable[Candidate]) -> list[Candidate]:
    """Put the live candidates, after a step, back to where they were."""
    moved = iter(stepped)
    return [c if c.reason else next(moved) for c in candidates]


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
