"""Every family of students: the same training and evaluation code gives what each model gives by itself."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import transformers
from tiny_families import DECODERS, FAMILIES, save
from torch.nn.functional import cross_entropy

from cfdistill import students, training
from cfdistill.answering import generate, option_scores
from cfdistill.encoding import (
    IGNORED,
    collate,
    decoder_start,
    encode,
    rows_of,
    target_loss,
    tokenize,
    tokenize_prompt,
)
from cfdistill.errors import ParamsError, TrainingError
from cfdistill.evaluation import predict
from cfdistill.families import FAMILIES as KNOWN
from cfdistill.families import HUB, freeze
from cfdistill.params import STUDENTS, Params
from cfdistill.schema import DIRECT, ELIMINATION, Example, Question, prompt_text
from cfdistill.students import Student

QUESTIONS = [
    Question("q1", "d", "test", "Where does the hen sleep at night?", ("barn", "river bank"), 0),
    Question("q2", "d", "test", "Anna saw a carp. Where was it?", ("in the barn", "river", "on the roof"), 1),
    Question("q3", "d", "test", "Why?", ("so", "because of the long and heavy rain"), 1),
]
EXAMPLES = [
    Example(q.id, kind, prompt_text(q, token), f" {text} So the answer is {q.options[q.answer]}.")
    for q in QUESTIONS
    for kind, token, text in (
        ("positive", DIRECT, "Hens roost inside."),
        ("negative", ELIMINATION, "A river is wet and cold, and hens cannot swim in it."),
    )
]
PROMPTS = [prompt_text(question, DIRECT) for question in QUESTIONS]
OPTIONS = [question.options for question in QUESTIONS]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {family: save(family, tmp_path_factory.mktemp(family)) for family in FAMILIES}


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def params(small_params: Params, folders: dict[str, Path], family: str) -> Params:
    return Params.build(small_params.model_dump() | {"student": str(folders[family])})


@pytest.fixture
def student(params: Params) -> Student:
    return students.load(params.student, params)


def plain_losses(student: Student, prompt: str, target: list[int], begun: str = "") -> torch.Tensor:
    """Return the loss of every target token as textbooks have it: one sequence, nothing padded or packed."""
    model, tokenizer = student.model, student.tokenizer
    given = tokenize(begun, tokenizer) if begun else []
    if model.config.is_encoder_decoder:
        start = [*decoder_start(student), *given]
        source = torch.tensor([tokenize_prompt(prompt, tokenizer)])
        logits = model(input_ids=source, decoder_input_ids=torch.tensor([start + target])).logits[0]
    else:
        start = [*tokenize_prompt(prompt, tokenizer), *given]
        logits = model(input_ids=torch.tensor([start + target])).logits[0]
    return cross_entropy(logits[len(start) - 1 : -1], torch.tensor(target), reduction="none")


def rows(student: Student, examples: list[Example] = EXAMPLES) -> list[Any]:
    pairs = [[encode(e, student.tokenizer) for e in examples if e.question_id == q.id] for q in QUESTIONS]
    return [row for own in pairs if own for row in rows_of(own, student)]


def test_loss_and_gradients_are_those_of_one_plain_sequence_per_example(student: Student) -> None:
    found = []
    for packed in (True, False):
        student.model.zero_grad()
        if packed:
            loss = target_loss(student.model, collate(rows(student)))
        else:
            targets = [encode(e, student.tokenizer).target for e in EXAMPLES]
            each = [plain_losses(student, e.prompt, t) for e, t in zip(EXAMPLES, targets, strict=True)]
            loss = torch.stack([losses.mean() for losses in each]).mean()
        loss.backward()
        gradients = {n: p.grad.clone() for n, p in student.model.named_parameters() if p.grad is not None}
        found.append((loss.detach(), gradients))
    torch.testing.assert_close(found[0], found[1], rtol=1e-3, atol=1e-5)


def test_examples_share_a_sequence_only_where_that_is_exact(student: Student) -> None:
    packs = student.model.config.model_type in ("llama", "gpt2", "opt")
    assert KNOWN[student.model.config.model_type].packs == packs
    assert len(rows(student)) == (3 if packs else 6)


def test_only_target_tokens_are_supervised(student: Student) -> None:
    for example in EXAMPLES:
        (row,) = rows(student, [example])
        learned = [label for label in row.labels if label != IGNORED]
        assert learned == encode(example, student.tokenizer).target
        assert learned[-1] == student.tokenizer.eos_token_id
        text = student.tokenizer.decode(learned[:-1])
        assert text.strip() == example.target.strip()
        assert [weight > 0 for weight in row.weights] == [label != IGNORED for label in row.labels]


def test_generating_together_gives_what_each_prompt_gives_alone(student: Student) -> None:
    alone = [generate(student, [prompt], 12, 1)[0] for prompt in PROMPTS]
    assert generate(student, PROMPTS, 12, 3) == alone
    assert len(set(alone)) == len(alone)
    ids = tokenize_prompt(PROMPTS[0], student.tokenizer)
    start = decoder_start(student) if student.model.config.is_encoder_decoder else ids
    made = list(start)
    for _ in range(12):  # without a cache, one token at a time
        if student.model.config.is_encoder_decoder:
            logits = student.model(
                input_ids=torch.tensor([ids]), decoder_input_ids=torch.tensor([made])
            ).logits
        else:
            logits = student.model(input_ids=torch.tensor([made])).logits
        made.append(int(logits[0, -1].argmax()))
        if made[-1] == student.tokenizer.eos_token_id:
            made.pop()
            break
    assert student.tokenizer.decode(made[len(start) :]).strip() == alone[0]


@pytest.mark.parametrize("said", [[], [" Hens roost. So the answer is", " It is", " So"]])
def test_likelihoods_together_are_those_of_each_option_alone(student: Student, said: list[str]) -> None:
    scores = option_scores(student, PROMPTS, OPTIONS, 8, said)
    single = [
        option_scores(student, [p], [o], 1, said[i : i + 1])
        for i, (p, o) in enumerate(zip(PROMPTS, OPTIONS, strict=True))
    ]
    for i, own in enumerate(OPTIONS):
        np.testing.assert_allclose(scores[i, : len(own)], single[i][0], rtol=1e-4)
        assert np.all(np.isneginf(scores[i, len(own) :]))
        for option, score in zip(own, scores[i], strict=False):
            target = tokenize(f" {option}", student.tokenizer)
            with torch.no_grad():
                plain = -plain_losses(student, PROMPTS[i], target, said[i] if said else "").sum()
            assert score == pytest.approx(plain.item() / len(option), rel=1e-4)


def test_a_model_that_gets_no_positions_is_found_out(folders: dict[str, Path], small_params: Params) -> None:
    student = students.load(str(folders["gpt2"]), small_params)
    alone = [generate(student, [prompt], 12, 1)[0] for prompt in PROMPTS]
    forward = student.model.forward
    student.model.forward = lambda **inputs: forward(**inputs | {"position_ids": None})
    assert [generate(student, [prompt], 12, 1)[0] for prompt in PROMPTS] == alone  # nothing is padded
    assert generate(student, PROMPTS, 12, 3) != alone


@pytest.mark.parametrize("frozen", [0, 1])
def test_loss_falls_and_the_trained_student_is_saved_and_loaded(
    frozen: int, family: str, params: Params, tmp_path: Path
) -> None:
    params = params.model_copy(update={"frozen_layers": frozen, "learning_rate": 1e-2, "batch_size": 2})
    student = students.load(params.student, params)
    if frozen and family not in DECODERS:
        with pytest.raises(TrainingError, match="not possible with an encoder–decoder; set frozen_layers=0"):
            training.train(student, EXAMPLES, 40, params, tmp_path / "checkpoints")
        return
    before = {name: p.detach().clone() for name, p in student.model.named_parameters()}
    log, notes = training.train(student, EXAMPLES, 40, params, tmp_path / "checkpoints")
    losses = [row["loss"] for row in log]
    assert np.mean(losses[-5:]) < np.mean(losses[:5]) - 1
    assert notes["target_tokens"] == sum(len(encode(e, student.tokenizer).target) for e in EXAMPLES)
    changed = {n for n, p in student.model.named_parameters() if not torch.equal(p, before[n])}
    if frozen:
        first = f"{KNOWN[student.model.config.model_type].layers}.0."
        assert changed
        assert not any(name.startswith(first) or "embed" in name or "wte" in name for name in changed)
    student.save(tmp_path / "saved")
    loaded = students.load_folder("saved", tmp_path / "saved")
    assert generate(loaded, PROMPTS, 12, 3) == generate(student, PROMPTS, 12, 3)
    np.testing.assert_array_equal(*(option_scores(s, PROMPTS, OPTIONS, 8) for s in (loaded, student)))


def test_every_family_answers_through_the_same_evaluation(student: Student, params: Params) -> None:
    for scoring in ("direct", "elimination", "label", "likelihood"):
        predictions = predict(student, QUESTIONS, "cf-distill", scoring, params)
        assert [p.question_id for p in predictions] == ["q1", "q2", "q3"]
        assert all(0 <= p.predicted < len(q.options) for p, q in zip(predictions, QUESTIONS, strict=True))


def test_too_long_examples_are_an_error_with_counts(student: Student, params: Params) -> None:
    with pytest.raises(TrainingError, match=r"6 of 6 training examples .* max_length=16 .* raise max_length"):
        training.pack_examples(EXAMPLES, student, params.model_copy(update={"max_length": 16}))


def test_strategy_tokens_can_be_tokens_of_their_own(params: Params, tmp_path: Path) -> None:
    plain, student = (
        students.load(params.student, params.model_copy(update={"strategy_tokens": way}))
        for way in ("text", "special")
    )
    new = student.tokenizer.convert_tokens_to_ids([DIRECT, ELIMINATION])
    assert new == [len(plain.tokenizer), len(plain.tokenizer) + 1]
    spelled = tokenize(DIRECT, plain.tokenizer)
    assert len(spelled) > 1
    table, old = student.model.get_input_embeddings().weight, plain.model.get_input_embeddings().weight
    torch.testing.assert_close(table[new[0]], old[spelled].mean(0))
    assert new[0] in tokenize_prompt(PROMPTS[0], student.tokenizer)
    params = params.model_copy(update={"learning_rate": 3e-3, "batch_size": 2})
    log, _ = training.train(student, EXAMPLES, 10, params, tmp_path / "checkpoints")
    assert log[-1]["loss"] < log[0]["loss"]
    student.save(tmp_path / "saved")
    loaded = students.load_folder("saved", tmp_path / "saved")
    assert loaded.tokenizer.convert_tokens_to_ids([DIRECT, ELIMINATION]) == new
    assert generate(loaded, PROMPTS, 12, 3) == generate(student, PROMPTS, 12, 3)
    assert all(p.text is not None for p in predict(loaded, QUESTIONS, "cf-distill", "direct", params))


def test_a_window_too_small_is_told(folders: dict[str, Path], small_params: Params) -> None:
    student = students.load(str(folders["gpt2"]), small_params)
    long = Example("q", "label", "barn " * 600 + "Answer:", " So.")
    with pytest.raises(TrainingError, match=r"has \d+ tokens, and the student takes 512"):
        training.pack_examples([long], student, small_params.model_copy(update={"max_length": 5000}))


def test_a_folder_needs_safetensors_and_a_known_family(
    folders: dict[str, Path], small_params: Params, tmp_path: Path
) -> None:
    with pytest.raises(
        TrainingError, match=r"needs config\.json, tokenizer files and weights as \*\.safetensors"
    ):
        students.load(str(tmp_path), small_params)
    torch.save({}, tmp_path / "pytorch_model.bin")
    (tmp_path / "config.json").write_text((folders["gpt2"] / "config.json").read_text())
    with pytest.raises(TrainingError, match="pickle files are not read"):
        students.load(f"{tmp_path}/", small_params)
    config = transformers.BertConfig(
        hidden_size=8, num_attention_heads=1, num_hidden_layers=1, intermediate_size=8
    )
    transformers.BertLMHeadModel(config).save_pretrained(tmp_path)
    with pytest.raises(TrainingError, match="'bert' is not supported; types are llama, gpt2, opt"):
        freeze(transformers.BertLMHeadModel(config), 0)


def test_students_are_named_or_a_path() -> None:
    assert ("smollm2-135m", "tiny-random", *HUB) == STUDENTS
    assert Params.build({"student": "some/where/my-gpt2"}).student_name == "my-gpt2"
    with pytest.raises(
        ParamsError, match="student: unknown gpt-9; known are smollm2-135m, tiny-random, gpt2"
    ):
        Params.build({"student": "gpt-9"})


def test_a_hub_student_that_cannot_be_had_says_so(
    small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unreachable(*_: Any, **__: Any) -> None:
        raise OSError("We couldn't connect\nto the hub")

    monkeypatch.setattr(transformers.AutoConfig, "from_pretrained", unreachable)
    with pytest.raises(
        TrainingError, match="cannot be had from openai-community/gpt2: We couldn't connect to"
    ):
        students.load("gpt2", small_params)
