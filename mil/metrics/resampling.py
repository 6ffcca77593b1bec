"""Patient bootstrap: draws, intervals, p-values, and their correction for many comparisons.

The patient is the unit: slides of one patient are not independent.
"""

from collections.abc import Callable, Iterator

import numpy as np
from numpy.typing import ArrayLike, NDArray

from mil.metrics.arrays import Floats, finite
from preprocessing.errors import CohortError

Rows = NDArray[np.intp]
Metric = Callable[[Rows], float]


def patient_draws(
    patients: ArrayLike, strata: ArrayLike | None, resamples: int, seed: int
) -> Iterator[Rows]:
    """Rows of `resamples` bootstrap samples: as many patients as there are, with replacement.

    `patients` (n,) says whose each row is; all rows of a drawn patient come along, as often as
    drawn. With `strata` (n,) every stratum keeps its number of patients; a patient in two strata
    is a CohortError. The same seed gives the same draws.
    """
    names, patient = np.unique(np.asarray(patients), return_inverse=True)
    stratum = _stratum_of_patient(names, patient, strata)
    row_order = np.argsort(patient, kind="stable")
    row_counts = np.bincount(patient, minlength=len(names))
    row_starts = np.cumsum(row_counts) - row_counts
    by_stratum = np.argsort(stratum, kind="stable")
    sizes = np.bincount(stratum)
    size = np.repeat(sizes, sizes)
    start = np.repeat(np.cumsum(sizes) - sizes, sizes)
    rng = np.random.default_rng(seed)
    for _ in range(resamples):
        drawn = by_stratum[start + rng.integers(size)]
        counts = row_counts[drawn]
        before = np.repeat(np.cumsum(counts) - counts, counts)
        yield row_order[np.repeat(row_starts[drawn], counts) + np.arange(len(before)) - before]


def _stratum_of_patient(names: NDArray, patient: Rows, strata: ArrayLike | None) -> Rows:
    if strata is None:
        return np.zeros(len(names), dtype=np.intp)
    _, of_row = np.unique(np.asarray(strata), return_inverse=True)
    if of_row.shape != patient.shape:
        raise CohortError(
            f"bootstrap: expected one stratum per row, got {len(of_row)} strata of "
            f"{len(patient)} rows"
        )
    of_patient = np.zeros(len(names), dtype=np.intp)
    of_patient[patient] = of_row
    torn = names[np.unique(patient[of_patient[patient] != of_row])]
    if len(torn):
        raise CohortError(
            f"bootstrap: expected each patient in one stratum, got {len(torn)} patients in "
            f"several, such as {torn[:5].tolist()}: draw without strata, or within one repeat"
        )
    return of_patient


def percentile_interval(values: ArrayLike, level: float = 0.95) -> tuple[float, float]:
    """The middle `level` of a metric's values over the draws; undefined draws do not count."""
    defined = _defined(values)
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [(1 - level) / 2, (1 + level) / 2])
    return float(low), float(high)


def bootstrap_p(differences: ArrayLike) -> float:
    """Two-sided p-value of no difference, from a paired difference's values over the draws.

    Twice the smaller of the shares at or below 0 and at or above 0, each (1 + count) / (1 + B), so
    that it is never 0 (Davison and Hinkley 1997, section 4.2). Undefined draws do not count.
    """
    defined = _defined(differences)
    if not len(defined):
        return float("nan")
    rarer = min((defined <= 0).sum(), (defined >= 0).sum())
    return min(1.0, float(2 * (1 + rarer) / (1 + len(defined))))


def holm(p_values: ArrayLike) -> Floats:
    """p-values (m,) adjusted for their number (Holm 1979); NaN stay NaN and do not count."""
    values = np.asarray(p_values, dtype=np.float64)
    tested = np.flatnonzero(~np.isnan(values))
    order = tested[np.argsort(values[tested], kind="stable")]
    ordered = finite("p-values", values[order], (len(tested),)) * np.arange(len(tested), 0, -1)
    adjusted = np.full(values.shape, np.nan)
    adjusted[order] = np.minimum(np.maximum.accumulate(ordered), 1)
    return adjusted


def _defined(values: ArrayLike) -> Floats:
    array = np.asarray(values, dtype=np.float64)
    return array[~np.isnan(array)]
