import pytest
import torch
from torch.nn.functional import cross_entropy

from cfdistill import students
from cfdistill.encoding import (
    IGNORED,
    Pair,
    check_lengths,
    collate,
    encode,
    pack,
    supervised_view,
    target_logits,
    target_loss,
    token_html,
    tokenize,
)
from cfdistill.errors import TrainingError
from cfdistill.params import Params
from cfdistill.schema import DIRECT, ELIMINATION, Example
from cfdistill.students import Student

QUESTION = "Where does the hen sleep?\nOptions: barn; river"
EXAMPLES = [
    Example("q", "positive", f"{QUESTION}\n{DIRECT}", " Hens roost inside. So the answer is barn."),
    Example("q", "negative", f"{QUESTION}\n{ELIMINATION}", " A river is wet, hens cannot swim. So barn."),
]


@pytest.fixture
def student(small_params: Params) -> Student:
    return students.load("tiny-random", small_params)


def plain_loss(student: Student, pairs: list[Pair]) -> torch.Tensor:
    """Return the loss as textbooks have it: one sequence per example, logits everywhere."""
    losses = []
    for pair in pairs:
        ids = torch.tensor([pair.prompt + pair.target])
        labels = torch.tensor([IGNORED] * (len(pair.prompt) - 1) + pair.target)
        logits = student.model(input_ids=ids).logits[0, :-1]
        losses.append(cross_entropy(logits, labels, ignore_index=IGNORED))
    return torch.stack(losses).mean()


def test_pack_of_one_pair_is_the_plain_sequence() -> None:
    packed = pack([Pair([1, 2, 3], [4, 5])])
    assert packed.input_ids == [1, 2, 3, 4, 5]
    assert packed.position_ids == [0, 1, 2, 3, 4]
    assert packed.labels == [IGNORED] * 3 + [4, 5]


def test_pack_holds_the_common_beginning_once_and_restarts_positions() -> None:
    packed = pack([Pair([1, 2, 3], [4]), Pair([1, 2, 9, 8], [5, 6])])
    assert packed.input_ids == [1, 2, 3, 4, 9, 8, 5, 6]
    assert packed.position_ids == [0, 1, 2, 3, 2, 3, 4, 5]
    assert packed.branches == [0, 0, 1, 1, 2, 2, 2, 2]
    assert packed.labels == [IGNORED, IGNORED, IGNORED, 4, IGNORED, IGNORED, 5, 6]


def test_pack_of_equal_prompts_keeps_the_last_prompt_token_in_every_branch() -> None:
    packed = pack([Pair([1, 2], [3]), Pair([1, 2], [4])])
    assert packed.input_ids == [1, 2, 3, 2, 4]


def test_loss_at_targets_only_equals_the_loss_over_full_logits(student: Student) -> None:
    pairs = [encode(example, student.tokenizer) for example in EXAMPLES]
    batch = collate([pack([pair]) for pair in pairs])  # of different length, so one is padded
    torch.testing.assert_close(target_loss(student.model, batch), plain_loss(student, pairs))


def test_packing_two_views_changes_neither_loss_nor_gradients(student: Student) -> None:
    pairs = [encode(example, student.tokenizer) for example in EXAMPLES]
    gradients = []
    for loss in (plain_loss(student, pairs), target_loss(student.model, collate([pack(pairs)]))):
        student.model.zero_grad()
        loss.backward()
        gradients.append([loss.detach(), *(p.grad.clone() for p in student.model.parameters())])
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-4, atol=1e-6)


def test_branches_do_not_see_each_other(student: Student) -> None:
    first, second = (encode(example, student.tokenizer) for example in EXAMPLES)
    other = Pair(second.prompt, [7, 7, 7])
    seen = [target_logits(student.model, collate([pack([first, x])]))[0] for x in (second, other)]
    torch.testing.assert_close(seen[0][: len(first.target)], seen[1][: len(first.target)])


def test_targets_end_with_the_end_token_and_are_all_supervised(student: Student) -> None:
    view = supervised_view(EXAMPLES[0], student.tokenizer)
    text = "".join(token for token, _ in view)
    assert text == EXAMPLES[0].prompt + EXAMPLES[0].target + student.tokenizer.eos_token
    learned = "".join(token for token, supervised in view if supervised)
    assert learned == EXAMPLES[0].target + student.tokenizer.eos_token


def test_prompt_and_target_tokenize_alike_together_and_apart(student: Student) -> None:
    for example in EXAMPLES:
        pair = encode(example, student.tokenizer)
        together = tokenize(example.prompt + example.target, student.tokenizer)
        assert pair.prompt + pair.target[:-1] == together


def test_long_examples_are_an_error_with_counts() -> None:
    pairs = [Pair([1] * 10, [2] * n) for n in (5, 6, 9)]
    check_lengths(pairs, 19, 19)
    with pytest.raises(TrainingError, match=r"2 of 3 .* max_length=15 .* raise max_length to 19"):
        check_lengths(pairs, 15, 19)


def test_token_html_escapes_and_marks():
    html = token_html([("1 < 2?\n", False), ("<b>", True)])
    assert html.startswith("1 &lt; 2?<br><u ")
    assert html.endswith(">&lt;b&gt;</u>")
