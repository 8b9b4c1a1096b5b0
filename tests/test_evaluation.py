from dataclasses import replace

import numpy as np
import pytest
import torch
from studies import make_upstream

from cfdistill import data, evaluation, students, training
from cfdistill.encoding import tokenize
from cfdistill.errors import StageError
from cfdistill.params import Params
from cfdistill.schema import Prediction, Question, prompt_text
from cfdistill.students import Student

PROMPTS = [
    "Hens sleep in",
    "The referee blew a whistle because a defender had",
    "A",
    "Where do carp sleep? In",
]


@pytest.fixture
def student(small_params: Params) -> Student:
    return students.load("tiny-random", small_params)


class EndAt:
    """The student's tokenizer with another end token, so that an untrained student ends early."""

    def __init__(self, tokenizer: object, end: int) -> None:
        self.tokenizer, self.eos_token_id = tokenizer, end

    def __call__(self, *args: object, **kwargs: object) -> object:
        return self.tokenizer(*args, **kwargs)  # type: ignore[operator]

    def __getattr__(self, name: str) -> object:
        return getattr(self.tokenizer, name)


def reference(student: Student, prompt: str, new_tokens: int) -> list[int]:
    """Return the greedy continuation by transformers' own `generate`, one prompt at a time."""
    ids = torch.tensor([tokenize(prompt, student.tokenizer)])
    end = student.tokenizer.eos_token_id
    out = student.model.generate(
        ids, max_new_tokens=new_tokens, do_sample=False, eos_token_id=end, pad_token_id=end
    )
    return [token for token in out[0, ids.shape[1] :].tolist() if token != end]


def test_batched_generation_equals_one_at_a_time_and_the_reference(student: Student) -> None:
    batched = evaluation.generate(student, PROMPTS, 12, batch_size=4)
    assert batched == evaluation.generate(student, PROMPTS, 12, batch_size=1)
    expected = [student.tokenizer.decode(reference(student, prompt, 12)).strip() for prompt in PROMPTS]
    assert batched == expected


def test_rows_that_end_leave_the_batch_and_the_rest_goes_on(student: Student) -> None:
    fourth = reference(student, PROMPTS[1], 12)[3]
    ending = replace(student, tokenizer=EndAt(student.tokenizer, fourth))
    ids = [tokenize(prompt, student.tokenizer) for prompt in PROMPTS]
    answers = evaluation._generate_batch(ending, ids, 12)
    assert answers == [reference(ending, prompt, 12) for prompt in PROMPTS]
    assert len(answers[1]) < 4 < max(map(len, answers))


def naive_scores(student: Student, question: Question) -> list[float]:
    scores = []
    for option in question.options:
        prompt = tokenize(prompt_text(question), student.tokenizer)
        target = tokenize(f" {option}", student.tokenizer)
        with torch.no_grad():
            logits = student.model(torch.tensor([prompt + target])).logits[0].log_softmax(-1)
        logprobs = [logits[len(prompt) + i - 1, token].item() for i, token in enumerate(target)]
        scores.append(sum(logprobs) / len(option))
    return scores


def test_option_scores_are_loglikelihood_per_character(student: Student) -> None:
    questions = [
        Question("q1", "d", "test", "Where do hens sleep?", ("barn", "a wide river", "bed"), 0),
        Question("q2", "d", "test", "Carp?", ("barn", "river"), 1),
    ]
    scores = evaluation.option_scores(
        student, [prompt_text(q) for q in questions], [q.options for q in questions], batch_size=8
    )
    assert scores.shape == (2, 3)
    np.testing.assert_allclose(scores[0], naive_scores(student, questions[0]), rtol=1e-5)
    np.testing.assert_allclose(scores[1, :2], naive_scores(student, questions[1]), rtol=1e-5)
    assert scores[1, 2] == -np.inf


def test_predict_asks_by_scoring_and_reads_the_answer(
    student: Student, small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    question = Question("q1", "d", "id", "Hens?", ("barn", "river"), 0, scene="s", stereotype=1)
    asked: list[str] = []

    def answer(_: Student, prompts: list[str], *__: int) -> list[str]:
        asked.extend(prompts)
        return ["Hens roost. So the answer is river.", "I wonder."]

    monkeypatch.setattr(evaluation, "generate", answer)
    for scoring, ending in (
        ("direct", "[Direct election]"),
        ("elimination", "[Elimination method]"),
        ("label", "Answer:"),
    ):
        asked.clear()
        first, second = evaluation.predict(student, [question, question], "ft", scoring, small_params)
        assert asked[0].endswith(ending)
        assert (first.predicted, first.scoring, first.stereotype) == (1, scoring, 1)
        assert (first.parsed, second.parsed) == (True, False)
        assert second.predicted in (0, 1)
        assert second.text == "I wonder."


def test_likelihood_predicts_the_best_scored_option(student: Student, small_params: Params) -> None:
    questions = data.load("weasel-commonsense", "new", small_params)
    predictions = evaluation.predict(student, questions, "untrained", "likelihood", small_params)
    prompts, options = [prompt_text(q) for q in questions], [q.options for q in questions]
    best = evaluation.option_scores(student, prompts, options, 4).argmax(axis=1)
    assert [p.predicted for p in predictions] == best.tolist()
    assert predictions[0].text == questions[0].options[best[0]]


def test_scorings_follow_from_what_the_method_learned(small_params: Params) -> None:
    params = small_params.model_copy(update={"scorings": ["direct", "elimination"]})
    assert evaluation.scorings("ft", params) == ("label",)
    assert evaluation.scorings("cf-distill", params) == ("direct", "elimination")


def test_evaluation_needs_a_trained_student(small_params: Params) -> None:
    with pytest.raises(StageError, match="stage training is missing"):
        evaluation.build("ft", "weasel-science", small_params)


def test_two_studies_from_scratch_predict_the_same(
    small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    found: list[list[Prediction]] = []
    for root in ("one", "two"):
        params = small_params.model_copy(update={"run_root": f"{small_params.run_root}/{root}"})
        make_upstream(params)
        training.build("ft-cot", params)
        own, other = evaluation.build_all("ft-cot", params)
        assert {p.name for p in own.path.glob("*.jsonl")} == {
            f"predictions.{split}.direct.jsonl" for split in ("id", "shift", "new")
        }
        assert [p.name for p in other.path.glob("*.jsonl")] == ["predictions.new.direct.jsonl"]
        found.append(own.read("predictions.shift.direct.jsonl", Prediction))
    assert found[0] == found[1]
    assert len(found[0]) == len(data.questions("weasel-commonsense", "shift", params))
    monkeypatch.setattr(students, "load_folder", None)  # all is there: no student is loaded
    evaluation.build_all("ft-cot", params)
