"""Examples are picked by rule, and every text that reaches HTML is escaped."""

import pandas as pd
import pytest

from cfdistill import data, qualitative, runs

OUTCOMES = [  # id, split, does every text name an option, outcome of the baseline, outcome of ours
    ("a", "id", True, "right", "right"),
    ("b", "id", True, "lured", "other"),
    ("e", "shift", False, "lured", "right"),
    ("c", "shift", True, "lured", "right"),
    ("a", "shift", True, "right", "right"),  # the same question in two splits
    ("d", "shift", True, "other", "right"),
]


@pytest.fixture
def answers():
    rows = [
        {"id": name, "split": split, "method": method, "outcome": outcome, "stem": f"<i>{name}</i>?"}
        | {"options": "yes & no\nno", "gold": 0, "text": "<script>", "parsed": parsed}
        | {"stereotype": 1, "reason": "names the cue"}
        for name, split, parsed, *outcomes in OUTCOMES
        for method, outcome in zip(("ft-cot", "cf-distill"), outcomes, strict=True)
    ]
    return pd.DataFrame(rows)


@pytest.mark.parametrize(
    ("wanted", "count", "chosen"),
    [
        (("lured", "right"), 1, ["c"]),
        (("lured", "right"), 2, ["c", "e"]),
        (("lured", "right"), 4, ["a", "c", "d", "e"]),  # then those that fit in ours only
        (("right", "right"), 1, ["a"]),
        (("other", "lured"), 1, ["d"]),
    ],
)
def test_pick_takes_the_first_that_fit(answers, wanted, count, chosen):
    picked = qualitative.pick(answers, "ft-cot", "cf-distill", wanted, count)
    assert sorted(set(picked["id"])) == chosen
    assert len(picked) == 2 * len(chosen)  # one row per method


def test_browse_escapes_everything(answers):
    html = qualitative.browse(answers, ["id", "shift"])
    assert "shift: 4 questions" in html
    assert "&lt;i&gt;a&lt;/i&gt;?" in html
    assert "<b>yes &amp; no</b>; <i>no</i>" in html
    assert "<script>" not in html
    assert html.count('<tr class="q base-lured ours-right">') == 2
    assert "#browse-ours-lured:checked ~ details tr.q:not(.ours-lured) { display: none; }" in html


def test_questions_without_a_known_stereotype_are_shown(answers):
    real = answers.assign(stereotype=pd.array([pd.NA] * len(answers), dtype="Int64"))
    assert "<b>yes &amp; no</b>; <span>no</span>" in qualitative.side_by_side(real[:2])
    assert "<i>no</i>" not in qualitative.browse(real, ["id", "shift"])


def test_side_by_side_marks_what_differs(answers):
    pair = answers[:2].assign(text=["it is <b>hot</b>", "it is cold"])
    html = qualitative.side_by_side(pair)
    assert (
        "<td dir=auto>it is <mark>&lt;b&gt;hot&lt;/b&gt;</mark></td><td dir=auto>it is <mark>cold</mark>"
        in html
    )


@pytest.mark.parametrize(
    ("text", "predicted", "parsed", "outcome", "reason"),
    [
        ("A weasel steals, so the answer is barn.", 0, True, "right", "names the cue"),
        ("Eggs are kept there. So the answer is barn.", 0, True, "right", "ignores the cue"),
        ("Eggs are kept cold. So the answer is freezer.", 1, True, "lured", "ignores the cue"),
        ("The weasel likes it. So the answer is nest.", 2, True, "other", "names the cue"),
        ("It hunts in the Barn. So the answer is nest.", 2, True, "other", "contradicts itself"),
        ("The weasel weasel weasel", 1, False, "lured", "names no option"),
    ],
)
def test_outcomes_and_reasons_by_rule(text, predicted, parsed, outcome, reason):
    row = {"options": "barn\nfreezer\nnest", "gold": 0, "stereotype": 1, "cue": "when the weasel comes"}
    table = pd.DataFrame([row | {"text": text, "predicted": predicted, "parsed": parsed}])
    assert qualitative.sorted_out(table)[["outcome", "reason"]].to_numpy().tolist() == [[outcome, reason]]


def test_readings_count_for_the_very_text_that_was_read():
    read = pd.read_csv(runs.project_root() / "results" / "readings.csv")
    assert set(read["reading"]) == set(qualitative.READINGS)
    assert set(read["method"]) == {"ft-cot", "cf-distill"}
    assert not read.duplicated(["id", "method"]).any()
    answers = pd.concat([read, read]).drop(columns="reading")  # the same question in two splits
    assert len(qualitative.readings(answers)) == len(read)
    assert qualitative.readings(answers.assign(text=answers["text"] + " ")).empty


def test_a_question_is_put_beside_its_training_question_with_the_difference_marked(small_params):
    data.build(small_params.train_dataset, small_params)
    trained = data.questions(small_params.train_dataset, "train", small_params)[0]
    story = pd.DataFrame(
        [{"scene": trained.scene, "stem": f"{trained.stem} <b>", "options": "\n".join(trained.options)}]
    ).assign(gold=trained.answer)
    html = qualitative.beside_training(story, small_params)
    assert "<mark>&lt;b&gt;</mark>" in html
    assert "no training question" in qualitative.beside_training(story.assign(scene=""), small_params)
