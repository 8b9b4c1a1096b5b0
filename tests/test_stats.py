import itertools

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from scipy.special import expit
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar

from cfdistill.errors import DataError
from cfdistill.evaluate import stats


def answers(rng, items, shift=0.0, seeds=1):
    """Two methods on items of varying difficulty; the true accuracy difference is `shift`."""
    easiness = rng.uniform(0.1, 0.6, size=items)
    return [rng.random((seeds, items)) < easiness + better for better in (shift, 0)]


def test_proportion_interval_is_wilson():
    for right in (0, 31, 100):
        wilson = scipy_stats.binomtest(right, 100).proportion_ci(method="wilson")
        assert stats.proportion_interval(right, 100) == pytest.approx(tuple(wilson), abs=1e-12)


def test_bootstrap_agrees_with_scipy():
    usual = answers(np.random.default_rng(1), items=150, shift=0.2)
    skewed = (np.arange(150) < 10).reshape(1, -1), np.zeros((1, 150))
    for (a,), (b,) in (usual, skewed):
        delta, *interval = stats.paired_difference(a, b, samples=20_000, seed=0)
        differences = a.astype(float) - b
        theirs = scipy_stats.bootstrap((differences,), np.mean, n_resamples=20_000, method="BCa", rng=1)
        assert delta == pytest.approx(differences.mean())
        assert interval == pytest.approx(list(theirs.confidence_interval), abs=0.007)  # one item of 150


def test_bootstrap_is_deterministic_and_falls_back_where_bca_is_undefined():
    a, b = answers(np.random.default_rng(2), items=80, shift=0.3)
    first, again, other = (stats.paired_difference(a, b, samples=500, seed=s) for s in (3, 3, 4))
    assert first == again != other
    for theirs in (0, 1):
        assert stats.paired_difference([1] * 30, [theirs] * 30, samples=200, seed=0) == (1 - theirs,) * 3


def scenes(rng, seeds, shift):
    """Two methods on 60 scenes of 1 to 4 questions; how much better one is differs from scene to scene."""
    scene = np.repeat(np.arange(60), rng.integers(1, 5, 60))
    base, gain = rng.normal(0, 1, 60)[scene], rng.normal(shift, 2, 60)[scene]
    better, worse = rng.normal(0, 0.2 * (seeds > 1), (2, seeds, 1))  # one seed: of these trainings
    a = rng.random((seeds, len(scene))) < expit(base + gain + better)
    return a, rng.random((seeds, len(scene))) < expit(base + worse), scene


@pytest.mark.parametrize("seeds", [1, 3])
def test_questions_of_one_scene_are_not_independent(seeds):
    """Intervals over scenes cover the truth where those over questions do not; the tests are as honest."""
    rng = np.random.default_rng(12)
    spread, covered, alarms = 0.2 * (seeds > 1), np.zeros(2), np.zeros(2)
    truth = true_accuracy(0.8, spread, 5**0.5) - true_accuracy(0, spread, 1)
    for simulation in range(500):
        a, b, scene = scenes(rng, seeds, 0.8)
        found = [stats.paired_difference(a, b, 300, simulation, by) for by in (scene, None)]
        covered += [low <= truth <= high for _, low, high in found]
        a, b, scene = scenes(rng, seeds, 0)
        alarms += [stats.mcnemar_exact(a, b, by) < 0.05 for by in (scene, None)]
    assert covered[1] + 10 <= covered[0]
    assert 455 <= covered[0] <= 490
    assert alarms[0] <= min(40, alarms[1] - 15)  # the seeds are those of these trainings


@pytest.mark.parametrize("seeds", [1, 3])
def test_scenes_of_one_question_and_questions_asked_twice_change_nothing(seeds):
    a, b = answers(np.random.default_rng(13), items=70, shift=0.2, seeds=seeds)
    once = stats.paired_difference(a, b, 300, 0)
    assert stats.paired_difference(a, b, 300, 0, [f"scene {i}" for i in range(70)]) == once
    *twice, scene = (np.tile(x, 2) for x in (a, b, np.arange(70)))
    assert stats.paired_difference(*twice, 300, 0, scene) == pytest.approx(once)
    assert stats.mcnemar_exact(*twice, scene) == stats.mcnemar_exact(a, b)


def students(rng, items, seeds, spread, mean, difficulty):
    """Answers of one method: some items are harder, and some seeds better, both on the scale of log odds."""
    log_odds = mean + difficulty + rng.normal(0, spread, (seeds, 1))
    return (rng.random((seeds, items)) < expit(log_odds)).astype(float)


def true_accuracy(mean, spread, difficulty=2):
    """The mean over all items and seeds whose log odds have these standard deviations."""
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    return weights @ expit(mean + (difficulty**2 + spread**2) ** 0.5 * points) / weights.sum()


