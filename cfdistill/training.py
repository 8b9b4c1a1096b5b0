"""From questions and rationales to a trained student.

By default the student of the last step is the result. `checkpoint: best` selects one by validation questions,
which are held out of the training data's own distribution; test questions select nothing.
"""

from __future__ import annotations

import csv
import math
import resource
import shutil
import sys
from collections.abc import Callable, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from typing import Any

from cfdistill import counterfactual, data, runs, students
from cfdistill.answering import validate
from cfdistill.encoding import Packed, check_lengths, encode, rows_of
from cfdistill.errors import TrainingError
from cfdistill.families import widths
from cfdistill.methods import METHODS
from cfdistill.params import Params
from cfdistill.schema import (
    DIRECT,
    ELIMINATION,
    Counterfactual,
    Example,
    Question,
    Rationale,
    answer_text,
    prompt_text,
)
from cfdistill.students import Student

STRATEGY = {"label": "", "positive": DIRECT, "negative": ELIMINATION}
LAST_FILE = "trainer_state.json"  # of a checkpoint: what is written after all others
LOG_COLUMNS = (
    "step", "epoch", "loss", "learning_rate", "tokens_per_s", "seconds", "val_accuracy", "val_loss",
)  # fmt: skip


def build(method: str, params: Params) -> runs.Stage:
    """Reuse or make the stage `training` of one method.

    It holds `model/` (weights and tokenizer), `examples.jsonl` and `log.csv` (one row per optimiser
    step). An interrupted training goes on from its last checkpoint and ends in the same student.
    If torchrun started several processes, all of them train, and the first one writes.

    Raises:
        StageError: an earlier stage is missing.
        TrainingError: the examples or the student do not fit the parameters.
    """
    made = runs.stage("training", params, method=method)
    if made.is_complete():
        return made
    own, timed_like = params.for_method(method), METHODS[method].steps_like or method
    inputs = [*upstream(own), *upstream(params.for_method(timed_like))]
    sources = _sources(*read_material(own)[:2], method)
    examples, steps = read_examples(method, params), planned_steps(method, params)
    held_out = data.questions(params.train_dataset, "validation", params)
    student = students.load(params.student, params)
    checkpoints = made.partial / "checkpoints"
    processes = _processes()
    if not processes.is_main_process:
        train(student, examples, steps, params, checkpoints, held_out)
        processes.wait_for_everyone()
        return made
    with made.draft(params, inputs, resume=True) as draft:
        draft.write("examples.jsonl", examples)
        draft.drops["no rationale"] = len(sources) * len(METHODS[method].views) - len(examples)
        log, draft.notes = train(student, examples, steps, params, checkpoints, held_out)
        _write_log(draft.path / "log.csv", log)
        student.save(draft.path / "model")
        for state in checkpoints.glob(f"*/{LAST_FILE}"):
            state.unlink()  # before the others, so that no half-deleted checkpoint passes for a complete one
        shutil.rmtree(checkpoints)
    processes.wait_for_everyone()
    return made


def load_trained(method: str, params: Params) -> Student:
    """Return the trained student of a method; raises StageError when it is not there."""
    made = runs.require(runs.stage("training", params, method=method))
    return students.load_folder(params.student_name, made.path / "model")


def upstream(params: Params) -> list[runs.Stage]:
    """Return the finished stages that training reads; raises StageError when one is missing.

    Args:
        params: as `Params.for_method` returns them.
    """
    return [
        runs.require(data.stage(params.train_dataset, params)),
        *counterfactual.finished(params),
        runs.require(runs.stage("rationales", params)),
    ]


def read_material(params: Params) -> tuple[list[Question], list[Counterfactual], list[Rationale]]:
    """Return training questions, counterfactuals and rationales from the finished stages."""
    return (
        data.questions(params.train_dataset, "train", params),
        counterfactual.read(params),
        runs.require(runs.stage("rationales", params)).read("rationales.train.jsonl", Rationale),
    )


def read_examples(method: str, params: Params) -> list[Example]:
    """Return a method's training examples, made from the finished stages it learns from."""
    return make_examples(*read_material(params.for_method(method)), method)


def planned_steps(method: str, params: Params) -> int:
    """Return a method's number of optimiser steps, which for a control is another method's."""
    return params.max_steps or count_steps(
        read_examples(METHODS[method].steps_like or method, params), params
    )


