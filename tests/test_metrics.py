import math
import random
from collections import defaultdict
from dataclasses import replace

import numpy as np
import pandas as pd
import pytest

from cfdistill import data
from cfdistill.errors import DataError, StageError
from cfdistill.evaluate import metrics, novelty, stats
from cfdistill.methods import METHODS
from cfdistill.params import Params
from cfdistill.schema import Prediction, Question
from cfdistill.show import tables

D = "weasel-commonsense"
pytestmark = pytest.mark.filterwarnings("error")
COMPARISON_COLUMNS = [*metrics.COMPARISON_KEYS, *metrics.COMPARED]


def prediction(item, predicted, *, method="cf-distill", **other):
    usual = {"dataset": D, "split": "shift", "subset": "", "scene": "", "scoring": METHODS[method].scoring}
    fields = usual | {"gold": 0, "stereotype": 1, "options": 5} | other
    return Prediction(question_id=item, predicted=predicted, method=method, text="…", **fields)


def simulate(methods, items=40, seed=0, rate=0.5, **other):
    """Answers of random students: right with probability `rate`, lured half of the rest."""
    rng, fields = random.Random(seed), {"split": "new"} | other
    asked = [(method, f"q{i:02}") for method in methods for i in range(items)]
    chosen = [0 if rng.random() < rate else rng.choice([1, 2]) for _ in asked]
    return [prediction(q, c, method=m, **fields) for (m, q), c in zip(asked, chosen, strict=True)]


def tidy(predictions, seed=0, student="s", train=D, steps=None):
    return metrics.predictions_table(predictions, train, student, seed, steps or defaultdict(str))


def measured(predictions):
    return metrics.metrics_table(tidy(predictions))


def compared(predictions):
    return metrics.comparisons_table(tidy(predictions))


def right(predictions, method):
    return np.array([p.predicted == p.gold for p in predictions if p.method == method])


def test_steps_of_novelty_and_all_other_data_sets_together_are_measured_as_well():
    answers = [prediction(f"q{i}", i % 2, split="shift") for i in range(4)]
    others = [prediction("q0", i, dataset=d, split="new") for i, d in enumerate(("weasel-science", "csqa"))]
    steps = {(D, "q0"): "cue", (D, "q1"): "cue", (D, "q2"): "cause", (D, "q3"): "cause"}
    steps |= {("weasel-science", "q0"): "format", ("csqa", "q0"): "format"}
    found = metrics.metrics_table(tidy(answers + others, steps=steps))
    cells = {(r.test_dataset, r.test_split, r.novelty): (r.n, r.accuracy) for r in found.itertuples()}
    expected = {(D, "shift", step): (n, 0.5) for step, n in (("", 4), ("cue", 2), ("cause", 2))}
    expected |= {("weasel-science", "new", ""): (1, 1.0), ("csqa", "new", ""): (1, 0.0)}
    assert cells == expected | {(metrics.OTHERS, "", ""): (2, 0.5)}


def test_rates_and_pairs_of_different_variants_by_hand():
    answers = [prediction(name, chosen) for name, chosen in (("right", 0), ("lured", 1), ("wrong", 2))]
    answers.append(prediction("d", 2, parsed=False))  # chosen for it, and wrong
    answers.append(prediction("e", 1, gold=1))  # the stereotype is right: no lure
    (row,) = measured(answers).itertuples(index=False)
    assert list(row._fields) == metrics.METRIC_COLUMNS
    assert row[:10] == (D, "cf-distill", "s", 0, D, "shift", "", "direct", 5, 0.4)
    assert (row.lure_rate, row.unparsed_rate) == (0.2, 0.2)
    assert (0.4, row.ci_low, row.ci_high) == stats.share([1, 0, 0, 0, 1], range(5))
    assert (0.2, row.lure_low, row.lure_high) == stats.share([0, 1, 0, 0, 0], range(5))
    unlured = row.accuracy_unlured, row.unlured_low, row.unlured_high
    assert unlured == stats.share([1, 0, 0], range(3))  # of right, wrong and d
    assert math.isnan(row.pair_consistency)
    real = measured([prediction("a", 0, stereotype=None)])
    assert real[["lure_rate", "lure_low", "lure_high", "accuracy_unlured"]].isna().all(axis=None)
    answers = [prediction(name, 0, scene="s1") for name in ("s1.f2.v0.c0", "s1.f2.v0.c1", "s1.f2.v1.c0")]
    answers.append(prediction("s1.f2.v2.c0", 3, scene="s1"))  # wrong
    answers.append(prediction("s2.f2.v0.c0", 0, scene="s2"))  # alone in its scene
    assert measured(answers).pair_consistency[0] == 2 / 5  # the first two are of the same variant: no pair
    variants = defaultdict(dict)  # which in the testbed's ids are answers
    for q in data.load(D, "shift", Params()):
        variants[q.scene][q.id.rpartition(".c")[0]] = q.options[q.answer]
    assert all(len(set(answers.values())) == len(answers) for answers in variants.values())


