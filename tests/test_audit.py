from dataclasses import replace
from operator import add

import pytest

from cfdistill import data
from cfdistill.evaluate import audit, predict
from cfdistill.evaluate.predict import answered
from cfdistill.schema import Question, prompt_text
from cfdistill.student import decode, models

QUESTIONS = [
    Question("a1", "d", "shift", "Where do hens sleep?", ("barn", "river"), 0, scene="a", stereotype=1),
    Question("a2", "d", "shift", "Where do wild hens sleep?", ("tree", "barn"), 0, scene="a"),
    Question("b1", "d", "shift", "Where do carp sleep?", ("river", "barn"), 0, scene="b"),
]
WROTE = "Hens roost under a roof. So the answer is barn."  # under any prompt


@pytest.fixture
def asked(monkeypatch):
    """Replace the student by one that writes `WROTE` and always chooses the first option."""
    prompts = {"written": [], "chosen": []}

    def write(_, own, limit, __):
        prompts["written"] += [(prompt, limit) for prompt in own]
        return [WROTE] * len(own)

    def choose(_, own, said, questions, __):
        prompts["chosen"] += map(add, own, said)
        return [0] * len(questions)

    monkeypatch.setattr(predict, "generate", write)
    monkeypatch.setattr(decode, "choose", choose)
    return prompts


def test_input_audit_leaves_out_the_question_or_the_options(asked, small_params):
    audit.read_input(None, QUESTIONS[:1], "[Direct election]", small_params)
    given = ("Where do hens sleep?\nOptions: barn; river", "Options: barn; river", "Where do hens sleep?")
    assert asked["chosen"] == [f"{begin}\n[Direct election] So the answer is" for begin in given]


def test_a_student_of_labels_is_asked_for_its_label(asked, small_params):
    found = audit.audit(None, QUESTIONS, "ft", small_params, [])
    assert {p.scoring.partition("/")[0] for p in found} == {"input"}
    assert asked["chosen"][0] == f"{prompt_text(QUESTIONS[0])} So the answer is"
    assert not asked["written"]


def test_own_words_come_from_the_evaluation_or_are_asked_for(asked, small_params):
    [right] = rows("direct", [0])
    known = [replace(right, text="Evaluated."), replace(right, scoring="label", text="Not asked for.")]
    audit.audit(None, QUESTIONS[:1], "ft-cot", small_params, known)
    prompt = "Where do hens sleep?\nOptions: barn; river\n[Direct election]"
    assert (asked["chosen"][3], asked["written"]) == (f"{prompt} Evaluated. So the answer is", [])
    audit.audit(None, QUESTIONS[:1], "ft-cot", small_params, [])
    assert asked["chosen"][9] == f"{prompt} {WROTE}"[: -len(" barn.")]
    assert asked["written"] == [(prompt, small_params.max_new_tokens)]


def test_rationale_audit_changes_the_rationale_only(asked, small_params):
    own = [f"{q.id} is under a roof. So the answer is barn." for q in QUESTIONS]
    audit.follow_rationale(None, QUESTIONS, own, small_params)
    said = [prompt.partition("[Direct election] ")[2] for prompt in asked["chosen"]]
    began = ("a1 is under a roof.", "a1 is", "b1 is under a roof.")
    assert said[::3] == [f"{begin} So the answer is" for begin in began]  # a2 is of the same scene
    assert said[8] == said[0]  # of b1: around to the beginning


def test_every_audit_of_a_real_student(small_params):
    found = audit.audit(models.load(small_params), QUESTIONS, "cf-distill", small_params, [])
    expected = [f"{name}/{condition}" for name, own in audit.CONDITIONS.items() for condition in own]
    assert [p.scoring for p in found] == [name for name in expected for _ in QUESTIONS]
    assert [p.question_id for p in found] == [q.id for q in QUESTIONS] * len(expected)


def rows(name, options):
    every = zip(QUESTIONS, options, strict=False)
    return [answered(q, "ft-cot", name, option, "…", True) for q, option in every]


def test_table_by_hand(small_params):
    answers = rows("rationale/its own", (0, 0, 1)) + rows("rationale/truncated", (0, 1, 1))
    table = audit.table({"ft-cot": answers, "ft": []}, small_params, "shift")
    assert list(table.columns) == audit.COLUMNS
    own = ["weasel-commonsense", "ft-cot", "tiny-random", 0, "shift", "rationale"]
    assert table.iloc[:, :8].to_numpy().tolist() == [[*own, "its own", 3], [*own, "truncated", 3]]
    for column, expected in {"accuracy": [2, 1], "same_answer": [3, 2]}.items():
        assert list(3 * table[column]) == pytest.approx(expected)
    assert ((table.same_low < table.same_answer) & (table.ci_high > table.accuracy)).all()
    assert list(audit.table({"ft": []}, small_params, "shift").columns) == audit.COLUMNS


def test_questions_are_spread_over_the_split(small_params):
    everything = data.load(small_params.train_dataset, "shift", small_params)
    for count in (0, 3, len(everything), 10_000):
        params = small_params.model_copy(update={"audit_questions": count})
        found = audit.choose_questions(everything, params)
        assert len(found) == min(count, len(everything))
        assert [q for q in everything if q in found] == found
    assert everything[-1] not in audit.choose_questions(everything, small_params)
