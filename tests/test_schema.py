import json
from collections import Counter
from pathlib import Path

import pytest

from cfdistill import schema
from cfdistill.errors import DataError
from cfdistill.methods import METHODS
from cfdistill.params import SCORINGS
from cfdistill.schema import Question, read_answer, read_jsonl

OPTIONS = ("barn", "freezer", "hen house")
QUESTION = Question("q", "d", "train", "Where, [MASK] \u202e?", OPTIONS, 2, targets=(0,))
AFTER = "Therefore, the answer is "


@pytest.mark.parametrize("bad", ["{", "[]", '{"id": 1}', "null"])
def test_byte_order_mark_blank_lines_and_windows_line_ends_are_no_rows(tmp_path, bad):
    file, row = tmp_path / "a.jsonl", json.dumps(QUESTION.to_json()).encode()
    file.write_bytes(b"\xef\xbb\xbf" + row + b"\r\n\r\n  \n" + row)
    assert read_jsonl(file, Question) == [QUESTION] * 2
    file.write_bytes(file.read_bytes() + f"\n{bad}\n".encode())
    with pytest.raises(DataError, match=r"a.jsonl, line 5: no valid Question"):
        read_jsonl(file, Question)


def test_prompt_is_question_options_strategy():
    shown = "Where, [MASK] \u202e?\nOptions: barn; freezer; hen house\n[Direct election]"
    assert schema.prompt_text(QUESTION, "[Direct election]") == shown
    views = {view for method in METHODS.values() for view in method.views}
    assert set(schema.STRATEGY) == views | set(SCORINGS) - {"rationale", "cloze"}


DRESSES = ": {}.|${}$|“{}”|\"{}.\"|'{}'|{}!|**{}**.|__{}__|C. {}|(C) {}|**C.** {}"


@pytest.mark.parametrize("dress", DRESSES.split("|"))
def test_an_option_may_be_dressed(dress):
    assert read_answer(f"{AFTER}{dress.format('hen house')}\nHens lay.", OPTIONS) == 2
    assert read_answer(f"{AFTER}{dress.format('hen')}", OPTIONS) is None


@pytest.mark.parametrize("letter", ["C", "C.", "(C)", "(C).", "**C**", "**(C).**", '(C)."'])
def test_a_letter_counts_where_it_is_no_option_itself(letter):
    assert read_answer(AFTER + letter, OPTIONS) == 2
    assert read_answer(AFTER + letter, OPTIONS[:2]) is None
    assert read_answer(AFTER + letter, ("C", "AB", "O")) == 0


STATED = [  # what is typed comes before what looks alike
    *[("A. freezer", OPTIONS, 1), ("A. shed", OPTIONS, None)],  # our prompts have no letters
    ("C. elegans", ("elegans", "C. elegans"), 1),
    *[("tt.", ("TT", "Tt", "tt"), 2), ("tT.", ("TT", "Tt", "tt"), None)],
    *[("5.", (".5", "50"), None), (".5.", ("5", ".5"), 1), ("-5", ("5", "6"), None)],
    *[("5!", ("5", "120"), None), ("5!.", ("5", "5!"), 1), ('6".', ("6'", '6"'), 1)],
    ('6".', ("6", "7"), 0),  # the whole sentence is quoted
    ("10²", ("102", "10²"), 1),
    ("hen house", ("hen\u00a0house", "barn"), 0),
    ("hen  house\u00a0.", ("barn", "hen  house\u00a0"), 1),
    ("ﬁsh’s tail", ("fish's tail", "barn"), 0),
    *[(f"one{end}two.", ("one", "one\ntwo"), i) for end, i in (("\n", 1), ("\nOr ", 0), (" ", 1))],
    *[("?.", ("!", "?", "."), 1), ("U.S..", ("U.K.", "U.S."), 1)],
    ("barn", ("freezer", "Barn", "barn."), 1),  # equal options: the first
]
TEXTS = [(f"So the answer is {said}", options, answer) for said, options, answer in STATED]
TEXTS += [(f"the answer is {said}", OPTIONS, 2) for said in ("hen house.", "(C) Hen house", "(C).")]
TEXTS += [("The answer is barn. No: the answer is freezer.", OPTIONS, 1)]
NONE = [f"The answer is {said}" for said in ("(J).", "a hen house.", "barn, not freezer.", "")]
NONE += ["The answer is\nbarn", "The barn is best.", "The answer is", ""]


@pytest.mark.parametrize(("text", "options", "answer"), [*TEXTS, *((text, OPTIONS, None) for text in NONE)])
def test_only_a_whole_option_after_the_answer_sentence_counts(text, options, answer):
    assert read_answer(text, options) == answer


EQUAL = ("Energy.|energy", "hen\u00a0house|hen  house", "“barn”|barn", "CO₂|CO2")
UNEQUAL = ("TT|tt", "WW or ww|WW or Ww", ".5|5", "-5|5", "10²|102", "dogs'|dogs", "?|!")


@pytest.mark.parametrize("pair", [*EQUAL, *UNEQUAL])
def test_equal_options(pair):
    one, other = pair.split("|")
    assert schema.same_option(one, other) == schema.same_option(other, one) == (pair in EQUAL)
    assert (schema.option_key(one) == schema.option_key(other)) == (pair in EQUAL)


def test_real_outputs_are_read_as_people_read_them():
    """200 answers of each headline method, of the default study and its control, from all their test sets."""
    lines = Path(__file__).with_name("student_outputs.jsonl").read_text(encoding="utf-8").splitlines()
    outputs = [json.loads(line) for line in lines]
    for _, options, text, read in outputs:
        assert read_answer(text, options.split("; ")) == read, text
    methods = Counter(method for method, *_ in outputs)
    assert methods == dict.fromkeys(("ft", "ft-cot", "ft-cot-long", "cf-distill"), 200)
