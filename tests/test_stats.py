"""Agreement with scipy and statsmodels, and coverage on data whose truth is known."""

import numpy as np
import pandas as pd
import pytest
from scipy import stats as scipy_stats
from scipy.special import expit
from statsmodels.formula.api import ols
from statsmodels.stats.anova import anova_lm
from statsmodels.stats.contingency_tables import mcnemar

from cfdistill import stats
from cfdistill.errors import DataError


def answers(rng, items, shift=0.0, seeds=1):
    """Two methods on items of varying difficulty; the true accuracy difference is `shift`."""
    easiness = rng.uniform(0.1, 0.6, size=items)
    a = rng.random((seeds, items)) < easiness + shift
    b = rng.random((seeds, items)) < easiness
    return a, b


def test_proportion_interval_is_wilson():
    low, high = stats.proportion_interval(31, 100)
    wilson = scipy_stats.binomtest(31, 100).proportion_ci(method="wilson")
    assert (low, high) == pytest.approx((wilson.low, wilson.high))
    assert stats.proportion_interval(0, 20)[0] == pytest.approx(0, abs=1e-12)
    assert 0.8 < stats.proportion_interval(20, 20)[0] < stats.proportion_interval(20, 20)[1] <= 1


@pytest.mark.parametrize("share", [0.1, 0.3, 0.5, 0.8])
def test_proportion_interval_covers_the_truth(share):
    hits = np.random.default_rng(0).binomial(100, share, size=1000)
    intervals = {h: stats.proportion_interval(h, 100) for h in set(hits)}
    covered = np.mean([intervals[h][0] <= share <= intervals[h][1] for h in hits])
    assert 0.93 <= covered <= 0.97


def test_bootstrap_agrees_with_scipy():
    a, b = answers(np.random.default_rng(1), items=150, shift=0.2)
    ours = stats.paired_difference(a[0], b[0], samples=20_000, seed=0)
    theirs = scipy_stats.bootstrap(
        (a[0].astype(float) - b[0],), np.mean, n_resamples=20_000, method="BCa", rng=1
    ).confidence_interval
    assert ours.delta == pytest.approx(a.mean() - b.mean())
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=0.007)  # one item of 150


def test_bootstrap_acceleration_agrees_with_scipy_on_skewed_differences():
    a, b = np.zeros(60), np.zeros(60)
    a[:5] = 1
    ours = stats.paired_difference(a, b, samples=20_000, seed=0)
    theirs = scipy_stats.bootstrap((a - b,), np.mean, n_resamples=20_000, method="BCa", rng=1)
    interval = theirs.confidence_interval
    assert (ours.low, ours.high) == pytest.approx((interval.low, interval.high), abs=1 / 60)


def test_bootstrap_is_deterministic_and_antisymmetric_in_sign():
    a, b = answers(np.random.default_rng(2), items=80, shift=0.3)
    first = stats.paired_difference(a, b, samples=500, seed=3)
    assert first == stats.paired_difference(a, b, samples=500, seed=3)
    assert first != stats.paired_difference(a, b, samples=500, seed=4)
    assert stats.paired_difference(b, a, samples=500, seed=3).delta == -first.delta
    assert first.low < first.delta < first.high


def test_bootstrap_falls_back_where_bca_is_undefined():
    same = np.ones(30)
    assert stats.paired_difference(same, same, samples=200, seed=0) == (0, 0, 0)
    assert stats.paired_difference(same, 0 * same, samples=200, seed=0) == (1, 1, 1)


@pytest.mark.slow
def test_bootstrap_covers_the_truth():
    """1,000 simulations of 100 items answered by one seed."""
    rng = np.random.default_rng(4)
    covered = 0
    for simulation in range(1000):
        a, b = answers(rng, items=100, shift=0.15)
        interval = stats.paired_difference(a, b, samples=400, seed=simulation)
        covered += interval.low <= 0.15 <= interval.high
    assert 930 <= covered <= 970


def students(rng, items, seeds, spread, mean, difficulty):
    """Answers of one method: some items are harder, and some seeds better, both on the scale of log odds."""
    log_odds = mean + difficulty + rng.normal(0, spread, (seeds, 1))
    return (rng.random((seeds, items)) < expit(log_odds)).astype(float)


def true_accuracy(mean, spread):
    """The mean over all items and seeds of what `students` gives with a standard deviation of 2 of items."""
    points, weights = np.polynomial.hermite_e.hermegauss(80)
    return weights @ expit(mean + (2**2 + spread**2) ** 0.5 * points) / weights.sum()


def coverage(seeds, items, spread, simulations):
    """Count how often the intervals of a difference, and of both accuracies that it is of, hold the truth."""
    rng = np.random.default_rng([8, seeds, items, int(10 * spread)])
    high, low = true_accuracy(0.3, spread), true_accuracy(-1, spread)
    covered = np.zeros(3)
    for _ in range(simulations):
        shared, own, other = rng.normal(0, 2**0.5, (3, items))  # half of an item's difficulty is shared
        a = students(rng, items, seeds, spread, 0.3, shared + own)
        b = students(rng, items, seeds, spread, -1, shared + other)
        found = stats.paired_difference(a, b, samples=1, seed=0)
        intervals = [(found.low, found.high)]
        intervals += [stats.accuracy_over_seeds(x.mean(1), items, stats.agreement(x)) for x in (a, b)]
        truths = (high - low, high, low)
        covered += [start <= truth <= end for (start, end), truth in zip(intervals, truths, strict=True)]
    return covered / simulations


def test_intervals_over_seeds_cover_the_truth():
    """Three seeds that vary as those of our students: two of a method differ by some points."""
    covered = coverage(seeds=3, items=120, spread=0.2, simulations=1000)
    assert ((covered >= 0.93) & (covered <= 0.97)).all(), covered


