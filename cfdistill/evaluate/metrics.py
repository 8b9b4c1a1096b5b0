"""From `predictions.csv` to metrics and comparisons; further columns are settings, never averaged across."""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from cfdistill.errors import DataError, StageError
from cfdistill.evaluate import stats
from cfdistill.methods import METHODS, reference
from cfdistill.schema import Prediction

ANSWER = ["train_dataset", "student", "seed", "method", "dataset", "split", "scoring", "id"]
PREDICTION_COLUMNS = [
    *ANSWER[:6], "subset", "scene", "novelty", *ANSWER[6:],
    "gold", "stereotype", "predicted", "parsed", "options",
]  # fmt: skip
METRIC_KEYS = [
    "train_dataset", "method", "student", "seed", "test_dataset", "test_split", "novelty", "scoring",
]  # fmt: skip
# lured: wrong, with the stereotype; consistent: right on two variants of a scene; unparsed: no option named;
# chance: the accuracy of guessing; unlured: where the stereotype is wrong and was not chosen
METRIC_VALUES = [
    "accuracy", "ci_low", "ci_high", "lure_rate", "pair_consistency", "unparsed_rate", "chance",
    "accuracy_unlured", "unlured_low", "unlured_high", "lure_low", "lure_high",
]  # fmt: skip
METRIC_COLUMNS = [*METRIC_KEYS, "n", *METRIC_VALUES]
OVER_SEEDS = ["seeds_low", "seeds_high"]  # of the mean accuracy: more columns where there are several seeds
COMPARISON_KEYS = [
    "train_dataset", "student", "test_dataset", "test_split", "novelty", "method_a", "method_b",
]  # fmt: skip
COMPARISON_VALUES = ["delta", "ci_low", "ci_high", "p_mcnemar", "p_holm"]
COMPARED = ["n", *COMPARISON_VALUES, "seeds"]
COMPARISON_SCORINGS = ["scoring_a", "scoring_b"]  # where scorings are compared, too
OTHERS = "others"  # all test data sets together that were not trained on
WORST = "worst_group"  # of `stereotype`, `reachable` and `heldout` in `id` and `shift` (Sagawa et al., 2020)
OWN_SPLITS = ("id", "shift", "shift_reachable", "shift_heldout", WORST)  # only of the training data set
FILES = ("metrics.csv", "comparisons.csv", "predictions.csv")


def predictions_table(
    predictions: list[Prediction], train: str, student: str, seed: int, steps: Mapping[tuple[str, str], str]
) -> pd.DataFrame:
    """Return PREDICTION_COLUMNS; DataError if there are none, or a question was answered twice."""
    if not predictions:
        raise DataError("there are no predictions to measure; run notebook 05_evaluation first")
    table = pd.DataFrame([p.to_json() for p in predictions]).rename(columns={"question_id": "id"})
    novelty = [steps[p.dataset, p.question_id] for p in predictions]
    table = table.assign(train_dataset=train, student=student, seed=seed, novelty=novelty)
    table = table[PREDICTION_COLUMNS].astype({"stereotype": "Int64"})
    if (twice := table.duplicated(ANSWER)).any():
        raise DataError(f"question {table['id'][twice].iloc[0]} was answered twice by the same method")
    return table


