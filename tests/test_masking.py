"""The words of a question: how many a rewrite changes, and how they are masked, in any script."""

import pytest
from test_rationale import outcome

from cfdistill.generate.masking import edit_ratio, mask_spans, normalize, random_span, words

ABSENT, WHOLE = "refused: span is not in the question", "refused: nothing of the question is left"
MASKED = [
    ("Ham for the hamster?", ["hamster"], "Ham for the [MASK]?"),
    ("A big mask, a red hat.", ["a  BIG", "mask"], "[MASK] [MASK], a red hat."),
    ("小狗在院子里跑", ["小狗", "院子"], "[MASK]在[MASK]里跑"),
    ("我在google工作", ["google", "在"], "我[MASK][MASK]工作"),
    ("หมาวิ่งในบ้าน", ["ใน"], "หมาวิ่ง[MASK]บ้าน"),
    ("You can’t swim.", ["can't"], "You [MASK] swim."),
    ("You can't swim.", ["Can’t"], "You [MASK] swim."),
    ('The "red" one.', ["“red”"], "The [MASK] one."),
    ("Ham for the hamster?", ["hams"], ABSENT),
    ("小狗在院子里跑", ["小猫"], ABSENT),
    *[("The man sleeps here?", spans, ABSENT) for spans in (["man", "MASK"], ["[MASK]"])],
    *[(stem, [stem.strip("?")], WHOLE) for stem in ("Why, then?", "小狗")],
]


@pytest.mark.parametrize(("stem", "spans", "masked"), MASKED)
def test_spans_are_masked_in_every_script_and_style_of_quotes_or_refused(stem, spans, masked):
    assert outcome(mask_spans, stem, spans) == masked


@pytest.mark.parametrize("stem", ["one two three four five six seven eight", "小狗在院子里跑步"])
def test_random_spans_are_a_quarter_of_the_words(stem):
    drawn = {random_span(stem, seed) for seed in range(40)}
    assert all(span in stem and len(words(span)) == 2 for span in drawn)
    assert len(drawn) > 3
    assert random_span("Why?", 0) == ""


@pytest.mark.parametrize(
    ("before", "after", "ratio"),
    [
        *[("a b c d", "A, b c d!", 0.0), ("a b c d", "a x c d", 0.25)],
        ("It can’t swim", "it can't swim", 0.0),
        ("Is it warm?", "“Is it” warm.", 0.0),  # punctuation is no symbol
        *[("Is 3 < 5", "Is 3 > 5", 0.25), ("Is it -3", "Is it 3", 0.25)],
        ("Is 3 < 5", "Is 3 > 6", 0.3333),  # where words differ, words count
        ("小狗在院子里跑", "小猫在院子里跑。", 0.1429),
        ("かに", "かめ", 0.5),
        ("well-known", "well known", 0.0),
    ],
)
def test_edit_ratio_counts_words_and_only_then_symbols(before, after, ratio):
    assert edit_ratio(before, after) == edit_ratio(after, before) == ratio
    assert (normalize(before) == normalize(after)) == (ratio == 0)
