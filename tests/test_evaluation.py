from dataclasses import replace
from operator import add

import pytest

from cfdistill import data
from cfdistill.evaluate import predict
from cfdistill.params import SCORINGS
from cfdistill.schema import Question, prompt_text
from cfdistill.student import decode, models

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


@pytest.mark.parametrize("scoring", ["likelihood", "cloze"])
def test_likelihood_is_acc_norm_of_lm_evaluation_harness(student, small_params, scoring):
    questions = data.load("weasel-commonsense", "new", small_params)
    found = predict.predict(student, questions, "untrained", scoring, small_params)
    options = [q.options for q in questions]
    shown, alone = [prompt_text(q) for q in questions], [f"Question: {q.stem}\nAnswer:" for q in questions]
    prompts = alone if scoring == "cloze" else shown
    expected = decode.option_scores(student, prompts, options, 1).argmax(axis=1)
    assert len(set(expected)) > 1
    answers = [(i, own[i], True) for i, own in zip(expected, options, strict=True)]
    assert [(p.predicted, p.text, p.parsed) for p in found] == answers


def test_rationale_is_the_likeliest_option_after_ones_own_words(student, small_params, written, monkeypatch):
    written[0]["[Direct election]"] = ["Hens roost. So the answer is river."]
    asked = []

    def choose(_, prompts, said, *__):
        asked.extend(map(add, prompts, said))
        return [0]

    monkeypatch.setattr(predict, "choose", choose)
    params = small_params.model_copy(update={"scorings": ["rationale", "direct"]})
    found = predict.predict_all(student, [HENS], "cf-distill", params)
    assert {name: own[0].predicted for name, own in found.items()} == {"direct": 1, "rationale": 0}
    assert asked == ["Hens?\nOptions: barn; river\n[Direct election] Hens roost. So the answer is"]
    assert found["rationale"][0].text == found["direct"][0].text


def test_all_scorings_come_from_one_checkpoint_and_are_the_same_twice(small_params, tmp_path):
    params = small_params.model_copy(update={"scorings": list(SCORINGS)})
    questions = data.load("weasel-science", "new", small_params)[:3]
    found, again = (predict.predict_all(models.load(params), questions, "cf-distill", params) for _ in "12")
    assert found == again
    assert list(found) == list(SCORINGS)
    for name, own in found.items():
        assert [(p.question_id, p.scoring, p.options) for p in own] == [(q.id, name, 4) for q in questions]
    models.load(params).save(tmp_path)
    rounding = params.model_copy(update={"precision": "bf16"})
    rounded, again = (models.answering(rounding, tmp_path) for _ in "12")
    assert {str(weight.dtype) for weight in rounded.model.parameters()} == {"torch.bfloat16"}
    answers = predict.predict_all(rounded, questions, "cf-distill", params)
    assert answers == predict.predict_all(again, questions, "cf-distill", params)
    assert predict.scorings("ft", small_params) == ("label",)
    params = small_params.model_copy(update={"scorings": ["likelihood", "elimination", "direct"]})
    assert predict.scorings("ft", params) == ("label", "likelihood")
    assert predict.scorings("cf-distill", params) == ("direct", "elimination", "likelihood")
