"""Questions of your own, put to the trained students of a study."""

from collections.abc import Sequence
from pathlib import Path

from cfdistill import pipeline
from cfdistill.errors import DataError
from cfdistill.evaluate import predict
from cfdistill.methods import METHODS
from cfdistill.params import Params
from cfdistill.progress import tell
from cfdistill.schema import STRATEGY, Question, option_key, prompt_text
from cfdistill.student.decode import concluding, option_scores
from cfdistill.student.models import Student


def command(params: Params, question: str, options: Sequence[str], ask_file: Path | None) -> str:
    """Return what every method answers to a question, or to those of a file."""
    asked = [[question, *options]]
    if ask_file:
        lines = ask_file.read_text(encoding="utf-8").splitlines()
        asked = [line.split("|") for line in lines if line.strip()]
    questions = [own_question(stem, own) for stem, *own in asked]
    told = [f"Log-likelihoods are per character, after the student's own words. Student {params.student}."]
    for method in params.methods:
        tell(f"loading {method} …")
        student = pipeline.trained(method, params)
        told += [f"{one.stem}\n{ask(student, method, one, params)}" for one in questions]
    return "\n\n".join(told)


def own_question(stem: str, options: Sequence[str]) -> Question:
    """Return a question without a right answer; raises DataError if its options are not two or more."""
    if len(set(map(option_key, options))) < max(2, len(options)) or not all(map(str.strip, options)):
        raise DataError("a question needs two or more different options: --options barn freezer")
    return Question("asked", "", "", stem.strip(), tuple(option.strip() for option in options), 0)


def ask(student: Student, method: str, question: Question, params: Params) -> str:
    """Return what each view answers, if a method has both, and the options' log-likelihoods after it."""
    lines = [method]
    views = ("direct", "elimination") if len(METHODS[method].views) > 1 else (METHODS[method].scoring,)
    for scoring in views:
        [said] = predict.predict(student, [question], method, scoring, params)
        begun = [prompt_text(question, STRATEGY[scoring])], [question.options], 1, [concluding(said.text)]
        ranked = sorted(zip(option_scores(student, *begun)[0], question.options, strict=True), reverse=True)
        note = "" if said.parsed else " (its text names no option: the likeliest)"
        lines.append(f"  {scoring}: {question.options[said.predicted]}{note}")
        lines.append(f"    {' '.join(said.text.split())}")
        lines.append("    " + " · ".join(f"{option} {score:.2f}" for score, option in ranked))
    return "\n".join(lines)
