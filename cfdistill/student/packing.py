"""From text to tensors: tokens, and packed batches in which a question's examples share common tokens."""

import math
from collections.abc import Sequence, Sized
from dataclasses import dataclass, field
from typing import Any

from cfdistill.schema import Example
from cfdistill.student.models import family_of

IGNORED = -100  # label of a token that the loss leaves out
PADDING = -1  # branch of a padding token

Batch = dict[str, Any]  # of tensors


@dataclass(frozen=True)
class Pair:
    """The token ids of one prompt and of what is to follow it."""

    prompt: list[int]
    target: list[int]
    weight: float = 1.0  # of the example in the loss
    begun: tuple[int, ...] = ()  # for a decoder: what stands before the target, and is given


@dataclass(frozen=True, eq=False)  # sequences are compared by identity
class Packed:
    """Shared tokens (branch 0) and branches (1, 2, …), which see these and themselves: lists by token."""

    input_ids: list[int]
    position_ids: list[int]
    branches: list[int]
    labels: list[int]  # the token itself if the loss is taken on it, else IGNORED
    weights: list[float]  # in the loss, of the example in each branch
    source: list[int] = field(default_factory=list)  # what an encoder reads; the rest is the decoder's

    def __len__(self) -> int:
        return len(self.input_ids)


def tokenize(text: str, tokenizer: Any, *, whole: bool = False) -> list[int]:
    """Return the token ids of `text`, with the special tokens around a `whole` one, such as a prompt."""
    return list(tokenizer(text, add_special_tokens=whole)["input_ids"])


def encode(example: Example, tokenizer: Any, weight: float = 1.0) -> Pair:
    """Tokenize prompt and target apart; the target ends with the end-of-sequence token."""
    target = [*tokenize(example.target, tokenizer), tokenizer.eos_token_id]
    return Pair(tokenize(example.prompt, tokenizer, whole=True), target, weight)


def by_length(rows: Sequence[Sized], batch_size: int) -> list[list[int]]:
    """Return the rows' numbers in batches of nearly one size, the shortest rows first, to save padding."""
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    size = math.ceil(len(order) / max(1, math.ceil(len(order) / batch_size)))
    return [order[start : start + size] for start in range(0, len(order), size or 1)]


def rows_of(pairs: Sequence[Pair], model: Any, tokenizer: Any) -> list[Packed]:
    """Return the sequences of one question's pairs: one if the student's family packs, else one each."""
    if family_of(model).packs:
        return [pack(pairs)]
    if not model.config.is_encoder_decoder:
        return [pack([pair]) for pair in pairs]
    rows = []
    for pair in pairs:
        given = [*decoder_start(model, tokenizer), *pair.begun]
        ids, labels = given + pair.target, [IGNORED] * len(given) + pair.target
        rows.append(Packed(ids, list(range(len(ids))), [1] * len(ids), labels, [pair.weight], pair.prompt))
    return rows


def decoder_start(model: Any, tokenizer: Any) -> list[int]:
    """Return the tokens that every text of a decoder begins with, as it does in pre-training."""
    before_text = tokenizer("")["input_ids"][:-1]  # the last one ends the text
    return [model.config.decoder_start_token_id, *before_text]


def pack(pairs: Sequence[Pair]) -> Packed:
    """Put pairs into one sequence that holds their prompts' common beginning once."""
    prompts, weights = [pair.prompt for pair in pairs], [pair.weight for pair in pairs]
    limit = min(map(len, prompts)) - 1  # the last one predicts its branch's first target
    shared = next((i for i in range(limit) if len({prompt[i] for prompt in prompts}) > 1), limit)
    packed = Packed(prompts[0][:shared], list(range(shared)), [0] * shared, [IGNORED] * shared, weights)
    for number, pair in enumerate(pairs, 1):  # positions go on from the shared ones: no result changes
        own_prompt = pair.prompt[shared:]
        length = len(own_prompt) + len(pair.target)
        packed.input_ids.extend(own_prompt + pair.target)
        packed.position_ids.extend(range(shared, shared + length))
        packed.branches.extend([number] * length)
        packed.labels.extend([IGNORED] * len(own_prompt) + pair.target)
    return packed


def collate(rows: Sequence[Packed], hidden: Sequence[Any] = ()) -> Batch:
    """Stack b sequences, padded to n tokens; `hidden` (tokens, width) of each may stand for its tokens."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def padded(name: str, value: int) -> torch.Tensor:
        return pad_sequence([torch.tensor(getattr(row, name)) for row in rows], True, value)

    branches, weights = padded("branches", PADDING), [[0.0, *row.weights] for row in rows]
    key, query = branches[:, None, :], branches[:, :, None]
    causal = torch.ones(branches.shape[1], branches.shape[1], dtype=torch.bool).tril()
    batch = {
        "input_ids": padded("input_ids", 0),  # (b, n)
        "position_ids": padded("position_ids", 0),
        "attention_mask": (causal & ((key == 0) | (key == query)))[:, None],  # (b, 1, n, n): i may see j
        "branches": branches,
        "labels": padded("labels", IGNORED),
        "weights": pad_sequence([torch.tensor(row, dtype=torch.double) for row in weights], True),
        "total_weight": torch.tensor(sum(sum(row.weights) for row in rows)),
    }
    if rows[0].source:
        batch["source"] = padded("source", 0)
        batch["source_mask"] = pad_sequence([torch.ones(len(row.source)) for row in rows], True).long()
    if hidden:
        batch["inputs_embeds"] = pad_sequence(list(hidden), True)  # (b, n, width)
    return batch
