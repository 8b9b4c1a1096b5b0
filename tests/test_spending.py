"""What a kept example costs: tokens by step, in dollars where the price is known."""

from pathlib import Path

import pandas as pd
import pytest

from cfdistill import counterfactual, data, rationale
from cfdistill.params import Params
from cfdistill.teacher import spending


def costs(*rows: tuple[str, str, int, int]) -> pd.DataFrame:
    return pd.DataFrame(rows, columns=spending.COLUMNS)


def test_dollars_by_step_over_the_kept(tmp_path: Path) -> None:
    (tmp_path / "prices.yaml").write_text("mine: {input: 1.75, output: 14.0, recorded: 2026-01-31}\n")
    params = Params(teacher_prices=str(tmp_path / "prices.yaml"))
    table = spending.per_kept(
        costs(("mask", "mine", 2_000_000, 0), ("vote", "mine", 0, 1_000_000)), 10, params
    )
    assert list(table["step"]) == ["mask", "vote"]
    assert list(table["read"]) == pytest.approx([0.35, 0])
    assert list(table["written"]) == pytest.approx([0, 1.4])
    assert set(table["unit"]) == {"US dollars"}


def test_tokens_where_a_price_is_unknown_and_no_step_that_asked_nothing() -> None:
    table = spending.per_kept(
        costs(("mask", "gpt-5.2", 40, 20), ("vote", "own", 80, 4), ("round trip", "own", 0, 0)), 4, Params()
    )
    assert table.to_dict("list") == {
        "step": ["mask", "vote"],
        "read": [10.0, 20.0],
        "written": [5.0, 1.0],
        "unit": ["tokens", "tokens"],
    }
    assert spending.per_kept(costs(), 3, Params()).empty


def test_nothing_kept_has_no_price() -> None:
    assert spending.per_kept(costs(("mask", "own", 40, 20)), 0, Params()).empty


def test_stages_account_for_every_token(small_params: Params) -> None:
    data.build(small_params.train_dataset, small_params)
    stages = [counterfactual.build(small_params), rationale.build(small_params)]
    steps = [["mask", "fill", "vote", "round trip"], ["both views"]]
    for stage, expected in zip(stages, steps, strict=True):
        table = pd.read_csv(stage.path / spending.FILE)
        assert list(table["step"]) == expected
        teacher = stage.manifest()["notes"]["teacher"]
        for kind in ("prompt_tokens", "completion_tokens"):
            assert table[kind].sum() == teacher[kind] > 0
        assert set(table["model"]) == {teacher["model"]}


def test_a_replayed_stage_costs_the_same(small_params: Params, tmp_path: Path) -> None:
    tables = []
    for root in ("first", "again"):  # the second run finds every answer in the cache
        params = small_params.model_copy(
            update={"run_root": str(tmp_path / root), "teacher_cache": str(tmp_path / "cache.sqlite")}
        )
        data.build(params.train_dataset, params)
        tables.append((counterfactual.build(params).path / spending.FILE).read_bytes())
    assert tables[0] == tables[1]
