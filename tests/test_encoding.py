import re

import pytest
import torch

from cfdistill.errors import TrainingError
from cfdistill.params import Params
from cfdistill.schema import DIRECT, ELIMINATION, Example
from cfdistill.student import models
from cfdistill.student.loss import supervised_view, token_html, token_weights
from cfdistill.student.models import Student
from cfdistill.student.packing import IGNORED, Pair, by_length, collate, encode, pack, tokenize
from cfdistill.student.train import pack_examples

QUESTION = "Where does the hen sleep?\nOptions: barn; river"
EXAMPLES = [
    Example("q", "positive", f"{QUESTION}\n{DIRECT}", " Hens roost inside. So the answer is barn."),
    Example("q", "negative", f"{QUESTION}\n{ELIMINATION}", " A river is wet, hens cannot swim. So barn."),
]


@pytest.fixture
def student(small_params: Params) -> Student:
    return models.load(small_params)


def test_pack_holds_the_common_beginning_once_and_restarts_positions() -> None:
    packed = pack([Pair([1, 2, 3], [4]), Pair([1, 2, 9, 8], [5, 6])])
    assert packed.input_ids == [1, 2, 3, 4, 9, 8, 5, 6]
    assert packed.position_ids == [0, 1, 2, 3, 2, 3, 4, 5]
    assert packed.branches == [0, 0, 1, 1, 2, 2, 2, 2]
    assert packed.labels == [IGNORED, IGNORED, IGNORED, 4, IGNORED, IGNORED, 5, 6]
    assert pack([Pair([1, 2], [3]), Pair([1, 2], [4])]).input_ids == [1, 2, 3, 2, 4]  # the last one predicts


def test_each_example_has_its_share_split_among_its_target_tokens() -> None:
    rows = [pack([Pair([1, 2], [3], 3.0), Pair([1, 2], [4, 5, 6], 0.5)]), pack([Pair([1, 2], [7, 8])])]
    expected = torch.tensor([3.0, *[0.5 / 3] * 3, 0.5, 0.5]) / 4.5
    assert torch.equal(token_weights(collate(rows)), expected)


def test_targets_end_with_the_end_token_and_are_all_supervised(student: Student) -> None:
    view = supervised_view(EXAMPLES[0], student.tokenizer)
    target = EXAMPLES[0].target + student.tokenizer.eos_token
    assert "".join(token for token, _ in view) == EXAMPLES[0].prompt + target
    assert "".join(token for token, supervised in view if supervised) == target
    html = token_html([("1 < 2?\n", False), ("<b>", True)])
    assert re.fullmatch(r"1 &lt; 2\?<br><u [^>]+>&lt;b&gt;</u>", html)
    for example in EXAMPLES:  # prompt and target tokenize alike together and apart
        pair = encode(example, student.tokenizer)
        together = tokenize(example.prompt + example.target, student.tokenizer)
        assert pair.prompt + pair.target[:-1] == together


def test_batches_hold_similar_lengths() -> None:
    assert by_length(["aaa", "b", "cc", "dddd", "e"], 2) == [[1, 4], [2, 0], [3]]


def test_long_examples_are_an_error_with_counts(student: Student, small_params: Params) -> None:
    examples = [Example(f"q{n}", "label", "Answer:", " So" * n) for n in (5, 6, 9)]
    lengths = [len(p.prompt) + len(p.target) for p in (encode(e, student.tokenizer) for e in examples)]

    def check(most: int) -> None:
        pack_examples(examples, student, small_params.model_copy(update={"max_length": most}))

    check(lengths[2])
    with pytest.raises(TrainingError, match=rf"2 of 3 .*={lengths[0]} .* raise max_length to {lengths[2]} "):
        check(lengths[0])
    student.model.config.max_position_embeddings = lengths[1]
    with pytest.raises(TrainingError, match=f"has {lengths[2]} tokens, and the student takes {lengths[1]};"):
        check(lengths[2])
