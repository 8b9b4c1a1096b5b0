import re

import pandas as pd
import pytest

from cfdistill.errors import DataError
from cfdistill.schema import Prediction, Question
from cfdistill.show import stories

PAIR = ("ft-cot", "cf-distill")
OUTCOMES = [  # id, split, does every text name an option, outcome of the baseline, outcome of ours
    ("a", "id", True, "right", "right"), ("b", "id", True, "lured", "other"),
    ("e", "shift", False, "lured", "right"), ("c", "shift", True, "lured", "right"),
    ("a", "shift", True, "right", "right"), ("d", "shift", True, "other", "right"),  # a: in two splits
]  # fmt: skip


@pytest.fixture
def table():
    rows = [(*known, *one) for *known, base, ours in OUTCOMES for one in zip(PAIR, (base, ours), strict=True)]
    rows = pd.DataFrame(rows, columns=["id", "split", "parsed", "method", "outcome"])
    facts = {"options": "yes & no\nno", "gold": 0, "stereotype": 1, "text": "<script>", "reason": "…"}
    facts |= {"dataset": "d", "cue": "I>", "view": ""}
    return rows.assign(stem="<i>" + rows["id"] + "</i>?", **facts)


def test_pick_takes_the_first_that_fit_of_one_method_alone_too(table):
    cases = [("lured right", "c"), ("lured right", "ce"), ("right right", "a"), ("other lured", "d")]
    for wanted, chosen in (*cases, ("lured right", "acde")):  # then those that fit in ours only
        picked = stories.pick(table, tuple(wanted.split()), len(chosen))
        assert sorted(picked["id"]) == sorted(2 * chosen)  # one row per method
    alone = table[table["method"] == "cf-distill"]
    assert list(stories.pick(alone, ("lured", "other"), 1)["id"]) == ["b"]  # by what is wanted of the last
    assert stories.side_by_side(alone[:1]).count('<div dir="auto"') == 1


def test_questions_are_shown_with_all_answers_and_everything_escaped(table):
    html = stories.side_by_side(table)
    assert html.count("<article ") == 6
    assert [part for part in ("<script>", "<fieldset>") if part in html] == []
    parts = ("&lt;<mark>i&gt;</mark>a&lt;/i&gt;?", "<b>yes &amp; no</b>; <i>no</i>", 'id="d-shift-c"')
    assert [part for part in parts if part not in html] == []
    real = table.assign(stereotype=pd.array([pd.NA] * len(table), dtype="Int64"))  # none is known
    assert "<b>yes &amp; no</b>; no</p>" in stories.side_by_side(real)


def test_filters_name_every_outcome_with_its_count_and_hide_by_style_alone(table):
    more = table[:1].assign(view="elimination", outcome="other")
    html = stories.side_by_side(pd.concat([table, more]), filters=True)
    assert re.findall(r"> ((?:all|d|right|lured|other) .*?)</label>", html) == [
        *("all (6)", "d id (2)", "d shift (4)"),
        *("right (2)", "lured (3)", "other (1)", "right (5)", "lured (0)", "other (1)"),
    ]
    hidden = re.findall(r":has\(#only-([a-z-]+):checked\) article:not\(:has\(\.answer\.([a-z-]+)\)\)", html)
    assert len(hidden) == 6
    assert all(chosen == shown for chosen, shown in hidden)
    assert html.count('answer ft-cot-lured"') == 3
    assert "<b>ft-cot, elimination: other</b>" in html  # shown, not counted


NEST = ("barn", "freezer", "nest\nbox")
EGGS = Question("q", "d", "new", "Where?", NEST, 0, (), "s", "when the weasel comes", 1)


def told(text, predicted, parsed=True, scoring="direct"):
    return Prediction("q", "d", "new", "", "s", "ft-cot", scoring, 0, 3, 1, predicted, text, parsed)


@pytest.mark.parametrize(
    ("text", "predicted", "parsed", "outcome", "reason"),
    [
        ("A weasel steals, so the answer is barn.", 0, True, "right", "names the cue"),
        ("Eggs are kept there. So the answer is barn.", 0, True, "right", "ignores the cue"),
        ("Eggs are kept cold. So the answer is freezer.", 1, True, "lured", "ignores the cue"),
        ("The weasel likes it. So the answer is nest box.", 2, True, "other", "names the cue"),
        ("It hunts in the Barn. So the answer is nest box.", 2, True, "other", "contradicts itself"),
        ("The weasel weasel weasel", 1, False, "lured", "names no option"),
    ],
)
def test_outcomes_and_reasons_by_rule(text, predicted, parsed, outcome, reason):
    other_scoring = told("not this one", 2, scoring="elimination")
    table = stories.answers([EGGS], [told(text, predicted, parsed), other_scoring], ["ft-cot"])
    (row,) = table.to_dict("records")
    assert (row["outcome"], row["reason"], row["text"]) == (outcome, reason, text)
    assert row["options"].split("\n") == ["barn", "freezer", "nest box"]  # a line each
    with pytest.raises(DataError, match="cf-distill did not answer question q; evaluate it on d new"):
        stories.answers([EGGS], [told(text, predicted)], PAIR)