def coverage(seeds, items, spread, simulations):
    """Count how often the intervals of a difference, and of both accuracies that it is of, hold the truth."""
    rng = np.random.default_rng([8, seeds, items, int(10 * spread)])
    high, low = true_accuracy(0.3, spread), true_accuracy(-1, spread)
    truths, covered = (high - low, high, low), np.zeros(3)
    for _ in range(simulations):
        shared, own, other = rng.normal(0, 2**0.5, (3, items))  # half of an item's difficulty is shared
        a = students(rng, items, seeds, spread, 0.3, shared + own)
        b = students(rng, items, seeds, spread, -1, shared + other)
        intervals = [stats.paired_difference(a, b, samples=1, seed=0)[1:]]
        intervals += [stats.accuracy_over_seeds(x.mean(1), items, stats.agreement(x)) for x in (a, b)]
        covered += [start <= truth <= end for (start, end), truth in zip(intervals, truths, strict=True)]
    return covered / simulations


OURS = (3, 120, 0.2)  # seeds vary as those of our students: two of a method differ by some points
OTHERS = sorted(set(itertools.product([3, 5], [60, 120], [0, 0.2, 0.5])) - {OURS})
CASES = [OURS, *(pytest.param(*case, marks=pytest.mark.long) for case in OTHERS)]


@pytest.mark.parametrize(("seeds", "items", "spread"), CASES)
def test_intervals_over_seeds_cover_the_truth(seeds, items, spread):
    """Seeds that do not vary, vary as ours, and by so much that it outweighs 120 items: 92 % with three."""
    covered = coverage(seeds, items, spread, simulations=2000)
    assert (covered >= (0.91 if spread == 0.5 and seeds == 3 else 0.93)).all(), covered
    assert (covered <= (0.97 if (seeds, items, spread) == OURS else 0.98)).all(), covered


def test_interval_over_seeds_is_that_of_statsmodels_mean_squares():
    rng = np.random.default_rng(10)
    a, b = (students(rng, 40, 3, 0.5, mean, rng.normal(0, 2, 40)) for mean in (0, 1))
    seed, item = (index.ravel() for index in np.indices(a.shape))
    table = pd.DataFrame({"y": (a - b).ravel(), "seed": seed, "item": item})
    by_seed, by_item, rest = anova_lm(ols("y ~ C(seed) + C(item)", table).fit())["mean_sq"]
    assert by_seed > rest
    total = by_seed + by_item - rest
    freedom = total**2 / (by_seed**2 / 2 + by_item**2 / 39 + rest**2 / 78)
    reach = scipy_stats.t.ppf(0.975, freedom) * (total / 120) ** 0.5
    expected = (a - b).mean() + np.array([0, -reach, reach])
    assert stats.paired_difference(a, b, samples=1, seed=0) == pytest.approx(expected)
    assert stats.agreement(a - b) == pytest.approx((by_item - rest) / (by_item + 2 * rest))


def test_seeds_that_agree_are_not_more_items():
    right = np.repeat([1.0, 0.0], [18, 42])
    assert stats.agreement(np.tile(right, (3, 1))) == pytest.approx(1)
    seen = stats.accuracy_over_seeds([0.3] * 3, 60, 1.0)
    none = stats.accuracy_over_seeds([0.0] * 3, 60, stats.agreement(np.zeros((3, 60))))
    for number, interval in ((18, seen), (0, none)):  # t instead of normal
        assert interval == pytest.approx(stats.proportion_interval(number, 60), abs=0.005)
    assert stats.accuracy_over_seeds([0.3] * 3, 60, np.nan) == seen  # not known: not taken for more
    varied = stats.accuracy_over_seeds([0.2, 0.3, 0.4], 60, 1.0)
    assert varied[0] < seen[0] < stats.accuracy_over_seeds([0.3] * 3, 60, 0.0)[0]
    assert np.isnan(stats.agreement([[1, 0, 1]]))
    assert abs(stats.agreement(np.random.default_rng(0).integers(2, size=(3, 5000)))) < 0.03


def test_mcnemar_agrees_with_statsmodels_and_does_not_take_seeds_for_items():
    a, b = (x[0] for x in answers(np.random.default_rng(5), items=120, shift=0.15))
    found = stats.mcnemar_exact(a, b)
    assert found == pytest.approx(mcnemar(pd.crosstab(a, b), exact=True).pvalue)
    assert stats.mcnemar_exact(np.tile(a, (5, 1)), np.tile(b, (5, 1))) == found
    assert stats.mcnemar_exact(a, a) == 1


def test_holm_by_hand_and_unpaired_answers_are_refused():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([]) == []
    for a, b in (([1, 0], [1, 0, 1]), ([], [])):
        with pytest.raises(DataError, match="same items"):
            stats.mcnemar_exact(a, b)
