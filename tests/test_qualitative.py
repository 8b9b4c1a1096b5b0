"""Examples are picked by rule, and every text that reaches HTML is escaped."""

import pandas as pd
import pytest

from cfdistill import data, qualitative

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
    assert "yes &amp; no" in html
    assert "<script>" not in html


def test_a_question_is_put_beside_its_training_question_with_the_difference_marked(small_params):
    data.build(small_params.train_dataset, small_params)
    trained = data.questions(small_params.train_dataset, "train", small_params)[0]
    story = pd.DataFrame(
        [{"scene": trained.scene, "stem": f"{trained.stem} <b>", "options": "\n".join(trained.options)}]
    ).assign(gold=trained.answer)
    html = qualitative.beside_training(story, small_params)
    assert "<mark>&lt;b&gt;</mark>" in html
    assert "no training question" in qualitative.beside_training(story.assign(scene=""), small_params)
