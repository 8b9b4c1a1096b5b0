"""The figures of grids, from tables as `grid.write_tables` writes them."""

import pandas as pd
import pytest
from test_figures import no_warnings, study, texts

from cfdistill import figures, grid_figures, metrics
from cfdistill.errors import DataError

__all__ = ["no_warnings"]  # applies to every test here, too


def sweep(name, values, seeds=(0, 1)):
    """Return the metrics of a grid whose cells differ in one parameter and the seed."""
    parts = [study(seed=10 * i + s).assign(seed=s, **{name: v}) for i, v in enumerate(values) for s in seeds]
    table = pd.concat(parts, ignore_index=True)
    return table[[name, *metrics.METRIC_COLUMNS]]


def test_over_seeds_keeps_the_values_of_a_sweep_apart():
    table = sweep("spurious_rate", (0.5, 0.9))
    found = metrics.over_seeds(table)
    assert len(found) == len(table) / 2
    assert set(found.seeds) == {2}
    one = table[(table.spurious_rate == 0.9) & (table.method == "ft") & (table.test_split == "shift")]
    row = found[(found.spurious_rate == 0.9) & (found.method == "ft") & (found.test_split == "shift")]
    assert row.accuracy.item() == pytest.approx(one.accuracy.mean())


def test_spurious_sweep_is_a_line_per_method_through_its_mean_accuracies():
    table = sweep("spurious_rate", (0.9, 0.2, 0.5))
    fig = grid_figures.fig_spurious_sweep(table)
    assert [ax.get_title().splitlines()[0] for ax in fig.axes] == ["id", "shift", "new"]
    means = metrics.over_seeds(table).query("method == 'ft-cot' and test_split == 'shift'")
    expected = list(100 * means.sort_values("spurious_rate").accuracy)
    lines = [line for line in fig.axes[1].lines if len(line.get_xdata()) == 3 and line.get_linestyle() == "-"]
    assert len(lines) == 3  # one per method
    color = figures.METHOD_STYLES["ft-cot"][0]
    assert [list(line.get_ydata()) for line in lines if line.get_color() == color] == [
        pytest.approx(expected)
    ]
    assert len(fig.axes[1].containers) == 3  # their intervals
    assert all(word in texts(fig) for word in ("ft-cot", "cf-distill", "stereotype answers"))
    assert list(fig.axes[0].get_xticks()) == [0.2, 0.5, 0.9]


def test_data_size_shows_the_splits_it_has():
    fig = grid_figures.fig_data_size(sweep("train_questions", (30, 60, 120)))
    assert [ax.get_title().splitlines()[0] for ax in fig.axes] == ["new"]  # simulated answers know no parts
    with pytest.raises(DataError, match="nothing to draw"):
        grid_figures.fig_data_size(sweep("train_questions", (30,))[:0])


def test_ablation_has_a_bar_per_method_and_split():
    renamed = {"ft": "multi-view", "ft-cot": "cf-only", "cf-distill": "cf-random-mask"}
    more = study(seed=5)
    more = more[more.scoring == "direct"].assign(method=lambda rows: rows.method.map(renamed))
    table = pd.concat([study(), more])
    fig = grid_figures.fig_ablation(table)
    (ax,) = fig.axes
    assert len(ax.patches) == 2 * 5  # id and new; shift is shown by its parts, which are not simulated
    assert all(word in texts(fig) for word in ("cf-only", "cf-random-mask", "unseen scenes"))
    shown = metrics.over_seeds(table).query("method == 'cf-only' and test_split == 'id'").accuracy.item()
    assert 100 * shown in [pytest.approx(bar.get_height()) for bar in ax.patches]
