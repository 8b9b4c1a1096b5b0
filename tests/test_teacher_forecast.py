"""The forecast: what is counted before any call is what the stages then ask."""

import pytest

from cfdistill import counterfactual, data, rationale
from cfdistill.cli import main
from cfdistill.params import Params
from cfdistill.runs import project_root
from cfdistill.teacher import offline
from cfdistill.teacher.client import Teacher
from cfdistill.teacher.forecast import COLUMNS, Forecast, forecast, to_text

SMOKE = str(project_root() / "params" / "smoke.yaml")


def requests(made: Forecast) -> dict[str, int]:
    return {row.task: row.requests for row in made.rows}


def test_forecast_counts_what_a_flawless_teacher_is_then_asked(small_params: Params) -> None:
    params = small_params.model_copy(update={"teacher_noise": 0.0})
    before = forecast(params)
    assert requests(before) == {"mask": 12, "fill": 12, "reason": 60, "positive": 24, "negative": 24}
    made = [counterfactual.build(params), rationale.build(params)]
    asked = sum(stage.manifest()["notes"]["teacher"]["requests"] for stage in made)
    assert sum(requests(before).values()) >= asked
    with Teacher(params) as teacher:
        totals = teacher.cache.totals()
    assert {total.task: total.answers for total in totals} == requests(before)
    after = forecast(params)
    assert set(requests(after).values()) == {0}
    assert {row.task: row.cached for row in after.rows} == requests(before)


def test_forecast_subtracts_what_is_there_half_way(small_params: Params) -> None:
    params = small_params.model_copy(update={"teacher_noise": 0.0})
    data.build(params.train_dataset, params)
    originals = data.questions(params.train_dataset, "train", params)
    with Teacher(params) as teacher:
        counterfactual.mask(counterfactual.propose(originals, 1), teacher)
    assert requests(forecast(params)) == {"mask": 0, "fill": 12, "reason": 60, "positive": 24, "negative": 24}


def test_dollars_follow_from_tokens_and_the_price_table(small_params: Params) -> None:
    live = small_params.model_copy(update={"teacher": "live", "teacher_model": "gpt-5.2-2025-12-11"})
    made = forecast(live)
    tokens = [sum(row.prompt_tokens for row in made.rows), sum(row.completion_tokens for row in made.rows)]
    assert made.usd(made.rows) == pytest.approx((tokens[0] * 1.75 + tokens[1] * 14) / 1e6)
    said = to_text(made)
    assert f"as a batch ${made.usd(made.rows) / 2:.2f}" in said
    assert "recorded 2026-11-25" in said
    unknown = to_text(forecast(live.model_copy(update={"teacher_model": "who-knows"})))
    assert "its price is not known; give it by teacher_prices" in unknown


def test_the_command_prints_a_table_and_asks_nobody(
    tmp_path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(offline.SceneTeacher, "__call__", lambda *_: pytest.fail("asked"))
    for backend, dollars in (("offline", "$0.00"), ("live", "$0.")):
        given = ["-p", "run_root", str(tmp_path / backend), "-p", "teacher", backend]
        assert main(["teacher", "forecast", SMOKE, *given]) == 0
        lines = capsys.readouterr().out.splitlines()
        assert " ".join(lines[0].split()) == " ".join(COLUMNS)
        assert [line.split()[1] for line in lines[1:6]] == ["mask", "fill", "reason", "positive", "negative"]
        assert lines[6].startswith("total")
        assert dollars in lines[6]
        assert lines[-1].startswith("Assumed: ")


def test_filters_and_published_rationales_change_what_is_asked(small_params: Params) -> None:
    def asked(**changes: object) -> dict[str, int]:
        return requests(forecast(small_params.model_copy(update=changes)))

    plain = asked()
    assert asked(round_trip_check=True) == plain | {"reason": plain["reason"] + plain["fill"]}
    assert asked(vote_threshold=0) == plain | {"reason": 0}
    assert set(asked(rationale_source="file").values()) == {0}
