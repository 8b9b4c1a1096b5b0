import re

import pandas as pd
import pytest
from statsmodels.stats.proportion import proportion_confint

from cfdistill.errors import DataError
from cfdistill.evaluate import metrics as measures
from cfdistill.methods import METHODS
from cfdistill.show import tables


def metric(method, split, accuracy, dataset="weasel-commonsense", scoring=""):
    low, high = proportion_confint(round(100 * accuracy), 100, method="wilson")
    keys = ["weasel-commonsense", method, "smollm2-135m", 0, dataset, split, ""]
    keys.append(scoring or METHODS[method].scoring)
    known = zip(measures.METRIC_COLUMNS, [*keys, 100, accuracy, low, high, 0.25], strict=False)
    return dict.fromkeys(measures.METRIC_COLUMNS, 0.0) | dict(known)  # lured: a quarter


def comparison(other, split, delta, p, dataset="weasel-commonsense"):
    keys = ["weasel-commonsense", "smollm2-135m", dataset, split, "", "cf-distill", other]
    values = [100, delta, delta - 0.1, delta + 0.1, p, p, 1]
    return dict(zip([*measures.COMPARISON_KEYS, *measures.COMPARED], [*keys, *values], strict=True))


ROWS = [metric("ft-cot", *cell) for cell in (("id", 0.9), ("shift", 0.3), ("shift_reachable", 0.31))]
ROWS += [metric("ft-cot", "new", 0.25, "weasel-science"), metric("cf-distill", "id", 0.90)]
ROWS += [metric("cf-distill", "shift", 0.61), metric("cf-distill", "shift", 0.11, scoring="elimination")]
PAIRS = [comparison("ft-cot", "id", 0.0, 1.0), comparison("ft-cot", "shift", 0.31, 0.00001)]
METRICS, COMPARISONS = pd.DataFrame(ROWS), pd.DataFrame(PAIRS)


def test_table1_by_hand():
    table = tables.table1(METRICS, COMPARISONS, top="<{}>")
    assert list(table.columns) == ["method", "id", "shift", "OOD science"]
    assert table.to_numpy().tolist() == [
        ["ft-cot", "<90.0> [82.6, 94.5]", "30.0* [21.9, 39.6]", "<25.0> [17.5, 34.3]"],
        ["cf-distill", "<90.0> [82.6, 94.5]", "<61.0> [51.2, 70.0]", "–"],
    ]
    with pytest.raises(DataError, match="no metrics"):
        tables.table1(METRICS[:0], COMPARISONS)


def test_table1_tells_training_sets_apart_and_stars_what_differs():
    assert "these trainings" in tables.caption(METRICS, COMPARISONS)  # of one seed
    swapped = {"weasel-commonsense": "weasel-science", "weasel-science": "weasel-commonsense"}
    science = METRICS.assign(train_dataset="weasel-science", test_dataset=METRICS.test_dataset.map(swapped))
    table = tables.table1(pd.concat([METRICS, science]), COMPARISONS)
    assert list(table) == ["train_dataset", "method", "id", "shift", "OOD science", "OOD commonsense"]
    assert list(table["OOD commonsense"]) == ["–", "–", "25.0 [17.5, 34.3]", "–"]
    starred = table["shift"].str.contains("*", regex=False)
    assert starred.sum() == 1  # the comparison was on the other training set
    several = COMPARISONS.assign(seeds=3, p_holm=[0.001, 0.9])
    marked = tables.table1(METRICS, several).set_index("method").loc["ft-cot"]
    assert ("*" in marked["id"], "*" in marked["shift"]) == (False, True)  # [-10, +10] and [+21, +41] points
    assert f"differs from cf-distill ({measures.star_note(several)})." in tables.caption(METRICS, several)


def test_seeds_are_averaged_and_counted():
    both = pd.concat([METRICS, METRICS.assign(seed=1, accuracy=METRICS.accuracy - 0.1)])
    assert tables.table1(both, COMPARISONS)["shift"][1].startswith("56.0 [")
    told = "n = 100 (id), 100 (shift), 100 (OOD science) questions, mean of seeds 0, 1."
    assert told in tables.caption(both, COMPARISONS)
    science = METRICS[:3].assign(train_dataset="weasel-science", test_dataset="weasel-science", n=50)
    uneven = pd.concat([both, science])
    table, words = tables.table1(uneven, COMPARISONS), tables.caption(uneven, COMPARISONS)
    assert list(table["train_dataset"]) == ["weasel-commonsense"] * 2 + ["weasel-science"]
    assert list(table["seeds"]) == [2, 2, 1]
    assert "n = 50–100 (id), 50–100 (shift), 100 (OOD science) questions" in words
    assert "mean of seeds 0, 1, as many of them as the column seeds says." in words


