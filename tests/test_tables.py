import pandas as pd
import pytest

from cfdistill.errors import DataError
from cfdistill.evaluate import metrics as measures
from cfdistill.methods import METHODS
from cfdistill.show import tables


def metric(method, split, accuracy, dataset="weasel-commonsense", scoring=""):
    low, high = measures.stats.proportion_interval(round(100 * accuracy), 100)
    keys = ["weasel-commonsense", method, "smollm2-135m", 0, dataset, split, ""]
    keys.append(scoring or METHODS[method].scoring)
    values = [100, accuracy, low, high, 0.25, 0.1, 0.0, 0.2]
    return dict(zip(measures.METRIC_COLUMNS, [*keys, *values], strict=True))


def comparison(other, split, delta, p, dataset="weasel-commonsense"):
    keys = ["weasel-commonsense", "smollm2-135m", dataset, split, "", "cf-distill", other]
    values = [100, delta, delta - 0.1, delta + 0.1, p, p, 1]
    return dict(zip([*measures.COMPARISON_KEYS, *measures.COMPARED], [*keys, *values], strict=True))


@pytest.fixture
def metrics():
    theirs = [metric("ft-cot", *cell) for cell in (("id", 0.9), ("shift", 0.3), ("shift_reachable", 0.31))]
    theirs.append(metric("ft-cot", "new", 0.25, "weasel-science"))
    ours = [metric("cf-distill", "id", 0.90), metric("cf-distill", "shift", 0.61)]
    return pd.DataFrame([*theirs, *ours, metric("cf-distill", "shift", 0.11, scoring="elimination")])


@pytest.fixture
def comparisons():
    return pd.DataFrame([comparison("ft-cot", "id", 0.0, 1.0), comparison("ft-cot", "shift", 0.31, 0.00001)])


def test_table1_by_hand(metrics, comparisons):
    table = tables.table1(metrics, comparisons, top="<{}>")
    assert list(table.columns) == ["method", "id", "shift", "OOD science"]
    assert table.to_numpy().tolist() == [
        ["ft-cot", "<90.0 [82.6, 94.5]>", "30.0 [21.9, 39.6]*", "<25.0 [17.5, 34.3]>"],
        ["cf-distill", "<90.0 [82.6, 94.5]>", "<61.0 [51.2, 70.0]>", "–"],
    ]
    with pytest.raises(DataError, match="no metrics"):
        tables.table1(metrics[:0], comparisons)


def test_table1_tells_training_sets_apart_and_stars_what_differs(metrics, comparisons):
    assert "these trainings" in tables.caption(metrics, comparisons)  # of one seed
    swapped = {"weasel-commonsense": "weasel-science", "weasel-science": "weasel-commonsense"}
    science = metrics.assign(train_dataset="weasel-science", test_dataset=metrics.test_dataset.map(swapped))
    table = tables.table1(pd.concat([metrics, science]), comparisons)
    assert list(table) == ["train_dataset", "method", "id", "shift", "OOD science", "OOD commonsense"]
    assert list(table["OOD commonsense"]) == ["–", "–", "25.0 [17.5, 34.3]", "–"]
    assert table["shift"].str.endswith("*").sum() == 1  # the comparison was on the other training set
    several = comparisons.assign(seeds=3, p_holm=[0.001, 0.9])
    marked = tables.table1(metrics, several).set_index("method").loc["ft-cot"]
    assert (marked["id"][-1], marked["shift"][-1]) == ("]", "*")  # [-10, +10] and [+21, +41] points
    assert f"differs from cf-distill ({measures.star_note(several)})." in tables.caption(metrics, several)


def test_seeds_are_averaged_and_counted(metrics, comparisons):
    both = pd.concat([metrics, metrics.assign(seed=1, accuracy=metrics.accuracy - 0.1)])
    assert tables.table1(both, comparisons)["shift"][1].startswith("56.0 [")
    told = "n = 100 (id), 100 (shift), 100 (OOD science) questions, mean of seeds 0, 1."
    assert told in tables.caption(both, comparisons)
    science = metrics[:3].assign(train_dataset="weasel-science", test_dataset="weasel-science", n=50)
    uneven = pd.concat([both, science])
    table, words = tables.table1(uneven, comparisons), tables.caption(uneven, comparisons)
    assert list(table["train_dataset"]) == ["weasel-commonsense"] * 2 + ["weasel-science"]
    assert list(table["seeds"]) == [2, 2, 1]
    assert "n = 50–100 (id), 50–100 (shift), 100 (OOD science) questions" in words
    assert "mean of seeds 0, 1, as many of them as the column seeds says." in words


def test_written_tables(metrics, comparisons, tmp_path):
    named = metrics.assign(student="my_student")
    tables.write_tables(tmp_path / "figures", named, comparisons.assign(student="my_student"))
    markdown, latex = ((tmp_path / f"figures/table1.{end}").read_text() for end in ("md", "tex"))
    shown = (r"| 30.0 [21.9, 39.6]\*", r"| **61.0 [51.2, 70.0]** ", r" \*: differs from cf-distill")
    for part in ("| method ", *shown):
        assert part in markdown
    ours = r"cf-distill & \textbf{90.0 [82.6, 94.5]} & \textbf{61.0 [51.2, 70.0]} & -- \\"
    for part in (ours, r"Accuracy in \% with", r"student my\_student", "30.0 [21.9, 39.6]$^{*}$"):
        assert part in latex
    assert latex.count("{") == latex.count("}")


def test_differences_hold_for_either_outcome(metrics, comparisons):
    worse = pd.DataFrame([comparison("ft", "new", -0.055, 0.0432, "weasel-science")])
    assert tables.differences(pd.concat([comparisons, worse])).splitlines() == [
        "- cf-distill minus ft-cot (weasel-commonsense, smollm2-135m): id +0.0 [-10.0, +10.0], p = 1.000; "
        "shift +31.0 [+21.0, +41.0], p < 0.001.",
        "- cf-distill minus ft (weasel-commonsense, smollm2-135m): OOD science -5.5 [-15.5, +4.5], "
        "p = 0.043.",
    ]
    swept = comparisons[:1].assign(spurious_rate=0.5)
    assert "(weasel-commonsense, smollm2-135m, spurious_rate 0.5): id" in tables.differences(swept)
