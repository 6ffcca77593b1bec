"""Metrics of classes and their probabilities.

`truth` and `called` are bool (n,), True = the positive class; class numbers are 0 .. C - 1;
a `confusion` counts (truth, answer) in rows and columns. Undefined metrics are NaN.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.special import expit, logit
from scipy.stats import norm

from mil.metrics.arrays import (
    Flags,
    Floats,
    Indices,
    class_indices,
    equal_count_bins,
    finite,
    flags,
    ratio,
    share_below,
    unit_interval,
)
from preprocessing.errors import CohortError


@dataclass(frozen=True)
class Difference:
    """A first answer's metric minus a second one's, its interval and two-sided p-value."""

    value: float
    low: float
    high: float
    p: float


@dataclass(frozen=True, eq=False)
class Reliability:
    """Per bin: mean predicted probability, observed share, its 95 % interval, and patients."""

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    count: Indices


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


def delong_interval(truth: ArrayLike, score: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """Interval of the AUROC by DeLong's variance on the logit scale, so that it stays in [0, 1].

    Where the variance is 0 (AUROC 0 or 1, one score for all) the interval is that point, which is
    too narrow.
    """
    areas, covariance = delong(truth, np.atleast_2d(np.asarray(score)))
    area, deviation = float(areas[0]), float(np.sqrt(covariance[0, 0]))
    if not deviation > 0:
        return area + deviation, area + deviation
    half = _normal_quantile(level) * deviation / (area * (1 - area))
    return float(expit(logit(area) - half)), float(expit(logit(area) + half))


def delong_test(truth: ArrayLike, a: ArrayLike, b: ArrayLike) -> Difference:
    """AUROC of score `a` minus that of `b` on the same patients, 95 % interval and p-value.

    Without any variance equal areas have p = 1, and unequal ones an undefined interval and p.
    """
    areas, covariance = delong(truth, np.stack([np.asarray(a), np.asarray(b)]))
    value = float(areas[0] - areas[1])
    variance = float(covariance[0, 0] + covariance[1, 1] - 2 * covariance[0, 1])
    if variance <= 1e-15:  # what rounding leaves of two equal variances
        known = 0.0 if value == 0 else float("nan")
        return Difference(value, known, known, 1.0 + known)
    deviation = float(np.sqrt(variance))
    half = _normal_quantile(0.95) * deviation
    p = float(2 * norm.sf(abs(value) / deviation))
    return Difference(value, value - half, value + half, p)


def confusion(truth_idx: ArrayLike, answer_idx: ArrayLike, classes: int) -> Indices:
    """Counts (truth, answer), (C, C)."""
    truth = class_indices("truth", truth_idx, length=None, classes=classes)
    answer = class_indices("answers", answer_idx, length=len(truth), classes=classes)
    return np.bincount(truth * classes + answer, minlength=classes**2).reshape(classes, classes)


def accuracy(confusion: Indices) -> float:
    return float(ratio(confusion.trace(), confusion.sum()))


def balanced_accuracy(confusion: Indices) -> float:
    """Mean recall of the classes that occur."""
    return _mean_defined(ratio(confusion.diagonal(), confusion.sum(axis=1)))


def macro_f1(confusion: Indices) -> float:
    """Mean F1 of the classes that occur or are answered."""
    total = confusion.sum(axis=0) + confusion.sum(axis=1)
    return _mean_defined(ratio(2 * confusion.diagonal(), total))


def kappa(confusion: Indices, weights: Literal["none", "quadratic"] = "none") -> float:
    """Cohen's kappa: 1 - observed / expected disagreement; quadratic for ordered classes.

    NaN if chance alone cannot disagree (only one class in truth and answers).
    """
    index = np.arange(len(confusion))
    apart = np.subtract.outer(index, index)
    cost = apart**2 if weights == "quadratic" else apart != 0
    expected = np.outer(confusion.sum(axis=1), confusion.sum(axis=0)) * cost
    return float(1 - ratio((confusion * cost).sum() * confusion.sum(), expected.sum()))


def sensitivity_specificity(truth: ArrayLike, called: ArrayLike) -> tuple[float, float]:
    """Share of the positives that are called, and of the negatives that are not."""
    positive = flags("truth", truth)
    answer = flags("calls", called, len(positive))
    sensitivity = ratio((positive & answer).sum(), positive.sum())
    return float(sensitivity), float(ratio((~positive & ~answer).sum(), (~positive).sum()))


def brier(truth_idx: ArrayLike, probabilities: ArrayLike) -> float:
    """Mean squared error of predicted probabilities (n, C): 0 .. 1 of two classes, 0 .. 2 of more.

    Two classes: (p - y)^2 of one of them; more: summed over the classes (Brier 1950).
    """
    truth, predicted = _multiclass(truth_idx, probabilities)
    classes = predicted.shape[1]
    squared = ((predicted - np.eye(classes)[truth]) ** 2).sum()
    return float(ratio(squared, len(truth) * (2 if classes == 2 else 1)))


def expected_calibration_error(
    truth_idx: ArrayLike, probabilities: ArrayLike, bins: int = 10
) -> float:
    """Mean gap between confidence and accuracy of the most probable class, bins of equal width.

    Bins (lower, upper], weighted by their patients (Guo et al. 2017, eq. 3).
    """
    truth, predicted = _multiclass(truth_idx, probabilities)
    confidence = predicted.max(axis=1)
    correct = predicted.argmax(axis=1) == truth
    inner = np.linspace(0, 1, bins + 1)[1:-1]
    of_bin = np.searchsorted(inner, confidence, "left")
    gaps = np.bincount(of_bin, weights=correct - confidence, minlength=bins)
    return float(ratio(np.abs(gaps).sum(), len(truth)))


def reliability(truth: ArrayLike, probability: ArrayLike, bins: int = 10) -> Reliability:
    """Predicted against observed share of positives in bins of about equal count.

    Equal counts, not equal widths, so that the few patients of a small cohort fill every bin;
    equal probabilities share a bin and empty bins are left out. Interval: Wilson, 95 %.
    """
    positive = flags("truth", truth)
    predicted = unit_interval("probabilities", probability, (len(positive),))
    of_bin = equal_count_bins(predicted, bins)
    filled, place = np.unique(of_bin, return_inverse=True)
    count = np.bincount(place, minlength=len(filled))
    mean = np.bincount(place, weights=predicted, minlength=len(filled)) / count
    observed = np.bincount(place, weights=positive, minlength=len(filled)) / count
    z = _normal_quantile(0.95)
    centre = (observed + z**2 / (2 * count)) / (1 + z**2 / count)
    spread = observed * (1 - observed) / count + z**2 / (4 * count**2)
    half = z * np.sqrt(spread) / (1 + z**2 / count)
    # Rounding must not put the end of an interval inside an observed share of 0 or 1.
    low, high = np.minimum(centre - half, observed), np.maximum(centre + half, observed)
    return Reliability(mean, observed, low, high, count)


def _binary(truth: ArrayLike, score: ArrayLike) -> tuple[Flags, Floats]:
    positive = flags("truth", truth)
    return positive, finite("scores", score, (len(positive),))


def _multiclass(truth_idx: ArrayLike, probabilities: ArrayLike) -> tuple[Indices, Floats]:
    values = unit_interval("probabilities", probabilities, (None, None))
    n, classes = values.shape
    off = np.flatnonzero(np.abs(values.sum(axis=1) - 1) > 1e-3)
    if len(off):
        raise CohortError(
            "metrics: expected probabilities that sum to 1 in each row, "
            f"got {values[off[0]].tolist()} in row {off[0]}"
        )
    return class_indices("truth", truth_idx, length=n, classes=classes), values


def _mean_defined(values: Floats) -> float:
    defined = values[~np.isnan(values)]
    return float(defined.mean()) if len(defined) else float("nan")


def _normal_quantile(level: float) -> float:
    """Half width of a two-sided normal interval, in standard deviations."""
    return float(norm.ppf((1 + level) / 2))
