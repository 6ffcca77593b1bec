"""What all metrics share: checked input, ratios that may be undefined, shares and bins with ties.

Malformed input is a CohortError; a metric that the data leave undefined is NaN.
"""

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preprocessing.errors import CohortError

Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]
Indices = NDArray[np.intp]


def finite(what: str, values: ArrayLike, shape: tuple[int | None, ...]) -> Floats:
    """`values` as finite float64 of this shape, where None stands for any length."""
    array = np.asarray(values, dtype=np.float64)
    _refuse_shape(what, array.shape, shape)
    if not np.isfinite(array).all():
        rows = np.unique(np.nonzero(~np.isfinite(array))[0])
        raise CohortError(
            f"metrics: expected finite {what}, got {array[rows[0]].tolist()} in row {rows[0]} "
            f"({len(rows)} such rows): leave out rows without a prediction"
        )
    return array


def unit_interval(what: str, values: ArrayLike, shape: tuple[int | None, ...]) -> Floats:
    """`values` as finite float64 of this shape in 0 .. 1 (up to rounding in float32)."""
    array = finite(what, values, shape)
    bad = array[(array < -1e-6) | (array > 1 + 1e-6)]
    if bad.size:
        raise CohortError(f"metrics: expected {what} between 0 and 1, got {bad[:5].tolist()}")
    return array


def flags(what: str, values: ArrayLike, length: int | None = None) -> Flags:
    """`values` as bool (n,); 0 and 1 are accepted, class names and other numbers are not."""
    array = np.asarray(values)
    _refuse_shape(what, array.shape, (length,))
    if array.dtype != np.bool_ and not np.isin(array, (0, 1)).all():
        bad = np.setdiff1d(array, (0, 1))[:5].tolist()
        raise CohortError(f"metrics: expected {what} as True or False, got {bad}")
    return array.astype(bool, copy=False)


def class_indices(what: str, values: ArrayLike, *, length: int | None, classes: int) -> Indices:
    """`values` as intp (n,), each in 0 .. classes - 1."""
    array = np.asarray(values)
    _refuse_shape(what, array.shape, (length,))
    if not np.isin(array, np.arange(classes)).all():
        bad = np.setdiff1d(array, np.arange(classes))[:5].tolist()
        raise CohortError(f"metrics: expected {what} as class numbers 0..{classes - 1}, got {bad}")
    return array.astype(np.intp, copy=False)


def _refuse_shape(what: str, got: tuple[int, ...], expected: tuple[int | None, ...]) -> None:
    same = len(got) == len(expected) and all(
        e in (None, g) for g, e in zip(got, expected, strict=True)
    )
    if not same:
        named = ", ".join("any" if e is None else str(e) for e in expected)
        raise CohortError(f"metrics: expected {what} of shape ({named}), got {got}")


def ratio(part: ArrayLike, of: ArrayLike) -> Floats:
    """Quotient part / of; NaN where `of` is not above 0."""
    part, of = np.asarray(part, dtype=np.float64), np.asarray(of, dtype=np.float64)
    shape = np.broadcast_shapes(part.shape, of.shape)
    return np.divide(part, of, out=np.full(shape, np.nan), where=of > 0)


def share_below(values: Floats, among: Floats) -> Floats:
    """For each value the share of `among` below it, equal ones by half: (n,), NaN among none."""
    ordered = np.sort(among)
    below = np.searchsorted(ordered, values, "left") + np.searchsorted(ordered, values, "right")
    return ratio(below, 2 * len(among))


def equal_count_bins(values: Floats, bins: int) -> Indices:
    """Which of `bins` parts of about equal count each value is in; equal values stay together.

    The edges are quantiles (linear interpolation); a value on an edge is in the lower part.
    With many equal values some parts are empty.
    """
    if not len(values):
        return np.zeros(0, dtype=np.intp)
    inner = np.quantile(values, np.arange(1, bins) / bins)
    return np.searchsorted(inner, values, "left")
