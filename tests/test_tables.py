"""Table 1 and the README's numbers from a few metrics written by hand."""

import pandas as pd
import pytest

from cfdistill import metrics as measures
from cfdistill import tables
from cfdistill.errors import DataError

MANIFEST = {"machine": {"processor": "x86_64", "cores": 2}, "seconds": 690.0}


def metric(method, split, accuracy, dataset="weasel-commonsense", lure=0.25, seed=0, **other):
    low, high = measures.stats.proportion_interval(round(100 * accuracy), 100)
    return {
        "train_dataset": "weasel-commonsense",
        "method": method,
        "student": "smollm2-135m",
        "seed": seed,
        "test_dataset": dataset,
        "test_split": split,
        "scoring": measures.main_scoring(method),
        "n": 100,
        "accuracy": accuracy,
        "ci_low": low,
        "ci_high": high,
        "lure_rate": lure,
        "pair_consistency": 0.1,
        "unparsed_rate": 0.0,
    } | other


def comparison(other, split, delta, p, dataset="weasel-commonsense"):
    keys = ["weasel-commonsense", "smollm2-135m", dataset, split, "cf-distill", other]
    values = [100, delta, delta - 0.1, delta + 0.1, p, p, 1, 0.0, 3000]
    return dict(zip(measures.COMPARISON_COLUMNS, [*keys, *values], strict=True))


@pytest.fixture
def metrics():
    return pd.DataFrame(
        [
            metric("ft-cot", "id", 0.90),
            metric("ft-cot", "shift", 0.30),
            metric("ft-cot", "shift_reachable", 0.31),
            metric("ft-cot", "new", 0.25, dataset="weasel-science"),
            metric("cf-distill", "id", 0.90),
            metric("cf-distill", "shift", 0.61, lure=0.125),
            metric("cf-distill", "shift", 0.11, scoring="elimination"),
        ]
    )


@pytest.fixture
def comparisons():
    return pd.DataFrame([comparison("ft-cot", "id", 0.0, 1.0), comparison("ft-cot", "shift", 0.31, 0.00001)])


def test_table1_by_hand(metrics, comparisons):
    table = tables.table1(metrics, comparisons, bold=lambda text: f"<{text}>")
    assert list(table.columns) == ["method", "id", "shift", "OOD science"]
    assert table.to_numpy().tolist() == [
        ["ft-cot", "<90.0 [82.6, 94.5]>", "30.0 [21.9, 39.6]*", "<25.0 [17.5, 34.3]>"],
        ["cf-distill", "<90.0 [82.6, 94.5]>", "<61.0 [51.2, 70.0]>", "–"],
    ]


def test_table1_tells_training_sets_apart(metrics, comparisons):
    swapped = {"weasel-commonsense": "weasel-science", "weasel-science": "weasel-commonsense"}
    science = metrics.assign(train_dataset="weasel-science", test_dataset=metrics.test_dataset.map(swapped))
    table = tables.table1(pd.concat([metrics, science]), comparisons)
    names = ["train_dataset", "method", "id", "shift", "OOD science", "OOD commonsense"]
    assert list(table.columns) == names
    assert list(table["OOD commonsense"]) == ["–", "–", "25.0 [17.5, 34.3]", "–"]
    assert table["shift"].str.endswith("*").sum() == 1  # the comparison was on the other training set


def test_table1_averages_seeds(metrics, comparisons):
    more = metrics.assign(seed=1, accuracy=metrics.accuracy - 0.1)
    both = pd.concat([metrics, more])
    assert tables.table1(both, comparisons)["shift"][1].startswith("56.0 [")
    assert "mean of seeds 0, 1." in tables.caption(both)


def test_training_sets_with_more_or_fewer_seeds(metrics, comparisons):
    science = metrics.assign(train_dataset="weasel-science", test_dataset="weasel-science")
    table = tables.table1(pd.concat([metrics, metrics.assign(seed=1), science[:3]]), comparisons)
    assert table[["train_dataset", "method", "seeds"]].to_numpy().tolist() == [
        ["weasel-commonsense", "ft-cot", 2],
        ["weasel-commonsense", "cf-distill", 2],
        ["weasel-science", "ft-cot", 1],
    ]
    caption = tables.caption(pd.concat([metrics, metrics.assign(seed=1), science.assign(n=50)]))
    assert "50–100 (id)" in caption
    assert "mean of seeds 0, 1, as many of them as the column seeds says." in caption


