"""A student's answers to test questions: generated, or chosen by the likelihood of the options."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from cfdistill import data, runs, training
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
from cfdistill.methods import METHODS
from cfdistill.params import SCORINGS, Params
from cfdistill.progress import Progress
from cfdistill.schema import (
    DIRECT,
    ELIMINATION,
    ENDING,
    Prediction,
    Question,
    prompt_text,
    read_answer,
)
from cfdistill.students import Student

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

STRATEGY = {"direct": DIRECT, "elimination": ELIMINATION, "label": "", "likelihood": ""}


def build(method: str, dataset: str, params: Params, student: Student | None = None) -> runs.Stage:
    """Reuse or make the stage `evaluation` of one method on one data set.

    It holds `predictions.<split>.<scoring>.jsonl` for every test split and every scoring of the method.

    Args:
        method: a trained method.
        dataset: what to test on.
        params: scorings, max_new_tokens, max_new_tokens_elimination, eval_batch_size.
        student: the method's trained student, if it is loaded already.

    Raises:
        StageError: the training or data stage is missing.
    """
    made = runs.stage("evaluation", params, method=method, dataset=dataset)
    if made.is_complete():
        return made
    inputs = [
        runs.require(runs.stage("training", params, method=method)),
        runs.require(data.stage(dataset, params)),
    ]
    student = student or training.load_trained(method, params)
    with made.draft(params, inputs) as draft:
        for split in data.test_splits(dataset, params):
            questions = data.questions(dataset, split, params)
            for scoring, predictions in predict_all(student, questions, method, params).items():
                draft.write(f"predictions.{split}.{scoring}.jsonl", predictions)
    return made


def build_all(method: str, params: Params) -> list[runs.Stage]:
    """Reuse or make the stages `evaluation` of one method on all test data sets, loading it at most once."""
    made = [runs.stage("evaluation", params, method=method, dataset=name) for name in params.test_datasets]
    if all(stage.is_complete() for stage in made):
        return made
    student = training.load_trained(method, params)
    return [build(method, name, params, student) for name in params.test_datasets]


def scorings(method: str, params: Params) -> tuple[str, ...]:
    """Return how a method is scored, its main scoring first; one that learned only labels has no views."""
    if METHODS[method].views == ("label",):
        return ("label", *(name for name in params.scorings if name == "likelihood"))
    return tuple(name for name in SCORINGS if name in params.scorings)


def predict_all(
    student: Student, questions: Sequence[Question], method: str, params: Params
) -> dict[str, list[Prediction]]:
    """Return predictions by scoring; "likelihood" brings "acc" and "acc_bytes" along, from the same pass."""
    found: dict[str, list[Prediction]] = {}
    for scoring in scorings(method, params):
        if scoring == "likelihood":
            found |= predict_likeliest(student, questions, method, params)
        elif scoring == "vote":
            found["vote"] = vote(student, questions, found["direct"], found["elimination"], params)
        else:
            found[scoring] = predict(student, questions, method, scoring, params)
    return found


def predict(
    student: Student, questions: Sequence[Question], method: str, scoring: str, params: Params
) -> list[Prediction]:
    """Ask a student every question and read its answers.

    Args:
        student: trained or not.
        questions: any number.
        method: recorded in the predictions.
        scoring: "direct" and "elimination" generate under that strategy token, "label" generates
            after "Answer:", "likelihood" takes the option with the highest log-likelihood per character.
        params: max_new_tokens, max_new_tokens_elimination, eval_batch_size.

    Returns:
        One prediction per question, in order; `parsed` is False where the text names no option.
    """
    if scoring == "likelihood":
        return predict_likeliest(student, questions, method, params)["likelihood"]
    prompts = [prompt_text(question, STRATEGY[scoring]) for question in questions]
    limit = params.max_new_tokens_elimination if scoring == "elimination" else params.max_new_tokens
    texts = generate(student, prompts, limit, params.eval_batch_size)
    chosen = read_answers(student, questions, prompts, texts, params)
    return [
        answered(question, method, scoring, option, text, parsed)
        for question, text, (option, parsed) in zip(questions, texts, chosen, strict=True)
    ]


def read_answers(
    student: Student,
    questions: Sequence[Question],
    prompts: Sequence[str],
    texts: Sequence[str],
    params: Params,
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
        choose(student, [prompts[i] for i in unread], said, [questions[i] for i in unread], params)
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
    params: Params,
) -> list[int]:
    """Return each question's option with the highest log-likelihood per character after what was said."""
    if not prompts:
        return []
    scores = option_scores(student, prompts, [q.options for q in questions], params.eval_batch_size, said)
    return [int(i) for i in scores.argmax(axis=1)]


