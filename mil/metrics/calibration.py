"""What validation patients set for a classifier: temperature, conformal sets, operating point.

All of it is fitted on the validation part of a fold and only applied to its test part. A
positive call means score >= threshold.
"""

from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy.optimize import minimize_scalar
from scipy.special import logsumexp

from mil.metrics.arrays import (
    Flags,
    Floats,
    Indices,
    class_indices,
    finite,
    flags,
    unit_interval,
)
from preprocessing.errors import ConfigError

LOWEST_TEMPERATURE, HIGHEST_TEMPERATURE = 0.05, 20.0


def fit_temperature(logits: ArrayLike, truth_idx: ArrayLike) -> float:
    """The T that calibrates softmax(logits / T) on patients (n, C) (Guo et al. 2017).

    Minimises the summed negative log-likelihood + (ln T)^2 / 2, T in 0.05 .. 20. That standard
    normal prior on ln T keeps T off the bounds where a few patients are perfectly separated, and
    hardly matters otherwise. Without patients T = 1.
    """
    values = finite("logits", logits, (None, None))
    truth = class_indices("truth", truth_idx, length=len(values), classes=values.shape[1])
    of_truth = values[np.arange(len(values)), truth]

    def loss(log_temperature: float) -> float:
        scale = np.exp(-log_temperature)
        likelihood = (logsumexp(values * scale, axis=1) - of_truth * scale).sum()
        return float(likelihood + log_temperature**2 / 2)

    # The prior can add a second minimum: take the best of a grid, then refine beside it.
    grid = np.linspace(np.log(LOWEST_TEMPERATURE), np.log(HIGHEST_TEMPERATURE), 61)
    best = int(np.argmin([loss(one) for one in grid]))
    beside = grid[max(best - 1, 0)], grid[min(best + 1, len(grid) - 1)]
    found: Any = minimize_scalar(loss, bounds=beside, method="bounded", options={"xatol": 1e-7})
    return float(np.exp(found.x))


def conformal_quantile(score_of_truth: ArrayLike, coverage: float) -> float:
    """The largest score 1 - p_truth (n,) that a class may have to be in a prediction set.

    The ceil((n + 1) coverage)-th smallest score of the validation patients, infinite (every class
    is in every set) if they are too few. Sets then hold the truth of a new exchangeable patient
    with at least this probability (Vovk et al. 2005; Angelopoulos and Bates 2021, section 1).
    """
    _refuse_outside("coverage", coverage)
    scores = np.sort(finite("scores of the truth", score_of_truth, (None,)))
    rank = int(np.ceil((len(scores) + 1) * coverage - 1e-9))  # 100 * 0.55 is 55, not 55.00...01
    return float(scores[rank - 1]) if rank <= len(scores) else float("inf")


def conformal_sets(probabilities: ArrayLike, quantile: float) -> Flags:
    """Which classes are in each patient's prediction set, (n, C), given their probabilities (n, C).

    A set may be empty.
    """
    return 1 - unit_interval("probabilities", probabilities, (None, None)) <= quantile


def youden_threshold(truth: ArrayLike, score: ArrayLike) -> float:
    """The threshold with the largest sensitivity + specificity, of equals the highest."""
    thresholds, hits, rejections = _sweep(truth, score)
    gain = hits * rejections[-1] + rejections * hits[0]  # whole numbers: ties are exact
    return float(thresholds[np.flatnonzero(gain == gain.max())[-1]])


def threshold_at_sensitivity(truth: ArrayLike, score: ArrayLike, least: float) -> float:
    """The highest threshold (best specificity) with at least this sensitivity."""
    _refuse_outside("sensitivity", least)
    thresholds, hits, _ = _sweep(truth, score)
    return float(thresholds[np.flatnonzero(hits >= least * hits[0] - 1e-9)[-1]])


def threshold_at_specificity(truth: ArrayLike, score: ArrayLike, least: float) -> float:
    """The lowest threshold (best sensitivity) with at least this specificity."""
    _refuse_outside("specificity", least)
    thresholds, _, rejections = _sweep(truth, score)
    return float(thresholds[np.flatnonzero(rejections >= least * rejections[-1] - 1e-9)[0]])


def _sweep(truth: ArrayLike, score: ArrayLike) -> tuple[Floats, Indices, Indices]:
    """All thresholds that differ, ascending, with their true positives and true negatives.

    They lie midway between neighbouring scores; the first is the lowest score (all are called),
    the last just above the highest (none is). One class only: the thresholds are NaN.
    """
    positive = flags("truth", truth)
    values, place = np.unique(finite("scores", score, (len(positive),)), return_inverse=True)
    missed, rejections = (
        np.append(0, np.cumsum(np.bincount(place[chosen], minlength=len(values))))
        for chosen in (positive, ~positive)
    )
    hits = missed[-1] - missed
    if positive.all() or not positive.any():
        return np.full(len(values) + 1, np.nan), hits, rejections
    middle = values[:-1] + np.diff(values) / 2
    middle = np.where(middle > values[:-1], middle, values[1:])  # neighbours in floating point
    thresholds = np.concatenate([values[:1], middle, np.nextafter(values[-1:], np.inf)])
    return thresholds, hits, rejections


def _refuse_outside(what: str, share: float) -> None:
    if not 0 < share <= 1:
        raise ConfigError(f"metrics: expected a {what} above 0 and at most 1, got {share}")
