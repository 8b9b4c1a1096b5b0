"""How a trained student answers: text generated in batches, and the likelihood of given options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from cfdistill.encoding import (
    IGNORED,
    Packed,
    Pair,
    collate,
    decoder_start,
    rows_of,
    target_logits,
    tokenize,
    tokenize_prompt,
)
from cfdistill.errors import TrainingError
from cfdistill.progress import Progress
from cfdistill.schema import ENDING, Question, read_answer
from cfdistill.students import Student

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray


def generate(
    student: Student, prompts: Sequence[str], max_new_tokens: int, batch_size: int, label: str = "answer"
) -> list[str]:
    """Return the greedy continuation of every prompt, up to the end token or `max_new_tokens`.

    Prompts of similar length share a batch; a prompt's answer does not depend on the others in it.
    Progress counts what `label` says; empty: it is not reported.

    Raises:
        TrainingError: the student has no positions for so long a prompt and answer.
    """
    ids = [tokenize_prompt(prompt, student.tokenizer) for prompt in prompts]
    _check_window(student.model.config, max(map(len, ids), default=0), max_new_tokens)
    generate_batch = _decode_batch if student.model.config.is_encoder_decoder else _generate_batch
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    texts = [""] * len(prompts)
    progress = Progress(len(prompts), label) if label else None
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        answers = generate_batch(student, [ids[i] for i in chosen], max_new_tokens)
        for i, answer in zip(chosen, answers, strict=True):
            texts[i] = student.tokenizer.decode(answer).strip()
        if progress:
            progress.update(start + len(chosen))
    return texts


def _check_window(config: Any, prompt: int, answer: int) -> None:
    window = getattr(config, "max_position_embeddings", None)  # T5, which counts distances, has none
    needed = max(prompt, answer) if config.is_encoder_decoder else prompt + answer
    if window and needed > window:
        raise TrainingError(
            f"the longest prompt has {prompt} tokens and its answer may have {answer}, but the student takes "
            f"{window}; choose another student or a lower max_new_tokens"
        )


def _generate_batch(student: Student, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Decode greedily with a key-value cache; finished rows leave the batch, which saves their cost."""
    import torch
    from transformers import DynamicCache

    model, end = student.model, student.tokenizer.eos_token_id
    width = max(map(len, prompts))
    ids = torch.tensor([[end] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    cache = DynamicCache(config=model.config)
    rows, answers = list(range(len(prompts))), [list[int]() for _ in prompts]
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            logits = model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=positions,
                past_key_values=cache,
                logits_to_keep=1,
            ).logits[:, -1]
            tokens = logits.argmax(-1)
            going = (tokens != end).nonzero()[:, 0]
            if len(going) < len(rows):
                rows = [rows[i] for i in going.tolist()]
                tokens, mask, positions = tokens[going], mask[going], positions[going]
                cache.batch_select_indices(going)
            if not rows:
                break
            for row, token in zip(rows, tokens.tolist(), strict=True):
                answers[row].append(token)
            ids, positions = tokens[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    return answers


def _decode_batch(student: Student, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Let an encoder read the prompts, and its decoder answer greedily."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    end, start = student.tokenizer.eos_token_id, decoder_start(student)
    ids = [torch.tensor(prompt, device=student.model.device) for prompt in prompts]
    with torch.inference_mode():
        made = student.model.generate(
            pad_sequence(ids, True, end),
            attention_mask=pad_sequence([torch.ones_like(row) for row in ids], True),
            decoder_input_ids=torch.tensor([start] * len(ids), device=student.model.device),
            max_new_tokens=max_new_tokens,
            eos_token_id=end,
            pad_token_id=end,
        )
    answers: list[list[int]] = made[:, len(start) :].tolist()
    return [answer[: answer.index(end)] if end in answer else answer for answer in answers]


def option_scores(
    student: Student,
    prompts: Sequence[str],
    options: Sequence[tuple[str, ...]],
    batch_size: int,
    said: Sequence[str] = (),
) -> NDArray[np.float64]:
    """Return every option's log-likelihood per character after its prompt.

    This is the `acc_norm` score of lm-evaluation-harness: the sum of the token log-probabilities of
    " " + option, in nats, divided by the option's length in characters. The prompt is computed once
    for all of its options, in families where that is exact.

    Args:
        student: any.
        prompts: what is asked.
        options: the answers to choose from, per prompt.
        batch_size: sequences computed together.
        said: how the student has begun its answer, per prompt; empty: not yet.

    Returns:
        Scores (prompts, options); -inf where a prompt has fewer options than others.
    """
    import numpy as np
    import torch

    scores = np.full((len(prompts), max(map(len, options), default=0)), -np.inf)
    rows: list[Packed] = []
    places: list[tuple[int, int]] = []  # of a row: its prompt, and the option in its first branch
    for i, (prompt, own) in enumerate(zip(prompts, options, strict=True)):
        made = rows_of([_answer(student, prompt, said[i] if said else "", option) for option in own], student)
        rows += made
        places += [(i, first) for first in range(len(made))]
    order = sorted(range(len(rows)), key=lambda i: len(rows[i]))
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        batch = collate([rows[i] for i in chosen])
        with torch.inference_mode():
            logits, labels = target_logits(student.model, batch)
            per_token = logits.log_softmax(-1).gather(1, labels[:, None])[:, 0].double().cpu().numpy()
        wanted = batch["labels"] != IGNORED
        totals = np.zeros((len(chosen), scores.shape[1] + 1))  # column 0 is for the shared tokens
        row, column = wanted.nonzero()[:, 0].numpy(), batch["branches"][wanted].numpy()
        np.add.at(totals, (row, column), per_token)
        for total, k in zip(totals, chosen, strict=True):
            (i, first), branches = places[k], rows[k].branches[-1]
            lengths = [len(option) for option in options[i][first : first + branches]]
            scores[i, first : first + branches] = total[1 : branches + 1] / lengths
    return scores


def _answer(student: Student, prompt: str, said: str, option: str) -> Pair:
    tokenizer, target = student.tokenizer, tokenize(f" {option}", student.tokenizer)
    if student.model.config.is_encoder_decoder:  # what was said stands in the decoder
        return Pair(tokenize_prompt(prompt, tokenizer), target, begun=tuple(tokenize(said, tokenizer)))
    return Pair(tokenize_prompt(f"{prompt}{said}", tokenizer), target)


def read_answers(
    student: Student,
    questions: Sequence[Question],
    prompts: Sequence[str],
    texts: Sequence[str],
    batch_size: int,
) -> list[tuple[int, bool]]:
    """Return the option that each generated text answers, and whether the text names it.

    A test is a choice among options, but a student of few training steps often names an answer of
    some training question instead. Then the option counts that it finds likeliest after its own words,
    for every method alike (our choice).
    """
    read = [read_answer(text, question.options) for text, question in zip(texts, questions, strict=True)]
    unread = [i for i, option in enumerate(read) if option is None]
    said = [concluding(texts[i]) for i in unread]
    likeliest = iter(
        choose(student, [prompts[i] for i in unread], said, [questions[i] for i in unread], batch_size)
    )
    return [(next(likeliest), False) if option is None else (option, True) for option in read]


def rationale_of(text: str) -> str:
    """Return a student's own words up to where the last "So the answer is" names an option."""
    return (text.rpartition(ENDING)[0] or text).rstrip()


def concluding(text: str) -> str:
    """Return a student's rationale and how it goes on, so that what comes next is the option it concludes."""
    return f" {rationale_of(text)}".rstrip() + f" {ENDING}"


def choose(
    student: Student,
    prompts: Sequence[str],
    said: Sequence[str],
    questions: Sequence[Question],
    batch_size: int,
) -> list[int]:
    """Return each question's option with the highest log-likelihood per character after what was said."""
    if not prompts:
        return []
    scores = option_scores(student, prompts, [q.options for q in questions], batch_size, said)
    return [int(i) for i in scores.argmax(axis=1)]


def validate(
    student: Student,
    questions: Sequence[Question],
    prompts: Sequence[str],
    max_new_tokens: int,
    batch_size: int,
) -> dict[str, float]:
    """Return how well a student answers validation questions in its own words.

    Returns:
        accuracy: the share of right answers, read as in the evaluation.
        loss: the mean cross-entropy of the right option among the options, in nats, after the student's
            own rationale (our choice: it needs no teacher's rationale, and moves where accuracy does not).
    """
    import numpy as np

    texts = generate(student, prompts, max_new_tokens, batch_size, label="")
    options = [question.options for question in questions]
    scores = option_scores(student, prompts, options, batch_size, [concluding(text) for text in texts])
    right, losses = [], []
    for question, text, row in zip(questions, texts, scores, strict=True):
        read = read_answer(text, question.options)
        right.append((int(row.argmax()) if read is None else read) == question.answer)  # as `read_answers`
        totals = row[: len(question.options)] * [len(option) for option in question.options]
        losses.append(np.logaddexp.reduce(totals) - totals[question.answer])
    return {"accuracy": float(np.mean(right)), "loss": float(np.mean(losses))}
