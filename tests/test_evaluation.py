"""Answers of every scoring, and questions of one's own."""

from dataclasses import replace
from operator import add
from types import SimpleNamespace

import pytest
from studies import changed

from cfdistill import data
from cfdistill.errors import DataError
from cfdistill.evaluate import predict
from cfdistill.params import SCORINGS
from cfdistill.schema import Question, prompt_text
from cfdistill.student import decode, models
from cfdistill.study import ask

QUESTIONS = [
    Question("a1", "d", "shift", "Where do hens sleep?", ("barn", "river"), 0, scene="a", stereotype=1),
    Question("a2", "d", "shift", "Where do wild hens sleep?", ("tree", "barn"), 0, scene="a"),
    Question("b1", "d", "shift", "Where do carp sleep?", ("river", "barn"), 0, scene="b"),
]
HENS, SHOWN = QUESTIONS[0], "Where do hens sleep?\nOptions: barn; river"
ENDS = {"direct": "[Direct election]", "elimination": "[Elimination method]", "label": "Answer:"}
VIEWS = {"ft": ["label"], "ft-cot": ["direct"], "cf-distill": ["direct", "elimination"]}


@pytest.fixture
def asked(monkeypatch):
    """Replace the student by one that writes `texts` and chooses first options; notes what it is asked."""
    noted = SimpleNamespace(texts=[], written=[], chosen=[])

    def write(_, prompts, limit, __):
        noted.written += [(prompt, limit) for prompt in prompts]
        return noted.texts * (len(prompts) // len(noted.texts))

    def choose(_, prompts, said, questions, __):
        noted.chosen += map(add, prompts, said)
        return [0] * len(questions)

    monkeypatch.setattr(predict, "generate", write)
    for module in (predict, decode):
        monkeypatch.setattr(module, "choose", choose)
    return noted


@pytest.mark.parametrize(("scoring", "ending"), ENDS.items())
def test_predict_asks_by_scoring_and_reads_the_answer(small_params, asked, scoring, ending):
    asked.texts = ["Hens roost. So the answer is river.", "I wonder."]
    params = changed(small_params, max_new_tokens=3, max_new_tokens_elimination=7)
    first, second = predict.predict(None, [HENS, HENS], "ft", scoring, params)
    assert asked.written == [(f"{SHOWN}\n{ending}", 7 if scoring == "elimination" else 3)] * 2
    assert (first.predicted, first.scoring, first.stereotype, first.options) == (1, scoring, 1, 2)
    assert (first.parsed, second.parsed, second.text, second.predicted) == (True, False, "I wonder.", 0)
    assert asked.chosen == [f"{SHOWN}\n{ending} I wonder. So the answer is"]


def test_equal_options_count_as_one(small_params, asked):
    question = replace(HENS, options=("Barn.", "river", "barn", "river"), answer=2, stereotype=None)
    asked.texts = [f"So the answer is {said}." for said in ("barn", "Barn", "river")]
    found = predict.predict(None, [question] * 3, "ft-cot", "direct", small_params)
    assert [(p.predicted, p.parsed) for p in found] == [(2, True), (2, True), (1, True)]
    assert predict.answered(question, "ft-cot", "direct", 3, "", True).predicted == 1


@pytest.mark.parametrize("scoring", ["likelihood", "cloze"])
def test_likelihood_is_acc_norm_of_lm_evaluation_harness(small_params, scoring):
    student, questions = models.load(small_params), data.load("weasel-commonsense", "new", small_params)
    found = predict.predict(student, questions, "untrained", scoring, small_params)
    options = [q.options for q in questions]
    prompts = [f"Question: {q.stem}\nAnswer:" if scoring == "cloze" else prompt_text(q) for q in questions]
    expected = decode.option_scores(student, prompts, options, 1).argmax(axis=1)
    assert len(set(expected)) > 1
    answers = [(i, own[i], True) for i, own in zip(expected, options, strict=True)]
    assert [(p.predicted, p.text, p.parsed) for p in found] == answers


def test_rationale_is_the_likeliest_option_after_ones_own_words(small_params, asked):
    asked.texts = ["Hens roost. So the answer is river."]
    params = changed(small_params, scorings=["rationale", "direct"])
    found = predict.predict_all(None, [HENS], "cf-distill", params)
    assert {name: own[0].predicted for name, own in found.items()} == {"direct": 1, "rationale": 0}
    assert asked.chosen == [f"{SHOWN}\n[Direct election] Hens roost. So the answer is"]
    assert found["rationale"][0].text == found["direct"][0].text


def test_all_scorings_come_from_one_checkpoint_and_are_the_same_twice(small_params, tmp_path):
    params = changed(small_params, scorings=list(SCORINGS))
    questions = data.load("weasel-science", "new", small_params)[:3]
    found, again = (predict.predict_all(models.load(params), questions, "cf-distill", params) for _ in "12")
    assert found == again
    assert list(found) == list(SCORINGS)
    for name, own in found.items():
        assert [(p.question_id, p.scoring, p.options) for p in own] == [(q.id, name, 4) for q in questions]
    models.load(params).save(tmp_path)
    rounded, again = (models.answering(changed(params, precision="bf16"), tmp_path) for _ in "12")
    assert {str(weight.dtype) for weight in rounded.model.parameters()} == {"torch.bfloat16"}
    answers = predict.predict_all(rounded, questions, "cf-distill", params)
    assert answers == predict.predict_all(again, questions, "cf-distill", params)
    params = changed(small_params, scorings=["likelihood", "elimination", "direct"])
    assert predict.scorings("ft", params) == ("label", "likelihood")
    assert predict.scorings("cf-distill", params) == ("direct", "elimination", "likelihood")


@pytest.mark.parametrize(("method", "views"), VIEWS.items())
def test_each_method_gives_its_views_and_every_option_a_likelihood(small_params, method, views):
    question = ask.own_question(" Where is the lamp? <b>", ["shed", " attic ", "hall"])
    said = ask.ask(models.load(small_params), method, question, small_params).splitlines()
    assert said[0] == method
    assert [line.split(":")[0].strip() for line in said[1::3]] == views
    assert len(said) == 1 + 3 * len(views)
    for answer, likelihoods in zip(said[1::3], said[3::3], strict=True):
        scores = {o: float(s) for o, s in (part.rsplit(" ", 1) for part in likelihoods.strip().split(" · "))}
        assert set(scores) == {"shed", "attic", "hall"}
        assert list(scores.values()) == sorted(scores.values(), reverse=True)
        assert max(scores.values()) < 0
        assert "names no option" in answer  # an untrained student
        assert answer.split(": ")[1].split(" (")[0] == next(iter(scores))


def test_options_must_be_two_and_different_and_the_question_without_nul():
    for options in (["shed"], ["shed", "shed "], ["shed", "Shed."], ["shed", " "], []):
        with pytest.raises(DataError, match="two or more different options"):
            ask.own_question("Where?", options)
    with pytest.raises(DataError, match="holds NUL"):
        ask.own_question("Wh\0ere?", ["shed", "hall"])
