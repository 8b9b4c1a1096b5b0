"""A student's answers to test questions: generated, or chosen by the likelihood of the options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cfdistill import data, runs, training
from cfdistill.answering import concluding, generate, option_scores, read_answers
from cfdistill.methods import METHODS
from cfdistill.params import SCORINGS, Params
from cfdistill.schema import (
    DIRECT,
    ELIMINATION,
    Prediction,
    Question,
    prompt_text,
)
from cfdistill.students import Student

if TYPE_CHECKING:
    pass

STRATEGY = {"direct": DIRECT, "elimination": ELIMINATION, "label": "", "likelihood": ""}


def build(method: str, dataset: str, params: Params, student: Student | None = None) -> runs.Stage:
    """Reuse or make the stage `evaluation` of one method on one data set.

    It holds `predictions.<split>.<scoring>.jsonl` for every test split and every scoring of the method.

    Args:
        method: a trained method.
        dataset: what to test on.
        params: scorings, max_new_tokens, max_new_tokens_elimination, eval_batch_size.
        student: the method's trained student, if it is loaded already.

    Raises:
        StageError: the training or data stage is missing.
    """
    made = runs.stage("evaluation", params, method=method, dataset=dataset)
    if made.is_complete():
        return made
    inputs = [
        runs.require(runs.stage("training", params, method=method)),
        runs.require(data.stage(dataset, params)),
    ]
    student = student or training.load_trained(method, params)
    with made.draft(params, inputs) as draft:
        for split in data.test_splits(dataset, params):
            questions = data.questions(dataset, split, params)
            for scoring, predictions in predict_all(student, questions, method, params).items():
                draft.write(f"predictions.{split}.{scoring}.jsonl", predictions)
    return made


def build_all(method: str, params: Params) -> list[runs.Stage]:
    """Reuse or make the stages `evaluation` of one method on all test data sets, loading it at most once."""
    made = [runs.stage("evaluation", params, method=method, dataset=name) for name in params.test_datasets]
    if all(stage.is_complete() for stage in made):
        return made
    student = training.load_trained(method, params)
    return [build(method, name, params, student) for name in params.test_datasets]


def scorings(method: str, params: Params) -> tuple[str, ...]:
    """Return how a method is scored, its main scoring first; one that learned only labels has no views."""
    if METHODS[method].views == ("label",):
        return ("label", *(name for name in params.scorings if name == "likelihood"))
    return tuple(name for name in SCORINGS if name in params.scorings)


def predict_all(
    student: Student, questions: Sequence[Question], method: str, params: Params
) -> dict[str, list[Prediction]]:
    """Return predictions by scoring; "likelihood" brings "acc" and "acc_bytes" along, from the same pass."""
    found: dict[str, list[Prediction]] = {}
    for scoring in scorings(method, params):
        if scoring == "likelihood":
            found |= predict_likeliest(student, questions, method, params)
        elif scoring == "vote":
            found["vote"] = vote(student, questions, found["direct"], found["elimination"], params)
        else:
            found[scoring] = predict(student, questions, method, scoring, params)
    return found


def predict(
    student: Student, questions: Sequence[Question], method: str, scoring: str, params: Params
) -> list[Prediction]:
    """Ask a student every question and read its answers.

    Args:
        student: trained or not.
        questions: any number.
        method: recorded in the predictions.
        scoring: "direct" and "elimination" generate under that strategy token, "label" generates
            after "Answer:", "likelihood" takes the option with the highest log-likelihood per character.
        params: max_new_tokens, max_new_tokens_elimination, eval_batch_size.

    Returns:
        One prediction per question, in order; `parsed` is False where the text names no option.
    """
    if scoring == "likelihood":
        return predict_likeliest(student, questions, method, params)["likelihood"]
    prompts = [prompt_text(question, STRATEGY[scoring]) for question in questions]
    limit = params.max_new_tokens_elimination if scoring == "elimination" else params.max_new_tokens
    texts = generate(student, prompts, limit, params.eval_batch_size)
    chosen = read_answers(student, questions, prompts, texts, params.eval_batch_size)
    return [
        answered(question, method, scoring, option, text, parsed)
        for question, text, (option, parsed) in zip(questions, texts, chosen, strict=True)
    ]


def predict_likeliest(
    student: Student, questions: Sequence[Question], method: str, params: Params
) -> dict[str, list[Prediction]]:
    """Choose by the log-likelihood of " " + option after "Answer:", without a rationale.

    Returns:
        Predictions by lm-evaluation-harness's three metrics: "acc" takes the highest sum over an option's
        tokens, "likelihood" (its `acc_norm`) the highest per character, "acc_bytes" per UTF-8 byte.
    """
    import numpy as np

    prompts = [prompt_text(question, STRATEGY["likelihood"]) for question in questions]
    options = [question.options for question in questions]
    scores = option_scores(student, prompts, options, params.eval_batch_size)
    found: dict[str, list[Prediction]] = {"likelihood": [], "acc": [], "acc_bytes": []}
    for question, row in zip(questions, scores, strict=True):
        per_character = row[: len(question.options)]
        total = per_character * [len(option) for option in question.options]
        per_byte = total / [len(option.encode()) for option in question.options]
        for name, score in zip(found, (per_character, total, per_byte), strict=True):
            best = int(np.argmax(score))
            found[name].append(answered(question, method, name, best, question.options[best], True))
    return found


def vote(
    student: Student,
    questions: Sequence[Question],
    direct: Sequence[Prediction],
    elimination: Sequence[Prediction],
    params: Params,
) -> list[Prediction]:
    """Let the two views of every question vote (our rule).

    If the texts name one option, both or only one of them, it counts. If they name two or none, the
    option counts whose log-likelihood per character, summed over after the one and after the other
    text, is highest; such a vote is not `parsed`.
    """
    pairs = list(zip(direct, elimination, strict=True))
    named = [{view.predicted for view in pair if view.parsed} for pair in pairs]
    torn = [i for i, options in enumerate(named) if len(options) != 1]
    chosen = {i: options.pop() for i, options in enumerate(named) if len(options) == 1}
    if torn:
        options = [questions[i].options for i in torn]
        first, second = (
            option_scores(
                student,
                [prompt_text(questions[i], token) for i in torn],
                options,
                params.eval_batch_size,
                [concluding(view[i].text) for i in torn],
            )
            for token, view in ((DIRECT, direct), (ELIMINATION, elimination))
        )
        chosen |= zip(torn, (first + second).argmax(axis=1).tolist(), strict=True)
    return [
        answered(question, one.method, "vote", chosen[i], f"{one.text}\n{other.text}", i not in torn)
        for i, (question, (one, other)) in enumerate(zip(questions, pairs, strict=True))
    ]


def answered(
    question: Question, method: str, scoring: str, option: int, text: str, parsed: bool
) -> Prediction:
    """Return the record of one answer."""
    return Prediction(
        question_id=question.id,
        dataset=question.dataset,
        split=question.split,
        subset=question.subset,
        scene=question.scene,
        method=method,
        scoring=scoring,
        gold=question.answer,
        stereotype=question.stereotype,
        predicted=option,
        text=text,
        parsed=parsed,
    )
