import copy
from dataclasses import replace
from operator import add

import numpy as np
import pytest
import torch

from cfdistill import data
from cfdistill.evaluate import predict
from cfdistill.params import SCORINGS
from cfdistill.schema import Question, prompt_text
from cfdistill.student import decode, models
from cfdistill.student.packing import tokenize

REFEREE = "The referee blew a whistle because a defender had"
PROMPTS = ["Hens sleep in", REFEREE, "A", "Where do carp sleep? In"]
HENS = Question("q1", "d", "id", "Hens?", ("barn", "river"), 0, scene="s", stereotype=1)


@pytest.fixture
def student(small_params):
    return models.load(small_params)


@pytest.fixture
def written(monkeypatch):
    """Let a student write these texts, by the last line of its prompts; note prompts and limits."""
    texts, asked = {}, []

    def answer(_, prompts, limit, __):
        asked.extend((prompt, limit) for prompt in prompts)
        return texts[prompts[0].splitlines()[-1]]

    monkeypatch.setattr(predict, "generate", answer)
    return texts, asked


def reference(student, prompt, most):
    """Return the greedy continuation by transformers' own `generate`, one prompt at a time."""
    ids, end = torch.tensor([tokenize(prompt, student.tokenizer)]), student.tokenizer.eos_token_id
    options = {"max_new_tokens": most, "do_sample": False, "eos_token_id": end, "pad_token_id": end}
    out = student.model.generate(ids, **options)[0, ids.shape[1] :].tolist()
    return [token for token in out if token != end]


def test_rows_that_end_leave_the_batch_and_the_rest_goes_on(student):
    fourth = reference(student, REFEREE, 12)[3]
    ending = replace(student, tokenizer=copy.deepcopy(student.tokenizer))
    ending.tokenizer.eos_token = student.tokenizer.convert_ids_to_tokens(fourth)
    ids = [tokenize(prompt, student.tokenizer) for prompt in PROMPTS]
    answers = decode._generate_batch(ending, ids, 12)
    assert answers == [reference(ending, prompt, 12) for prompt in PROMPTS]
    assert len(answers[1]) < 4 < max(map(len, answers))


@pytest.mark.parametrize(
    ("scoring", "ending", "limit"),
    [("direct", "[Direct election]", 3), ("elimination", "[Elimination method]", 7), ("label", "Answer:", 3)],
)
def test_predict_asks_by_scoring_and_reads_the_answer(student, small_params, written, scoring, ending, limit):
    texts, asked = written
    texts[ending] = ["Hens roost. So the answer is river.", "I wonder."]
    params = small_params.model_copy(update={"max_new_tokens": 3, "max_new_tokens_elimination": 7})
    first, second = predict.predict(student, [HENS, HENS], "ft", scoring, params)
    assert asked == [(f"Hens?\nOptions: barn; river\n{ending}", limit)] * 2
    assert (first.predicted, first.scoring, first.stereotype, first.options) == (1, scoring, 1, 2)
    assert (first.parsed, second.parsed, second.text) == (True, False, "I wonder.")
    assert second.predicted in (0, 1)


def test_equal_options_count_as_one(student, small_params, written):
    question = replace(HENS, options=("Barn.", "river", "barn", "river"), answer=2, stereotype=None)
    written[0]["[Direct election]"] = [f"So the answer is {said}." for said in ("barn", "Barn", "river")]
    found = predict.predict(student, [question] * 3, "ft-cot", "direct", small_params)
    assert [(p.predicted, p.parsed) for p in found] == [(2, True), (2, True), (1, True)]
    assert predict.answered(question, "ft-cot", "direct", 3, "", True).predicted == 1


def test_likelihood_is_acc_norm_of_lm_evaluation_harness(student, small_params):
    questions = data.load("weasel-commonsense", "new", small_params)
    found = predict.predict(student, questions, "untrained", "likelihood", small_params)
    prompts, options = [prompt_text(q) for q in questions], [q.options for q in questions]
    expected = decode.option_scores(student, prompts, options, 1).argmax(axis=1)
    assert len(set(expected)) > 1
    answers = [(i, own[i], True) for i, own in zip(expected, options, strict=True)]
    assert [(p.predicted, p.text, p.parsed) for p in found] == answers


VOTES = {  # what the direct and the elimination view write -> the option voted for, whether they settled it
    ("So the answer is barn.", "So the answer is barn."): (0, True),
    ("So the answer is river.", "Hens cannot swim."): (1, True),
    ("Hens roost.", "So the answer is river."): (1, True),
    ("Hens roost. So the answer is barn.", "So the answer is bed."): (2, False),
    ("Hens roost.", "  So the answer is henhouse."): (2, False),
}


def test_vote_of_the_two_views(student, small_params, written, monkeypatch):
    options = ("barn", "river", "bed")
    questions = [Question(f"q{i}", "d", "id", "Hens?", options, 0) for i in range(len(VOTES))]
    written[0]["[Direct election]"], written[0]["[Elimination method]"] = zip(*VOTES, strict=True)
    asked = []

    def score(_, prompts, __, ___, said):
        asked.extend(map(add, prompts, said))
        # after the direct words barn leads, after the others bed leads by more
        return np.array([[-1, -3, -2] if "Direct" in prompt else [-4, -9, -2] for prompt in prompts])

    monkeypatch.setattr(predict, "option_scores", score)
    params = small_params.model_copy(update={"scorings": ["vote", "elimination", "direct"]})
    found = predict.predict_all(student, questions, "cf-distill", params)
    assert list(found) == ["direct", "elimination", "vote"]
    assert [(p.predicted, p.parsed) for p in found["vote"]] == list(VOTES.values())
    assert found["vote"][1].text == "So the answer is river.\nHens cannot swim."
    assert "Hens?\nOptions: barn; river; bed\n[Direct election] Hens roost. So the answer is" in asked
    assert asked[-1] == "Hens?\nOptions: barn; river; bed\n[Elimination method] So the answer is"


def test_all_scorings_come_from_one_checkpoint_and_are_the_same_twice(small_params):
    params = small_params.model_copy(update={"scorings": list(SCORINGS)})
    questions = data.load("weasel-science", "new", small_params)[:3]
    found, again = (predict.predict_all(models.load(params), questions, "cf-distill", params) for _ in "12")
    assert found == again
    assert list(found) == ["direct", "elimination", "vote", "likelihood", "label"]
    for name, own in found.items():
        assert [(p.question_id, p.scoring, p.options) for p in own] == [(q.id, name, 4) for q in questions]
    assert predict.scorings("ft", small_params) == ("label",)
    params = small_params.model_copy(update={"scorings": ["likelihood", "elimination", "direct"]})
    assert predict.scorings("ft", params) == ("label", "likelihood")
    assert predict.scorings("cf-distill", params) == ("direct", "elimination", "likelihood")