def metrics_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return METRIC_COLUMNS, as shares: NaN where there is none; with several seeds also OVER_SEEDS."""
    keys = [*predictions.columns.difference(PREDICTION_COLUMNS, sort=False), *METRIC_KEYS]
    methods = [name for name in keys if name != "seed"]
    answers = _with_subsets(predictions)
    answers = pd.concat([answers, _worst_group(answers, methods)])
    rows = [[*key, *_measure(cell)] for key, cell in answers.groupby(keys)]
    measured = _table(rows, [*keys, "n", *METRIC_VALUES], keys)
    if answers["seed"].nunique() == 1:
        return measured
    ends = [
        [*key, *stats.share(right, right.columns.get_level_values("cluster"))[1:]]
        for key, right in _by_seed(answers, methods).items()
    ]
    return measured.merge(pd.DataFrame(ends, columns=[*methods, *OVER_SEEDS]), how="left")


def comparisons_table(predictions: pd.DataFrame) -> pd.DataFrame:
    """Compare the reference with all other methods, and scorings with their main one; Holm: the table."""
    keys, rows = [*predictions.columns.difference(PREDICTION_COLUMNS, sort=False), *COMPARISON_KEYS], []
    for key, group in _with_subsets(predictions).groupby(keys[:-2], sort=False):
        answers = _by_seed(group, ["method", "scoring"])
        where = " ".join(map(str, [*key[-3:-1], *key[:-3]]))
        for a, b in _pairs(answers):
            found = _compare(answers[a], answers[b], f"{a[0]} and {b[0]} on {where}")
            rows.append([*key, a[0], b[0], *found, a[1], b[1]])
    table = _table(rows, [*keys, *COMPARED, *COMPARISON_SCORINGS], keys)
    table["p_holm"] = stats.holm(table["p_mcnemar"].tolist())
    by_scoring = (table["method_a"] == table["method_b"]).any()
    return table if by_scoring else table.drop(columns=COMPARISON_SCORINGS)


def differs(comparisons: pd.DataFrame) -> "pd.Series[bool]":
    """Tell which rows earn a star: of the methods with several seeds, of these trainings with one."""
    excludes = (comparisons["ci_low"] > 0) | (comparisons["ci_high"] < 0)
    return excludes.where(comparisons["seeds"] > 1, comparisons["p_holm"] < stats.ALPHA)


def star_note(comparisons: pd.DataFrame) -> str:
    """Return what a star of `differs` means in this table, in a few words."""
    one = f"these trainings, by the exact McNemar test over scenes, Holm-adjusted p < {stats.ALPHA}"
    many = "the 95 % interval over scenes and seeds excludes 0"
    several = comparisons["seeds"] > 1
    if several.any():
        return many if several.all() else f"{many}; with one seed: {one}"
    return one


def over_seeds(metrics: pd.DataFrame) -> pd.DataFrame:
    """Average metrics over training seeds and nothing else; `seeds` tells how many, instead of `seed`."""
    if OVER_SEEDS[0] in metrics:
        metrics = metrics.assign(ci_low=metrics["seeds_low"], ci_high=metrics["seeds_high"])
    keys = [name for name in metrics if name not in ("seed", "n", *OVER_SEEDS, *METRIC_VALUES)]
    how = {"n": "first", **dict.fromkeys(METRIC_VALUES, "mean"), "seeds": "size"}
    return metrics.assign(seeds=1).groupby(keys, sort=False, as_index=False).agg(how)


def transfer(metrics: pd.DataFrame) -> pd.DataFrame:
    """Return seed-averaged main scores on splits that share no scene with training (the paper's Fig. 5)."""
    table = over_seeds(metrics[is_main(metrics)])
    whole = ~table["test_split"].isin(OWN_SPLITS) & (table["test_dataset"] != OTHERS)
    return table[whole].reset_index(drop=True)


def is_main(metrics: pd.DataFrame) -> "pd.Series[bool]":
    """Tell which rows hold the main scoring of their method, on a whole split or a named part."""
    main = metrics["scoring"] == metrics["method"].map(lambda name: METHODS[name].scoring)
    return main & (metrics["novelty"] == "")


def each_row(table: pd.DataFrame) -> list[Any]:
    """Return the rows with their columns as attributes (typed Any: pandas cannot know them)."""
    return list(table.itertuples())


def write_csv(table: pd.DataFrame, path: Path) -> None:
    """Write a table as CSV with six significant digits."""
    table.to_csv(path, index=False, float_format="%.6g", lineterminator="\n")


def read_csv(folder: Path, name: str) -> pd.DataFrame:
    """Read a table back with its types; StageError if it is missing or damaged."""
    types: dict[str, Any] = dict.fromkeys([*METRIC_VALUES, *OVER_SEEDS, *COMPARISON_VALUES], "float64")
    types["stereotype"] = "Int64"
    path, empty = folder / name, dict.fromkeys(types, "")  # elsewhere "" is a text
    types |= dict.fromkeys(["id", "scene", "subset", "novelty"], str)
    try:
        table = pd.read_csv(path, dtype=types, keep_default_na=False, na_values=empty)
    except FileNotFoundError as error:
        raise StageError(f"{path} is missing; make it with notebook 05_evaluation") from error
    except ValueError as error:  # also pandas' own EmptyDataError and ParserError
        raise StageError(f"{path} is no valid table ({error}); make it again") from error
    if name == FILES[0] and (lacking := [column for column in METRIC_COLUMNS if column not in table]):
        raise StageError(f"{path} lacks {', '.join(lacking)}: an older version made it; make it again")
    return table


def _with_subsets(predictions: pd.DataFrame) -> pd.DataFrame:
    """Return the predictions with test sets named as in METRIC_KEYS; parts and sums of them once more."""
    named = predictions.rename(columns={"dataset": "test_dataset", "split": "test_split"})
    steps = named.get("novelty", pd.Series("", named.index))
    named = named.assign(novelty="")
    parts = named[named["test_split"] == "shift"]
    parts = parts.assign(test_split="shift_" + parts["subset"])
    parts = parts[parts["test_split"].isin(OWN_SPLITS)]
    by_step = named.assign(novelty=steps)[steps != ""]
    splits = by_step.groupby(["train_dataset", "test_dataset", "test_split"])
    tables = [named, parts, by_step[splits["novelty"].transform("nunique") > 1]]
    elsewhere = named["test_dataset"] != named["train_dataset"]
    others = named[elsewhere & (named["test_dataset"] != "weasel-user")]
    if others["test_dataset"].nunique() > 1:
        ids = others["test_dataset"] + "/" + others["id"]
        tables.append(others.assign(test_dataset=OTHERS, test_split="", id=ids))
    answers = pd.concat(tables, ignore_index=True)
    right = (answers["predicted"] == answers["gold"]).astype(float)
    return answers.assign(right=right, cluster=answers["scene"].where(answers["scene"] != "", answers["id"]))


def _worst_group(answers: pd.DataFrame, methods: list[str]) -> pd.DataFrame:
    """Return the answers to each method's group of the lowest accuracy over its seeds, as split WORST."""
    asked = answers[answers["test_split"].isin(["id", "shift"]) & (answers["novelty"] == "")]
    groups = asked[asked["subset"] != ""].assign(test_split=WORST)
    groups = groups.drop_duplicates([*methods, "seed", "id"])  # both splits may ask the same question
    found = groups.groupby([*methods, "subset"], as_index=False)["right"].mean()
    return groups.merge(found.loc[found.groupby(methods)["right"].idxmin(), [*methods, "subset"]])


def _measure(cell: pd.DataFrame) -> list[float]:
    """Return n and METRIC_VALUES of one cell."""
    right, scenes = cell["right"], cell["cluster"]
    misled = (cell["gold"] != cell["stereotype"]).fillna(False)
    chosen = (cell["predicted"] == cell["stereotype"]).fillna(False)
    lured = stats.share(misled & chosen, scenes) if cell["stereotype"].notna().any() else stats.share([], [])
    avoided = misled & ~chosen
    unlured = stats.share(right[avoided], scenes[avoided])
    # Options are shuffled per question, so equal gold indices do not mean equal answers; the testbed's
    # ids `<scene>.f<frame>.v<variant>.c<cue>` tell the variants of a scene apart.
    variants = cell.assign(variant=cell["id"].str.rpartition(".c")[0])[cell["scene"] != ""]
    pairs = variants.merge(variants, on="scene").query("variant_x < variant_y")
    consistent = (pairs["right_x"] * pairs["right_y"]).mean()
    guessed = (1 / cell["options"]).mean() if "options" in cell else float("nan")  # older answers lack it
    rest = [consistent, (~cell["parsed"]).mean(), guessed, *unlured, *lured[1:]]
    return [len(cell), *stats.share(right, scenes), lured[0], *rest]


def _by_seed(answers: pd.DataFrame, keys: list[str]) -> dict[Any, pd.DataFrame]:
    """Return right (1) or wrong (0), by the keys: a row per seed, a column per cluster and question."""
    return {
        key: cell.pivot(index="seed", columns=["cluster", "id"], values="right").sort_index(axis=1)
        for key, cell in answers.groupby(keys)
    }


def _pairs(answers: Iterable[tuple[str, str]]) -> list[tuple[tuple[str, str], tuple[str, str]]]:
    """Return which methods and scorings to compare."""
    main = {method: (method, METHODS[method].scoring) for method, _ in answers}
    for method, scoring in sorted(set(main.values()) - set(answers)):
        raise DataError(f"comparisons need {scoring!r} predictions of {method}; add it to scorings")
    first = main[reference(main)]
    between = [(first, other) for other in main.values() if other != first]
    return between + [(key, main[key[0]]) for key in answers if key != main[key[0]]]


def _compare(a: pd.DataFrame, b: pd.DataFrame, names: str) -> list[float]:
    """Return the values of COMPARED for two tables from `_by_seed`, over the seeds they share."""
    seeds = a.index.intersection(b.index)
    if not len(seeds):
        raise DataError(f"{names} have no training seed in common; run both with the same seed")
    ours, theirs = a.loc[seeds].to_numpy(), b.loc[seeds].to_numpy()
    if not a.columns.equals(b.columns) or (ours != ours).any() or (theirs != theirs).any():
        raise DataError(f"{names} answered different questions; evaluate both with the same parameters")
    clusters = a.columns.get_level_values("cluster")
    found = stats.paired_difference(ours, theirs, clusters)
    p = stats.mcnemar_exact(ours, theirs, clusters)
    return [ours.shape[1], *found, p, p, len(ours)]


def _table(rows: list[Any], columns: list[str], keys: list[str]) -> pd.DataFrame:
    """Return rows sorted by keys (methods and splits as they are told of, the rest by name)."""
    places = {name: f"{place:02}" for place, name in enumerate((*METHODS, *OWN_SPLITS))}

    def rank(column: "pd.Series[Any]") -> "pd.Series[Any]":
        return column.map(lambda value: places.get(value, "99") + value if isinstance(value, str) else value)

    return pd.DataFrame(rows, columns=columns).sort_values(keys, key=rank, ignore_index=True)
