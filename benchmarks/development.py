"""Compare hyper-parameters without touching a test split: questions of the training wordings only.

    python benchmarks/development.py cf-distill,ft-cot [name=value ...]

Trains on the scenes of another data seed and asks three kinds of development questions, none of which
is in any test split or was trained on: `reachable` and `heldout` are trained scenes with an answer other
than the stereotype, in a training wording; `unseen` are seen scenes that this data seed left out.
The default study's learning rate, epochs and frozen layers were chosen with it.
"""

from __future__ import annotations

import random
import sys
from collections.abc import Sequence

import yaml

from cfdistill import pipeline
from cfdistill.data import weasel
from cfdistill.evaluate.predict import predict, scorings
from cfdistill.params import Params
from cfdistill.schema import Prediction, Question

DEVELOPMENT_SEED = 1  # of the question sampler; the default study's is 0
QUESTIONS = 60  # of each kind, at most


def main() -> None:
    """Train each method and print its accuracy and lure rate on every kind of question."""
    methods, *changes = sys.argv[1:]
    given = {name: yaml.safe_load(value) for name, value in (change.split("=", 1) for change in changes)}
    params = Params.build({"data_seed": DEVELOPMENT_SEED, "test_datasets": [Params().train_dataset], **given})
    for name in ("data", "counterfactuals", "rationales"):
        for part in pipeline.parts(name, params):
            pipeline.build(name, params, **part)
    questions = development_questions(params)
    for method in methods.split(","):
        made = pipeline.build("training", params, method=method)
        print(f"{method} {given}: {made.manifest()['seconds']:.0f} s of training")
        student = pipeline.trained(method, params)
        for kind, asked in questions.items():
            scoring = scorings(method, params)[0]
            print(f"  {kind:>10}  {summary(predict(student, asked, method, scoring, params))}")


def development_questions(params: Params) -> dict[str, list[Question]]:
    """Return questions of each kind, in training wordings, that were not trained on."""
    name, rng = params.train_dataset, random.Random(params.data_seed)
    trained = {question.stem for question in pipeline.questions(name, "train", params)}
    trained |= {rewrite.question.stem for rewrite in pipeline.rewrites(params)}
    used = weasel.seen_scenes(name, params)
    kinds: dict[str, list[Question]] = {"reachable": [], "heldout": [], "unseen": []}
    for scene in weasel.load_scenes(name.removeprefix("weasel-")):
        for variant in range(len(scene.cues)) if scene.is_seen() else ():
            frame, cue = rng.choice((0, 1)), rng.randrange(2)
            question = weasel.make_question(name, "development", weasel.Pick(scene, frame, variant, cue), 0)
            kind = "unseen" if scene not in used else question.subset
            if question.stem not in trained and kind in kinds:
                kinds[kind].append(question)
    return {kind: rng.sample(found, min(QUESTIONS, len(found))) for kind, found in kinds.items()}


def summary(predictions: Sequence[Prediction]) -> str:
    """Return accuracy, lure rate and unparsed rate in words."""
    n = max(len(predictions), 1)
    right = sum(p.predicted == p.gold for p in predictions) / n
    lured = sum(p.predicted == p.stereotype != p.gold for p in predictions) / n
    unparsed = sum(not p.parsed for p in predictions) / n
    return f"n {len(predictions)}  accuracy {right:.3f}  lured {lured:.3f}  unparsed {unparsed:.3f}"


if __name__ == "__main__":
    main()
