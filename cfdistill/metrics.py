"""From predictions to `metrics.csv` and `comparisons.csv`, for one study or many gathered.

Everything is computed from one tidy table of predictions (`PREDICTION_COLUMNS`), which is also
committed as `predictions.csv`, so that every number can be recomputed without a student.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations
from pathlib import Path
from typing import TYPE_CHECKING, Any

from cfdistill import data, runs, stats
from cfdistill.errors import DataError, StageError
from cfdistill.methods import METHODS
from cfdistill.params import Params
from cfdistill.schema import Prediction

if TYPE_CHECKING:
    import pandas as pd

RUN = ["train_dataset", "student", "seed"]
PREDICTION_COLUMNS = [
    *RUN, "method", "dataset", "split", "subset", "scene", "scoring", "id", "gold", "stereotype", "predicted",
    "parsed",
]  # fmt: skip
METRIC_KEYS = ["train_dataset", "method", "student", "seed", "test_dataset", "test_split", "scoring"]
METRIC_VALUES = ["accuracy", "ci_low", "ci_high", "lure_rate", "pair_consistency", "unparsed_rate"]
METRIC_COLUMNS = [*METRIC_KEYS, "n", *METRIC_VALUES]
AGREEMENT = "seed_agreement"  # one more column where there are several seeds
COMPARISON_KEYS = ["train_dataset", "student", "test_dataset", "test_split", "method_a", "method_b"]
COMPARISON_VALUES = ["delta", "ci_low", "ci_high", "p_mcnemar", "p_holm"]
COMPARISON_EXTRAS = ["seeds", "cohens_h", "n_for_3_points"]
COMPARISON_COLUMNS = [*COMPARISON_KEYS, "n", *COMPARISON_VALUES, *COMPARISON_EXTRAS]
COMPARISON_SCORINGS = ["scoring_a", "scoring_b"]  # where scorings are compared, too
SETTING_KEYS = ["setting_a", "setting_b", "method", "test_dataset", "test_split"]
SETTING_COLUMNS = [*SETTING_KEYS, "n", *COMPARISON_VALUES, "seeds"]
OURS = "cf-distill"
METHOD_ORDER = tuple(METHODS)
OWN_SPLITS = ("id", "shift", "shift_reachable", "shift_heldout")  # only tested on the training data set
SUBSETS = ("reachable", "heldout")  # parts of `shift` that are reported beside the whole
SETTINGS = "settings.csv"  # of a grid that varied more than methods
FILES = ("metrics.csv", "comparisons.csv", "predictions.csv")


def main_scoring(method: str) -> str:
    """Return the scoring a method is compared by: what it was trained to write first."""
    return "label" if method == "ft" else "direct"


def reference(methods: Iterable[str]) -> str:
    """Return the method that others are compared with: the last in `METHOD_ORDER`, cf-distill if there."""
    return max(methods, key=METHOD_ORDER.index)


def predictions_table(
    predictions: Sequence[Prediction], train_dataset: str, student: str, seed: int
) -> pd.DataFrame:
    """Return predictions as a table with `PREDICTION_COLUMNS`, without the generated texts.

    Raises:
        DataError: there are none, or one question was answered twice by the same method and scoring.
    """
    import pandas as pd

    if not predictions:
        raise DataError("there are no predictions to measure; run notebook 05_evaluation first")
    table = pd.DataFrame([p.to_json() for p in predictions]).rename(columns={"question_id": "id"})
    table = table.assign(train_dataset=train_dataset, student=student, seed=seed)
    table = table[PREDICTION_COLUMNS].astype({"stereotype": "Int64"})
    twice = table.duplicated([*RUN, "method", "dataset", "split", "scoring", "id"])
    if twice.any():
        raise DataError(f"question {table['id'][twice].iloc[0]} was answered twice by the same method")
    return table


def metrics_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return one row of metrics per method, test data set, split and scoring.

    `shift` is reported whole and by the parts `shift_reachable` and `shift_heldout`. `lure_rate` is the
    share of all items that were answered wrongly with the stereotype; `pair_consistency` the share of
    pairs of questions from one scene with different right answers that are both answered right (NaN
    where a data set has no such thing); `unparsed_rate` the share of answers whose text names no option,
    so that the likeliest one was taken. Intervals are Wilson's, of one seed. Where there are several, the
    column `seed_agreement` tells how much they agree on which items are hard (`stats.agreement`).

    Args:
        predictions: table with `PREDICTION_COLUMNS`.

    Returns:
        A table with the columns `METRIC_COLUMNS`; rates are shares, not percent.
    """
    import pandas as pd

    table = _with_subsets(predictions).rename(columns={"dataset": "test_dataset", "split": "test_split"})
    rows = [[*key, *_measure(cell)] for key, cell in table.groupby(METRIC_KEYS, sort=False)]
    measured = _ordered(pd.DataFrame(rows, columns=METRIC_COLUMNS), METRIC_KEYS)
    if table["seed"].nunique() == 1:
        return measured
    across = [name for name in METRIC_KEYS if name != "seed"]
    agreements = [[*key, _agreement(cells)] for key, cells in table.groupby(across, sort=False)]
    return measured.merge(pd.DataFrame(agreements, columns=[*across, AGREEMENT]), how="left")


