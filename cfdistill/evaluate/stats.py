"""Two-sided 95 % intervals and tests; comparisons count scenes, whose questions are not independent."""

import math

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from scipy.stats import binomtest, norm, t
from statsmodels.stats.multitest import multipletests
from statsmodels.stats.proportion import proportion_confint

from cfdistill.errors import DataError

ALPHA = 0.05
Floats = NDArray[np.float64]


def proportion_interval(successes: float, n: float, alpha: float = ALPHA) -> tuple[float, float]:
    """Return Wilson's interval: the exact one covers too much with few items (our choice)."""
    low, high = proportion_confint(successes, n, alpha=alpha, method="wilson")
    return float(low), float(high)


def paired_difference(
    a: ArrayLike, b: ArrayLike, samples: int, seed: int, clusters: ArrayLike | None = None
) -> tuple[float, float, float]:
    """Return mean(a) - mean(b), low, high: over clusters or, with several seeds, over clusters and seeds.

    `a` and `b`: 1 right, 0 wrong, shape (items,) or (seeds, items), of the same items; `clusters`: the scene
    of each, by default its own. One seed: the BCa bootstrap (Efron, 1987). Several: Student's t, variances of
    clusters, seeds and both (Cameron, Gelbach and Miller, 2011; freedom by Satterthwaite, 1946). It covers 93
    to 97 % where seeds vary as ours, at worst (two seeds, or three that outweigh the items) 90 to 98 %.
    """
    sums, sizes = _clustered(a, b, clusters)
    means = sums.sum(axis=1) / sizes.sum()
    delta = float(means.mean())
    if len(sums) == 1:
        return delta, *_bca(sums[0], sizes, samples, seed)
    scale = len(sizes) / sizes.sum()
    table = sums * scale + means[:, None] * (1 - sizes * scale)  # of clusters of one item: sums
    error, quantile = _standard_error(means, _within(table), agreement(table), len(sizes))
    return delta, max(-1.0, delta - quantile * error), min(1.0, delta + quantile * error)


def accuracy_over_seeds(accuracies: ArrayLike, items: int, agreement: float) -> tuple[float, float]:
    """Return an interval of the mean accuracy of several seeds; an `agreement` of NaN makes it too wide."""
    # Wilson's, with t for the normal quantile, for as many independent answers as have the variance of that
    # mean (Korn and Graubard, 1998; Franco et al., 2019).
    shares = np.asarray(accuracies, dtype=np.float64)
    mean = float(shares.mean())
    within = float((shares * (1 - shares)).mean()) * items / max(items - 1, 1)
    error, quantile = _standard_error(shares, within, agreement, items)
    # Seeds that are all right, or all wrong, on all items are not more items.
    count = min(mean * (1 - mean) / error**2, items * len(shares)) if error > 0 else items
    return proportion_interval(mean * count, count, 2 * norm.sf(quantile))


def agreement(answers: ArrayLike) -> float:
    """Return how much seeds agree on which items are hard: ICC(3,1) of Shrout and Fleiss (1979), or NaN."""
    table = np.atleast_2d(np.asarray(answers, dtype=np.float64))
    seeds, within = len(table), _within(table)
    if seeds == 1 or not within:
        return math.nan
    return float((seeds * table.mean(axis=0).var(ddof=1) / within - 1) / (seeds - 1))


def mcnemar_exact(a: ArrayLike, b: ArrayLike, clusters: ArrayLike | None = None) -> float:
    """Return the p-value, of these trainings, of the exact sign test over clusters; over items McNemar's."""
    totals = _clustered(a, b, clusters)[0].sum(axis=0)
    wins, losses = int((totals > 0).sum()), int((totals < 0).sum())
    return float(binomtest(wins, wins + losses).pvalue) if wins + losses else 1.0


def holm(pvalues: list[float]) -> list[float]:
    """Return Holm-adjusted p-values of one family of tests, in the same order."""
    return [float(p) for p in multipletests(pvalues, method="holm")[1]] if pvalues else []


def _clustered(a: ArrayLike, b: ArrayLike, clusters: ArrayLike | None) -> tuple[Floats, Floats]:
    """Return the differences summed by cluster, shape (seeds, clusters), and the clusters' sizes."""
    first, second = (np.atleast_2d(np.asarray(x, dtype=np.float64)) for x in (a, b))
    if first.shape != second.shape or not first.size:
        raise DataError(f"a paired test needs the same items twice, got {first.shape} and {second.shape}")
    items = range(first.shape[1]) if clusters is None else clusters
    places, _ = pd.factorize(np.asarray(items))
    sums = np.array([np.bincount(places, row) for row in first - second], dtype=np.float64)
    return sums, np.bincount(places).astype(np.float64)


def _bca(sums: Floats, sizes: Floats, samples: int, seed: int) -> tuple[float, float]:
    delta = float(sums.sum() / sizes.sum())
    picks = np.random.default_rng(seed).integers(len(sums), size=(samples, len(sums)))
    means = sums[picks].sum(axis=1) / sizes[picks].sum(axis=1)
    levels = np.array([ALPHA / 2, 1 - ALPHA / 2])
    influence = sums - delta * sizes
    spread = float((influence**2).sum())
    # How far the resampled means lie to one side of the estimate; ties count half.
    below = float(((means < delta).mean() + (means <= delta).mean()) / 2)
    if spread > 0 and 0 < below < 1:
        bias = norm.ppf(below)
        acceleration = float((influence**3).sum()) / (6 * spread**1.5)
        shifted = bias + norm.ppf(levels)
        levels = norm.cdf(bias + shifted / (1 - acceleration * shifted))
    low, high = np.quantile(means, levels)
    return float(low), float(high)


def _within(table: Floats) -> float:
    """Return the variance within a seed, averaged over seeds, of a table of shape (seeds, items)."""
    return float(table.var(axis=1, ddof=1).mean()) if table.shape[1] > 1 else 0.0


def _standard_error(means: Floats, within: float, shared: float, items: int) -> tuple[float, float]:
    """Return the standard error of the mean of a (seeds, items) table, and the quantile of t for it."""
    seeds, shared = len(means), 1.0 if math.isnan(shared) else shared
    by_seed, by_item = items * float(means.var(ddof=1)), within * (1 + (seeds - 1) * shared)
    rest = within * (1 - shared)  # mean squares, of the interaction the last
    total, parts = by_item, [(by_item, items - 1)]
    if by_seed > rest:  # else the seeds differ by no more than chance
        total += by_seed - rest
        parts += [(by_seed, seeds - 1), (rest, (seeds - 1) * (items - 1))]
    below = sum(square**2 / freedom for square, freedom in parts if freedom)
    freedom = total**2 / below if below else items - 1
    return (total / (seeds * items)) ** 0.5, float(t.ppf(1 - ALPHA / 2, max(freedom, 1)))
