"""How a student answers: prompts → batches → greedy decoding, and the likelihood of given options."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from cfdistill.errors import TrainingError
from cfdistill.progress import Progress
from cfdistill.schema import ENDING, Question, read_answer
from cfdistill.student import packing
from cfdistill.student.models import Student
from cfdistill.student.packing import Packed, Pair, by_length, tokenize

Texts = Sequence[str]
Questions = Sequence[Question]


def generate(
    student: Student, prompts: Texts, max_new_tokens: int, batch_size: int, label: str = "answer"
) -> list[str]:
    """Return every prompt's greedy continuation, whatever its batch; TrainingError if it is too long."""
    ids = [tokenize(prompt, student.tokenizer, whole=True) for prompt in prompts]
    config = student.model.config
    longest = max(map(len, ids), default=0)
    needed = max(longest, max_new_tokens) if config.is_encoder_decoder else longest + max_new_tokens
    window = getattr(config, "max_position_embeddings", needed)  # T5, which counts distances, has none
    if needed > window:
        told = f"the longest prompt has {longest} tokens and its answer may have {max_new_tokens}"
        raise TrainingError(f"{told}, but the student takes {window}; choose another or lower max_new_tokens")
    decode = _generate_seq2seq if config.is_encoder_decoder else _generate_batch
    texts, progress = [""] * len(prompts), Progress(len(prompts), label)
    for chosen in by_length(ids, batch_size):
        answers = decode(student, [ids[i] for i in chosen], max_new_tokens)
        for i, answer in zip(chosen, answers, strict=True):
            texts[i] = student.tokenizer.decode(answer).strip()
        progress.advance(len(chosen))
    return texts


def _generate_batch(student: Student, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Decode with a key-value cache; finished rows leave the batch, which saves their cost."""
    import torch
    from transformers import Cache

    from cfdistill.student.cache import RoomyLayer, in_place

    model, end = student.model, student.tokenizer.eos_token_id
    width = max(map(len, prompts))
    ids = torch.tensor([[end] * (width - len(p)) + p for p in prompts], device=model.device)
    mask = torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts], device=model.device)
    positions = (mask.cumsum(1) - 1).clamp(min=0)
    room = width + max_new_tokens
    cache = Cache([RoomyLayer(room) for _ in range(model.config.num_hidden_layers)])
    rows, answers = list(range(len(prompts))), [list[int]() for _ in prompts]
    with torch.inference_mode():
        for _ in range(max_new_tokens):
            inputs = {"input_ids": ids, "attention_mask": mask, "position_ids": positions}
            logits = model(**inputs, past_key_values=cache, logits_to_keep=1).logits[:, -1]
            tokens = logits.max(-1).indices  # `argmax` takes four times as long in bf16
            going = (tokens != end).nonzero()[:, 0]
            if len(going) < len(rows):
                order = in_place(going)
                rows = [rows[i] for i in order.tolist()]
                tokens, mask, positions = tokens[order], mask[order], positions[order]
                cache.batch_select_indices(order)
            if not rows:
                break
            for row, token in zip(rows, tokens.tolist(), strict=True):
                answers[row].append(token)
            ids, positions = tokens[:, None], positions[:, -1:] + 1
            mask = torch.cat([mask, mask.new_ones(len(rows), 1)], dim=1)
    return answers


def _generate_seq2seq(student: Student, prompts: list[list[int]], max_new_tokens: int) -> list[list[int]]:
    """Let an encoder read the prompts, and its decoder answer."""
    import torch
    from torch.nn.utils.rnn import pad_sequence

    end = student.tokenizer.eos_token_id
    start = packing.decoder_start(student.model, student.tokenizer)
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
    student: Student, prompts: Texts, options: Sequence[Texts], batch_size: int, said: Texts = ()
) -> NDArray[np.float64]:
    """Return log-likelihoods per character (prompts, options) in nats after prompt and `said`, or -inf."""
    # as `acc_norm` of lm-evaluation-harness
    scores = np.full((len(prompts), max(map(len, options), default=0)), -np.inf)
    rows: list[Packed] = []
    places: list[tuple[int, int]] = []  # of a row: its prompt, and the option in its first branch
    for i, (prompt, own) in enumerate(zip(prompts, options, strict=True)):
        pairs = [_answer(student, prompt, said[i] if said else "", option) for option in own]
        made = packing.rows_of(pairs, student.model, student.tokenizer)
        rows += made
        places += [(i, first) for first in range(len(made))]
    for chosen in by_length(rows, batch_size):
        totals = _log_likelihoods(student, [rows[k] for k in chosen])
        for total, k in zip(totals, chosen, strict=True):
            (i, first), branches = places[k], rows[k].branches[-1]
            lengths = [len(option) for option in options[i][first : first + branches]]
            scores[i, first : first + branches] = total[:branches] / lengths
    return scores


def _answer(student: Student, prompt: str, said: str, option: str) -> Pair:
    tokenizer, target = student.tokenizer, tokenize(f" {option}", student.tokenizer)
    if not student.model.config.is_encoder_decoder:  # else what was said stands in the decoder
        prompt, said = f"{prompt}{said}", ""
    begun = tuple(tokenize(said, tokenizer))
    return Pair(tokenize(prompt, tokenizer, whole=True), target, begun=begun)


def _log_likelihoods(student: Student, rows: Sequence[Packed]) -> NDArray[np.float64]:
    """Return the log-likelihood of every branch's target (rows, most branches)."""
    import torch

    from cfdistill.student.loss import target_logits

    batch = packing.collate(rows)
    with torch.inference_mode():
        logits, labels = target_logits(student.model, batch)
        per_token = logits.float().log_softmax(-1).gather(1, labels[:, None])[:, 0].double().cpu().numpy()
    wanted = batch["labels"] != packing.IGNORED
    totals = np.zeros(batch["weights"].shape)  # column 0 is for the shared tokens
    np.add.at(totals, (wanted.nonzero()[:, 0].numpy(), batch["branches"][wanted].numpy()), per_token)
    return totals[:, 1:]


def rationale_of(text: str) -> str:
    """Return a student's own words up to where the last "So the answer is" names an option."""
    return (text.rpartition(ENDING)[0] or text).rstrip()


def concluding(text: str) -> str:
    """Return a student's rationale and how it goes on, so that what comes next is the option it concludes."""
    return f" {rationale_of(text)}".rstrip() + f" {ENDING}"


def choose(student: Student, prompts: Texts, said: Texts, questions: Questions, batch_size: int) -> list[int]:
    """Return each question's option with the highest log-likelihood per character after what was said."""
    scores = option_scores(student, prompts, [q.options for q in questions], batch_size, said)
    return [int(row.argmax()) for row in scores]


def read_answers(
    student: Student, questions: Questions, prompts: Texts, texts: Texts, batch_size: int
) -> list[tuple[int, bool]]:
    """Return each text's option and whether it names one; else the likeliest one counts (our choice)."""
    read = [read_answer(text, question.options) for text, question in zip(texts, questions, strict=True)]
    unread = [i for i, option in enumerate(read) if option is None]
    asked, said = [prompts[i] for i in unread], [concluding(texts[i]) for i in unread]
    likeliest = iter(choose(student, asked, said, [questions[i] for i in unread], batch_size))
    return [(next(likeliest), False) if option is None else (option, True) for option in read]
