"""Metrics of predicted against observed values (n,), both in the unit of the value.

Errors are of all rows together. Correlations and the slope compare rows within strata (n,) only,
such as the folds of a cross-validation: with its test part left out, a training part of a mean
above average belongs to a test part below it, so that models without any skill correlate negatively
once folds are pooled. What the data leave undefined is NaN.
"""

import numpy as np
from numpy.typing import ArrayLike
from scipy.stats import rankdata

from mil.metrics.arrays import Floats, finite, ratio
from preprocessing.errors import CohortError


def r2(observed: ArrayLike, predicted: ArrayLike) -> float:
    """1 - squared errors / squared deviations from the mean of `observed`; below 0: worse than
    that mean. NaN where all are equal.
    """
    truth, answer = _both(observed, predicted)
    if not len(truth) or np.ptp(truth) == 0:
        return float("nan")
    return float(1 - ((truth - answer) ** 2).sum() / ((truth - truth.mean()) ** 2).sum())


def mean_absolute_error(observed: ArrayLike, predicted: ArrayLike) -> float:
    truth, answer = _both(observed, predicted)
    return float(ratio(np.abs(truth - answer).sum(), len(truth)))


def root_mean_squared_error(observed: ArrayLike, predicted: ArrayLike) -> float:
    truth, answer = _both(observed, predicted)
    return float(np.sqrt(ratio(((truth - answer) ** 2).sum(), len(truth))))


def bias(observed: ArrayLike, predicted: ArrayLike) -> float:
    """Mean of predicted - observed: calibration in the large."""
    truth, answer = _both(observed, predicted)
    return float(ratio((answer - truth).sum(), len(truth)))


def pearson(observed: ArrayLike, predicted: ArrayLike, strata: ArrayLike) -> float:
    """Correlation of the deviations from the means of the strata: with one stratum Pearson's, with
    several the partial correlation given the stratum.
    """
    truth, answer = _within(*_both(observed, predicted), strata, ranked=False)
    return _correlation(truth, answer)


def spearman(observed: ArrayLike, predicted: ArrayLike, strata: ArrayLike) -> float:
    """`pearson` of the ranks within strata, ties at their mean rank, as shares of the stratum.

    Ranks of n rows spread by n: as they are, the sums of squares of a stratum would grow with n^3,
    and the largest would decide. Of their shares rank / n every row weighs about the same.
    """
    truth, answer = _within(*_both(observed, predicted), strata, ranked=True)
    return _correlation(truth, answer)


def calibration_slope(observed: ArrayLike, predicted: ArrayLike, strata: ArrayLike) -> float:
    """Slope of the least-squares line of observed on predicted, with an intercept a stratum.

    1 is perfect; below 1 predictions are spread too far. NaN where predictions do not differ.
    """
    truth, answer = _within(*_both(observed, predicted), strata, ranked=False)
    return float(ratio((truth * answer).sum(), (answer**2).sum()))


def _both(observed: ArrayLike, predicted: ArrayLike) -> tuple[Floats, Floats]:
    truth = finite("observed values", observed, (None,))
    return truth, finite("predicted values", predicted, (len(truth),))


def _within(
    truth: Floats, answer: Floats, strata: ArrayLike, *, ranked: bool
) -> tuple[Floats, Floats]:
    """Deviations from the mean, or of rank / n from its mean, of each row's stratum of n."""
    labels = np.asarray(strata)
    if labels.shape != truth.shape:
        raise CohortError(
            f"metrics: expected one stratum per row, got {labels.shape} strata of {len(truth)}"
        )
    found = np.zeros((2, len(truth)))
    for one in np.unique(labels):
        rows = labels == one
        for values, deviations in zip((truth[rows], answer[rows]), found, strict=True):
            if np.ptp(values) > 0:  # the mean of equal values may round beside them
                used = rankdata(values) / len(values) if ranked else values
                deviations[rows] = used - used.mean()
    return found[0], found[1]


def _correlation(truth: Floats, answer: Floats) -> float:
    scale = np.sqrt((truth**2).sum() * (answer**2).sum())
    return float(np.clip(ratio((truth * answer).sum(), scale), -1, 1))
