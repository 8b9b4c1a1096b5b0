"""Metrics by hand on a few answers, and the stage and gathering on simulated ones."""

import math
import random
import warnings

import numpy as np
import pandas as pd
import pytest

from cfdistill import data, metrics, runs, stats, tables
from cfdistill.errors import DataError, StageError
from cfdistill.schema import Prediction


@pytest.fixture(autouse=True)
def no_warnings():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        yield


def prediction(item, predicted, *, gold=0, stereotype=1, method="cf-distill", scene="", **other):
    scoring = metrics.main_scoring(method)
    fields = {"dataset": "weasel-commonsense", "split": "shift", "subset": "", "scoring": scoring} | other
    return Prediction(
        question_id=item,
        scene=scene,
        method=method,
        gold=gold,
        stereotype=stereotype,
        predicted=predicted,
        text="…",
        **fields,
    )


def simulate(methods, items=40, seed=0, split="new", rate=0.5):
    """Answers of random students: right with probability `rate`, lured half of the rest."""
    rng = random.Random(seed)
    return [
        prediction(f"q{i:02}", 0 if rng.random() < rate else rng.choice([1, 2]), method=m, split=split)
        for m in methods
        for i in range(items)
    ]


def table(predictions, seed=0, student="s"):
    return metrics.metrics_table(metrics.predictions_table(predictions, "weasel-commonsense", student, seed))


def test_rates_by_hand():
    answers = [
        prediction("a", 0),  # right
        prediction("b", 1),  # lured
        prediction("c", 2),  # wrong otherwise
        prediction("d", 2, parsed=False),  # chosen for it, and wrong
        prediction("e", 1, gold=1),  # the stereotype is right: no lure
    ]
    row = table(answers).iloc[0]
    assert list(table(answers).columns) == metrics.METRIC_COLUMNS
    assert (row.n, row.accuracy, row.lure_rate, row.unparsed_rate) == (5, 0.4, 0.2, 0.2)
    assert (row.ci_low, row.ci_high) == stats.proportion_interval(2, 5)
    assert (row.train_dataset, row.method, row.student, row.seed) == (
        "weasel-commonsense",
        "cf-distill",
        "s",
        0,
    )
    assert (row.test_dataset, row.test_split, row.scoring) == ("weasel-commonsense", "shift", "direct")
    assert math.isnan(row.pair_consistency)


def test_no_stereotype_means_no_lure_rate():
    assert math.isnan(table([prediction("a", 0, stereotype=None)]).lure_rate[0])


def test_pair_consistency_counts_pairs_of_different_variants():
    answers = [
        prediction("s1.f2.v0.c0", 0, scene="s1"),
        prediction("s1.f2.v0.c1", 0, scene="s1"),  # same variant as the line above: no pair
        prediction("s1.f2.v1.c0", 0, scene="s1"),
        prediction("s1.f2.v2.c0", 3, scene="s1"),  # wrong
        prediction("s2.f2.v0.c0", 0, scene="s2"),  # alone in its scene
    ]
    assert table(answers).pair_consistency[0] == 2 / 5


def test_variants_in_testbed_ids_are_answers(small_params):
    for split in ("id", "shift", "new"):
        for q in data.load("weasel-commonsense", split, small_params):
            variant = q.id.rpartition(".c")[0]
            same = [o for o in data.load("weasel-commonsense", split, small_params) if o.scene == q.scene]
            assert all(
                (o.id.rpartition(".c")[0] == variant) == (o.options[o.answer] == q.options[q.answer])
                for o in same
            )


def test_shift_is_reported_whole_and_in_parts():
    answers = [prediction("a", 0, subset="reachable"), prediction("b", 1, subset="heldout")]
    found = table(answers).set_index("test_split").accuracy.to_dict()
    assert found == {"shift": 0.5, "shift_reachable": 1, "shift_heldout": 0}


