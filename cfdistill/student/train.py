"""Training: batches drawn up ahead, frozen layers computed once, and a Trainer with our loss."""

import ctypes
import math
import random
import resource
import shutil
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import PrinterCallback, Trainer, TrainingArguments

from cfdistill.errors import TrainingError
from cfdistill.files import check_space, resolve
from cfdistill.params import Params
from cfdistill.progress import Progress
from cfdistill.schema import ENDING, STRATEGY, Example, prompt_text, same_option
from cfdistill.student import lower
from cfdistill.student.decode import Questions, option_scores
from cfdistill.student.examples import by_question, example_weight, questions_per_step
from cfdistill.student.loss import target_loss
from cfdistill.student.lower import States
from cfdistill.student.models import Student, precision
from cfdistill.student.packing import Batch, Packed, collate, encode, rows_of

LAST_FILE = "trainer_state.json"  # of a checkpoint: what is written after all others
LOG_COLUMNS = ["step", "epoch", "loss", "learning_rate", "tokens_per_s", "seconds"]
LOG_COLUMNS += ["val_accuracy", "val_loss"]
POOL = 8  # batches among whose examples similar lengths are put together, which saves padding

Examples = Sequence[Example]
Validate = Callable[[], dict[str, float]] | None
Batches = Sequence[list[Packed]]  # the sequences of every step


def train(
    student: Student, examples: Examples, steps: int, params: Params, folder: Path, held_out: Questions = ()
) -> tuple[list[dict[str, float]], dict[str, Any]]:
    """Train a student in place, on from a checkpoint in `folder`; return a record per step, and facts."""
    packed, size = pack_examples(examples, student, params), questions_per_step(examples, params)
    drawn = draw_batches([sum(map(len, own)) for own in packed], size, steps, params.seed)
    batches = [[row for i in batch for row in packed[i]] for batch in drawn]
    rows, model, states = [row for own in packed for row in own], student.model, States()
    if params.frozen_layers:
        frozen, model = lower.split_layers(student.model, params.frozen_layers)
        kept = resolve(params.run_root) / "states"
        states = lower.lower_states(frozen, rows, params.eval_batch_size, kept) if frozen else states
    moments = 2 * sum(p.numel() for p in model.parameters() if p.requires_grad)  # AdamW's
    most = 3 if params.checkpoint == "best" else 2  # the last one is deleted when the next one is written
    check_space(folder, 4 * (student.model.num_parameters() + most * (model.num_parameters() + moments)))
    validate = None
    if held_out and params.validations:
        kind = next(kind for kind in STRATEGY if any(example.kind == kind for example in examples))
        validate = partial(measure, student, held_out, kind, params)
    trainer, last = StudentTrainer(model, batches, states, validate, params, folder), _last_checkpoint(folder)
    trainer.progress = Progress(steps, "step", last)
    trainer.train(resume_from_checkpoint=str(folder / f"checkpoint-{last}") if last else None)
    student.model.eval()
    done, epoch = trainer.state, math.ceil(len(packed) / size)
    log = [row | {"epoch": row["step"] / epoch} for row in done.log_history if "loss" in row]
    return log, {
        "examples": len(examples),
        "sequences": len(rows),
        "target_tokens": sum(label >= 0 for row in rows for label in row.labels),
        "steps": done.global_step,
        "kept_step": done.best_global_step if params.checkpoint == "best" else done.global_step,
        "precision": precision(params),
        "threads": torch.get_num_threads(),
        "peak_memory_gib": peak_memory_gib(),
    }


def pack_examples(examples: Examples, student: Student, params: Params) -> list[list[Packed]]:
    """Return the sequences of every question; raises TrainingError when an example is too long."""
    model, tokenizer, grouped = student.model, student.tokenizer, by_question(examples)
    groups = [[encode(e, tokenizer, example_weight(e, params)) for e in group] for group in grouped]
    lengths = [len(pair.prompt) + len(pair.target) for group in groups for pair in group]
    if longer := [length for length in lengths if length > params.max_length]:
        told = f"{len(longer)} of {len(lengths)} training examples are over max_length={params.max_length}"
        raise TrainingError(f"{told} tokens; raise max_length to {max(longer)} (cut, they would teach less)")
    window = getattr(model.config, "max_position_embeddings", params.max_length)
    if max(lengths) > window:
        told = f"the longest example has {max(lengths)} tokens, and the student takes {window}"
        raise TrainingError(f"{told}; choose another")
    return [rows_of(group, model, tokenizer) for group in groups]