def test_rows_come_in_the_order_of_methods_and_splits_with_parts_of_shift():
    answers = [a for split in ("new", "id") for a in simulate(["cf-distill", "ft-cot", "ft"], 4, split=split)]
    found = measured([*answers, prediction("a", 0, subset="reachable"), prediction("b", 1, subset="heldout")])
    assert list(dict.fromkeys(found.method)) == ["ft", "ft-cot", "cf-distill"]
    ours = found[found.method == "cf-distill"].set_index("test_split").accuracy
    assert list(ours.index) == ["id", "shift", "shift_reachable", "shift_heldout", metrics.WORST, "new"]
    assert list(ours)[1:5] == [0.5, 1, 0, 0]


def test_chance_is_of_the_options_that_were_asked(tmp_path):
    table = tidy([prediction("a", 0, options=2), prediction("b", 0, options=4)])
    assert list(metrics.metrics_table(table).chance) == [0.375]
    metrics.write_csv(table.drop(columns="options"), tmp_path / "predictions.csv")  # as older studies did
    older = metrics.metrics_table(metrics.read_csv(tmp_path, "predictions.csv"))
    assert math.isnan(older.chance[0])
    assert older.drop(columns="chance").equals(metrics.metrics_table(table).drop(columns="chance"))


def test_comparisons_against_every_other_method():
    answers = simulate(["cf-distill"], seed=1, rate=0.9) + simulate(["ft", "ft-cot"], seed=2, rate=0.3)
    without, alone = compared(simulate(["ft", "ft-cot"])), compared(simulate(["ft"]))
    assert without[["method_a", "method_b"]].to_numpy().tolist() == [["ft-cot", "ft"]]  # the last is compared
    assert (len(alone), list(alone.columns)) == (0, COMPARISON_COLUMNS)
    found = compared(random.Random(0).sample(answers, len(answers)))  # paired by question
    assert list(found.columns) == COMPARISON_COLUMNS
    assert (set(found.method_a), list(found.method_b)) == ({"cf-distill"}, ["ft", "ft-cot"])
    row, ours, theirs = found.iloc[1], right(answers, "cf-distill"), right(answers, "ft-cot")
    interval = stats.paired_difference(ours, theirs, range(40))
    assert (row.n, row.seeds, row.delta, row.ci_low, row.ci_high) == (40, 1, *interval)
    assert row.p_mcnemar == pytest.approx(stats.mcnemar_exact(ours, theirs, range(40)))
    assert list(found.p_holm) == pytest.approx(stats.holm(list(found.p_mcnemar)))


def test_comparisons_count_scenes_not_questions():
    alone = simulate(["cf-distill", "ft-cot"], 20, seed=3)
    twice = [replace(p, question_id=p.question_id + end, scene=p.question_id) for p in alone for end in "ab"]
    columns = ["delta", "ci_low", "ci_high", "p_mcnemar"]
    once, found = compared(alone), compared(twice)
    assert found.n[0] == 2 * once.n[0]
    assert found[columns].to_numpy() == pytest.approx(once[columns].to_numpy())
    ends = ["ci_low", "ci_high"]
    assert measured(twice)[ends].to_numpy() == pytest.approx(measured(alone)[ends].to_numpy())