def test_rows_come_in_the_order_of_methods_and_splits():
    answers = [
        a
        for split in ("new", "shift", "id")
        for a in simulate(["cf-distill", "ft-cot", "ft"], 4, split=split)
    ]
    found = table(answers)
    assert list(dict.fromkeys(found.method)) == ["ft", "ft-cot", "cf-distill"]
    assert list(dict.fromkeys(found.test_split)) == ["id", "shift", "new"]


def test_bad_predictions_are_refused():
    with pytest.raises(DataError, match="no predictions"):
        table([])
    with pytest.raises(DataError, match="question a was answered twice"):
        table([prediction("a", 0), prediction("a", 1)])


def compared(predictions, seed=0, **options):
    tidy = metrics.predictions_table(predictions, "weasel-commonsense", "s", seed)
    return metrics.comparisons_table(tidy, **options)


def test_comparisons_against_every_other_method():
    answers = simulate(["cf-distill"], seed=1, rate=0.9) + simulate(["ft", "ft-cot"], seed=2, rate=0.3)
    found = compared(answers, samples=500)
    assert list(found.columns) == metrics.COMPARISON_COLUMNS
    assert list(found.method_b) == ["ft", "ft-cot"]
    assert set(found.method_a) == {"cf-distill"}
    row = found.iloc[1]
    ours, theirs = (
        np.array([p.predicted == 0 for p in answers if p.method == m]) for m in ("cf-distill", "ft-cot")
    )
    assert row.n == 40
    assert (row.delta, row.ci_low, row.ci_high) == tuple(stats.paired_difference(ours, theirs, 500, 0))
    assert row.p_mcnemar == pytest.approx(stats.mcnemar_exact(ours, theirs))
    assert list(found.p_holm) == pytest.approx(stats.holm(list(found.p_mcnemar)))
    assert row.seeds == 1
    assert row.cohens_h == stats.cohens_h(ours.mean(), theirs.mean())
    assert row.n_for_3_points == stats.items_needed((ours != theirs).mean())


def test_settings_compare_every_method_with_itself_where_questions_are_the_same():
    def answers(rate, seed, method="ft-cot", split="new"):
        return simulate([method], seed=seed, rate=rate, split=split)

    few, many = answers(0.2, 1), answers(0.9, 2)
    tables = {
        "few": [*few, *answers(0.5, 3, "ft"), *answers(0.5, 4, split="id")[:30]],
        "many": [*many, *answers(0.5, 4, split="id")],  # of `id`, other questions; no ft
    }
    tidy = {name: metrics.predictions_table(rows, "d", "s", 0) for name, rows in tables.items()}
    found = metrics.settings_table(tidy, samples=500)
    assert list(found.columns) == metrics.SETTING_COLUMNS
    (row,) = found.itertuples()
    assert tuple(row[1:7]) == ("many", "few", "ft-cot", "weasel-commonsense", "new", 40)
    ours, theirs = (np.array([p.predicted == 0 for p in own]) for own in (many, few))
    assert (row.delta, row.ci_low, row.ci_high) == tuple(stats.paired_difference(ours, theirs, 500, 0))
    assert row.p_mcnemar == row.p_holm == pytest.approx(stats.mcnemar_exact(ours, theirs))


def test_comparisons_pair_by_question_not_by_position():
    answers = simulate(["cf-distill", "ft-cot"], seed=3)
    shuffled = random.Random(0).sample(answers, len(answers))
    assert compared(answers, samples=200).equals(compared(shuffled, samples=200))


def test_without_cf_distill_the_last_method_is_compared():
    table = compared(simulate(["ft", "ft-cot"]))
    assert set(table["method_a"]) == {"ft-cot"}
    assert set(table["method_b"]) == {"ft"}
    assert compared(simulate(["ft"])).empty
    assert list(compared(simulate(["ft"])).columns) == metrics.COMPARISON_COLUMNS