def comparisons_table(predictions: pd.DataFrame, samples: int = 2000, seed: int = 0) -> pd.DataFrame:
    """Compare cf-distill, or the last method of a study without it, with every other one.

    They answered the same items. Each method counts with its main scoring, over the training seeds that
    both methods have. Where further scorings were asked for, they are compared with the main one of the
    same method, and two more columns, `scoring_a` and `scoring_b`, say what a row compares. Holm's
    correction is taken over all rows of the table. `n_for_3_points` is how many items would show a
    difference of three points of two trainings with 80 % power, if they differed on as many as here.

    Args:
        predictions: table with `PREDICTION_COLUMNS`, of one study or several.
        samples: bootstrap resamples.
        seed: of the bootstrap.

    Returns:
        A table with the columns `COMPARISON_COLUMNS`; `n` counts items, `delta` is a share.

    Raises:
        DataError: two methods share no items or seeds to be paired on, or lack their main scoring.
    """
    import pandas as pd

    rows = []
    cell = ["train_dataset", "student", "dataset", "split"]
    for keys, group in _with_subsets(predictions).groupby(cell, sort=False):
        answers = _right_by_seed(group)
        for a, b in _pairs(answers):
            ours, theirs = _paired(answers[a], answers[b], f"{a[0]} and {b[0]}", keys)
            found = stats.paired_difference(ours, theirs, samples, seed)
            p = stats.mcnemar_exact(ours, theirs)
            effect = stats.cohens_h(ours.mean(), theirs.mean())
            needed = stats.items_needed(float((ours != theirs).mean()))
            counted = [ours.shape[1], *found, p, p, len(ours), effect, needed]
            rows.append([*keys, a[0], b[0], *counted, a[1], b[1]])
    table = pd.DataFrame(rows, columns=[*COMPARISON_COLUMNS, *COMPARISON_SCORINGS])
    table["p_holm"] = stats.holm(table["p_mcnemar"].tolist())
    table = _ordered(table, COMPARISON_KEYS)
    return table if (table["method_a"] == table["method_b"]).any() else table[COMPARISON_COLUMNS]


def settings_table(
    predictions: Mapping[str, pd.DataFrame], samples: int = 2000, seed: int = 0
) -> pd.DataFrame:
    """Compare every method with itself: trained in each setting of a grid, and in the first one.

    Each counts with its main scoring, over the training seeds that both settings have, on the test splits on
    which they answered the same questions; other settings draw other test questions of the scenes they
    trained on. Holm's correction is taken over all rows.

    Args:
        predictions: tables with `PREDICTION_COLUMNS`, by the name of the setting.
        samples: bootstrap resamples.
        seed: of the bootstrap.

    Returns:
        A table with the columns `SETTING_COLUMNS`; `delta` is the accuracy in setting_a minus that in
        setting_b, as a share.
    """
    import pandas as pd

    (first, base), *others = (
        (name, _answers_by_cell(table[is_main(table)])) for name, table in predictions.items()
    )
    rows = []
    for name, answers in others:
        for key in answers.keys() & base.keys():
            a, b = answers[key], base[key]
            seeds = a.index.intersection(b.index)
            if set(a.columns) != set(b.columns) or not len(seeds):
                continue
            ours, theirs = a.loc[seeds].to_numpy(), b.loc[seeds, a.columns].to_numpy()
            found = stats.paired_difference(ours, theirs, samples, seed)
            p = stats.mcnemar_exact(ours, theirs)
            rows.append([name, first, *key, ours.shape[1], *found, p, p, len(seeds)])
    table = pd.DataFrame(rows, columns=SETTING_COLUMNS)
    table["p_holm"] = stats.holm(table["p_mcnemar"].tolist())
    return _ordered(table, SETTING_KEYS)


def over_seeds(metrics: pd.DataFrame) -> pd.DataFrame:
    """Average metrics over training seeds; adds the column `seeds` and drops `seed`.

    Further columns, such as a swept parameter, tell rows apart. With one seed the interval stays as it is;
    with several it is `stats.accuracy_over_seeds`, which is wider than it need be where the column
    `seed_agreement` is missing.
    """
    import pandas as pd

    metrics = metrics.assign(**{AGREEMENT: metrics.get(AGREEMENT, float("nan"))})
    keys = [name for name in metrics.columns if name not in ("seed", "n", AGREEMENT, *METRIC_VALUES)]
    rows = []
    for key, group in metrics.groupby(keys, sort=False):
        means = group[METRIC_VALUES].mean()
        n = int(group["n"].iloc[0])
        if len(group) > 1:
            means["ci_low"], means["ci_high"] = stats.accuracy_over_seeds(
                group["accuracy"], n, float(group[AGREEMENT].iloc[0])
            )
        rows.append([*key, n, *means, len(group)])
    return pd.DataFrame(rows, columns=[*keys, "n", *METRIC_VALUES, "seeds"])


