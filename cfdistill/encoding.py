"""From text to tensors: tokens, which of them the loss is taken on, and packed batches.

Examples of one question share its text. They are packed into one sequence: the shared tokens once,
then one *branch* per example, which sees the shared tokens and itself but no other branch. Branch
positions all start where the shared tokens end, so every token gets exactly what it would get in a
sequence of its own; a test compares the two. Families of students in which that does not hold get one
example per sequence (`rows_of`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from html import escape
from typing import TYPE_CHECKING, Any

from cfdistill.errors import TrainingError
from cfdistill.families import family_of
from cfdistill.schema import Example

if TYPE_CHECKING:
    import torch

    from cfdistill.students import Student

IGNORED = -100  # label of a token that the loss leaves out
PADDING = -1  # branch of a padding token
SUPERVISED_COLOR = "#0072b233"  # a light blue

Batch = dict[str, "torch.Tensor"]


@dataclass(frozen=True)
class Pair:
    """The token ids of one prompt and of what is to follow it."""

    prompt: list[int]
    target: list[int]
    weight: float = 1.0  # of the example in the loss
    begun: tuple[int, ...] = ()  # for a decoder: what stands before the target, and is given


@dataclass(frozen=True)
class Packed:
    """One sequence of shared tokens (branch 0) and branches (1, 2, …), one entry per token."""

    input_ids: list[int]
    position_ids: list[int]
    branches: list[int]
    labels: list[int]  # the token itself if the loss is taken on it, else IGNORED
    weights: list[float]  # in the loss: its example's weight over the example's number of target tokens
    weight: float  # of all its examples together
    source: list[int] = field(default_factory=list)  # what an encoder reads; the rest is the decoder's

    def __len__(self) -> int:
        """Return the number of tokens."""
        return len(self.input_ids)


def tokenize(text: str, tokenizer: Any) -> list[int]:
    """Return the token ids of `text`, without special tokens added around it."""
    ids: list[int] = tokenizer(text, add_special_tokens=False)["input_ids"]
    return ids


def tokenize_prompt(text: str, tokenizer: Any) -> list[int]:
    """Return the token ids of a prompt, with the special tokens that its tokenizer puts around a text."""
    ids: list[int] = tokenizer(text)["input_ids"]
    return ids


def encode(example: Example, tokenizer: Any, weight: float = 1.0) -> Pair:
    """Tokenize prompt and target apart; the target ends with the end-of-sequence token."""
    target = [*tokenize(example.target, tokenizer), tokenizer.eos_token_id]
    return Pair(tokenize_prompt(example.prompt, tokenizer), target, weight)


def check_lengths(pairs: Sequence[Pair], max_length: int, window: int) -> None:
    """Make sure that no example would have to be cut.

    Raises:
        TrainingError: some are longer than `max_length` tokens (says how many and the longest), or than the
            student's `window`.
    """
    lengths = [len(pair.prompt) + len(pair.target) for pair in pairs]
    longer = [length for length in lengths if length > max_length]
    if longer:
        raise TrainingError(
            f"{len(longer)} of {len(lengths)} training examples are longer than max_length={max_length} "
            f"tokens; raise max_length to {max(longer)} (cutting them would cut what is to be learned)"
        )
    if max(lengths) > window:
        raise TrainingError(
            f"the longest example has {max(lengths)} tokens, and the student takes {window}; choose another"
        )


def rows_of(pairs: Sequence[Pair], student: Student) -> list[Packed]:
    """Return the sequences of one question's pairs: one if the student's family packs, else one each."""
    if family_of(student.model).packs:
        return [pack(pairs)]
    if student.model.config.is_encoder_decoder:
        return [for_decoder(pair, student) for pair in pairs]
    return [pack([pair]) for pair in pairs]


def decoder_start(student: Student) -> list[int]:
    """Return the tokens that every text of a decoder begins with, as it does in pre-training."""
    before_text = student.tokenizer("")["input_ids"][:-1]  # the last one ends the text
    return [student.model.config.decoder_start_token_id, *before_text]


def for_decoder(pair: Pair, student: Student) -> Packed:
    """Return the sequence of an encoder–decoder, which reads the prompt and writes the target."""
    given = [*decoder_start(student), *pair.begun]
    length = len(given) + len(pair.target)
    return Packed(
        input_ids=given + pair.target,
        position_ids=list(range(length)),
        branches=[1] * length,
        labels=[IGNORED] * len(given) + pair.target,
        weights=[0.0] * len(given) + [pair.weight / len(pair.target)] * len(pair.target),
        weight=pair.weight,
        source=pair.prompt,
    )


def pack(pairs: Sequence[Pair]) -> Packed:
    """Put pairs into one sequence that holds their prompts' common beginning once.

    The last prompt token always stays in the branch: it is what predicts the branch's first target.
    """
    prompts = [pair.prompt for pair in pairs]
    limit = min(map(len, prompts)) - 1
    shared = next((i for i in range(limit) if len({prompt[i] for prompt in prompts}) > 1), limit)
    ids = pairs[0].prompt[:shared]
    positions, branches, labels = list(range(shared)), [0] * shared, [IGNORED] * shared
    weights = [0.0] * shared
    for number, pair in enumerate(pairs, 1):
        own_prompt = pair.prompt[shared:]
        length = len(own_prompt) + len(pair.target)
        ids += own_prompt + pair.target
        positions += range(shared, shared + length)
        branches += [number] * length
        labels += [IGNORED] * len(own_prompt) + pair.target
        weights += [0.0] * len(own_prompt) + [pair.weight / len(pair.target)] * len(pair.target)
    return Packed(ids, positions, branches, labels, weights, sum(pair.weight for pair in pairs))


def collate(rows: Sequence[Packed], hidden: Sequence[torch.Tensor] = ()) -> Batch:
    """Pad sequences on the right and stack them.

    Args:
        rows: b sequences, the longest of n tokens.
        hidden: what enters the first trained layer, per sequence (tokens, width); empty: embeddings
            are looked up from `input_ids`.

    Returns:
        input_ids, position_ids, branches, labels and weights (b, n); total_weight (), that of all examples;
        attention_mask (b, 1, n, n), true where row i may look at column j; with `hidden` also
        inputs_embeds (b, n, width); for an encoder–decoder also source and source_mask (b, m).
    """
    import torch
    from torch.nn.utils.rnn import pad_sequence

    def padded(name: str, value: float) -> torch.Tensor:
        return pad_sequence([torch.tensor(getattr(row, name)) for row in rows], True, value)

    branches = padded("branches", PADDING)
    key, query = branches[:, None, :], branches[:, :, None]
    causal = torch.ones(branches.shape[1], branches.shape[1], dtype=torch.bool).tril()
    batch = {
        "input_ids": padded("input_ids", 0),
        "position_ids": padded("position_ids", 0),
        "attention_mask": (causal & ((key == 0) | (key == query)))[:, None],
        "branches": branches,
        "labels": padded("labels", IGNORED),
        "weights": padded("weights", 0.0),
        "total_weight": torch.tensor(sum(row.weight for row in rows)),
    }
    if rows[0].source:
        batch["source"] = padded("source", 0)
        batch["source_mask"] = pad_sequence([torch.ones(len(row.source)) for row in rows], True).long()
    if hidden:
        batch["inputs_embeds"] = pad_sequence(list(hidden), True)
    return batch


def last_hidden(model: Any, batch: Batch) -> torch.Tensor:
    """Return the model's last hidden state (b, n, width), before the LM head."""
    names = ["attention_mask", "position_ids"]
    names.append("inputs_embeds" if "inputs_embeds" in batch else "input_ids")
    inputs = {name: batch[name].to(model.device) for name in names}
    if not family_of(model).packs:  # each makes its own mask over the columns before, from the padding
        inputs["attention_mask"] = (batch["branches"] != PADDING).long().to(model.device)
    state: torch.Tensor = model.base_model(**inputs, use_cache=False).last_hidden_state
    return state


