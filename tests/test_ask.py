import pytest

from cfdistill.errors import DataError
from cfdistill.evaluate import ask
from cfdistill.student import models


@pytest.mark.parametrize(
    ("method", "views"),
    [("ft", ["label"]), ("ft-cot", ["direct"]), ("cf-distill", ["direct", "elimination"])],
)
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
