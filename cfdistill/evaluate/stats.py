"""Two-sided 95 % intervals and tests over scenes, whose questions are not independent, and over seeds."""

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, norm, t
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

ALPHA = 0.05
Floats = NDArray[np.float64]

# `answers`: 1 right, 0 wrong, shape (items,) or (seeds, items); `clusters`: the scene of each item. With one
# seed, intervals and tests are of this training; with several, intervals are of the method.


def share(answers: ArrayLike, clusters: ArrayLike) -> tuple[float, float, float]:
    """Return the share of right answers, low, high: Wilson's, for as many independent answers as vary so.

    That is their effective number (Korn and Graubard, 1998). One cluster counts as one answer; answers that
    are all right or all wrong, so that nothing varies, count as many as their clusters. Of none: NaN.
    """
    if not np.size(answers):
        return math.nan, math.nan, math.nan
    mean, error, quantile = _mean(answers, clusters)
    count = np.clip(mean * (1 - mean) / error**2, 1, np.size(answers)) if error else len(np.unique(clusters))
    low, high = proportion_confint(mean * count, count, alpha=2 * norm.sf(quantile), method="wilson")
    return mean, float(low), float(high)


def paired_difference(a: ArrayLike, b: ArrayLike, clusters: ArrayLike) -> tuple[float, float, float]:
    """Return mean(a) - mean(b) of answers to the same items, low, high: Student's t; of one cluster ±1."""
    delta, error, quantile = _mean(np.subtract(a, b, dtype=np.float64), clusters)
    return delta, max(-1.0, delta - quantile * error), min(1.0, delta + quantile * error)


def mcnemar_exact(a: ArrayLike, b: ArrayLike, clusters: ArrayLike) -> float:
    """Return the p-value, of these trainings, of the exact sign test over clusters; over items McNemar's."""
    totals = _by_cluster(np.subtract(a, b, dtype=np.float64), clusters)[0].sum(axis=0)
    wins, losses = int((totals > 0).sum()), int((totals < 0).sum())
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def holm(pvalues: list[float]) -> list[float]:
    """Return Holm-adjusted p-values of one family of tests, in the same order."""
    return [float(p) for p in multipletests(pvalues, method="holm")[1]] if pvalues else []


def _by_cluster(values: ArrayLike, clusters: ArrayLike) -> tuple[Floats, Floats]:
    """Return the values summed by cluster, shape (seeds, clusters), and the clusters' sizes."""
    places, _ = pd.factorize(np.asarray(clusters))
    sums = [np.bincount(places, row) for row in np.atleast_2d(np.asarray(values, dtype=np.float64))]
    return np.array(sums), np.bincount(places).astype(np.float64)


def _mean(values: ArrayLike, clusters: ArrayLike) -> tuple[float, float, float]:
    """Return the mean, its standard error over clusters and seeds, and the quantile of t for it.

    Variances of clusters, seeds and both (Cameron, Gelbach and Miller, 2011); freedom: Satterthwaite (1946).
    """
    sums, sizes = _by_cluster(values, clusters)
    seeds, count = sums.shape
    mean = float(sums.sum() / sizes.sum() / seeds)
    means = sums.sum(axis=1, keepdims=True) / sizes.sum()
    table = means + (sums - means * sizes) * count / sizes.sum()  # of clusters of one item: the values
    by_cluster = table.mean(axis=0)
    if count == 1:
        return mean, math.inf, float(t.ppf(1 - ALPHA / 2, 1))
    parts = [(seeds * by_cluster.var(ddof=1), count - 1)]  # mean squares, and their degrees of freedom
    if seeds > 1:
        by_seed, freedom = count * means.var(ddof=1), (seeds - 1) * (count - 1)
        both = float(((table - means - by_cluster + mean) ** 2).sum()) / freedom
        if by_seed > both:  # else the seeds differ by no more than chance
            parts += [(by_seed, seeds - 1), (-both, freedom)]
    total, below = sum(part for part, _ in parts), sum(part**2 / freedom for part, freedom in parts)
    freedom = total**2 / below if below else count - 1
    return mean, (total / (seeds * count)) ** 0.5, float(t.ppf(1 - ALPHA / 2, max(freedom, 1)))
