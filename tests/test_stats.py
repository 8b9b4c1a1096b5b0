import itertools

import numpy as np
import pandas as pd
import pytest
import statsmodels.api as sm
from scipy import stats as scipy_stats
from scipy.special import expit

from cfdistill.evaluate import stats

OURS = (3, 120, 1, 0.2)  # seeds vary as those of our students: two of a method differ by some points
OTHERS = sorted(set(itertools.product([3, 5], [60, 120], [1, 4], [0, 0.2, 0.5])) - {OURS})
CASES = [OURS, (1, 60, 4, 0), *(pytest.param(*case, marks=pytest.mark.long) for case in OTHERS)]


def coverage(seeds, scenes, most, spread, simulations, mean=0.3):
    """Count how often intervals of a difference, and of the accuracies it is of, hold the truth.

    Scenes have up to `most` questions, half of their difficulty is shared by methods, seeds vary by `spread`.
    Last: the first accuracy by questions instead of scenes; and false alarms of the test by both.
    """
    rng = np.random.default_rng([8, seeds, scenes, most, int(10 * spread)])
    points, weights = np.polynomial.hermite_e.hermegauss(80)  # of all scenes, questions and seeds
    reach = (4.25 + spread**2) ** 0.5 * points  # by which log odds vary in all
    high, low = (weights @ expit(m + reach) / weights.sum() for m in (mean, mean - 1.3))
    truths, covered, alarms = (high - low, high, low, high), np.zeros(4), np.zeros(2)
    for _ in range(simulations):
        scene = np.repeat(np.arange(scenes), rng.integers(1, most + 1, scenes))
        shared, own, other = rng.normal(0, 2**0.5, (3, scenes))[:, scene]
        a, b, c = (
            rng.random((seeds, len(scene)))
            < expit(m + rng.normal(0, spread, (seeds, 1)) + shared + more + rng.normal(0, 0.5, len(scene)))
            for m, more in ((mean, own), (mean - 1.3, other), (mean, other))
        )
        questions = range(len(scene))
        intervals = [stats.paired_difference(a, b, scene), stats.share(a, scene), stats.share(b, scene)]
        intervals.append(stats.share(a, questions))
        covered += [start <= truth <= end for (_, start, end), truth in zip(intervals, truths, strict=True)]
        alarms += [stats.mcnemar_exact(a, c, by) < 0.05 for by in (scene, questions)]
    return covered / simulations, alarms / simulations


@pytest.mark.parametrize(("seeds", "scenes", "most", "spread"), CASES)
def test_intervals_over_scenes_and_seeds_cover_the_truth(seeds, scenes, most, spread):
    """Seeds that do not vary, vary as ours, and by so much that it outweighs 120 scenes: 92 % with three."""
    (*covered, by_question), alarms = coverage(seeds, scenes, most, spread, simulations=1000)
    assert min(covered) >= (0.91 if spread == 0.5 and seeds == 3 else 0.93), covered
    assert max(covered) <= 0.98, covered
    if most > 1 and spread < 0.5:
        assert by_question < min(covered) - 0.02  # the questions of a scene are not independent
        assert alarms[0] < alarms[1] - 0.02
    if seeds == 1:
        assert alarms[0] < 0.06  # of these trainings


@pytest.mark.parametrize("mean", [-3.5, 0])
@pytest.mark.parametrize("scenes", [2, 5, 12])
def test_shares_of_few_scenes_and_rare_answers_are_wide_enough(scenes, mean):
    covered, _ = coverage(1, scenes, 3, 0, 400, mean)
    assert min(covered[1:3]) > 0.94


