"""Asking a question of one's own: both views and all options, or one clear sentence."""

import pytest
from studies import make_upstream

from cfdistill import ask, runs, training
from cfdistill.cli import main
from cfdistill.errors import DataError, StageError

SMOKE = str(runs.project_root() / "params" / "smoke.yaml")


def test_each_method_gives_its_views_and_every_option_a_likelihood(small_params):
    params = small_params.model_copy(update={"methods": ["ft", "cf-distill"]})
    make_upstream(params)
    for method in params.methods:
        training.build(method, params)
    ft, ours = (
        text.splitlines() for text in ask.ask(params, "Where is the lamp? <b>", ["shed", " attic ", "hall"])
    )
    assert [ft[0], ours[0]] == ["ft", "cf-distill"]
    assert [line.split(":")[0].strip() for line in (ft[1], ours[1], ours[4])] == [
        "label",
        "direct",
        "elimination",
    ]
    assert len(ft) == 4
    assert len(ours) == 7
    for views in (ft[1:4], ours[1:4], ours[4:7]):
        answer, _, likelihoods = views
        scores = dict(part.rsplit(" ", 1) for part in likelihoods.strip().split(" · "))
        assert set(scores) == {"shed", "attic", "hall"}
        assert all(float(score) < 0 for score in scores.values())
        if "names no option" in answer:
            assert answer.split(": ")[1].split(" (")[0] == max(
                scores, key=lambda option: float(scores[option])
            )


@pytest.mark.parametrize("options", [["shed"], ["shed", "shed "], ["shed", " "], []])
def test_options_must_be_two_and_different(small_params, options):
    with pytest.raises(DataError, match="two or more different options"):
        ask.ask(small_params, "Where?", options)


def test_untrained_students_are_named_with_the_command_that_trains_them(small_params, capsys):
    with pytest.raises(StageError, match=r"training.*is missing"):
        ask.ask(small_params, "Where?", ["shed", "hall"])
    given = ["-p", "run_root", small_params.run_root]
    assert main(["ask", SMOKE, "Where?", "--options", "shed", "hall", *given]) == 1
    assert "--only 04" in capsys.readouterr().err
    assert main(["ask", SMOKE, "Wh\0ere?", "--options", "shed", "hall", *given]) == 1
    assert "holds NUL" in capsys.readouterr().err