def test_written_tables(tmp_path):
    named = METRICS.assign(student="my_student")
    tables.write_tables(tmp_path, named, COMPARISONS.assign(student="my_student"), "mine", {"ft-cot": "A_B"})
    markdown, latex = ((tmp_path / f"table1.{end}").read_text() for end in ("md", "tex"))
    shown = [r"| 30.0\* [21.9, 39.6] ", r"| **61.0** [51.2, 70.0] ", r" \*: differs from cf-distill"]
    assert [part for part in ("| method ", *shown) if part not in markdown] == []
    parts = [r"\shortstack{\textbf{61.0} \\ {\scriptsize [51.2, 70.0]}} & -- \\", r"Accuracy in \% with"]
    parts += [r"student my\_student", r"$p<0.05$", r"\label{tab:mine}", r"A\_B & "]
    assert [part for part in parts if part not in latex] == []
    # Without a TeX engine: commands are known, groups closed, and rows of equal length.
    body = "".join(line for line in latex.splitlines(keepends=True) if not line.startswith("%"))
    assert latex.startswith("% needs \\usepackage{booktabs}")
    core = "begin|end|caption|label|centering|small|setlength|tabcolsep|shortstack|scriptsize|textbf"
    others = re.sub(rf"\\(?:{core}|toprule|midrule|bottomrule)\b", "", body)
    assert others.count("\\") == len(re.findall(r"\\[^a-zA-Z]", body)) + body.count("\\\\")
    opened = []
    for kind, name in re.findall(r"\\(begin|end)\{([a-z*]+)\}", body):
        assert kind == "begin" or opened.pop() == name
        opened += [name] * (kind == "begin")
    assert opened == []
    plain = re.sub(r"\\[{}%&_#$]", "", body)
    assert plain.count("{") == plain.count("}")
    assert plain.count("$") % 2 == 0
    assert body.isascii()
    columns = len(re.search(r"\\begin\{tabular\}\{([lr]+)\}", body)[1])
    rows = re.split(r" \\\\\n", body.split("\\toprule\n")[1].split("\\bottomrule")[0])
    assert {row.replace(r"\&", "").count("&") + 1 for row in rows[:-1]} == {columns}


def test_differences_hold_for_either_outcome():
    worse = pd.DataFrame([comparison("ft", "new", -0.055, 0.0432, "weasel-science")])
    _, _, *lines = tables.differences(pd.concat([COMPARISONS, worse], ignore_index=True)).splitlines()
    assert [[cell.strip() for cell in line.strip("|").split("|")] for line in lines] == [
        ["cf-distill − ft-cot", "id", "100", "+0.0 [-10.0, +10.0]", "1.000"],
        ["cf-distill − ft-cot", "shift", "100", "+31.0 [+21.0, +41.0]", "< 0.001"],
        ["cf-distill − ft", "OOD science", "100", "-5.5 [-15.5, +4.5]", "0.043"],
    ]
    swept = pd.concat([COMPARISONS[:1].assign(spurious_rate=rate) for rate in (0.5, 0.9)], ignore_index=True)
    assert "| 0.9             | cf-distill − ft-cot | id " in tables.differences(swept)


def test_gain_is_bias_removed_plus_cue_read():
    rows = tables.reads_or_remembers(METRICS.assign(lure_rate=[0.1, 0.5, 0.5, 0.3, 0.1, 0.2, 0.2]))
    (row,) = rows.to_dict("records")  # shift: 0.5 · 0.6 against 0.8 · 0.7625
    assert row == {"method": "ft-cot", "test": "shift", "n": 100, "gain": 31.0} | {
        "bias removed": pytest.approx(100 * 0.3 * (0.6 + 0.7625) / 2, abs=0.05),
        "cue read": pytest.approx(100 * (0.7625 - 0.6) * (0.5 + 0.8) / 2, abs=0.05),
    }
    assert tables.reads_or_remembers(METRICS.assign(n=19)).empty