def test_comparisons_refuse_what_cannot_be_paired():
    answers = simulate(["cf-distill", "ft-cot"])
    with pytest.raises(
        DataError, match=r"cf-distill and ft-cot on weasel-commonsense new .* different questions"
    ):
        compared(answers[:-1])
    vote = [prediction("q00", 0, scoring="vote", split="new"), prediction("q00", 0, method="ft", split="new")]
    with pytest.raises(DataError, match="need 'direct' predictions of cf-distill"):
        compared(vote)


def save(folder, predictions, seed=0, student="s"):
    folder.mkdir(parents=True)
    tidy = metrics.predictions_table(predictions, "weasel-commonsense", student, seed)
    found = metrics.metrics_table(metrics.predictions_table(predictions, "weasel-commonsense", student, seed))
    metrics.write_results(folder, found, metrics.comparisons_table(tidy), tidy)
    return folder


def test_gathering_one_folder_gives_what_it_holds(tmp_path):
    answers = [
        *simulate(["cf-distill", "ft", "ft-cot"], split="shift"),
        prediction("none", 2, method="ft", parsed=False),
    ]
    answers += [prediction("none", 1, method=m, stereotype=None) for m in ("cf-distill", "ft-cot")]
    folder = save(tmp_path / "a", answers)
    found, comparisons = metrics.gather([folder, folder])
    pd.testing.assert_frame_equal(found, metrics.read_csv(folder, "metrics.csv"))
    pd.testing.assert_frame_equal(comparisons, metrics.read_csv(folder, "comparisons.csv"), rtol=1e-5)


def test_gathering_compares_over_seeds(tmp_path):
    methods = ["cf-distill", "ft-cot"]
    folders = [save(tmp_path / f"{s}", simulate(methods, seed=s), seed=s) for s in range(3)]
    found, comparisons = metrics.gather(folders)
    assert list(found.seed) == [0, 1, 2] * 2
    assert len(comparisons) == 1
    assert (comparisons.n[0], comparisons.seeds[0]) == (40, 3)
    means = found.groupby("method").accuracy.mean()
    assert comparisons.delta[0] == pytest.approx(means["cf-distill"] - means["ft-cot"], abs=1e-5)


def test_gathering_refuses_different_results_for_one_cell(tmp_path):
    folders = [save(tmp_path / f"{s}", simulate(["ft"], seed=s)) for s in range(2)]
    with pytest.raises(DataError, match=r"different answers for .*method ft.*gather them apart"):
        metrics.gather(folders)
    with pytest.raises(DataError, match="no results folders"):
        metrics.gather([])


def test_gathering_names_a_missing_or_damaged_file(tmp_path):
    with pytest.raises(StageError, match=r"predictions\.csv is missing"):
        metrics.gather([tmp_path])
    (tmp_path / "predictions.csv").write_text("")
    with pytest.raises(StageError, match="no valid table"):
        metrics.gather([tmp_path])


def test_over_seeds_uses_how_much_seeds_agree():
    seeds = [simulate(["ft"], seed=s) for s in range(3)]
    tidy = pd.concat(
        [metrics.predictions_table(p, "weasel-commonsense", "s", s) for s, p in enumerate(seeds)]
    )
    measured = metrics.metrics_table(tidy)
    assert list(measured.columns) == [*metrics.METRIC_COLUMNS, "seed_agreement"]
    right = np.array([[p.predicted == 0 for p in answers] for answers in seeds])
    assert list(measured.seed_agreement) == pytest.approx([stats.agreement(right)] * 3)
    found = metrics.over_seeds(measured).iloc[0]
    assert (found.seeds, found.n, found.accuracy) == (3, 40, pytest.approx(right.mean()))
    expected = stats.accuracy_over_seeds(right.mean(axis=1), 40, stats.agreement(right))
    assert (found.ci_low, found.ci_high) == pytest.approx(expected)
    unknown = metrics.over_seeds(measured[metrics.METRIC_COLUMNS]).iloc[0]
    assert unknown.ci_low < found.ci_low < found.ci_high < unknown.ci_high


