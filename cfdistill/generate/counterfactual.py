"""Counterfactual questions (paper, Figs. 3 and 4): propose → mask → fill → check → vote, or why not."""

import hashlib
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from cfdistill.data.weasel import fill_slot
from cfdistill.generate.masking import MASK, edit_ratio, find_span, mask_spans, normalize, random_span
from cfdistill.generate.replies import ask, read_strings
from cfdistill.params import Params
from cfdistill.schema import Counterfactual, Question, option_key, read_answer
from cfdistill.teacher import Teacher
from cfdistill.teacher.outcomes import NoAnswer
from cfdistill.teacher.prompts import Prompt, render

MASKED, FILLED, CHECKED, VOTE = "masked", "filled", "passed checks", "agreed by vote"
# the step that drops a candidate, by the first word of the reason; all other reasons are of checks
DROPS = {"target": MASKED, MASK: MASKED, "mask:": MASKED, "fill:": FILLED, "vote:": VOTE, "too": VOTE}
Questions = Sequence[Question]
Read = Callable[..., "Candidate"]  # what the answers make of a candidate; ValueError if they are unfit


@dataclass(frozen=True)
class Candidate:
    """A counterfactual in the making: the original, the new answer, and what the steps found."""

    id: str  # of the rewritten question
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
            id=self.id,
            stem=self.stem,
            answer=self.target,
            targets=tuple(t for t in self.original.targets if t != self.target),
            cue=" … ".join(self.fills),
            subset="stereotype" if self.target == self.original.stereotype else subset,
        )

    def counterfactual(self) -> Counterfactual:
        """Return the record that training reads."""
        found = (self.masked_stem, self.votes, self.paths, self.edit_ratio)
        return Counterfactual(self.question(), self.original.id, *found)


def make(params: Params, teacher: Teacher, originals: Questions, held_out: Questions) -> list[Candidate]:
    """Propose candidates and take them through all steps."""
    candidates = propose(originals, params.counterfactuals_per_question)
    by_chance = params.mask_source == "random"
    candidates = mask_randomly(candidates, params.data_seed) if by_chance else mask(candidates, teacher)
    candidates = fill(candidates, teacher)
    return vote(check(candidates, params, originals, held_out), teacher, params)


def propose(originals: Questions, per_question: int) -> list[Candidate]:
    """Choose the target answers; those a scene has used least come first, so that all get their turn."""
    taken = {question.id for question in originals}
    used: Counter[tuple[str, str]] = Counter()
    candidates: list[Candidate] = []
    for question in originals:
        # only the testbed, which names the targets, asks several questions of one scene
        scene, options = question.scene if question.targets else question.id, question.options
        pool = list(question.targets) or [i for i in range(len(options)) if i != question.answer]
        # ties are broken by a hash, which favours no position and no wording
        ties = [hashlib.sha256(f"{scene}/{option}".encode()).hexdigest() for option in options]
        pool.sort(key=lambda i: (used[scene, options[i]], ties[i]))
        for target in pool[:per_question]:
            used[scene, options[target]] += 1
            name = f"{question.id}.cf{target}"
            while name in taken:  # an original is called like a rewrite
                name += "+"
            taken.add(name)
            candidates.append(Candidate(name, question, target, reason=_unfit(question, target)))
    return candidates


def _unfit(question: Question, target: int) -> str:
    """Return why nothing is asked for a target: a rewrite has one right answer, and no masks but ours."""
    keys = [option_key(option) for option in question.options]
    if MASK in question.stem:
        return f"{MASK} in the question"
    if keys[target] == keys[question.answer]:
        return "target equals the right answer"
    return "target stands twice among the options" if keys.count(keys[target]) > 1 else ""


def mask(candidates: list[Candidate], teacher: Teacher) -> list[Candidate]:
    """Let the teacher name each original's causal words, and mask them (paper, Fig. 3)."""
    prompts = [[render("mask", c.original.stem, c.original.options, c.original.answer)] for c in candidates]

    def read(c: Candidate, text: str) -> Candidate:
        stem = c.original.stem
        found = [(find_span(stem, span), span) for span in read_strings(text, "spans")]
        spans = [span for _, span in sorted((match.start() if match else 0, span) for match, span in found)]
        return replace(c, spans=tuple(spans), masked_stem=mask_spans(stem, spans))

    return _asked("mask", candidates, teacher, prompts, read)


def mask_randomly(candidates: list[Candidate], seed: int) -> list[Candidate]:
    """Mask a quarter of each original's words, at a random place (our choice): the control for `mask`."""

    def draw(c: Candidate) -> Candidate:
        if span := random_span(c.original.stem, seed):
            return replace(c, spans=(span,), masked_stem=mask_spans(c.original.stem, [span]))
        return replace(c, reason="mask: nothing of the question is left")

    return [c if c.reason else draw(c) for c in candidates]