def test_reported_numbers_keep_a_column_of_their_own(metrics, comparisons):
    more = pd.concat([metrics, metrics[:1].assign(method="ft-cot-long")])
    table = tables.table1(more, comparisons, reported=True).set_index("method")
    assert list(table.columns[-2:]) == ["seeds", tables.REPORTED_COLUMN]
    assert list(table[tables.REPORTED_COLUMN]) == ["36.70 (gpt2-medium), ft or ft-cot", "40.42 (gpt2)", "–"]
    assert tables.REPORTED_COLUMN not in tables.table1(more, comparisons)


def test_matrix_holds_both_methods_and_their_difference(metrics, comparisons):
    new = [metric(m, "new", share, d) for d in ("weasel-commonsense", "weasel-science")
           for m, share in (("ft-cot", 0.25), ("cf-distill", 0.75))]  # fmt: skip
    tested = [
        comparison("ft-cot", "new", 0.5, 0.001),
        comparison("ft-cot", "new", 0.5, 0.2, "weasel-science"),
    ]
    cells = tables.matrix(pd.DataFrame(new), pd.DataFrame(tested))
    assert cells[["panel", "test_dataset", "value", "differs"]].to_numpy().tolist() == [
        ["ft-cot", "weasel-commonsense", 25.0, False],
        ["ft-cot", "weasel-science", 25.0, False],
        ["cf-distill", "weasel-commonsense", 75.0, False],
        ["cf-distill", "weasel-science", 75.0, False],
        ["difference", "weasel-commonsense", 50.0, True],
        ["difference", "weasel-science", 50.0, False],
    ]
    assert tables.matrix(metrics[metrics.method == "ft-cot"], comparisons).empty


def test_caption_names_sizes_that_differ(metrics):
    assert "n = 100 questions each, seed 0." in tables.caption(metrics)
    other = metrics.assign(n=[100, 80, 40, 60, 100, 80, 80])
    assert "n = 100 (id), 80 (shift), 60 (OOD science) questions" in tables.caption(other)


def test_empty_metrics_are_refused(metrics, comparisons):
    with pytest.raises(DataError, match="no metrics"):
        tables.table1(metrics[:0], comparisons)


def test_markdown_and_latex(metrics, comparisons):
    markdown = tables.to_markdown(metrics, comparisons).splitlines()
    assert markdown[0] == "| method | id | shift | OOD science |"
    assert markdown[1] == "| --- | --- | --- | --- |"
    assert r"30.0 [21.9, 39.6]\*" in markdown[2]
    assert "**61.0 [51.2, 70.0]**" in markdown[3]
    latex = tables.to_latex(metrics, comparisons)
    assert (
        r"cf-distill & \textbf{90.0 [82.6, 94.5]} & \textbf{61.0 [51.2, 70.0]} & -- & 1 & 40.42 (gpt2) \\"
        in latex
    )
    assert r"Accuracy in \%" in latex
    assert latex.count("{") == latex.count("}")


def test_written_tables(metrics, comparisons, tmp_path):
    tables.write_tables(tmp_path / "figures", metrics, comparisons)
    assert sorted(p.name for p in (tmp_path / "figures").iterdir()) == [
        "table1.csv",
        "table1.md",
        "table1.tex",
    ]
    assert "40.42" in (tmp_path / "figures/table1.md").read_text()
    assert list(pd.read_csv(tmp_path / "figures/table1.csv").method) == ["ft-cot", "cf-distill"]