def target_logits(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Apply the LM head where it is needed only: at the tokens that predict a target token.

    The head costs a student of 135M parameters as much as eight of its thirty layers, and most
    tokens are prompt (our choice; a test compares with the loss over full logits).

    Returns:
        Logits (targets, vocabulary) and the target tokens (targets,), in reading order.
    """
    labels = batch["labels"][:, 1:].to(model.device)
    wanted = labels != IGNORED
    if "source" in batch:
        return _decoder_logits(model, batch)[:, :-1][wanted], labels[wanted]
    hidden = last_hidden(model, batch)
    logits: torch.Tensor = model.get_output_embeddings()(hidden[:, :-1][wanted])
    return logits, labels[wanted]


def _decoder_logits(model: Any, batch: Batch) -> torch.Tensor:
    """Return an encoder–decoder's logits (b, n, vocabulary); nearly all of its tokens are targets anyway."""
    names = {"input_ids": "source", "attention_mask": "source_mask", "decoder_input_ids": "input_ids"}
    inputs = {name: batch[ours].to(model.device) for name, ours in names.items()}
    logits: torch.Tensor = model(**inputs, use_cache=False).logits
    return logits


def target_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Return the cross-entropy in nats: mean over an example's target tokens, then over examples.

    Source: the paper's L = −Σ log P(t_i | q, o, st, t_<i). Taking means, so that the short positive view
    weighs as much as the negative view, which is twice as long, is our choice, and so are the weights of
    examples in the second mean (`training.weight`).
    """
    from torch.nn.functional import cross_entropy

    logits, labels = target_logits(model, batch)
    losses = cross_entropy(logits.float(), labels, reduction="none")
    wanted = batch["labels"][:, 1:] != IGNORED
    weights = (batch["weights"][:, 1:][wanted] / batch["total_weight"]).to(losses.device)
    loss: torch.Tensor = (losses * weights).sum()
    return loss


def supervised_view(example: Example, tokenizer: Any) -> list[tuple[str, bool]]:
    """Return (token text, whether the loss is taken on it) in order, to look at one example."""
    packed: Any = pack([encode(example, tokenizer)])
    return [
        (tokenizer.decode([token]), label != IGNORED)
        for token, label in zip(packed.input_ids, packed.labels, strict=True)
    ]


def token_html(tokens: Sequence[tuple[str, bool]]) -> str:
    """Return what `supervised_view` gave as HTML, the supervised tokens colored and underlined."""
    return "".join(
        f'<u style="background:{SUPERVISED_COLOR}">{escape(text)}</u>' if supervised else escape(text)
        for text, supervised in tokens
    ).replace("\n", "<br>")
