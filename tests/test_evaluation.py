from dataclasses import replace
from operator import add

import numpy as np
import pytest
import torch
from studies import make_upstream

from cfdistill import answering, data, evaluation, students, training
from cfdistill.encoding import tokenize
from cfdistill.errors import StageError
from cfdistill.params import SCORINGS, Params
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
    batched = answering.generate(student, PROMPTS, 12, batch_size=4)
    assert batched == answering.generate(student, PROMPTS, 12, batch_size=1)
    expected = [student.tokenizer.decode(reference(student, prompt, 12)).strip() for prompt in PROMPTS]
    assert batched == expected


def test_rows_that_end_leave_the_batch_and_the_rest_goes_on(student: Student) -> None:
    fourth = reference(student, PROMPTS[1], 12)[3]
    ending = replace(student, tokenizer=EndAt(student.tokenizer, fourth))
    ids = [tokenize(prompt, student.tokenizer) for prompt in PROMPTS]
    answers = answering._generate_batch(ending, ids, 12)
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
    scores = answering.option_scores(
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


def test_each_view_may_write_as_long_as_it_needs(
    student: Student, small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    limits: list[int] = []

    def answer(_: Student, prompts: list[str], limit: int, __: int) -> list[str]:
        limits.append(limit)
        return ["So the answer is barn."] * len(prompts)

    monkeypatch.setattr(evaluation, "generate", answer)
    question = Question("q1", "d", "id", "Hens?", ("barn", "river"), 0)
    params = small_params.model_copy(update={"max_new_tokens": 3, "max_new_tokens_elimination": 7})
    for scoring in ("direct", "elimination", "label"):
        evaluation.predict(student, [question], "ft", scoring, params)
    assert limits == [3, 7, 3]


def test_likelihood_by_the_three_definitions_of_lm_evaluation_harness(
    student: Student, small_params: Params
) -> None:
    questions = data.load("weasel-commonsense", "new", small_params)
    questions.append(Question("q", "d", "new", "Wo schläft es?", ("Bär", "ein Höhlenbär", "b"), 0))
    found = evaluation.predict_likeliest(student, questions, "untrained", small_params)
    assert list(found) == ["likelihood", "acc", "acc_bytes"]
    for i, question in enumerate(questions):
        own = question.options
        sums = np.array(naive_scores(student, question)) * [len(option) for option in own]
        expected = {
            "acc": np.argmax(sums),
            "likelihood": np.argmax(sums / [len(option) for option in own]),
            "acc_bytes": np.argmax(sums / [len(option.encode("utf-8")) for option in own]),
        }
        assert {name: predictions[i].predicted for name, predictions in found.items()} == expected
        assert found["acc"][i].text == question.options[expected["acc"]]
    assert found["likelihood"] == evaluation.predict(
        student, questions, "untrained", "likelihood", small_params
    )
    assert {p.scoring for p in found["acc_bytes"]} == {"acc_bytes"}


VOTES = {  # what the direct and the elimination view write -> the option voted for, whether they settled it
    ("So the answer is barn.", "So the answer is barn."): (0, True),
    ("So the answer is river.", "Hens cannot swim."): (1, True),
    ("Hens roost.", "So the answer is river."): (1, True),
    ("Hens roost. So the answer is barn.", "So the answer is bed."): (2, False),
    ("Hens roost.", "  So the answer is henhouse."): (2, False),
}


def test_vote_of_the_two_views(
    student: Student, small_params: Params, monkeypatch: pytest.MonkeyPatch
) -> None:
    questions = [
        Question(f"q{i}", "d", "id", "Hens?", ("barn", "river", "bed"), 0) for i in range(len(VOTES))
    ]
    texts = {"[Direct election]": [d for d, _ in VOTES], "[Elimination method]": [e for _, e in VOTES]}
    asked: list[str] = []

    def answer(_: Student, prompts: list[str], *__: int) -> list[str]:
        return texts[prompts[0].splitlines()[-1]]

    def score(
        _: Student, prompts: list[str], options: list[tuple[str, ...]], __: int, said: list[str]
    ) -> np.ndarray:
        asked.extend(
            map(add, prompts, said)
        )  # after the direct words barn leads, after the others bed leads by more
        return np.array([[-1, -3, -2] if "Direct" in prompt else [-4, -9, -2] for prompt in prompts])

    monkeypatch.setattr(evaluation, "generate", answer)
    monkeypatch.setattr(evaluation, "option_scores", score)
    params = small_params.model_copy(update={"scorings": ["vote", "elimination", "direct"]})
    found = evaluation.predict_all(student, questions, "cf-distill", params)
    assert list(found) == ["direct", "elimination", "vote"]
    assert [(p.predicted, p.parsed) for p in found["vote"]] == list(VOTES.values())
    assert found["vote"][1].text == "So the answer is river.\nHens cannot swim."
    assert "Hens?\nOptions: barn; river; bed\n[Direct election] Hens roost. So the answer is" in asked
    assert asked[-1] == "Hens?\nOptions: barn; river; bed\n[Elimination method] So the answer is"


def test_all_scorings_come_from_one_checkpoint(student: Student, small_params: Params) -> None:
    params = small_params.model_copy(update={"scorings": list(SCORINGS)})
    questions = data.load("weasel-science", "new", small_params)[:3]
    found = evaluation.predict_all(student, questions, "cf-distill", params)
    assert list(found) == ["direct", "elimination", "vote", "likelihood", "acc", "acc_bytes", "label"]
    assert all([p.question_id for p in own] == [q.id for q in questions] for own in found.values())
    assert all({p.scoring for p in own} == {name} for name, own in found.items())


def test_scorings_follow_from_what_the_method_learned(small_params: Params) -> None:
    params = small_params.model_copy(update={"scorings": ["likelihood", "elimination", "direct"]})
    assert evaluation.scorings("ft", params) == ("label", "likelihood")
    assert evaluation.scorings("ft", small_params) == ("label",)
    assert evaluation.scorings("cf-distill", params) == ("direct", "elimination", "likelihood")


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
