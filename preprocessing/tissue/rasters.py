"""Filters of masks and grey planes that the tissue mask needs, each a few milliseconds a megapixel.

Pillow's and scipy's general ones take 10 to 60 times as long for the same result.
"""

from math import isqrt
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

Mask = NDArray[np.bool_]
_STRIP_ROWS = 128  # so that what is compared stays in the processor's cache


def byte_quantile(values: NDArray[np.uint8], share: float) -> int:
    """The least value that at least `share` of the values do not exceed."""
    return int(np.searchsorted(np.bincount(values.ravel()).cumsum(), share * values.size))


def median3(plane: NDArray[Any]) -> NDArray[Any]:
    """(h, w) medians over 3 x 3 pixels; the border is repeated outwards."""
    height = plane.shape[0]
    padded = np.pad(plane, 1, mode="edge")
    smooth = np.empty_like(plane)
    for top in range(0, height, _STRIP_ROWS):
        bottom = min(top + _STRIP_ROWS, height)
        smooth[top:bottom] = _median3_inside(padded[top : bottom + 2])
    return smooth


def _median3_inside(rows: NDArray[Any]) -> NDArray[Any]:
    """Columns of three are sorted once and shared; of their lows, middles and highs, the highest
    low, the median middle and the lowest high hold the median between them.
    """
    low, middle, high = _sorted3(rows[:-2], rows[1:-1], rows[2:])
    highest_low = np.maximum(np.maximum(low[:, :-2], low[:, 1:-1]), low[:, 2:])
    lowest_high = np.minimum(np.minimum(high[:, :-2], high[:, 1:-1]), high[:, 2:])
    centre = _sorted3(middle[:, :-2], middle[:, 1:-1], middle[:, 2:])[1]
    return _sorted3(highest_low, centre, lowest_high)[1]


def _sorted3(
    a: NDArray[Any], b: NDArray[Any], c: NDArray[Any]
) -> tuple[NDArray[Any], NDArray[Any], NDArray[Any]]:
    low, high = np.minimum(a, b), np.maximum(a, b)
    middle = np.minimum(high, c)
    return np.minimum(low, middle), np.maximum(low, middle), np.maximum(high, c)


def dilated(mask: Mask, radius_px: int) -> Mask:
    """Grown by a disk: everything at most `radius_px` pixels from the mask."""
    grown = mask.copy()
    wide = mask.copy()  # grown along rows alone, a little more in every turn
    half_width = 0
    for dy in range(radius_px, -1, -1):
        for reach in range(half_width + 1, isqrt(radius_px**2 - dy**2) + 1):
            wide[:, reach:] |= mask[:, :-reach]
            wide[:, :-reach] |= mask[:, reach:]
        half_width = isqrt(radius_px**2 - dy**2)
        if dy < len(mask):
            grown[dy:] |= wide[: len(mask) - dy]
            grown[: len(mask) - dy] |= wide[dy:]
    return grown


def closed(mask: Mask, radius_px: int) -> Mask:
    """Gaps narrower than a disk are filled; what lies outside the picture continues its border,
    or tissue along the border would be eaten.
    """
    padded = np.pad(mask, radius_px, mode="edge")
    inner = slice(radius_px, -radius_px)
    # Beyond the padding nothing is known, and nothing there may eat either.
    return ~dilated(~dilated(padded, radius_px), radius_px)[inner, inner]


def grown_within(mask: Mask, *, steps: int, within: Mask) -> Mask:
    """Grown over neighbours along rows and columns, `steps` times, where `within` allows."""
    grown = mask.copy()
    if mask.any():
        ndimage.binary_dilation(mask, iterations=steps, mask=within, output=grown)
    return grown


def without_small(mask: Mask, least_px: float) -> Mask:
    """The mask less its connected parts of fewer than `least_px` pixels."""
    if np.count_nonzero(mask) < least_px:
        return np.zeros_like(mask)
    labels, parts = _labelled(mask)
    return _chosen(labels, np.bincount(labels.ravel(), minlength=parts + 1) >= least_px)


def parts_touching(mask: Mask, seeds: Mask) -> Mask:
    """The connected parts of the mask that hold a seed."""
    labels, parts = _labelled(mask)
    return _chosen(labels, np.bincount(labels[seeds], minlength=parts + 1) > 0)


def _labelled(mask: Mask) -> tuple[NDArray[np.int32], int]:
    labels = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=labels)
    return labels, int(labels.max())


def _chosen(labels: NDArray[np.int32], kept: NDArray[np.bool_]) -> Mask:
    kept[0] = False  # what is not in the mask
    return kept[labels]