def draw_batches(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Return the questions (indices) of every step, fixed before the first, so that runs can be resumed."""
    order = random.Random(seed)
    batches: list[list[int]] = []
    while len(batches) < steps:
        shuffled = order.sample(range(len(lengths)), len(lengths))
        epoch = []
        for start in range(0, len(shuffled), POOL * batch_size):
            pool = sorted(shuffled[start : start + POOL * batch_size], key=lambda i: lengths[i])
            epoch += [pool[i : i + batch_size] for i in range(0, len(pool), batch_size)]
        order.shuffle(epoch)
        batches += epoch
    return batches[:steps]


def measure(student: Student, questions: Questions, kind: str, params: Params) -> dict[str, float]:
    """Return accuracy, and loss (nats) of the right option among the options, told without a rationale."""
    # Our choice: own words cost more than the training, and this ranks as well (docs/training.md).
    student.model.eval()
    prompts, options = [prompt_text(q, STRATEGY[kind]) for q in questions], [q.options for q in questions]
    said = [f" {ENDING}" if kind == "label" else ""] * len(prompts)  # what its targets begin with
    with torch.autocast(student.model.device.type, torch.bfloat16, enabled=precision(params) == "bf16"):
        scores = option_scores(student, prompts, options, params.eval_batch_size, said)
    right, losses = [], []
    for gold, own, row in zip((q.answer for q in questions), options, scores, strict=True):
        right.append(same_option(own[row.argmax()], own[gold]))
        totals = row[: len(own)] * [len(option) for option in own]
        losses.append(np.logaddexp.reduce(totals) - totals[gold])
    return {"accuracy": float(np.mean(right)), "loss": float(np.mean(losses))}


def keep_memory() -> None:
    """Let glibc keep freed memory for the next step: cleared anew it costs 10 % of a 135M student's step."""
    if sys.platform == "linux" and hasattr(library := ctypes.CDLL(None), "mallopt"):
        library.mallopt(-4, 0)  # M_MMAP_MAX
        library.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def peak_memory_gib() -> float:
    """Return the most memory that this process has held so far: the GPU's if there is one."""
    if torch.cuda.is_available():
        return torch.cuda.max_memory_allocated() / 2**30
    unit = 2**30 if sys.platform == "darwin" else 2**20
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def _last_checkpoint(folder: Path) -> int:
    """Return the step of the newest complete checkpoint, 0 if there is none; others are deleted."""
    for checkpoint in folder.glob("checkpoint-*"):
        if not (checkpoint / LAST_FILE).is_file():
            shutil.rmtree(checkpoint)
    return max((int(path.name.split("-")[1]) for path in folder.glob("checkpoint-*")), default=0)


def forget_checkpoints(folder: Path) -> None:
    """Delete all checkpoints, each one's mark of being complete first."""
    for state in folder.glob(f"*/{LAST_FILE}"):
        state.unlink()
    shutil.rmtree(folder)


class StudentTrainer(Trainer):
    """Hugging Face's Trainer with the loss on target tokens, a fixed order and quiet progress."""

    def __init__(
        self, model: Any, batches: Batches, states: States, validate: Validate, params: Params, folder: Path
    ) -> None:
        """Prepare to train `model`, which looks up embeddings where there are no `states`."""
        self.states, self.validate, self.bf16 = states, validate, precision(params) == "bf16"
        self.tokens = [sum(len(row) + len(row.source) for row in batch) for batch in batches]
        keep_memory()
        arguments = _arguments(len(batches), params, folder, validates=validate is not None)
        tested: list[Any] | None = [] if validate else None  # the Trainer asks that there is something
        super().__init__(model, arguments, self._collate, batches, tested)
        self.remove_callback(PrinterCallback)  # its dictionaries would fill the notebook
        self.progress, self.last = Progress(len(batches), "step"), time.perf_counter()

    def _collate(self, entries: Batches) -> Batch:
        (rows,) = entries
        return collate(rows, [self.states[row] for row in rows if self.states])

    def compute_loss(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> torch.Tensor:
        """Return a batch's loss."""
        device = inputs["labels"].device.type
        # at our lengths the processor's fused kernel takes longer backward: in all 12 % of a step's time
        kernel = sdpa_kernel(SDPBackend.MATH) if device == "cpu" else nullcontext()
        with torch.autocast(device, torch.bfloat16, enabled=self.bf16), kernel:
            return target_loss(model, inputs)

    def log(self, logs: dict[str, float], *rest: Any) -> None:
        """Complete the record of a step; raises TrainingError when the loss is no longer a number."""
        if "loss" in logs:  # else it is the summary after the last step
            step, loss, now = self.state.global_step, logs["loss"], time.perf_counter()
            if not math.isfinite(loss):
                raise TrainingError(f"the loss is {loss} at step {step}; lower learning_rate")
            speed = self.tokens[step - 1] / (now - self.last)
            logs |= {"seconds": now - self.last, "tokens_per_s": speed}
            self.progress.advance(1, f"loss {loss:.2f} · {speed:.0f} tokens/s")
            self.last = now
        super().log(logs, *rest)

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate the student, beside the record of the last step; no step's time holds it."""
        measured = self.validate() if self.validate else {}
        self.state.log_history[-1] |= {f"val_{name}": value for name, value in measured.items()}
        found = {f"eval_{name}": value for name, value in measured.items()}
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, found)
        self.last = time.perf_counter()
        return found


def _arguments(steps: int, params: Params, folder: Path, *, validates: bool) -> TrainingArguments:
    rhythm = math.ceil(steps / (params.validations if validates else 5))  # of what a run can go on from
    best = params.checkpoint == "best"
    arguments = TrainingArguments(
        output_dir=str(folder),
        max_steps=steps,
        per_device_train_batch_size=1,  # one of our batches
        train_sampling_strategy="sequential",
        learning_rate=params.learning_rate,
        lr_scheduler_type="linear",
        warmup_steps=math.ceil(steps / 10) if steps > 1 else 0,  # whose first step has a rate of 0
        weight_decay=0.01,
        max_grad_norm=1.0,
        seed=params.seed,
        logging_steps=1,
        logging_nan_inf_filter=False,
        save_steps=rhythm,
        save_total_limit=1,  # beside the best one, if that is wanted
        eval_strategy="steps" if validates else "no",
        eval_steps=rhythm,
        load_best_model_at_end=best,
        metric_for_best_model="loss" if best else None,
        report_to="none",
        use_cpu=not torch.cuda.is_available(),
        disable_tqdm=True,
        remove_unused_columns=False,
        dataloader_pin_memory=torch.cuda.is_available(),
    )
    arguments._n_gpu = min(arguments.n_gpu, 1)  # several would be wrapped in torch's DataParallel
    return arguments
