"""The pipeline: the stages of a study in order (`STAGES`), what each depends on and makes."""

import functools
import itertools
from collections.abc import Callable, Iterator, Sized
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from cfdistill import data, files, store, teacher
from cfdistill.errors import StageError
from cfdistill.evaluate import metrics, predict
from cfdistill.evaluate.novelty import novelty
from cfdistill.generate import counterfactual, rationale
from cfdistill.methods import METHODS, VIEWS
from cfdistill.params import Params
from cfdistill.progress import tell
from cfdistill.schema import Counterfactual, Example, Prediction, Question, Rationale
from cfdistill.store import Draft, Read, Stage
from cfdistill.student import models
from cfdistill.student.examples import count_steps, make_examples

TRAINED_BY = ("views", "rewrites", "originals", "more", "steps_like")  # of a method, what reaches training
REWRITING = ("mask", "fill", "reason")  # the teacher's tasks in the stage `counterfactuals`


@dataclass(frozen=True)
class Step:
    """One row of the table of stages."""

    notebook: str  # the chapter that makes it
    locate: Callable[..., Stage]  # the stage as it would be made now
    make: Callable[..., None]  # what fills its folder
    resumes: bool = False  # goes on from what an interrupted attempt left


def build(name: str, params: Params, **part: str) -> Stage:
    """Reuse or make a stage, of which `part` (dataset, method) is one of its `parts`."""
    step, made = STAGES[name], locate(name, params, **part)
    if not _is_complete(made, params):
        tell(" ".join([name, *part.values()]))
        with made.draft(params, resume=step.resumes) as draft:
            step.make(draft, params, **part)
    return made


def locate(name: str, params: Params, **part: str) -> Stage:
    """Return a stage as it would be made now, there or not; an earlier one must be there."""
    return STAGES[name].locate(params, **part)


def find(name: str, params: Params, **part: str) -> Stage:
    """Return a stage that must be there already; raises StageError when it is not, saying what makes it."""
    made = locate(name, params, **part)
    if not _is_complete(made, params):
        notebook = STAGES[name].notebook
        how = f"`cfdistill run PARAMS.yaml --only {notebook[:2]}` or notebook {notebook}"
        raise StageError(f"stage {name} is missing ({made.path}); make it with {how}")
    return made


def parts(name: str, params: Params) -> list[dict[str, str]]:
    """Return the parts of a stage that a study has, as `build` and `find` take them."""
    tested = dict.fromkeys([params.train_dataset, *params.test_datasets])
    variants = [{"method": method} if method else {} for method in params.variants()]
    found: dict[str, list[dict[str, str]]] = {
        "data": [{"dataset": dataset} for dataset in tested],
        "counterfactuals": variants if params.has_counterfactuals else [],
        "rationales": variants,
        "training": [{"method": method} for method in params.trained],
        "evaluation": [{"method": m, "dataset": d} for m in params.methods for d in params.test_datasets],
        "metrics": [{}],
    }
    return found[name]


def behind(made: Stage) -> Iterator[Stage]:
    """Yield a stage and every stage that it was made from, in order, each once."""
    found = {stage.place: stage for read in made.inputs for stage in behind(read.stage)}
    yield from (found | {made.place: made}).values()


def _is_complete(made: Stage, params: Params) -> bool:
    """Tell whether a stage is there, and made from the answers that the teacher's cache holds now."""
    if not made.is_complete():
        return False
    used = made.path / "answers.csv"
    if used.is_file() and params.teacher != "recorded":  # whose answers' hash is in the key
        differing = _differing(used, teacher.cache_state(params), params.model_dump_json())
        if differing:
            told = f"was made from other answers than the teacher's cache holds now ({differing} differ)"
            raise StageError(f"{made.path} {told}; put the old cache back, or choose another run_root")
    return True


def _locate_data(params: Params, dataset: str) -> Stage:
    return store.stage("data", [dataset], params, {"dataset": dataset, **data.facts(dataset, params)})


def _make_data(draft: Draft, params: Params, dataset: str) -> None:
    splits = data.splits(dataset, params)
    for split in splits:
        draft.write(f"questions.{split}.jsonl", data.load(dataset, split, params))
    draft.notes["files"] = data.benchmarks.survey(dataset, splits, params)