def transfer(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return the seed-averaged rows that a train × test matrix is made of (the paper's Fig. 5).

    These are the main scorings on splits that share no scene with training: `new`, or a benchmark's
    own test split. On the diagonal train and test data set are the same.
    """
    table = over_seeds(metrics[is_main(metrics)])
    return table[~table["test_split"].isin(OWN_SPLITS)].reset_index(drop=True)


def is_main(metrics: pd.DataFrame) -> pd.Series[bool]:
    """Tell which rows hold the main scoring of their method."""
    return metrics["scoring"] == metrics["method"].map(main_scoring)


def build(params: Params) -> runs.Stage:
    """Reuse or make the stage `metrics`: `metrics.csv`, `comparisons.csv`, `predictions.csv`.

    Raises:
        StageError: an evaluation of one of the methods on one of the test data sets is missing.
    """
    made = runs.stage("metrics", params)
    if made.is_complete():
        return made
    inputs, predictions = [], []
    for method in params.methods:
        for dataset in params.test_datasets:
            done = runs.require(runs.stage("evaluation", params, method=method, dataset=dataset))
            inputs.append(done)
            for split in data.test_splits(dataset, params):
                for file in sorted(done.path.glob(f"predictions.{split}.*.jsonl")):
                    predictions += done.read(file.name, Prediction)
    table = predictions_table(predictions, params.train_dataset, params.student_name, params.seed)
    comparisons = comparisons_table(table, params.bootstrap_samples)
    with made.draft(params, inputs) as draft:
        write_results(draft.path, metrics_table(table), comparisons, table)
    return made


def each_row(table: pd.DataFrame) -> list[Any]:
    """Return the rows with their columns as attributes (typed Any: pandas cannot know them)."""
    return list(table.itertuples())


def write_results(
    folder: Path, metrics: pd.DataFrame, comparisons: pd.DataFrame, predictions: pd.DataFrame
) -> None:
    """Write the three tables into a folder, byte for byte the same for the same numbers."""
    for name, table in zip(FILES, (metrics, comparisons, predictions), strict=True):
        write_csv(table, folder / name)


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV with six significant digits."""
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def read_csv(folder: Path, name: str) -> pd.DataFrame:
    """Read one of `FILES` back with its types.

    Raises:
        StageError: the file is missing, or is no table.
    """
    import pandas as pd

    types: dict[str, Any] = dict.fromkeys([*METRIC_VALUES, AGREEMENT, *COMPARISON_VALUES], "float64")
    types |= {"stereotype": "Int64", "id": str, "scene": str, "subset": str}
    empty = dict.fromkeys(["stereotype", *METRIC_VALUES, AGREEMENT], "")  # elsewhere "" is a text
    path = folder / name
    try:
        table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=empty)
    except FileNotFoundError as error:
        raise StageError(f"{path} is missing; make it with notebook 05_evaluation") from error
    except ValueError as error:  # also pandas' own EmptyDataError and ParserError
        raise StageError(f"{path} is no valid table ({error}); make it again") from error
    return table


def gather(folders: Iterable[Path], samples: int = 2000) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Put the results of any number of studies together.

    Rows that are the same in two folders count once. The tables are computed anew from the predictions,
    because intervals run over all seeds, and Holm's family is everything gathered.

    Args:
        folders: each holds `predictions.csv`.
        samples: bootstrap resamples.

    Returns:
        The tables of metrics and of comparisons.

    Raises:
        StageError: a file is missing or damaged.
        DataError: no folder was given, or two folders give different results for the same cell.
    """
    import pandas as pd

    paths = [Path(f) for f in folders]
    if not paths:
        raise DataError("there are no results folders to gather")
    tables = [read_csv(folder, FILES[2]) for folder in paths]
    predictions = pd.concat(tables, ignore_index=True).drop_duplicates(ignore_index=True)
    keys = [*RUN, "method", "dataset", "split", "scoring", "id"]
    clash = predictions[predictions.duplicated(keys)]
    if len(clash):
        cell = ", ".join(f"{k} {clash[k].iloc[0]}" for k in keys)
        raise DataError(
            f"two of the folders {', '.join(map(str, paths))} hold different answers for {cell}; "
            "they were made with different parameters, so gather them apart"
        )
    return metrics_table(predictions), comparisons_table(predictions, samples)


def _with_subsets(predictions: pd.DataFrame) -> pd.DataFrame:
    import pandas as pd

    parts = predictions[(predictions["split"] == "shift") & predictions["subset"].isin(SUBSETS)]
    return pd.concat([predictions, parts.assign(split="shift_" + parts["subset"])], ignore_index=True)


def _measure(cell: pd.DataFrame) -> list[float]:
    right = _right(cell)
    n = len(cell)
    lured = (~right & (cell["predicted"] == cell["stereotype"]).fillna(False)).mean()
    return [
        n,
        right.mean(),
        *stats.proportion_interval(int(right.sum()), n),
        float("nan") if cell["stereotype"].isna().all() else lured,
        _pair_consistency(cell.assign(right=right)),
        (~cell["parsed"]).mean(),
    ]


def _agreement(cells: pd.DataFrame) -> float:
    """Return how much the seeds of one method agree; NaN where they did not answer the same questions."""
    answers = cells.assign(right=_right(cells).astype(float)).pivot(
        index="seed", columns="id", values="right"
    )
    return float("nan") if answers.isna().any(axis=None) else stats.agreement(answers)


def _right(predictions: pd.DataFrame) -> pd.Series[bool]:
    return predictions["predicted"] == predictions["gold"]


def _pair_consistency(cell: pd.DataFrame) -> float:
    # Options are shuffled per question, so equal gold indices do not mean equal answers; the testbed's
    # ids `<scene>.f<frame>.v<variant>.c<cue>` tell the variants of a scene apart.
    scenes: dict[str, list[tuple[str, bool]]] = {}
    for row in each_row(cell[cell["scene"] != ""]):
        scenes.setdefault(row.scene, []).append((row.id.rpartition(".c")[0], row.right))
    pairs = [
        first_right and second_right
        for answers in scenes.values()
        for (first, first_right), (second, second_right) in combinations(answers, 2)
        if first != second
    ]
    return sum(pairs) / len(pairs) if pairs else float("nan")


def _right_by_seed(predictions: pd.DataFrame) -> dict[tuple[str, str], pd.DataFrame]:
    """Return right (1) or wrong (0) by method and scoring: one row per seed, one column per item."""
    scored = predictions.assign(right=_right(predictions).astype(float))
    return {
        (str(method), str(scoring)): rows.pivot(index="seed", columns="id", values="right")
        for (method, scoring), rows in scored.groupby(["method", "scoring"])
    }


def _answers_by_cell(predictions: pd.DataFrame) -> dict[tuple[str, str, str], pd.DataFrame]:
    """Return right (1) or wrong (0) by method, data set and split: one row per seed, one column per item."""
    return {
        (str(method), str(dataset), str(split)): next(iter(_right_by_seed(rows).values()))
        for (method, dataset, split), rows in _with_subsets(predictions).groupby(
            ["method", "dataset", "split"], sort=False
        )
    }


def _pairs(answers: Iterable[tuple[str, str]]) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Return which methods and scorings to compare."""
    methods = {method for method, _ in answers}
    main = {method: (method, main_scoring(method)) for method in methods}
    if missing := set(main.values()) - set(answers):
        method, scoring = min(missing)
        raise DataError(f"comparisons need {scoring!r} predictions of {method}; add it to scorings")
    first = reference(methods)
    between = [(main[first], main[other]) for other in sorted(methods - {first})]
    return between + [(key, main[key[0]]) for key in answers if key != main[key[0]]]


def _paired(a: pd.DataFrame, b: pd.DataFrame, names: str, cell: Any) -> tuple[Any, Any]:
    seeds = a.index.intersection(b.index)
    where = f"{names} on {cell[2]} {cell[3]} (trained on {cell[0]}, student {cell[1]})"
    if not len(seeds):
        raise DataError(f"{where} have no training seed in common; run both with the same seed")
    if (
        set(a.columns) != set(b.columns)
        or a.loc[seeds].isna().any(axis=None)
        or b.loc[seeds].isna().any(axis=None)
    ):
        raise DataError(f"{where} answered different questions; evaluate both with the same parameters")
    return a.loc[seeds].to_numpy(), b.loc[seeds, a.columns].to_numpy()


def _ordered(table: pd.DataFrame, keys: list[str]) -> pd.DataFrame:
    """Sort rows by their keys: methods and splits in the order they are told of, the rest by name."""
    ranks = {name: i for i, name in enumerate((*METHOD_ORDER, *OWN_SPLITS))}

    def rank(column: pd.Series[Any]) -> pd.Series[Any]:
        if column.name not in ("method", "method_a", "method_b", "test_split"):
            return column
        return column.map(lambda name: f"{ranks.get(name, 99):02}{name}")

    return table.sort_values(keys, key=rank, kind="stable").reset_index(drop=True)
