"""Metrics of classes and their probabilities.

`truth` and `called` are bool (n,), True = the positive class; class numbers are 0 .. C - 1;
a `confusion` counts (truth, answer) in rows and columns. Undefined metrics are NaN.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import norm

from mil.metrics.arrays import (
    Floats,
    Indices,
    class_indices,
    equal_count_bins,
    flags,
    ratio,
    unit_interval,
)
from preprocessing.errors import CohortError


@dataclass(frozen=True, eq=False)
class Reliability:
    """Per bin: mean predicted probability, observed share, its 95 % interval, and patients."""

    predicted: Floats
    observed: Floats
    low: Floats
    high: Floats
    count: Indices


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
    return Reliability(mean, observed, *wilson_interval(observed, count), count)


def wilson_interval(share: ArrayLike, count: ArrayLike) -> tuple[Floats, Floats]:
    """95 % interval of shares of `count` independent cases, no point at 0 and 1 (Wilson 1927)."""
    observed, n = np.asarray(share, dtype=np.float64), np.asarray(count, dtype=np.float64)
    z = float(norm.ppf(0.975))
    centre = (observed + z**2 / (2 * n)) / (1 + z**2 / n)
    spread = observed * (1 - observed) / n + z**2 / (4 * n**2)
    half = z * np.sqrt(spread) / (1 + z**2 / n)
    # Rounding must not put an end inside an observed share of 0 or 1, nor beyond these.
    low, high = np.minimum(centre - half, observed), np.maximum(centre + half, observed)
    return np.clip(low, 0, 1), np.clip(high, 0, 1)


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
