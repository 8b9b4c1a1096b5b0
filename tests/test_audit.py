"""The audits change what they say they change, and their table says what the answers say."""

from operator import add

import pytest
from studies import make_upstream

from cfdistill import answer_figures, answering, audit, data, evaluation, runs, students, training
from cfdistill.errors import StageError
from cfdistill.schema import Prediction, Question, prompt_text

QUESTIONS = [
    Question("a1", "d", "shift", "Where do hens sleep?", ("barn", "river"), 0, scene="a", stereotype=1),
    Question("a2", "d", "shift", "Where do wild hens sleep?", ("tree", "barn"), 0, scene="a"),
    Question("b1", "d", "shift", "Where do carp sleep?", ("river", "barn"), 0, scene="b"),
]
WROTE = {  # under each ending of the prompt
    "[Direct election]": "Hens roost under a roof. So the answer is barn.",
    "[Elimination method]": "They cannot swim at all. So the answer is barn.",
    audit.NOVEL: "Who knows.",
    "river": "",  # no token: the prompt ends with the options
    "barn": "",
}


@pytest.fixture
def asked(monkeypatch):
    """Replace the student by one that writes `WROTE` and always chooses the first option."""
    prompts = {"written": [], "chosen": []}

    def write(_, own, limit, __):
        prompts["written"] += [(prompt, limit) for prompt in own]
        return [next(text for end, text in WROTE.items() if prompt.endswith(end)) for prompt in own]

    def choose(_, own, said, questions, __):
        prompts["chosen"] += map(add, own, said)
        return [0] * len(own)

    monkeypatch.setattr(answering, "generate", write)
    monkeypatch.setattr(answering, "choose", choose)
    return prompts


def test_input_audit_leaves_out_the_question_or_the_options(asked, small_params):
    found = audit.read_input(None, QUESTIONS[:1], "ft-cot", "[Direct election]", small_params)
    assert asked["chosen"] == [
        "Where do hens sleep?\nOptions: barn; river\n[Direct election] So the answer is",
        "Options: barn; river\n[Direct election] So the answer is",
        "Where do hens sleep?\n[Direct election] So the answer is",
    ]
    assert [p.scoring.partition("/")[2] for p in found] == list(audit.CONDITIONS["input"])


def test_a_student_of_labels_is_asked_for_its_label(asked, small_params):
    found = audit.audit(None, QUESTIONS, "ft", small_params)
    assert {p.scoring.partition("/")[0] for p in found} == {"input"}
    assert asked["chosen"][0] == f"{prompt_text(QUESTIONS[0])} So the answer is"
    assert not asked["written"]


def test_strategy_audit_changes_the_token_only(asked, small_params):
    audit.heed_strategy(None, QUESTIONS[:1], "ft-cot", small_params)
    stem = "Where do hens sleep?\nOptions: barn; river"
    short, long = small_params.max_new_tokens, small_params.max_new_tokens_elimination
    assert asked["written"] == [
        (f"{stem}\n[Direct election]", short),
        (stem, short),
        (f"{stem}\n{audit.NOVEL}", short),
        (f"{stem}\n[Elimination method]", long),
    ]


def test_rationale_audit_changes_the_rationale_only(asked, small_params):
    own, opposite = (
        [
            evaluation.answered(q, "ft-cot", "strategy/x", 0, f"{q.id} {words}. So the answer is barn.", True)
            for q in QUESTIONS
        ]
        for words in ("is under a roof", "cannot swim")
    )
    audit.follow_rationale(None, QUESTIONS, own, opposite, small_params)
    said = [prompt.partition("[Direct election] ")[2] for prompt in asked["chosen"]]
    assert said[::3] == [
        "a1 is under a roof. So the answer is",
        "a1 is So the answer is",
        "b1 is under a roof. So the answer is",  # the next question is of the same scene
        "a1 cannot swim. So the answer is",
    ]
    assert said[8] == "a1 is under a roof. So the answer is"  # of b1: around to the beginning


def test_every_condition_of_every_audit_is_there(asked, small_params):
    found = audit.audit(None, QUESTIONS, "cf-distill", small_params)
    expected = {f"{name}/{condition}" for name, own in audit.CONDITIONS.items() for condition in own}
    assert {p.scoring for p in found} == expected
    assert len(found) == len(QUESTIONS) * len(expected)


def write_stage(params, method, answers):
    with runs.stage("audits", params, method=method).draft(params) as draft:
        draft.write("predictions.jsonl", answers)


def answered(name, options, parsed=(True, True, True)):
    return [
        evaluation.answered(q, "ft-cot", name, option, "…", p)
        for q, option, p in zip(QUESTIONS, options, parsed, strict=True)
    ]


def test_table_by_hand(small_params):
    params = small_params.model_copy(update={"methods": ["ft-cot", "ft"]})
    answers = answered("strategy/right token", (0, 0, 1)) + answered(
        "strategy/novel", (0, 1, 1), (False, True, True)
    )
    write_stage(params, "ft-cot", answers)
    with pytest.raises(StageError, match="audits is missing"):
        audit.table(params)
    write_stage(params, "ft", [])
    table = audit.table(params)
    assert list(table.columns) == audit.COLUMNS
    assert table[["method", "audit", "condition", "n"]].to_numpy().tolist() == [
        ["ft-cot", "strategy", "right token", 3],
        ["ft-cot", "strategy", "novel", 3],
    ]
    assert list(table.accuracy) == pytest.approx([2 / 3, 1 / 3])
    assert list(table.same_answer) == pytest.approx([1, 2 / 3])
    assert list(table.unparsed_rate) == pytest.approx([0, 1 / 3])
    assert (table.same_low < table.same_answer).all()
    assert (table.ci_high > table.accuracy).all()
    fig = answer_figures.fig_audits(table)
    assert [ax.get_title() for ax in fig.axes] == [
        "strategy: right (%), n = 3",
        "answered as with right token (%)",
    ]
    assert [len(ax.patches) for ax in fig.axes] == [2, 1]
    (empty,) = answer_figures.fig_audits(table[:0]).axes
    assert "audit_questions is 0" in empty.get_xlabel()


def test_questions_are_spread_over_the_split(small_params):
    data.build(small_params.train_dataset, small_params)
    everything = data.questions(small_params.train_dataset, "shift", small_params)
    for count in (0, 3, len(everything), 10_000):
        params = small_params.model_copy(update={"audit_questions": count})
        found = audit.choose_questions(params)
        assert len(found) == min(count, len(everything))
        assert [q for q in everything if q in found] == found
    assert audit.split(small_params) == "shift"
    assert audit.split(small_params.model_copy(update={"train_dataset": "csqa"})) == "test"


def test_stage_of_a_trained_student_and_none_without_questions(small_params, monkeypatch):
    make_upstream(small_params)
    training.build("cf-distill", small_params)
    found = audit.build("cf-distill", small_params).read("predictions.jsonl", Prediction)
    assert len(found) == 4 * sum(map(len, audit.CONDITIONS.values()))
    monkeypatch.setattr(students, "load_folder", None)  # no student is loaded from here on
    assert audit.build("cf-distill", small_params).read("predictions.jsonl", Prediction) == found
    none = small_params.model_copy(update={"audit_questions": 0})
    assert audit.build("cf-distill", none).read("predictions.jsonl", Prediction) == []
