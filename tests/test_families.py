from unittest.mock import Mock

import numpy as np
import pytest
import torch
import transformers
from studies import changed
from tiny_families import FAMILIES, save
from torch.nn.functional import cross_entropy

from cfdistill.errors import ParamsError, TrainingError
from cfdistill.params import STUDENTS, Params
from cfdistill.schema import DIRECT, ELIMINATION, Example, Question, prompt_text
from cfdistill.student import decode, models, packing, train
from cfdistill.student.loss import plain_loss, target_loss

QUESTIONS = [
    Question("q1", "d", "test", "Where does the hen sleep at night?", ("barn", "river bank"), 0),
    Question("q2", "d", "test", "Anna saw a carp. Where was it?", ("in the barn", "river", "on the roof"), 1),
    Question("q3", "d", "test", "Why?", ("so", "because of the long and heavy rain"), 1),
]
SAID = {DIRECT: "Hens roost inside.", ELIMINATION: "A river is wet and cold, and hens cannot swim in it."}
EXAMPLES = [
    Example(q.id, "label", prompt_text(q, token), f" {text} So the answer is {q.options[q.answer]}.")
    for q in QUESTIONS
    for token, text in SAID.items()
]
PROMPTS = [prompt_text(question, DIRECT) for question in QUESTIONS]
OPTIONS = [question.options for question in QUESTIONS]
LONG = pytest.mark.long


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    return {family: save(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def params(small_params, folders, request):
    return changed(small_params, student=str(folders.get(request.param, request.param)))


@pytest.fixture
def student(params):
    return models.load(params)


def plain_losses(student, prompt, target, begun=""):
    """Return the loss of every target token as textbooks have it: one sequence, nothing padded or packed."""
    model, tokenizer = student.model, student.tokenizer
    given = packing.tokenize(begun, tokenizer) if begun else []
    if model.config.is_encoder_decoder:
        start = [*packing.decoder_start(model, tokenizer), *given]
        source = torch.tensor([packing.tokenize(prompt, tokenizer, whole=True)])
        logits = model(input_ids=source, decoder_input_ids=torch.tensor([start + target])).logits[0]
    else:
        start = [*packing.tokenize(prompt, tokenizer, whole=True), *given]
        logits = model(input_ids=torch.tensor([start + target])).logits[0]
    return cross_entropy(logits[len(start) - 1 : -1], torch.tensor(target), reduction="none")


def rows(student, examples=EXAMPLES):
    pairs = [
        [packing.encode(e, student.tokenizer) for e in examples if e.question_id == q.id] for q in QUESTIONS
    ]
    return [row for own in pairs if own for row in packing.rows_of(own, student.model, student.tokenizer)]


def test_loss_and_gradients_are_those_of_one_plain_sequence_per_example(student):
    each = [
        plain_losses(student, e.prompt, packing.encode(e, student.tokenizer).target).mean() for e in EXAMPLES
    ]
    shown = [plain_loss(student.model, student.tokenizer, example) for example in EXAMPLES]
    torch.testing.assert_close(torch.stack(shown), torch.stack(each))
    found = []
    for loss in (target_loss(student.model, packing.collate(rows(student))), torch.stack(each).mean()):
        student.model.zero_grad()
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in student.model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), gradients))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)


def test_examples_share_a_sequence_only_where_that_is_exact_and_only_targets_are_learned(student):
    assert len(rows(student)) == (3 if student.model.config.model_type in ("llama", "gpt2", "opt") else 6)
    for example in EXAMPLES:
        (row,) = rows(student, [example])
        *learned, last = [label for label in row.labels if label != packing.IGNORED]
        assert last == student.tokenizer.eos_token_id
        assert student.tokenizer.decode(learned).strip() == example.target.strip()


def plain_answer(student, prompt, most):
    """Return greedy tokens without a cache, one prompt and one token at a time, up to the end."""
    ids, end = packing.tokenize(prompt, student.tokenizer, whole=True), student.tokenizer.eos_token_id
    reads, answer = student.model.config.is_encoder_decoder, []
    start = packing.decoder_start(student.model, student.tokenizer) if reads else ids
    while len(answer) < most:
        source = {"input_ids": torch.tensor([ids])} if reads else {}
        own = {"decoder_input_ids" if reads else "input_ids": torch.tensor([[*start, *answer]])}
        answer.append(int(student.model(**source, **own).logits[0, -1].argmax()))
        if answer[-1] == end:
            return answer[:-1]
    return answer