def fill(candidates: list[Candidate], teacher: Teacher) -> list[Candidate]:
    """Let the teacher fill each masked question so that the target becomes right (paper, Fig. 4)."""
    prompts = [[render("fill", c.masked_stem, c.original.options, c.target)] for c in candidates]

    def read(c: Candidate, text: str) -> Candidate:
        fills, stem = read_strings(text, "fills"), c.masked_stem
        if len(fills) != stem.count(MASK) or any(MASK in words for words in fills):
            raise ValueError("not one text per mask")
        for words in fills:  # in order, with a capital where a mask opens a sentence
            stem = fill_slot(stem, MASK, words)
        return replace(c, fills=fills, stem=stem)

    return _asked("fill", candidates, teacher, prompts, read)


def check(
    candidates: list[Candidate], params: Params, originals: Questions, held_out: Questions
) -> list[Candidate]:
    """Drop what can be seen to be unfit without asking the teacher (our choice of checks)."""
    taken = {normalize(question.stem) for question in originals}
    forbidden = {normalize(question.stem) for question in held_out}  # validation and test questions
    checked: list[Candidate] = []
    for c in candidates:
        if not c.reason:
            stem, ratio = normalize(c.stem), edit_ratio(c.original.stem, c.stem)
            target, before = f" {normalize(c.original.options[c.target])} ", f" {normalize(c.original.stem)} "
            faults = {
                "answer leaked": params.leak_check and f" {stem} ".count(target) > before.count(target),
                "unchanged": ratio < params.min_edit_ratio,
                "changed too much": ratio > params.max_edit_ratio,
                "held-out question": stem in forbidden,
                "duplicate": stem in taken,
            }
            c = replace(c, edit_ratio=ratio, reason=next((name for name in faults if faults[name]), ""))
            taken |= set() if c.reason else {stem}
        checked.append(c)
    return checked


def vote(candidates: list[Candidate], teacher: Teacher, params: Params) -> list[Candidate]:
    """Keep the candidates whose reasoning paths agree on a target that they are not told."""
    paths = range(params.reasoning_paths if params.vote_threshold else 0)
    prompts = [[render("reason", c.stem, c.original.options, sample=i) for i in paths] for c in candidates]

    def read(c: Candidate, *texts: str) -> Candidate:
        answers = [read_answer(text, c.original.options) for text in texts]
        reason = "" if agree(answers, c.target, params.vote_threshold) else "too few votes"
        lost = [text for text in texts if isinstance(text, NoAnswer)]
        if reason and agree([*answers, *[c.target] * len(lost)], c.target, params.vote_threshold):
            reason = f"vote: {lost[0]}"  # which may have been what it lacked
        return replace(c, votes=answers.count(c.target), paths=len(texts), reason=reason)

    return _asked("vote", candidates, teacher, prompts, read)


def agree(answers: Sequence[int | None], target: int, threshold: int) -> bool:
    """Tell whether enough reasoning paths reach the target (the paper's filter). None: no option."""
    return answers.count(target) >= threshold


def funnel_table(candidates: Sequence[Candidate]) -> pd.DataFrame:
    """Return one row per candidate: what the steps made of it, and why it was dropped."""
    columns = {
        "question_id": [c.original.id for c in candidates],
        "target": [c.original.options[c.target] for c in candidates],
        "target_index": [c.target for c in candidates],
        "masked_span": [" | ".join(c.spans) for c in candidates],
        "masked_stem": [c.masked_stem for c in candidates],
        "fill": [" | ".join(c.fills) for c in candidates],
        "stem": [c.stem for c in candidates],
        "votes": [c.votes for c in candidates],
        "paths": [c.paths for c in candidates],
        "edit_ratio": [c.edit_ratio for c in candidates],
        "verdict": ["dropped" if c.reason else "kept" for c in candidates],
        "reason": [c.reason for c in candidates],
    }
    return pd.DataFrame(columns)


def funnel_counts(funnel: pd.DataFrame, params: Params) -> pd.DataFrame:
    """Count what each step leaves of a `funnel_table`: the columns step, left and drops (by reason)."""
    reasons = funnel["reason"].fillna("")
    dropped = reasons[reasons != ""].map(lambda reason: DROPS.get(reason.split()[0], CHECKED))
    rows, left = [("candidates", len(funnel), "")], len(funnel)
    for step in (MASKED, FILLED, CHECKED, *[VOTE] * (params.vote_threshold > 0)):
        counts = reasons[dropped[dropped == step].index].value_counts()
        left -= int(counts.sum())
        rows.append((step, left, ", ".join(f"{count} {reason}" for reason, count in counts.items())))
    return pd.DataFrame(rows, columns=["step", "left", "drops"])


def _asked(
    step: str, candidates: list[Candidate], teacher: Teacher, prompts: list[list[Prompt]], read: Read
) -> list[Candidate]:
    """Take the live candidates through a step that asks; where no answer is fit, they carry the reason."""
    live = [(c, asked) for c, asked in zip(candidates, prompts, strict=True) if not c.reason]
    after = {c.id: c for c in candidates}
    for (c, _), reply in zip(live, ask(teacher, live, read), strict=True):
        after[c.id] = reply.value or replace(c, reason=f"{step}: {reply.reason}")
    return list(after.values())