def make_examples(
    questions: Sequence[Question],
    counterfactuals: Sequence[Counterfactual],
    rationales: Sequence[Rationale],
    method: str,
) -> list[Example]:
    """Return a method's training examples; questions without the rationale needed are left out.

    The views of a question follow each other, and the originals come before the counterfactuals (paper,
    Fig. 2 and "Training").

    Raises:
        TrainingError: there are none, or no counterfactuals for a method that learns from them.
    """
    if METHODS[method].counterfactuals and not counterfactuals:
        raise TrainingError(
            f"{method}: there are no counterfactuals to train on; funnel.csv of their stage says why they "
            "were dropped: loosen the filter, ask another teacher or choose other methods"
        )
    views = {(rationale.question_id, rationale.view): rationale.text for rationale in rationales}
    examples = []
    for question, is_counterfactual in _sources(questions, counterfactuals, method):
        for kind in METHODS[method].views:
            answer = answer_text(question.options, question.answer)
            text = answer if kind == "label" else views.get((question.id, kind))
            if text is not None:
                prompt = prompt_text(question, STRATEGY[kind])
                examples.append(Example(question.id, kind, prompt, f" {text}", is_counterfactual))
    if not examples:
        raise TrainingError(
            f"{method}: no training examples from {len(questions)} questions and {len(rationales)} "
            "rationales; see why the rationales were dropped, or raise train_questions"
        )
    return examples


def count_steps(examples: Sequence[Example], params: Params) -> int:
    """Return the number of optimiser steps in `params.epochs` passes over the examples."""
    groups = _by_question(examples)
    return math.ceil(params.epochs * math.ceil(len(groups) / _questions_per_step(groups, params)))


