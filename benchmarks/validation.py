"""How well validation by likelihood ranks checkpoints, beside answers in the student's own words.

    python benchmarks/validation.py ft-cot,cf-distill

Trains as the default study does. The truth is the accuracy of own words on the questions of
`tested: development`, whose scenes are not trained on. Prints each rule's Spearman correlation with the truth
over nine checkpoints, and its regret: the truth of the best one less that of the one that the rule chooses.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from unittest.mock import patch

import numpy as np
from scipy.stats import spearmanr

from cfdistill import pipeline
from cfdistill.evaluate.predict import predict, scorings
from cfdistill.params import Params
from cfdistill.student import models, train

RULES = ("accuracy by likelihood", "loss by likelihood", "accuracy of own words")


def main() -> None:
    """Measure and print, method by method."""
    name = Params().train_dataset
    params = Params(validations=9, tested="development", new_questions=120, test_datasets=[name])
    for stage in ("data", "counterfactuals", "rationales"):
        for part in pipeline.parts(stage, params):
            pipeline.build(stage, params, **part)
    for method in sys.argv[1].split(","):
        *rules, truth = np.array(measure_checkpoints(method, params)).T
        for name, rule in zip(RULES, rules, strict=True):
            rho, regret = spearmanr(rule, truth).statistic, truth.max() - truth[rule.argmax()]
            print(
                f"{method}, {name}: Spearman {rho:.2f}, regret {regret:.3f} of {truth.max():.3f}", flush=True
            )


def measure_checkpoints(method: str, params: Params) -> list[tuple[float, ...]]:
    """Train, and return what each rule (higher is better) and the truth say of every checkpoint."""
    held_out = pipeline.questions(params.train_dataset, "validation", params)
    unseen = pipeline.questions(params.train_dataset, "development", params)
    by_likelihood, student, found = train.measure, models.load(params), []

    def measure(*given: object) -> dict[str, float]:
        told = by_likelihood(*given)
        answers = predict(student, held_out + unseen, method, scorings(method, params)[0], params)
        right = [answer.predicted == answer.gold for answer in answers]
        own, truth = np.mean(right[: len(held_out)]), np.mean(right[len(held_out) :])
        found.append((told["accuracy"], -told["loss"], own, truth))
        return told

    steps, examples = pipeline.planned_steps(method, params), pipeline.examples(method, params)
    with patch.object(train, "measure", measure), tempfile.TemporaryDirectory() as folder:
        train.train(student, examples, steps, params, Path(folder), held_out)
    return found


if __name__ == "__main__":
    main()