def test_what_cannot_be_measured_or_paired_is_refused():
    for bad, said in (([], "no predictions"), (2 * [prediction("a", 0)], "question a was answered twice")):
        with pytest.raises(DataError, match=said):
            measured(bad)
    answers = simulate(["cf-distill", "ft-cot"])
    with pytest.raises(DataError, match=rf"cf-distill and ft-cot on {D} new .* different questions"):
        compared(answers[:-1])
    with pytest.raises(DataError, match="no training seed in common"):
        metrics.comparisons_table(pd.concat([tidy(answers[:40], 0), tidy(answers[40:], 1)]))
    with pytest.raises(DataError, match="need 'direct' predictions of cf-distill"):
        compared([prediction("q00", 0, **own) for own in ({"scoring": "elimination"}, {"method": "ft"})])


def test_the_worst_group_is_one_of_both_splits_over_all_seeds():
    """Seed 0 is worst where seed 1 is better; a question of both splits counts once."""

    groups = [("stereotype", "id"), ("reachable", "id"), ("reachable", "shift"), ("heldout", "shift")]

    def answers(**right):
        asked = [(name, split, i) for name, split in groups for i in range(4)]
        return [prediction(f"{n}{i}", int(i >= right[n]), split=s, subset=n) for n, s, i in asked]

    seeds = [answers(stereotype=4, reachable=0, heldout=1), answers(stereotype=4, reachable=3, heldout=0)]
    for own, expected in ((seeds[:1], [(4, 0)]), (seeds[1:], [(4, 0)]), (seeds, [(4, 0.25), (4, 0)])):
        found = metrics.metrics_table(pd.concat([tidy(part, s) for s, part in enumerate(own)]))
        worst = found[found.test_split == metrics.WORST]
        assert list(zip(worst.n, worst.accuracy, strict=True)) == expected
    assert metrics.WORST not in metrics.comparisons_table(tidy(seeds[0])).test_split.unique()


def test_scorings_are_compared_with_the_main_one_of_their_method():
    answers = simulate(["cf-distill"], seed=1, rate=0.9) + simulate(["ft-cot"], seed=2, rate=0.3)
    votes = [prediction(p.question_id, 0, scoring="elimination", split="new") for p in answers[:40]]
    found = compared(answers + votes)
    assert list(found.columns) == [*COMPARISON_COLUMNS, *metrics.COMPARISON_SCORINGS]
    pairs = found[["method_a", "scoring_a", "method_b", "scoring_b"]].agg(" ".join, axis=1)
    assert list(pairs) == ["cf-distill direct ft-cot direct", "cf-distill elimination cf-distill direct"]
    assert found.delta[1] == pytest.approx(1 - right(answers, "cf-distill").mean())
    assert "cf-distill elimination − direct" in tables.differences(found)
    cells = tables.table1(measured(answers + votes), found).set_index("method")["new"]
    assert ["*" in cells[name] for name in ("ft-cot", "cf-distill")] == [True, False]


def test_settings_in_columns_are_kept_apart_in_one_family():
    one, other = (tidy(simulate(["cf-distill", "ft-cot"], seed=s)) for s in (1, 2))
    both = pd.concat([one.assign(rate=0.9), other.assign(rate=0.5)])
    found, pairs = metrics.metrics_table(both), metrics.comparisons_table(both)
    assert list(found.columns) == ["rate", *metrics.METRIC_COLUMNS]
    assert found[found.rate == 0.5].drop(columns="rate").equals(metrics.metrics_table(other))
    assert list(pairs.rate) == [0.5, 0.9]
    assert list(pairs.p_holm) == stats.holm(list(pairs.p_mcnemar))


