"""The training loop's own pieces: batches drawn up ahead, layers split, a Trainer with our loss.

This module imports torch and transformers when it is imported; `training` does so when it trains.
"""

from __future__ import annotations

import copy
import ctypes
import math
import random
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    EarlyStoppingCallback,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerCallback,
    TrainerState,
    TrainingArguments,
)
from transformers.integrations.integration_utils import TensorBoardCallback

from cfdistill import runs
from cfdistill.encoding import Batch, Packed, collate, last_hidden, target_loss
from cfdistill.errors import TrainingError
from cfdistill.families import freeze
from cfdistill.params import Params
from cfdistill.progress import Progress

CHECKPOINTS = 5  # how often a run saves what it needs to go on after a crash
M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # options of the C library's mallopt
POOL = 8  # batches among whose examples similar lengths are put together


def draw_batches(lengths: Sequence[int], batch_size: int, steps: int, seed: int) -> list[list[int]]:
    """Return the examples (as indices) of every optimiser step, epoch after epoch.

    The whole order is fixed before the first step, so a resumed run goes on exactly where it was.
    Within a shuffled pool of batches, examples of similar length share a batch, which saves padding.
    """
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


def split_layers(model: PreTrainedModel, frozen: int) -> tuple[PreTrainedModel | None, PreTrainedModel]:
    """Freeze a model's lowest layers, and split a Llama into these and the rest, sharing all weights.

    The lower part ends before the final norm and trains nothing. The upper part is fed what the
    lower one puts out, as `inputs_embeds`; it trains everything but the embeddings and the head
    tied to them. Other families, which add positions to `inputs_embeds` once more, stay whole.

    Raises:
        TrainingError: the model has too few layers, or an encoder.
    """
    freeze(model, frozen)
    if model.config.model_type != "llama":
        return None, model
    layers = model.model.layers
    lower, upper = _part(model, layers[:frozen]), _part(model, layers[frozen:])
    lower.model.norm = torch.nn.Identity()
    return lower.eval(), upper


def _part(model: Any, layers: torch.nn.ModuleList) -> Any:
    """Return a model of the same class with only these layers; every module is the original's."""
    config = copy.deepcopy(model.config)
    config.num_hidden_layers = len(layers)
    with torch.device("meta"):  # a shell without memory, all of which is replaced
        part = type(model)(config)
    part.model.layers = layers
    part.model.embed_tokens, part.model.norm = model.model.embed_tokens, model.model.norm
    part.model.rotary_emb, part.lm_head = model.model.rotary_emb, model.lm_head
    return part


def keep_memory() -> None:
    """Let the C library keep freed memory for the next step, where it can be told to (glibc).

    Otherwise gradients and logits go back to the system after every step, which hands out 180,000 cleared
    pages anew in the next one: 10 % of a step's time for a student of 135M parameters.
    """
    set_option = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if set_option:
        set_option(M_MMAP_MAX, 0)
        set_option(M_TRIM_THRESHOLD, 2**31 - 1)


@torch.no_grad()
def lower_states(lower: PreTrainedModel, rows: Sequence[Packed], batch_size: int) -> list[torch.Tensor]:
    """Return what enters the first trained layer, per row (tokens, width), on the CPU.

    Deviation: the paper trains every layer. Frozen layers give the same output in every epoch, so it
    is computed once and kept (4 bytes × width per token).
    """
    states: list[torch.Tensor] = [torch.empty(0)] * len(rows)
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    progress = Progress(len(rows), "frozen layers: example")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        hidden = last_hidden(lower, collate([rows[i] for i in chosen]))
        for row, i in zip(hidden, chosen, strict=True):
            states[i] = row[: len(rows[i])].cpu().clone()
        progress.update(start + len(chosen))
    return states