def predict_likeliest(
    student: Student, questions: Sequence[Question], method: str, params: Params
) -> dict[str, list[Prediction]]:
    """Choose by the log-likelihood of " " + option after "Answer:", without a rationale.

    Returns:
        Predictions by lm-evaluation-harness's three metrics: "acc" takes the highest sum over an option's
        tokens, "likelihood" (its `acc_norm`) the highest per character, "acc_bytes" per UTF-8 byte.
    """
    import numpy as np

    prompts = [prompt_text(question, STRATEGY["likelihood"]) for question in questions]
    options = [question.options for question in questions]
    scores = option_scores(student, prompts, options, params.eval_batch_size)
    found: dict[str, list[Prediction]] = {"likelihood": [], "acc": [], "acc_bytes": []}
    for question, row in zip(questions, scores, strict=True):
        per_character = row[: len(question.options)]
        total = per_character * [len(option) for option in question.options]
        per_byte = total / [len(option.encode()) for option in question.options]
        for name, score in zip(found, (per_character, total, per_byte), strict=True):
            best = int(np.argmax(score))
            found[name].append(answered(question, method, name, best, question.options[best], True))
    return found


def vote(
    student: Student,
    questions: Sequence[Question],
    direct: Sequence[Prediction],
    elimination: Sequence[Prediction],
    params: Params,
) -> list[Prediction]:
    """Let the two views of every question vote (our rule).

    If the texts name one option, both or only one of them, it counts. If they name two or none, the
    option counts whose log-likelihood per character, summed over after the one and after the other
    text, is highest; such a vote is not `parsed`.
    """
    pairs = list(zip(direct, elimination, strict=True))
    named = [{view.predicted for view in pair if view.parsed} for pair in pairs]
    torn = [i for i, options in enumerate(named) if len(options) != 1]
    chosen = {i: options.pop() for i, options in enumerate(named) if len(options) == 1}
    if torn:
        options = [questions[i].options for i in torn]
        first, second = (
            option_scores(
                student,
                [prompt_text(questions[i], token) for i in torn],
                options,
                params.eval_batch_size,
                [concluding(view[i].text) for i in torn],
            )
            for token, view in ((DIRECT, direct), (ELIMINATION, elimination))
        )
        chosen |= zip(torn, (first + second).argmax(axis=1).tolist(), strict=True)
    return [
        answered(question, one.method, "vote", chosen[i], f"{one.text}\n{other.text}", i not in torn)
        for i, (question, (one, other)) in enumerate(zip(questions, pairs, strict=True))
    ]


def answered(
    question: Question, method: str, scoring: str, option: int, text: str, parsed: bool
) -> Prediction:
    """Return the record of one answer."""
    return Prediction(
        question_id=question.id,
        dataset=question.dataset,
        split=question.split,
        subset=question.subset,
        scene=question.scene,
        method=method,
        scoring=scoring,
        gold=question.answer,
        stereotype=question.stereotype,
        predicted=option,
        text=text,
        parsed=parsed,
    )


def generate(student: Student, prompts: Sequence[str], max_new_tokens: int, batch_size: int) -> list[str]:
    """Return the greedy continuation of every prompt, up to the end token or `max_new_tokens`.

    Prompts of similar length share a batch; a prompt's answer does not depend on the others in it.
    """
    ids = [tokenize_prompt(prompt, student.tokenizer) for prompt in prompts]
    generate_batch = _decode_batch if student.model.config.is_encoder_decoder else _generate_batch
    order = sorted(range(len(ids)), key=lambda i: len(ids[i]))
    texts = [""] * len(prompts)
    progress = Progress(len(prompts), "answer")
    for start in range(0, len(order), batch_size):
        chosen = order[start : start + batch_size]
        answers = generate_batch(student, [ids[i] for i in chosen], max_new_tokens)
        for i, answer in zip(chosen, answers, strict=True):
            texts[i] = student.tokenizer.decode(answer).strip()
        progress.update(start + len(chosen))
    return texts


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