def test_a_star_speaks_of_methods_only_where_there_are_several_seeds():
    rows = pd.DataFrame({"seeds": [1, 1, 3, 3], "p_holm": [0.04, 0.06, 0.001, 0.2], "ci_high": 0.3})
    rows["ci_low"] = [-0.1, 0.1] * 2
    assert list(metrics.differs(rows)) == [True, False, False, True]
    assert metrics.star_note(rows[:2]).startswith("these trainings, by the exact McNemar test over scenes")
    assert metrics.star_note(rows[2:]) == "the 95 % interval over scenes and seeds excludes 0"
    assert "; with one seed: these trainings" in metrics.star_note(rows)


def test_seeds_are_averaged_and_data_seeds_like_any_other_setting_shown_apart():
    answers = [tidy(simulate(["ft", "ft-cot"], seed=s), s % 2).assign(data_seed=s // 2 * 5) for s in range(3)]
    together = pd.concat(answers)
    found, comparisons = metrics.metrics_table(together), metrics.comparisons_table(together)
    averaged = metrics.over_seeds(found)
    assert list(zip(averaged.data_seed, averaged.seeds, strict=True)) == [(0, 2), (0, 2), (5, 1), (5, 1)]
    assert comparisons[["data_seed", "n", "seeds"]].to_numpy().tolist() == [[0, 40, 2], [5, 40, 1]]
    assert comparisons.delta[0] == pytest.approx(averaged.accuracy[1] - averaged.accuracy[0], abs=1e-5)
    assert list(tables.table1(found, comparisons).columns) == ["data_seed", "method", "new", "seeds"]


def test_a_damaged_table_is_refused(tmp_path):
    for text, said in ((None, r"metrics\.csv is missing"), ("", "no valid table")):
        if text is not None:
            (tmp_path / "metrics.csv").write_text(text)
        with pytest.raises(StageError, match=said):
            metrics.read_csv(tmp_path, "metrics.csv")
    metrics.write_csv(measured(simulate(["ft"])).drop(columns="lure_low"), tmp_path / "metrics.csv")
    with pytest.raises(StageError, match=r"metrics\.csv lacks lure_low: an older version made it"):
        metrics.read_csv(tmp_path, "metrics.csv")


def test_means_over_seeds_have_an_interval_over_scenes_and_seeds():
    seeds = [simulate(["ft"], seed=s) for s in range(3)]
    found = metrics.metrics_table(pd.concat([tidy(p, s) for s, p in enumerate(seeds)]))
    assert list(found.columns) == [*metrics.METRIC_COLUMNS, *metrics.OVER_SEEDS]
    row = metrics.over_seeds(found).iloc[0]
    expected = stats.share([right(p, "ft") for p in seeds], range(40))
    assert list(row[["seeds", "n", "accuracy", "ci_low", "ci_high"]]) == pytest.approx([3, 40, *expected])
    one = measured(seeds[0])
    assert metrics.over_seeds(one).drop(columns="seeds").equals(one.drop(columns="seed"))
    others = [tidy(simulate(["ft"], n), n) for n in (20, 30)]  # answered other questions
    assert metrics.metrics_table(pd.concat(others))[metrics.OVER_SEEDS].isna().all(axis=None)


def test_every_question_has_the_first_step_that_is_new():
    shown = Question(
        "a", "own", "train", "The cook rang. Who?", ("Anna", "Bob"), 0, scene="s1", cue="the cook"
    )
    asked = {
        "cue": replace(shown, id="1", stem="It was the cook. Who was it?"),
        "answer": replace(shown, id="2", stem="A chef?", cue="chef", options=("Bob", "anna"), answer=1),
        "cause": replace(shown, id="3", stem="The pilot rang. Who?", cue="the pilot", answer=1),
        "scene": replace(shown, id="4", scene="s2"),
        "format": replace(shown, id="5", dataset="other"),
        "": replace(shown, id="6", scene="", cue=""),
    }
    found = novelty.novelty(asked.values(), [shown, replace(shown, id="b", scene="s3")])
    assert [found[q.dataset, q.id] for q in asked.values()] == list(asked)
    assert tuple(asked)[:-1] == novelty.STEPS
    rewritten = replace(shown, id="cf", answer=1)  # the same words: a cue counts only with its own answer
    assert novelty.novelty([replace(shown, id="1")], [rewritten])["own", "1"] == "cause"