def test_intervals_of_answers_that_do_not_vary():
    n = 20
    for right in (0, 1):
        share, low, high = stats.share([right] * n, np.arange(n) // 2)  # ten scenes
        wilson = scipy_stats.binomtest(10 * right, 10).proportion_ci(method="wilson")
        assert (share, low >= 0, high <= 1) == (right, True, True)
        assert wilson.high - wilson.low < high - low < 0.4
        share, low, high = stats.share([right] * n, ["one"] * n)
        assert (share, high - low > 0.9) == (right, True)
        assert stats.paired_difference([1] * n, [right] * n, range(n)) == (1 - right,) * 3
    assert stats.paired_difference([1, 1], [0, 1], ["one"] * 2) == (0.5, -1, 1)
    assert np.isnan(stats.share([], [])).all()


def test_one_seed_is_the_linear_model_with_errors_by_cluster():
    rng = np.random.default_rng(3)
    scene = np.repeat(np.arange(30), rng.integers(1, 5, 30))
    a, b = rng.random(len(scene)) < expit(rng.normal(0.5, 2, 30))[scene], rng.random(len(scene)) < 0.4
    model = sm.OLS(a.astype(float) - b, np.ones(len(scene)))
    fit = model.fit(cov_type="cluster", cov_kwds={"groups": scene}, use_t=True)
    assert stats.paired_difference(a, b, scene) == pytest.approx([fit.params[0], *fit.conf_int()[0]])


@pytest.mark.parametrize("seeds", [1, 3])
def test_questions_asked_twice_change_nothing(seeds):
    rng = np.random.default_rng(13)
    a, b = rng.random((2, seeds, 70)) < expit(rng.normal(0, 2, (2, 1, 70)))
    *twice, scene = (np.tile(x, 2) for x in (a, b, np.arange(70)))
    assert stats.paired_difference(*twice, scene) == pytest.approx(stats.paired_difference(a, b, range(70)))
    assert stats.share(twice[0], scene) == pytest.approx(stats.share(a, range(70)))
    assert stats.mcnemar_exact(*twice, scene) == stats.mcnemar_exact(a, b, range(70))


def test_interval_over_seeds_is_that_of_statsmodels_mean_squares():
    rng = np.random.default_rng(10)
    log_odds = rng.normal(0, 1, (2, 3, 1)) + rng.normal(0, 2, (2, 1, 40)) + [[[0]], [[1]]]
    a, b = (rng.random((2, 3, 40)) < expit(log_odds)).astype(float)
    seed, item = (index.ravel() for index in np.indices(a.shape))
    table = pd.DataFrame({"y": (a - b).ravel(), "seed": seed, "item": item})
    fit = sm.OLS.from_formula("y ~ C(seed) + C(item)", table).fit()
    by_seed, by_item, rest = sm.stats.anova_lm(fit)["mean_sq"]
    assert by_seed > rest
    total = by_seed + by_item - rest
    freedom = total**2 / (by_seed**2 / 2 + by_item**2 / 39 + rest**2 / 78)
    reach = scipy_stats.t.ppf(0.975, freedom) * (total / 120) ** 0.5
    expected = (a - b).mean() + np.array([0, -reach, reach])
    assert stats.paired_difference(a, b, range(40)) == pytest.approx(expected)


def test_seeds_that_agree_are_not_more_items():
    right = np.repeat([1.0, 0.0], [18, 42])
    alone = stats.share(right, range(60))
    assert stats.share(np.tile(right, (3, 1)), range(60)) == pytest.approx(alone)
    wilson = scipy_stats.binomtest(18, 60).proportion_ci(method="wilson")
    assert alone[1:] == pytest.approx([wilson.low, wilson.high], abs=0.005)  # t instead of normal
    others = np.random.default_rng(0).permuted(np.tile(right, (3, 1)), axis=1)
    assert np.ptp(stats.share(others, range(60))[1:]) < 0.7 * np.ptp(alone[1:])


def test_mcnemar_agrees_with_statsmodels_and_does_not_take_seeds_for_items():
    a, b = np.random.default_rng(5).random((2, 120)) < [[0.5], [0.35]]
    found = stats.mcnemar_exact(a, b, range(120))
    assert found == pytest.approx(sm.stats.mcnemar(pd.crosstab(a, b), exact=True).pvalue)
    assert stats.mcnemar_exact(np.tile(a, (5, 1)), np.tile(b, (5, 1)), range(120)) == found
    assert stats.mcnemar_exact(a, a, range(120)) == 1


def test_holm_by_hand():
    assert stats.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert stats.holm([]) == []
