"""One question of your own, put to the trained student of every method of a study."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from cfdistill import answering, evaluation, runs, training
from cfdistill.errors import DataError
from cfdistill.methods import METHODS
from cfdistill.params import Params
from cfdistill.schema import Question, prompt_text

VIEWS = ("direct", "elimination")


def ask(params: Params, stem: str, options: Sequence[str]) -> Iterator[str]:
    """Yield each method's answer as text: both views where it has them, and the options' likelihoods.

    The likelihoods are log-likelihoods per character, in nats, after the student's own words up to
    "So the answer is": the score that decides where a text names no option.

    Args:
        params: of a study whose students are trained.
        stem: the question.
        options: two or more different ones.

    Raises:
        DataError: the question cannot be asked.
        StageError: a method's student is not trained; no method is asked then.
    """
    if len({option.strip() for option in options}) < max(2, len(options)) or not all(map(str.strip, options)):
        raise DataError("a question needs two or more different options: --options barn freezer")
    question = Question("asked", "", "", stem.strip(), tuple(option.strip() for option in options), 0)
    for method in params.methods:
        runs.require(runs.stage("training", params, method=method))
    return (_answer(params, method, question) for method in params.methods)


def _answer(params: Params, method: str, question: Question) -> str:
    """Return what one method says to a question."""
    student = training.load_trained(method, params)
    lines = [method]
    for scoring in VIEWS if len(METHODS[method].views) > 1 else evaluation.scorings(method, params)[:1]:
        [said] = evaluation.predict(student, [question], method, scoring, params)
        prompt, words = prompt_text(question, evaluation.STRATEGY[scoring]), answering.concluding(said.text)
        scores = answering.option_scores(student, [prompt], [question.options], 1, [words])[0]
        note = "" if said.parsed else " (its text names no option: the likeliest)"
        lines.append(f"  {scoring}: {question.options[said.predicted]}{note}")
        lines.append(f"    {' '.join(said.text.split())}")
        ranked = sorted(zip(scores, question.options, strict=True), reverse=True)
        lines.append("    " + " · ".join(f"{option} {score:.2f}" for score, option in ranked))
    return "\n".join(lines)
