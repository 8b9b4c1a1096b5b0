"""Frozen layers: split off, and what they make of the same sequences computed once for all trainings."""

import copy
import hashlib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from filelock import FileLock
from transformers import PreTrainedModel

from cfdistill import files
from cfdistill.progress import Progress
from cfdistill.student.loss import last_hidden
from cfdistill.student.models import freeze
from cfdistill.student.packing import Packed, by_length, collate

States = dict[Packed, torch.Tensor]  # what enters the first trained layer (tokens, width), on the CPU


def split_layers(model: PreTrainedModel, frozen: int) -> tuple[PreTrainedModel | None, PreTrainedModel]:
    """Freeze a model's lowest layers, and split a Llama into these and the rest, which share all weights."""
    freeze(model, frozen)
    if model.config.model_type != "llama":  # they add positions to `inputs_embeds`, which the rest is fed
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


def lower_states(lower: PreTrainedModel, rows: Sequence[Packed], batch_size: int, kept: Path) -> States:
    """Return what enters the first trained layer in every epoch. Deviation: the paper trains every layer."""
    batches, width = by_length(rows, batch_size), lower.config.hidden_size
    read = [(row.input_ids, row.position_ids, row.branches) for row in rows]
    made_from = (lower.config.to_json_string(), lower.device.type, batch_size, read)
    key = hashlib.sha256(repr(made_from).encode())  # of all that makes the states
    for weights in lower.base_model.parameters():
        key.update(weights.cpu().numpy().tobytes())
    file = kept / key.hexdigest()[:32]
    digest, tokens = file.with_suffix(".sha256"), sum(map(len, rows))
    kept.mkdir(parents=True, exist_ok=True)
    with FileLock(file.with_suffix(".lock")):  # trainings of several seeds need the same states
        if not (digest.is_file() and file.is_file() and digest.read_text() == files.sha256(file)):
            _compute(lower, [[rows[i] for i in chosen] for chosen in batches], file, 4 * width * tokens)
            files.write_text(digest, files.sha256(file))
    order = [rows[i] for chosen in batches for i in chosen]
    found = torch.from_file(str(file), size=tokens * width).view(tokens, width)  # mapped, not read
    return dict(zip(order, torch.split(found, [len(row) for row in order]), strict=True))


@torch.no_grad()
def _compute(lower: PreTrainedModel, batches: Sequence[list[Packed]], file: Path, size: int) -> None:
    files.check_space(file.parent, size)
    aside, progress = file.with_suffix(".new"), Progress(sum(map(len, batches)), "frozen layers: sequence")
    try:
        with aside.open("wb") as out:
            for batch in batches:
                for row, hidden in zip(batch, last_hidden(lower, collate(batch)), strict=True):
                    out.write(hidden[: len(row)].cpu().numpy())
                progress.advance(len(batch))
        aside.replace(file)
    finally:
        aside.unlink(missing_ok=True)