def questions(dataset: str, split: str, params: Params) -> list[Question]:
    """Return one split of a data set."""
    return find("data", params, dataset=dataset).read(f"questions.{split}.jsonl", Question)


def overlap(dataset: str, params: Params) -> list[str]:
    """Return the ids of test questions that training or validation hold, too; DataError if many do."""
    own = params.train_dataset
    trained = [q for split in data.trained_splits(own, params) for q in questions(own, split, params)]
    tested = [q for split in data.test_splits(dataset, params) for q in questions(dataset, split, params)]
    return data.check_overlap(dataset, trained, tested)


def _locate_rewrites(params: Params, method: str = "") -> Stage:
    own = params.for_method(method)
    values = own.reaching("counterfactuals") | {"teacher": teacher.identity(own, REWRITING)}
    if own.mask_source == "random":
        values["data_seed"] = own.data_seed
    splits = ("train", "validation", *data.test_splits(own.train_dataset, own))
    source = find("data", own, dataset=own.train_dataset).reads(*(f"questions.{s}.jsonl" for s in splits))
    return store.stage("counterfactuals", [own.train_dataset], own, values, [source])


def _make_rewrites(draft: Draft, params: Params, method: str = "") -> None:
    own = params.for_method(method)
    with teacher.Teacher(own) as asked:
        candidates = counterfactual.make(own, asked, *originals_and_held_out(own))
        _note_answers(draft, asked)
    draft.drops.update(c.reason for c in candidates if c.reason)
    kept = [c.counterfactual() for c in candidates if not c.reason]
    _check_kept(kept, draft, params)
    draft.write("counterfactuals.train.jsonl", kept)
    counterfactual.funnel_table(candidates).to_csv(draft.path / "funnel.csv", index=False)


def originals_and_held_out(params: Params) -> tuple[list[Question], list[Question]]:
    """Return the training questions, and the validation and test questions that no rewrite may repeat."""
    name = params.train_dataset
    held_out = ("validation", *data.test_splits(name, params))
    return questions(name, "train", params), [q for split in held_out for q in questions(name, split, params)]


def originals(params: Params, method: str = "") -> list[Question]:
    """Return the original questions that a method learns from; of no method, the study's own."""
    if not method or not METHODS[method].own_questions:
        return questions(params.train_dataset, "train", params)
    asked = questions(params.train_dataset, METHODS[method].originals, params)
    if more := METHODS[method].more:
        further, wanted = questions(params.train_dataset, more, params), len(rewrites(params))
        if len(further) < wanted and more == "more":
            told = f"{method} needs {wanted} further training questions, and there are {len(further)}"
            raise StageError(f"{told}; lower train_questions or counterfactuals_per_question")
        asked += further[:wanted]
    return asked


def _reads_originals(params: Params, method: str = "") -> Read:
    splits = METHODS[method].splits if method and METHODS[method].own_questions else ("train",)
    names = (f"questions.{split}.jsonl" for split in splits)
    return find("data", params, dataset=params.train_dataset).reads(*names)


def shown(params: Params, method: str = "") -> Read:
    """Return the file of the counterfactuals that were kept."""
    return find("counterfactuals", params, method=method).reads("counterfactuals.train.jsonl")


def rewrites(params: Params, method: str = "") -> list[Counterfactual]:
    """Return the counterfactuals that were kept; none in a study without them."""
    if not params.has_counterfactuals:
        return []
    return shown(params, method).stage.read("counterfactuals.train.jsonl", Counterfactual)


def _locate_rationales(params: Params, method: str = "") -> Stage:
    own = params.for_method(method)
    values = own.reaching("rationales")
    inputs = [_reads_originals(own, method)]
    if own.has_counterfactuals:
        values["teacher"] = teacher.identity(own, VIEWS)
        inputs.append(shown(own))
    else:
        values["file"] = files.sha256(rationale.published_file(own.rationale_file))
    return store.stage("rationales", [own.train_dataset], own, values, inputs)