@pytest.mark.slow
@pytest.mark.parametrize("spread", [0, 0.2, 0.5])
@pytest.mark.parametrize("items", [60, 120])
@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_over_seeds_cover_the_truth_everywhere(seeds, items, spread):
    """Seeds that do not vary, vary as ours, and by so much that it outweighs 120 items: 92 % with three.

    A coverage of 97 % stays below 98 % in 2,000 simulations, and one of 92.3 % above 91 %.
    """
    covered = coverage(seeds, items, spread, simulations=2000)
    assert (covered >= (0.91 if spread == 0.5 and seeds == 3 else 0.93)).all(), covered
    assert (covered <= 0.98).all(), covered


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
    delta = (a - b).mean()
    assert stats.paired_difference(a, b, samples=1, seed=0) == pytest.approx(
        (delta, delta - reach, delta + reach)
    )
    assert stats.agreement(a - b) == pytest.approx((by_item - rest) / (by_item + 2 * rest))


def test_seeds_that_agree_are_not_more_items():
    right = np.repeat([1.0, 0.0], [18, 42])
    assert stats.agreement(np.tile(right, (3, 1))) == pytest.approx(1)
    low, high = stats.accuracy_over_seeds([0.3] * 3, 60, 1.0)
    assert (low, high) == pytest.approx(stats.proportion_interval(18, 60), abs=0.005)  # t instead of normal
    assert stats.accuracy_over_seeds([0.3] * 3, 60, np.nan) == (low, high)  # not known: not taken for more
    assert stats.accuracy_over_seeds([0.3] * 3, 60, 0.0)[0] > low
    assert stats.accuracy_over_seeds([0.2, 0.3, 0.4], 60, 1.0)[0] < low
    ends = stats.accuracy_over_seeds([0.0] * 3, 60, stats.agreement(np.zeros((3, 60))))
    assert ends == pytest.approx(stats.proportion_interval(0, 60), abs=0.005)


def test_agreement_of_one_seed_is_not_known():
    assert np.isnan(stats.agreement([[1, 0, 1]]))
    assert abs(stats.agreement(np.random.default_rng(0).integers(2, size=(3, 5000)))) < 0.03


def test_mcnemar_agrees_with_statsmodels():
    a, b = (x[0] for x in answers(np.random.default_rng(5), items=120, shift=0.15))
    table = [[np.sum(a & b), np.sum(a & ~b)], [np.sum(~a & b), np.sum(~a & ~b)]]
    assert stats.mcnemar_exact(a, b) == pytest.approx(mcnemar(table, exact=True).pvalue)
    assert stats.mcnemar_exact(a, a) == 1


@pytest.mark.parametrize("seeds", [1, 3])
def test_mcnemar_false_positives(seeds):
    rng = np.random.default_rng(6)
    alarms = sum(stats.mcnemar_exact(*answers(rng, 100, seeds=seeds)) < 0.05 for _ in range(1000))
    assert alarms <= 55


@pytest.mark.parametrize("seeds", [3, 5])
def test_intervals_over_seeds_raise_fewer_false_alarms_than_mcnemar_where_seeds_vary(seeds):
    """Methods that are equal over all trainings: the p-value is of these trainings, the interval of all."""
    rng, alarms = np.random.default_rng(11), np.zeros(2)
    for _ in range(1000):
        shared, own, other = rng.normal(0, 2**0.5, (3, 120))
        a, b = (students(rng, 120, seeds, 0.5, 0, shared + rest) for rest in (own, other))
        found = stats.paired_difference(a, b, samples=1, seed=0)
        alarms += stats.mcnemar_exact(a, b) < 0.05, not found.low <= 0 <= found.high
    assert alarms[0] >= 120
    assert alarms[1] <= 90


def test_mcnemar_does_not_take_seeds_for_items():
    a, b = (x[0] for x in answers(np.random.default_rng(7), items=60, shift=0.15))
    assert stats.mcnemar_exact(np.tile(a, (5, 1)), np.tile(b, (5, 1))) == stats.mcnemar_exact(a, b)


@pytest.mark.parametrize(("discordant", "delta"), [(0.3, 0.1), (0.25, 0.2), (0.4, 0.03)])
def test_items_needed_give_the_power_they_promise(discordant, delta):
    items = stats.items_needed(discordant, delta)
    rng = np.random.default_rng(9)
    chances = [(discordant + delta) / 2, (discordant - delta) / 2, 1 - discordant]
    found = [stats.mcnemar_exact(*by_counts(*rng.multinomial(items, chances))) < 0.05 for _ in range(1000)]
    assert 0.74 <= np.mean(found) <= 0.84  # the exact test is a little cautious


def by_counts(wins, losses, ties):
    a = np.repeat([1, 0, 1], [wins, losses, ties])
    return a, np.repeat([0, 1, 1], [wins, losses, ties])


def test_items_needed_for_three_points():
    """Connor's formula by hand: ((1.96 √.4 + .8416 √(.4 − .0009)) / .03)² = 3,486.03."""
    assert stats.items_needed(0.4) == 3487
    assert stats.items_needed(0) == stats.items_needed(0.03)


def test_effect_size_by_hand():
    assert stats.cohens_h(0.5, 0.25) == pytest.approx(2 * np.arcsin(0.5**0.5) - 2 * np.arcsin(0.5))
    assert stats.cohens_h(0.2, 0.2) == 0


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([]) == []


def test_unpaired_answers_are_refused():
    with pytest.raises(DataError, match="same items"):
        stats.paired_difference([1, 0], [1, 0, 1], samples=100, seed=0)
    with pytest.raises(DataError, match="same items"):
        stats.mcnemar_exact([], [])
