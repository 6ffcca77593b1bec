"""AUROC and average precision, DeLong's variance and what stands in for it at the boundary.

`truth` is bool (n,), True = the positive class. Undefined metrics are NaN.
"""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import root_scalar
from scipy.special import expit, logit
from scipy.stats import norm

from mil.metrics.arrays import Flags, Floats, Indices, finite, flags, ratio, share_below
from preprocessing.errors import CohortError


@dataclass(frozen=True)
class Difference:
    """A first answer's metric minus a second one's, its interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


def stratified_auroc(truth: ArrayLike, score: ArrayLike, strata: ArrayLike) -> float:
    """The share of rightly ordered pairs among those within a stratum (n,); NaN without a pair.

    Scores of several folds must not be pooled: where a test part has more positives its training
    part has fewer, and scores lower, so that models without any skill stay below 0.5 together
    (Airola et al. 2011).
    """
    positive, values = _binary(truth, score)
    rightly, pairs = 0.0, 0
    for rows in _rows_of(strata, len(positive)):
        mine, among = positive[rows], values[rows]
        if mine.any() and not mine.all():
            rightly += float(share_below(among[mine], among[~mine]).sum()) * int((~mine).sum())
            pairs += int(mine.sum() * (~mine).sum())
    return float(ratio(rightly, pairs))


def auroc(truth: ArrayLike, score: ArrayLike) -> float:
    """Area under the ROC curve, tied scores by half; NaN unless both classes occur."""
    positive, values = _binary(truth, score)
    if positive.all() or not positive.any():
        return float("nan")
    return float(share_below(values[positive], values[~positive]).mean())


def auprc(truth: ArrayLike, score: ArrayLike) -> float:
    """Average precision (sum of precision times gain in recall over the distinct scores).

    NaN unless both classes occur.
    """
    positive, values = _binary(truth, score)
    if positive.all() or not positive.any():
        return float("nan")
    order = np.argsort(-values)
    last = np.append(np.flatnonzero(np.diff(values[order])), len(values) - 1)
    found = np.cumsum(positive[order])[last]
    gained = np.diff(found, prepend=0)
    return float((gained * found / (last + 1)).sum() / found[-1])


def stratified_delong(
    truth: ArrayLike, scores: ArrayLike, strata: ArrayLike
) -> tuple[Floats, Floats]:
    """`delong` of the `stratified_auroc`: strata are independent, so that their variances add.

    Strata of one class have no pair and no weight.
    """
    positive = flags("truth", truth)
    values = finite("scores", scores, (None, len(positive)))
    rows = [r for r in _rows_of(strata, len(positive)) if 0 < positive[r].sum() < len(r)]
    if not rows:
        return delong(positive[:0], values[:, :0])
    pairs = np.array([positive[r].sum() * (~positive[r]).sum() for r in rows], dtype=float)
    weights = pairs / pairs.sum()
    parts = [delong(positive[r], values[:, r]) for r in rows]
    areas = np.sum([w * area for w, (area, _) in zip(weights, parts, strict=True)], axis=0)
    return areas, np.sum([w**2 * c for w, (_, c) in zip(weights, parts, strict=True)], axis=0)


def delong(truth: ArrayLike, scores: ArrayLike) -> tuple[Floats, Floats]:
    """AUROC of m scores of the same patients (m,) and their covariance (m, m).

    `scores` (m, n). DeLong, DeLong and Clarke-Pearson 1988, its placements found by sorting
    (O(m n log n), as Sun and Xu 2014). The covariance is NaN with fewer than 2 of either class.
    """
    positive = flags("truth", truth)
    values = finite("scores", scores, (None, len(positive)))
    ups = np.stack([share_below(row[positive], row[~positive]) for row in values])
    downs = np.stack([1 - share_below(row[~positive], row[positive]) for row in values])
    m, wanted = len(values), min(ups.shape[1], downs.shape[1])
    areas = ups.mean(axis=1) if wanted else np.full(m, np.nan)
    if wanted < 2:
        return areas, np.full((m, m), np.nan)
    covariance = np.cov(ups) / ups.shape[1] + np.cov(downs) / downs.shape[1]
    return areas, covariance.reshape(m, m)


def delong_interval(
    truth: ArrayLike, score: ArrayLike, level: float = 0.95, *, strata: ArrayLike | None = None
) -> tuple[float, float]:
    """Interval of the AUROC by DeLong's variance on the logit scale, so that it stays in [0, 1].

    With `strata` (n,) of the `stratified_auroc`. Where it has no variance (AUROC 0 or 1, a single
    case of a class) the interval is Newcombe's, see `newcombe_interval`.
    """
    areas, covariance = _delong(truth, np.atleast_2d(np.asarray(score)), strata)
    area, deviation = float(areas[0]), float(np.sqrt(covariance[0, 0]))
    if not (deviation > 0 and 0 < area < 1):
        return newcombe_interval(area, truth, strata=strata, level=level)
    half = _normal_quantile(level) * deviation / (area * (1 - area))
    return float(expit(logit(area) - half)), float(expit(logit(area) + half))


def newcombe_interval(
    area: float, truth: ArrayLike, *, strata: ArrayLike | None = None, level: float = 0.95
) -> tuple[float, float]:
    """The AUROCs t with |area - t| <= z sd(t): Newcombe 2006, method 5; not a point at 0 and 1.

    sd(t) is Hanley & McNeil's of exponential scores with both group sizes at their mean; strata add
    as their share of the pairs squared.
    """
    positive = flags("truth", truth)
    labels = np.zeros(len(positive)) if strata is None else strata
    sizes = [(positive[r].sum(), (~positive[r]).sum()) for r in _rows_of(labels, len(positive))]
    pairs = np.array([float(m * n) for m, n in sizes])
    if math.isnan(area) or not pairs.sum():
        return math.nan, math.nan

    def variance(t: float) -> float:
        each = [
            t * (1 - t) * (1 + ((m + n) / 2 - 1) * ((1 - t) / (2 - t) + t / (1 + t))) / (m * n)
            for m, n in sizes
            if m * n
        ]
        return float((pairs[pairs > 0] / pairs.sum()) ** 2 @ np.array(each))

    def outside(t: float) -> float:
        return (area - t) ** 2 - _normal_quantile(level) ** 2 * variance(t)

    inside = min(max(area, 1e-9), 1 - 1e-9)  # where sd(t) > 0
    low = root_scalar(outside, bracket=(0.0, inside)).root if area > 0 else 0.0
    high = root_scalar(outside, bracket=(inside, 1.0)).root if area < 1 else 1.0
    return float(low), float(high)


def delong_test(
    truth: ArrayLike, a: ArrayLike, b: ArrayLike, *, strata: ArrayLike | None = None
) -> Difference:
    """AUROC of score `a` minus that of `b` on the same patients, 95 % interval and p-value.

    With `strata` (n,) of the `stratified_auroc`. Without any variance equal areas have p = 1, and
    unequal ones an undefined interval and p.
    """
    areas, covariance = _delong(truth, np.stack([np.asarray(a), np.asarray(b)]), strata)
    value = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance <= 1e-15:  # what rounding leaves of two equal variances
        known = 0.0 if value == 0 else float("nan")
        return Difference(value, known, known, 1.0 + known)
    deviation = float(np.sqrt(variance))
    half = _normal_quantile(0.95) * deviation
    p = float(2 * norm.sf(abs(value) / deviation))
    return Difference(value, value - half, value + half, p)


def _delong(truth: ArrayLike, scores: ArrayLike, strata: ArrayLike | None) -> tuple[Floats, Floats]:
    return delong(truth, scores) if strata is None else stratified_delong(truth, scores, strata)


def _rows_of(strata: ArrayLike, length: int) -> list[Indices]:
    labels = np.asarray(strata)
    if labels.shape != (length,):
        raise CohortError(
            f"metrics: expected one stratum per patient, got {labels.shape} strata of {length}"
        )
    return [np.flatnonzero(labels == one) for one in np.unique(labels)]


def _binary(truth: ArrayLike, score: ArrayLike) -> tuple[Flags, Floats]:
    positive = flags("truth", truth)
    return positive, finite("scores", score, (len(positive),))


def _normal_quantile(level: float) -> float:
    """Half width of a two-sided normal interval, in standard deviations."""
    return float(norm.ppf((1 + level) / 2))