def train(
    student: Student,
    examples: Sequence[Example],
    steps: int,
    params: Params,
    folder: Path,
    validation: Sequence[Question] = (),
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Train a student in place.

    Args:
        student: its weights change, above the frozen layers.
        examples: those of one question share a step, and a sequence in families where that is exact.
        steps: optimiser steps.
        params: what stands under "training".
        folder: checkpoints; a complete one found there is gone on from.
        validation: questions to test the student on meanwhile, asked as the first example is.

    Returns:
        One record per step (see LOG_COLUMNS), and facts for the manifest.

    Raises:
        TrainingError: an example is too long, or the loss is no longer a number.
        StageError: the disk has no room for the checkpoints, of which there are two at times.
    """
    import torch
    from accelerate.utils import broadcast_object_list

    from cfdistill.trainer import StudentTrainer, draw_batches, lower_states, split_layers

    groups = _by_question(examples)
    packed = pack_examples(examples, student, params)
    batch_size = _questions_per_step(groups, params)
    drawn = draw_batches([sum(map(len, own)) for own in packed], batch_size, steps, params.seed)
    rows = [row for own in packed for row in own]
    ends = list(accumulate(map(len, packed), initial=0))
    batches = [[row for i in batch for row in range(ends[i], ends[i + 1])] for batch in drawn]
    agreed: list[Any] = [None, None]
    if _processes().is_main_process:
        agreed = [students.choose_precision(*widths(student.model.config)), _last_checkpoint(folder)]
    precision, checkpoint = broadcast_object_list(agreed)
    model, states = student.model, []
    if params.frozen_layers:
        lower, model = split_layers(student.model, params.frozen_layers)
        states = lower_states(lower, rows, params.eval_batch_size) if lower else []
    _check_space(folder, student, model, params)
    measure = _validator(student, examples, validation, params)
    trainer = StudentTrainer(
        model, rows, states, batches, params, folder, bf16=precision.name == "bf16", validate=measure
    )
    with students.quiet_weights():
        trainer.train(resume_from_checkpoint=checkpoint)
    _processes().wait_for_everyone()  # the first process deletes checkpoints that others may still read
    student.model.eval()
    taken = batches[: trainer.state.global_step]
    log = _step_records(trainer.state.log_history, math.ceil(len(packed) / batch_size))
    tokens = sum(len(rows[i]) + len(rows[i].source) for batch in taken for i in batch)
    return log, {
        "examples": len(examples),
        "sequences": len(rows),
        "target_tokens": sum(label >= 0 for row in rows for label in row.labels),
        "steps": len(taken),
        "kept_step": trainer.state.best_global_step if params.checkpoint == "best" else len(taken),
        "precision": str(precision),
        "threads": torch.get_num_threads(),
        "tokens_per_s": round(tokens / sum(row["seconds"] for row in log)),
        "peak_memory_gib": round(_peak_memory_gib(), 2),
    }


def _processes() -> Any:
    """Return what this process knows of the others that torchrun started, if it did."""
    import torch
    from accelerate import PartialState

    return PartialState(cpu=not torch.cuda.is_available())


def _check_space(folder: Path, student: Student, trained: Any, params: Params) -> None:
    moments = 2 * students.weight_bytes(p for p in trained.parameters() if p.requires_grad)  # AdamW's
    checkpoint = students.weight_bytes(trained.parameters()) + moments
    kept = 3 if params.checkpoint == "best" else 2  # the last one is deleted when the next one is written
    students.check_space(folder, students.weight_bytes(student.model.parameters()) + kept * checkpoint)


def _validator(
    student: Student, examples: Sequence[Example], questions: Sequence[Question], params: Params
) -> Callable[[], dict[str, float]] | None:
    """Return what measures the student on validation questions; None if it is not to be."""
    if not questions or not params.validations:
        return None
    kind = examples[0].kind
    prompts = [prompt_text(question, STRATEGY[kind]) for question in questions]
    longest = max(len(encode(e, student.tokenizer).target) for e in examples if e.kind == kind)

    def measure() -> dict[str, float]:
        student.model.eval()
        return validate(student, questions, prompts, longest, params.eval_batch_size)

    return measure


def _step_records(history: Sequence[dict[str, float]], epoch_steps: int) -> list[dict[str, float]]:
    """Return one record per optimiser step, with the validation after it, if there was one."""
    validated = {row["step"]: row for row in history if "eval_loss" in row}
    records = [row | {"epoch": row["step"] / epoch_steps} for row in history if "loss" in row]
    for row in records:
        if found := validated.get(row["step"]):
            row |= {"val_accuracy": found["eval_accuracy"], "val_loss": found["eval_loss"]}
    return records


def pack_examples(examples: Sequence[Example], student: Student, params: Params) -> list[list[Packed]]:
    """Return the sequences of every question; raises TrainingError when an example is too long."""
    pairs = [
        [encode(e, student.tokenizer, weight(e, params)) for e in group] for group in _by_question(examples)
    ]
    window = getattr(student.model.config, "max_position_embeddings", params.max_length)
    check_lengths([pair for group in pairs for pair in group], params.max_length, window)
    return [rows_of(group, student) for group in pairs]


def weight(example: Example, params: Params) -> float:
    """Return an example's weight in the mean over examples (our choice: 1 for all by default)."""
    rewritten = params.counterfactual_weight if example.counterfactual else 1.0
    return rewritten * (params.negative_view_weight if example.kind == "negative" else 1.0)


def _sources(
    questions: Sequence[Question], counterfactuals: Sequence[Counterfactual], method: str
) -> list[tuple[Question, bool]]:
    sources = [(question, False) for question in questions]
    if METHODS[method].counterfactuals:
        sources += [(counterfactual.question, True) for counterfactual in counterfactuals]
    return sources


def _by_question(examples: Sequence[Example]) -> list[list[Example]]:
    groups: dict[str, list[Example]] = {}
    for example in examples:
        groups.setdefault(example.question_id, []).append(example)
    return list(groups.values())


def _questions_per_step(groups: Sequence[Sequence[Example]], params: Params) -> int:
    return max(1, params.batch_size // max(map(len, groups)))


def _last_checkpoint(folder: Path) -> str | None:
    """Return the newest checkpoint that was written to its end, deleting those that were not."""
    complete = []
    for checkpoint in folder.glob("checkpoint-*"):
        if (checkpoint / LAST_FILE).is_file():
            complete.append(checkpoint)
        else:
            shutil.rmtree(checkpoint)
    return str(max(complete, key=lambda path: int(path.name.split("-")[1]))) if complete else None


def _write_log(path: Path, log: Sequence[Mapping[str, float]]) -> None:
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, LOG_COLUMNS, extrasaction="ignore")
        writer.writeheader()
        writer.writerows(log)


def _peak_memory_gib() -> float:
    """Return the most memory this process has held so far."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak / (2**30 if sys.platform == "darwin" else 2**20)  # bytes on macOS, KiB on Linux
