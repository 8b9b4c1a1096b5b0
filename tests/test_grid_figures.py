"""The figures of grids, from tables as `grid.write_tables` writes them."""

import pandas as pd
import pytest
from test_figures import DATASETS, no_warnings, study, texts

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
    fig = grid_figures.fig_spurious_sweep(table, chance=0.25)
    assert [ax.get_title().splitlines()[::2] for ax in fig.axes] == [
        [s, "n = 20, 2 seeds"] for s in ("id", "shift", "new")
    ]
    assert "guessing" in texts(fig)
    means = metrics.over_seeds(table).query("method == 'ft-cot' and test_split == 'shift'")
    expected = list(100 * means.sort_values("spurious_rate").accuracy)
    lines = [line for line in fig.axes[1].lines if len(line.get_xdata()) == 3 and line.get_linestyle() == "-"]
    assert {t.get_text() for t in fig.axes[2].texts} == {"ft", "ft-cot", "cf-distill"}  # at the lines' ends
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


def comparison(method, split, delta, p):
    keys = ["weasel-commonsense", "smollm2-135m", "weasel-commonsense", split, "cf-distill", method]
    values = [20, delta, delta - 0.1, delta + 0.2, p, p, 1, 0.0, 3000]
    return dict(zip(metrics.COMPARISON_COLUMNS, [*keys, *values], strict=True))


def test_ablation_shows_every_method_and_which_differ():
    renamed = {"ft": "multi-view", "ft-cot": "cf-only", "cf-distill": "cf-random-mask"}
    more = study(seed=5)
    more = more[more.scoring == "direct"].assign(method=lambda rows: rows.method.map(renamed))
    compared = pd.DataFrame([comparison("ft", "id", 0.3, 0.01), comparison("ft", "new", 0.1, 0.6)])
    table = grid_figures.ablation_table(pd.concat([study(), more]), compared)
    row = table[(table.method == "ft") & (table.test_split == "id")].iloc[0]
    assert (row.delta, row.delta_low, row.delta_high) == pytest.approx((-0.3, -0.5, -0.2))
    assert table.p_holm.notna().sum() == 2
    fig = grid_figures.fig_ablation(table, chance=0.2)
    first, second = fig.axes  # id and new; shift is shown by its parts, which are not simulated
    names = ["ft", "ft-cot", "cf-only", "cf-random-mask", "cf-distill"]
    assert [t.get_text() for t in first.get_yticklabels()] == names
    assert [len(ax.texts) for ax in fig.axes] == [1, 0]  # stars
    shown = [line.get_xdata()[0] for line in second.lines if len(line.get_xdata()) == 1]
    expected = [100 * table[(table.method == m) & (table.test_split == "new")].accuracy.item() for m in names]
    assert sorted(shown) == pytest.approx(sorted(expected))
    assert all(word in texts(fig) for word in ("unseen scenes", "n = 20", "differs from it"))


def test_joint_training_stands_beside_training_alone():
    alone = pd.concat([study(name) for name in DATASETS])
    alone = alone[alone.method != "ft"]
    together = pd.concat([study(name, seed=1) for name in DATASETS]).assign(train_dataset="weasel-all")
    together = together[(together.method != "ft") & ~together.duplicated(metrics.METRIC_KEYS)]
    fig = grid_figures.fig_joint(pd.concat([alone, together]), {"weasel-science": 0.25})
    new = fig.axes[2]
    assert [t.get_text() for t in new.get_xticklabels()] == ["commonsense", "qualitative", "science"]
    drawn = {c.get_label(): c[0].get_ydata().mean() for c in new.containers}
    rows = together[(together.method == "ft-cot") & (together.test_split == "new")]
    assert drawn["ft-cot, on all four together"] == pytest.approx(100 * rows.accuracy.mean())
    assert len(drawn) == 4
    assert "guessing" in texts(fig)
