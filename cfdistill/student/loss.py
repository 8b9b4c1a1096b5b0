"""The loss on target tokens: as textbooks have it, and as training computes it on packed batches."""

from typing import Any

import torch
from torch.nn.functional import cross_entropy

from cfdistill.schema import Example
from cfdistill.student.models import family_of
from cfdistill.student.packing import IGNORED, PADDING, Batch, encode, rows_of


def plain_loss(model: Any, tokenizer: Any, example: Example) -> torch.Tensor:
    """Return one example's loss in nats: the mean of −log P of its target tokens, given all before."""
    [row] = rows_of([encode(example, tokenizer)], model, tokenizer)
    ids, source = (torch.tensor([own], device=model.device) for own in (row.input_ids, row.source))
    read = {"input_ids": source, "decoder_input_ids": ids} if row.source else {"input_ids": ids}
    log_p = model(**read).logits[0].log_softmax(-1)  # in every place, of the next token
    losses = [-p[token] for p, token in zip(log_p[:-1], row.labels[1:], strict=True) if token != IGNORED]
    return torch.stack(losses).mean()


def target_loss(model: Any, batch: Batch) -> torch.Tensor:
    """Return the loss in nats: mean over an example's target tokens, then weighted mean over examples."""
    # The paper has L = −Σ log P(t_i | q, o, st, t_<i); means, which weigh views alike, are our choice.
    logits, labels = target_logits(model, batch)
    losses = cross_entropy(logits.float(), labels, reduction="none")
    loss: torch.Tensor = (losses * token_weights(batch).to(losses.device)).sum()
    return loss


def token_weights(batch: Batch) -> torch.Tensor:
    """Return what each target token counts (targets,): its example's share, split among that one's tokens."""
    wanted = batch["labels"][:, 1:] != IGNORED
    row, _ = wanted.nonzero(as_tuple=True)
    branch = batch["branches"][:, 1:][wanted]
    example = row * batch["weights"].shape[1] + branch
    per_token = batch["weights"][row, branch] / example.bincount()[example]
    weights: torch.Tensor = per_token.float() / batch["total_weight"]
    return weights


def target_logits(model: Any, batch: Batch) -> tuple[torch.Tensor, torch.Tensor]:
    """Return logits (targets, vocabulary) and the target tokens (targets,), in reading order."""
    labels = batch["labels"][:, 1:].to(model.device)
    wanted = labels != IGNORED
    if "source" in batch:  # nearly all tokens of a decoder are targets anyway
        names = {"input_ids": "source", "attention_mask": "source_mask", "decoder_input_ids": "input_ids"}
        inputs = {name: batch[ours].to(model.device) for name, ours in names.items()}
        return model(**inputs, use_cache=False).logits[:, :-1][wanted], labels[wanted]
    hidden = last_hidden(model, batch)  # the head costs a 135M student as much as eight of thirty layers
    return model.get_output_embeddings()(hidden[:, :-1][wanted]), labels[wanted]


def last_hidden(model: Any, batch: Batch) -> torch.Tensor:
    """Return the model's last hidden state (b, n, width), before the LM head."""
    read = "inputs_embeds" if "inputs_embeds" in batch else "input_ids"
    inputs = {name: batch[name].to(model.device) for name in (read, "attention_mask", "position_ids")}
    if not family_of(model).packs:  # each makes its own mask over the columns before, from the padding
        inputs["attention_mask"] = (batch["branches"] != PADDING).long().to(model.device)
    state: torch.Tensor = model.base_model(**inputs, use_cache=False).last_hidden_state
    return state