@pytest.mark.parametrize("params", [*FAMILIES, pytest.param("smollm2-135m", marks=LONG)], indirect=True)
def test_generating_together_gives_what_each_prompt_gives_alone(student, monkeypatch):
    prompts = [prompt_text(question, token) for question in QUESTIONS for token in (*SAID, "")]
    plain = [plain_answer(student, prompt, 12) for prompt in prompts]
    assert len(set(map(tuple, plain))) > 2
    ends = {token: sum(token in answer for answer in plain) for answer in plain for token in answer[3:]}
    some = min(ends, key=lambda token: abs(ends[token] - 4.5))  # about half of the rows end with it
    monkeypatch.setattr(type(student.tokenizer), "eos_token_id", some, raising=False)
    expected = [plain_answer(student, prompt, 12) for prompt in prompts]
    assert len({len(answer) for answer in expected}) > 1
    texts = [student.tokenizer.decode(answer).strip() for answer in expected]
    for batch_size in (1, 4, 9):
        assert decode.generate(student, prompts, 12, batch_size) == texts


@pytest.mark.parametrize("said", [[], [" Hens roost. So the answer is", " It is", " So"]])
def test_likelihoods_together_are_those_of_each_option_alone(student, said):
    scores = decode.option_scores(student, PROMPTS, OPTIONS, 8, said)
    for i, own in enumerate(OPTIONS):
        assert np.all(np.isneginf(scores[i, len(own) :]))
        for option, score in zip(own, scores[i], strict=False):
            target = packing.tokenize(f" {option}", student.tokenizer)
            with torch.no_grad():
                plain = -plain_losses(student, PROMPTS[i], target, said[i] if said else "").sum()
            assert score == pytest.approx(plain.item() / len(option), rel=1e-4)


@pytest.mark.parametrize("frozen", [0, 1])
def test_loss_falls_and_the_trained_student_is_saved_and_loaded(frozen, params, tmp_path):
    params = changed(params, frozen_layers=frozen, learning_rate=1e-2, batch_size=2)
    student = models.load(params)
    if frozen and student.model.config.is_encoder_decoder:
        with pytest.raises(TrainingError, match="not possible with an encoder–decoder; set frozen_layers=0"):
            train.train(student, EXAMPLES, 40, params, tmp_path / "checkpoints")
        return
    before = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    log, facts = train.train(student, EXAMPLES, 40, params, tmp_path / "checkpoints")
    losses = [row["loss"] for row in log]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1
    assert facts["target_tokens"] == sum(len(packing.encode(e, student.tokenizer).target) for e in EXAMPLES)
    moved = {n for n, p in student.model.named_parameters() if not torch.equal(p, before[n])}
    if frozen:
        kept = f"{models.FAMILIES[student.model.config.model_type].layers}.0.", "embed", "wte"
        assert moved
        assert not any(part in name for name in moved for part in kept)
    student.save(tmp_path / "saved")
    loaded = models.load_folder(tmp_path / "saved")
    assert decode.generate(loaded, PROMPTS, 12, 3) == decode.generate(student, PROMPTS, 12, 3)
    np.testing.assert_array_equal(*(decode.option_scores(s, PROMPTS, OPTIONS, 8) for s in (loaded, student)))


def test_students_are_of_known_families_and_named_or_a_path(small_params, monkeypatch):
    with pytest.raises(TrainingError, match="'bert' is not supported; types are llama, gpt2, opt"):
        models.freeze(Mock(**{"config.model_type": "bert"}), 0)
    assert Params.build({"student": "some/where/my-gpt2"}).student_name == "my-gpt2"
    with pytest.raises(ParamsError, match=f"student: unknown gpt-9; known are {', '.join(STUDENTS)}"):
        Params.build({"student": "gpt-9"})
    unreachable = Mock(side_effect=OSError("We couldn't connect\nto the hub"))
    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(TrainingError, match="cannot be had from openai-community/gpt2: We couldn't conn"):
        models.load(changed(small_params, student="gpt2"))