class StudentTrainer(Trainer):
    """Hugging Face's Trainer with the loss on target tokens, a fixed order and quiet progress."""

    loss_is_scaled_for_ga = True  # of a batch in parts, the losses add up: nothing is to be averaged

    def __init__(
        self,
        model: PreTrainedModel,
        rows: Sequence[Packed],
        states: Sequence[torch.Tensor],
        batches: list[list[int]],
        params: Params,
        folder: Path,
        *,
        bf16: bool,
        validate: Callable[[], dict[str, float]] | None = None,
    ) -> None:
        """Prepare to train.

        Args:
            model: the part to train, sharing its weights with the student.
            rows: training sequences.
            states: what enters `model`'s first layer, per row; empty: it looks up embeddings.
            batches: row indices of every step.
            params: learning rate, seed, validations and what follows from them.
            folder: for checkpoints.
            bf16: compute matrix products in bfloat16.
            validate: measures the student's accuracy and loss on validation questions.
        """
        self.rows, self.states, self.bf16, self.validate = rows, states, bf16, validate
        rhythm = math.ceil(len(batches) / (params.validations if validate else CHECKPOINTS))
        arguments = TrainingArguments(
            output_dir=str(folder),
            max_steps=len(batches),
            per_device_train_batch_size=1,  # one part of a batch
            gradient_accumulation_steps=params.accumulation_steps,
            train_sampling_strategy="sequential",
            learning_rate=params.learning_rate,
            lr_scheduler_type="linear",
            warmup_steps=math.ceil(len(batches) / 10),
            weight_decay=0.01,
            max_grad_norm=1.0,
            seed=params.seed,
            logging_steps=1,
            logging_nan_inf_filter=False,
            save_steps=rhythm,
            save_total_limit=1,  # beside the best one, if that is wanted
            eval_strategy="steps" if validate else "no",
            eval_steps=rhythm,
            load_best_model_at_end=params.checkpoint == "best",
            metric_for_best_model="accuracy" if params.checkpoint == "best" else None,
            greater_is_better=True,
            report_to="none",
            use_cpu=not torch.cuda.is_available(),
            disable_tqdm=True,
            remove_unused_columns=False,
            dataloader_pin_memory=torch.cuda.is_available(),
        )
        arguments._n_gpu = min(arguments.n_gpu, 1)  # several would be wrapped in torch's DataParallel
        keep_memory()
        super().__init__(
            model,
            arguments,
            data_collator=self._collate,
            train_dataset=self._parts(batches, params.accumulation_steps * arguments.world_size),
            eval_dataset=[] if validate else None,  # the Trainer asks that there is one
        )
        self.remove_callback(PrinterCallback)  # its dictionaries would fill the notebook
        self.add_callback(
            StepReport([sum(len(rows[i]) + len(rows[i].source) for i in batch) for batch in batches])
        )
        if params.tensorboard and self.is_world_process_zero():
            log = runs.resolve(params.run_root) / "tensorboard" / folder.parent.stem
            self.add_callback(_tensorboard(log))
        if params.patience:
            self.add_callback(EarlyStoppingCallback(params.patience))

    def _parts(self, batches: list[list[int]], parts: int) -> list[tuple[list[int], float]]:
        """Cut every batch into parts, each with the weight of the whole batch.

        Processes take turns in taking a part. A batch too small for so many parts repeats its first row,
        with a share of nothing.
        """
        weights = [sum(self.rows[i].weight for i in batch) for batch in batches]
        cut = [
            (batch, batch[k::parts], w)
            for batch, w in zip(batches, weights, strict=True)
            for k in range(parts)
        ]
        return [(part, w) if part else (batch[:1], math.inf) for batch, part, w in cut]

    def _collate(self, entries: list[tuple[list[int], float]]) -> Batch:
        ((indices, weight),) = entries
        batch = collate([self.rows[i] for i in indices], [self.states[i] for i in indices if self.states])
        # Gradients and losses are averaged over processes, which is to come to their sum.
        return batch | {"total_weight": torch.tensor(weight / self.args.world_size)}

    def compute_loss(self, model: Any, inputs: Batch, *_: Any, **__: Any) -> torch.Tensor:
        """Return the mean loss over the batch's target tokens; of a part of it, its share in that."""
        student = self.accelerator.unwrap_model(model)
        with torch.autocast(inputs["labels"].device.type, torch.bfloat16, enabled=self.bf16):
            if student is model:
                return target_loss(model, inputs)
            # Wrappers for several processes add up the gradients of what passes through their `forward`.
            own_forward = student.forward

            def forward(batch: Batch) -> torch.Tensor:
                student.forward = own_forward
                return target_loss(student, batch)

            student.forward = forward
            loss: torch.Tensor = model(inputs)
            return loss

    def evaluate(self, *_: Any, **__: Any) -> dict[str, float]:
        """Validate the student, and let the record and the callbacks know."""
        assert self.validate is not None
        measured = {f"eval_{name}": value for name, value in self.validate().items()}
        self.log(dict(measured))
        self.control = self.callback_handler.on_evaluate(self.args, self.state, self.control, measured)
        return measured


def _tensorboard(folder: Path) -> TrainerCallback:
    try:
        from torch.utils.tensorboard import SummaryWriter
    except ImportError as error:
        raise TrainingError("tensorboard: true needs pip install 'cfdistill[tensorboard]'") from error
    callback: Any = TensorBoardCallback
    logged: TrainerCallback = callback(SummaryWriter(str(folder)))
    return logged


class StepReport(TrainerCallback):
    """Adds seconds and tokens per second to each step's record, and reports progress."""

    def __init__(self, step_tokens: Sequence[int]) -> None:
        """Take the number of tokens of every step."""
        self.step_tokens = step_tokens

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Start the clock; after a crash `state` already counts the finished steps."""
        self.last = time.perf_counter()
        self.progress = Progress(state.max_steps, "step", done=state.global_step)

    def on_log(self, args: Any, state: TrainerState, control: Any, **kwargs: Any) -> None:
        """Complete the record of one step.

        Raises:
            TrainingError: the loss is no longer a number.
        """
        logs: dict[str, float] = kwargs["logs"]
        if "loss" not in logs:  # the Trainer's summary after the last step
            return
        step, now = state.global_step, time.perf_counter()
        if not math.isfinite(logs["loss"]):
            raise TrainingError(f"the loss is {logs['loss']} at step {step}; lower learning_rate")
        seconds, self.last = now - self.last, now
        speed = self.step_tokens[step - 1] / seconds
        state.log_history[-1] |= {"seconds": seconds, "tokens_per_s": speed}
        self.progress.update(step, f"loss {logs['loss']:.2f} · {speed:.0f} tokens/s")

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Have the student of the last step validated too."""
        if state.global_step == state.max_steps and args.eval_strategy != "no":
            control.should_evaluate = True

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """Count the time of a validation to no step."""
        self.last = time.perf_counter()
