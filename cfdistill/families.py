"""The families of models that can be students, and where each keeps what training needs to know."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from cfdistill.errors import TrainingError

HUB: Mapping[str, str] = {  # students by name, and their repositories on the Hugging Face hub
    "gpt2": "openai-community/gpt2",
    "gpt2-medium": "openai-community/gpt2-medium",
    "gpt2-large": "openai-community/gpt2-large",
    "opt-125m": "facebook/opt-125m",
    "opt-350m": "facebook/opt-350m",
    "gpt-neo-125m": "EleutherAI/gpt-neo-125m",
    "bart-base": "facebook/bart-base",
    "bart-large": "facebook/bart-large",
    "t5-base": "google-t5/t5-base",
    "t5-large": "google-t5/t5-large",
}


@dataclass(frozen=True)
class Family:
    """What sets a family apart; module paths start at the model with its LM head."""

    packs: bool = False  # several branches in one sequence give exactly what each gives alone
    layers: str = ""  # its transformer layers; empty: an encoder–decoder
    after: tuple[str, ...] = ()  # modules between the last layer and the head, where the model has them


FAMILIES: Mapping[str, Family] = {  # by `model_type` of the configuration
    "llama": Family(True, "model.layers", ("model.norm",)),
    "gpt2": Family(True, "transformer.h", ("transformer.ln_f",)),
    # The 350M model has no last norm, but a projection; the others have it the other way round.
    "opt": Family(
        True, "model.decoder.layers", ("model.decoder.final_layer_norm", "model.decoder.project_out")
    ),
    # Every second layer looks back over a window counted in columns, which another branch would fill.
    "gpt_neo": Family(False, "transformer.h", ("transformer.ln_f",)),
    "bart": Family(),  # the decoder takes no positions, and T5's are counted in columns
    "t5": Family(),
}


def family_of(model: Any) -> Family:
    """Return a model's family.

    Raises:
        TrainingError: it belongs to none.
    """
    kind = model.config.model_type
    if kind not in FAMILIES:
        raise TrainingError(f"a student of type {kind!r} is not supported; types are {', '.join(FAMILIES)}")
    return FAMILIES[kind]


def widths(config: Any) -> tuple[int, int]:
    """Return the widths of a model's hidden states and of its feed-forward layers."""
    hidden: int = config.hidden_size
    names = ("intermediate_size", "ffn_dim", "decoder_ffn_dim", "d_ff", "n_inner")
    inner = next((size for name in names if (size := getattr(config, name, None))), 4 * hidden)
    return hidden, inner


def freeze(model: Any, layers: int) -> None:
    """Let training change nothing but the layers above the `layers` lowest, and what follows them.

    Raises:
        TrainingError: the model has too few layers, or an encoder.
    """
    family = family_of(model)
    if not family.layers:
        raise TrainingError("frozen_layers is not possible with an encoder–decoder; set frozen_layers=0")
    stack = model.get_submodule(family.layers)
    if layers >= len(stack):
        raise TrainingError(f"frozen_layers={layers}, but the student has {len(stack)} layers; set fewer")
    model.requires_grad_(False)
    stack[layers:].requires_grad_(True)
    for path in family.after:
        parent, _, name = path.rpartition(".")
        module = getattr(model.get_submodule(parent), name)
        if module is not None:
            module.requires_grad_(True)