def test_over_seeds_leaves_one_seed_as_it_is():
    one = table(simulate(["ft"], seed=0))
    assert metrics.over_seeds(one).drop(columns="seeds").equals(one.drop(columns="seed"))


def test_seeds_that_answered_other_questions_have_no_agreement():
    tidy = [metrics.predictions_table(simulate(["ft"], n), "weasel-commonsense", "s", n) for n in (20, 30)]
    assert metrics.metrics_table(pd.concat(tidy)).seed_agreement.isna().all()


def test_scorings_are_compared_with_the_main_one_of_their_method():
    answers = simulate(["cf-distill"], seed=1, rate=0.9) + simulate(["ft-cot"], seed=2, rate=0.3)
    votes = [prediction(p.question_id, 0, scoring="vote", split="new") for p in answers[:40]]
    found = compared(answers + votes, samples=200)
    assert list(found.columns) == [*metrics.COMPARISON_COLUMNS, *metrics.COMPARISON_SCORINGS]
    names = found[["method_a", "scoring_a", "method_b", "scoring_b"]].to_numpy().tolist()
    assert names == [
        ["cf-distill", "direct", "ft-cot", "direct"],
        ["cf-distill", "vote", "cf-distill", "direct"],
    ]
    right = np.mean([p.predicted == 0 for p in answers[:40]])
    assert found.delta[1] == pytest.approx(1 - right)
    assert list(found.p_holm) == pytest.approx(stats.holm(list(found.p_mcnemar)))
    assert (
        found[metrics.COMPARISON_COLUMNS[:-5]]
        .iloc[0]
        .equals(compared(answers, samples=200)[metrics.COMPARISON_COLUMNS[:-5]].iloc[0])
    )
    said = tables.differences(found)
    assert "cf-distill minus ft-cot (" in said
    assert "- cf-distill vote minus direct (weasel-commonsense, s): new +" in said
    cells = tables.table1(table(answers + votes), found)
    assert "*" in cells[cells.method == "ft-cot"]["new"].item()
    assert "*" not in cells[cells.method == "cf-distill"]["new"].item()


def evaluate(params, method, dataset):
    """Write an evaluation stage with random answers to the real test questions."""
    rng = random.Random(f"{method}/{dataset}")
    with runs.stage("evaluation", params, method=method, dataset=dataset).draft(params) as draft:
        for split in data.test_splits(dataset, params):
            draft.write(
                f"predictions.{split}.{metrics.main_scoring(method)}.jsonl",
                [
                    prediction(
                        q.id,
                        rng.randrange(len(q.options)),
                        gold=q.answer,
                        stereotype=q.stereotype,
                        method=method,
                        dataset=dataset,
                        split=split,
                        scene=q.scene,
                        subset=q.subset,
                    )
                    for q in data.load(dataset, split, params)
                ],
            )


def test_stage_needs_every_evaluation(small_params):
    evaluate(small_params, "ft", "weasel-commonsense")
    with pytest.raises(StageError, match=r"evaluation is missing.*weasel-science"):
        metrics.build(small_params)


def test_stage_is_the_same_byte_for_byte(small_params, tmp_path):
    made = []
    for run in ("one", "two"):
        params = small_params.model_copy(update={"run_root": str(tmp_path / run)})
        for method in params.methods:
            for dataset in params.test_datasets:
                evaluate(params, method, dataset)
        made.append(metrics.build(params))
        assert metrics.build(params).manifest() == made[-1].manifest()
    for name in metrics.FILES:
        assert (made[0].path / name).read_bytes() == (made[1].path / name).read_bytes()
    found = metrics.read_csv(made[0].path, "metrics.csv")
    assert len(found) == 3 * (5 + 1)  # methods × (id, shift and its parts, new; the other's new)
    assert found.pair_consistency.notna().any()
    assert "text" not in metrics.read_csv(made[0].path, "predictions.csv")