def _make_rationales(draft: Draft, params: Params, method: str = "") -> None:
    own = params.for_method(method)
    explained = originals(own, method)
    if own.has_counterfactuals:
        if explained == originals(own):
            explained += [rewritten.question for rewritten in rewrites(own)]
        with teacher.Teacher(own) as asked:
            kept, ledger = rationale.views(explained, asked)
            _note_answers(draft, asked)
    else:
        kept, ledger = rationale.published(explained, rationale.published_file(own.rationale_file))
    draft.drops.update(f"{row['view']}: {row['reason']}" for row in ledger if row["reason"])
    _check_kept(kept, draft, params)
    draft.write("rationales.train.jsonl", kept)
    pd.DataFrame(ledger, columns=rationale.LEDGER_COLUMNS).to_csv(draft.path / "ledger.csv", index=False)


def _check_kept(kept: Sized, draft: Draft, params: Params) -> None:
    """Raise StageError when nothing of what was asked for is fit, unless that is allowed."""
    if draft.drops and not kept and not params.allow_empty:
        drops = ", ".join(f"{count} {reason}" for reason, count in draft.drops.most_common())
        told = f"{draft.path.parent.name}: nothing is kept ({drops})"
        raise StageError(f"{told}; choose another teacher or filters, or set allow_empty: true")


def rationales(params: Params, method: str = "") -> list[Rationale]:
    """Return the rationales of training questions and their rewrites."""
    return find("rationales", params, method=method).read("rationales.train.jsonl", Rationale)


def _note_answers(draft: Draft, asked: teacher.Teacher) -> None:
    """Record who answered, what it took (`cost.csv`), and which answers were used (`answers.csv`)."""
    draft.notes["teacher"] = asked.summary()
    asked.costs().to_csv(draft.path / "cost.csv", index=False)
    used = pd.DataFrame(sorted(asked.used.items()), columns=["key", "response_sha256"])
    used.to_csv(draft.path / "answers.csv", index=False)


@functools.lru_cache(maxsize=16)
def _differing(used: Path, cache: tuple[Any, ...], params: str) -> int:
    """Count answers of `answers.csv` that the cache, being in this state, holds differently."""
    answers = dict(line.split(",") for line in used.read_text(encoding="utf-8").split()[1:])
    return teacher.differing(Params.model_validate_json(params), answers)


def _locate_training(params: Params, method: str) -> Stage:
    recipe = METHODS[method]
    values = params.reaching("training") | {
        "method": {name: getattr(recipe, name) for name in TRAINED_BY},
        "student": models.fingerprint(params),
        "precision": models.precision(params),
    }
    inputs = [find("data", params, dataset=params.train_dataset).reads("questions.validation.jsonl")]
    for name in dict.fromkeys([method, recipe.steps_like or method]):
        inputs.append(_reads_originals(params, name))
        inputs.append(find("rationales", params, method=name).reads("rationales.train.jsonl"))
        if METHODS[name].rewrites and params.has_counterfactuals:
            inputs.append(shown(params, name))
    return store.stage("training", _label(params, method), params, values, inputs)


def _label(params: Params, method: str, *more: str) -> list[str]:
    return [params.train_dataset, method, models.label(params), f"seed{params.seed}", *more]


def examples(method: str, params: Params) -> list[Example]:
    """Return a method's training examples."""
    own = originals(params, method)
    return make_examples(own, rewrites(params, method), rationales(params, method), method)


def planned_steps(method: str, params: Params) -> int:
    """Return a method's number of optimiser steps, which for a control is another method's."""
    return params.max_steps or count_steps(examples(METHODS[method].steps_like or method, params), params)


def _make_training(draft: Draft, params: Params, method: str) -> None:
    from cfdistill.student import train  # which imports torch

    made, held_out = examples(method, params), questions(params.train_dataset, "validation", params)
    wanted = len(originals(params, method))
    wanted += len(rewrites(params, method)) if METHODS[method].rewrites else 0
    student, checkpoints = models.load(params), draft.path / "checkpoints"
    draft.write("examples.jsonl", made)
    draft.drops["no rationale"] = wanted * len(METHODS[method].views) - len(made)
    steps = planned_steps(method, params)
    log, draft.notes = train.train(student, made, steps, params, checkpoints, held_out)
    pd.DataFrame(log, columns=train.LOG_COLUMNS).to_csv(draft.path / "log.csv", index=False)
    student.save(draft.path / "model")
    train.forget_checkpoints(checkpoints)