def test_differences_hold_for_either_outcome(comparisons):
    worse = pd.concat(
        [comparisons, pd.DataFrame([comparison("ft", "new", -0.055, 0.0432, "weasel-science")])]
    )
    assert tables.differences(worse).splitlines() == [
        "- cf-distill minus ft-cot (weasel-commonsense, smollm2-135m): id +0.0 [-10.0, +10.0], p = 1.000; "
        "shift +31.0 [+21.0, +41.0], p < 0.001.",
        "- cf-distill minus ft (weasel-commonsense, smollm2-135m): OOD science -5.5 [-15.5, +4.5], "
        "p = 0.043.",
    ]


def test_readme_block_holds_what_was_measured(metrics, comparisons):
    block = tables.readme_block(metrics, comparisons, MANIFEST)
    assert "| cf-distill | **90.0" in block
    assert "over all 2 comparisons" in block
    assert "ft-cot 25.0 %, cf-distill 12.5 %." in block
    assert "Made on 2 cores (x86_64) in 11.5 minutes in total." in block
    assert "not comparable with ours): cf-distill is +11.43 points above ft-cot" in block
    assert "11.5 [" not in block  # the elimination score is no cell of the table


def test_seeds_block_has_table_differences_and_lures(metrics, comparisons):
    block = tables.seeds_block(metrics, comparisons)
    assert block.startswith("| method |")
    assert "over all 2 comparisons" in block
    assert "- cf-distill minus ft-cot (weasel-commonsense, smollm2-135m): " in block
    assert "ft-cot 25.0 %, cf-distill 12.5 %." in block


def test_sweep_block_has_a_row_for_every_training(metrics):
    sweep = pd.concat([metrics.assign(spurious_rate=rate) for rate in (0.5, 0.9)])
    lines = tables.sweep_block(sweep, "weasel-commonsense").splitlines()
    methods = metrics["method"].nunique()
    assert len(lines) == 2 + 2 * methods
    assert lines[0].split(" | ")[1:4] == ["method", "seeds", "id"]
    assert sum("| spurious_rate 0.5 | " in line for line in lines) == methods
    joint = tables.sweep_block(metrics.assign(train_dataset="weasel-all"), "weasel-commonsense").splitlines()
    ours = next(line for line in joint if line.startswith("| weasel-all | cf-distill |"))
    assert "90.0 [" in ours
    assert ours.endswith("– |")  # a split that was not tested


def test_settings_block_has_a_line_for_every_method_and_setting():
    row = ["ρ 0.9", "ρ 0.5", "ft", "weasel-science", "new", 50, -0.1, -0.2, 0.05, 0.2, 0.4, 1]
    settings = pd.DataFrame([row, [*row[:4], "id", *row[5:]]], columns=measures.SETTING_COLUMNS)
    assert tables.settings_block(settings).splitlines()[-1] == (
        "- ft, ρ 0.9 minus ρ 0.5: science new -10.0 [-20.0, +5.0], p = 0.400; "
        "science id -10.0 [-20.0, +5.0], p = 0.400."
    )


def test_readme_is_rewritten_between_its_markers(tmp_path):
    readme = tmp_path / "README.md"
    readme.write_text(
        "# Title\n<!-- a:begin -->\nold\n<!-- a:end -->\nrest\n<!-- b:begin -->\n<!-- b:end -->"
    )
    for _ in range(2):
        tables.write_readme(readme, {"a": "new", "b": "newer"})
        text = readme.read_text()
        assert text == (
            "# Title\n<!-- a:begin -->\nnew\n<!-- a:end -->\nrest\n<!-- b:begin -->\nnewer\n<!-- b:end -->"
        )
    assert tables.read_block(text, "b")[1] == "newer\n"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "<!-- a:begin -->\n",
        "<!-- a:end --> <!-- a:begin -->\n",
        "<!-- a:begin -->\n" * 2 + "<!-- a:end -->",
    ],
)
def test_readme_without_markers_is_refused(tmp_path, text):
    readme = tmp_path / "README.md"
    readme.write_text(text)
    with pytest.raises(DataError, match="each once"):
        tables.write_readme(readme, {"a": "new"})
    assert readme.read_text() == text


def test_text_for_the_terminal(metrics, comparisons):
    text = tables.to_text(metrics, comparisons)
    assert "61.0 [51.2, 70.0]" in text
    assert "cf-distill minus ft-cot" in text