def trained(method: str, params: Params) -> models.Student:
    """Return a method's student as it answers: trained, unless the method trains none."""
    recipe = METHODS[method]
    folder = find("training", params, method=method).path / "model" if recipe.views else None
    return _answering(params.model_dump_json(), folder)


@functools.lru_cache(maxsize=1)  # one student answers many data sets
def _answering(params: str, folder: Path | None) -> models.Student:
    return models.answering(Params.model_validate_json(params), folder)


def _locate_evaluation(params: Params, method: str, dataset: str) -> Stage:
    values = params.reaching("evaluation") | {"method": method, "precision": models.precision(params)}
    names = (f"questions.{split}.jsonl" for split in data.test_splits(dataset, params))
    inputs = [find("data", params, dataset=dataset).reads(*names)]
    if METHODS[method].views:
        inputs.insert(0, find("training", params, method=method).reads("model/*"))
    else:
        values["student"] = models.fingerprint(params)
    return store.stage("evaluation", _label(params, method, dataset), params, values, inputs)


def _make_evaluation(draft: Draft, params: Params, method: str, dataset: str) -> None:
    draft.notes["also in training"] = len(overlap(dataset, params))
    asked = {split: questions(dataset, split, params) for split in data.test_splits(dataset, params)}
    together = [question for own in asked.values() for question in own]  # in larger batches
    for scoring, answers in predict.predict_all(trained(method, params), together, method, params).items():
        rest = iter(answers)
        for split, own in asked.items():
            draft.write(f"predictions.{split}.{scoring}.jsonl", itertools.islice(rest, len(own)))


def predictions(
    params: Params, method: str, dataset: str, split: str = "", scoring: str = "*"
) -> list[Prediction]:
    """Return a method's answers to a data set's test questions, of one split and scoring or of all."""
    made = find("evaluation", params, method=method, dataset=dataset)
    splits = [split] if split else data.test_splits(dataset, params)
    names = [name for s in splits for name in made.reads(f"predictions.{s}.{scoring}.jsonl").files]
    return [answer for name in names for answer in made.read(name, Prediction)]


def _locate_metrics(params: Params) -> Stage:
    values = params.reaching("metrics") | {"student": models.label(params)}
    read = {"evaluation": "predictions.*.jsonl", "data": "questions.*.jsonl"}
    inputs = [find(n, params, **part).reads(own) for n, own in read.items() for part in parts(n, params)]
    inputs += [shown(params)] if params.has_counterfactuals else []
    return store.stage("metrics", [params.train_dataset], params, values, inputs)


def _make_metrics(draft: Draft, params: Params) -> None:
    answers = [answer for part in parts("evaluation", params) for answer in predictions(params, **part)]
    run = (params.train_dataset, models.label(params), params.seed)
    table = metrics.predictions_table(answers, *run, steps(params))
    compared = metrics.comparisons_table(table)
    for name, own in zip(metrics.FILES, (metrics.metrics_table(table), compared, table), strict=True):
        metrics.write_csv(own, draft.path / name)


def steps(params: Params) -> dict[tuple[str, str], str]:
    """Return how new every test question is, by data set and id; to cf-distill, for all methods alike."""
    trained = [*originals(params), *(rewritten.question for rewritten in rewrites(params))]
    asked = ((name, split) for name in params.test_datasets for split in data.test_splits(name, params))
    tested = [question for name, split in asked for question in questions(name, split, params)]
    return novelty(tested, trained)


STAGES = {  # in the order in which they are made
    "data": Step("01_data_preparation", _locate_data, _make_data),
    "counterfactuals": Step("02_counterfactual_generation", _locate_rewrites, _make_rewrites),
    "rationales": Step("03_rationale_generation", _locate_rationales, _make_rationales),
    "training": Step("04_training", _locate_training, _make_training, resumes=True),
    "evaluation": Step("05_evaluation", _locate_evaluation, _make_evaluation),
    "metrics": Step("05_evaluation", _locate_metrics, _make_metrics),
}
