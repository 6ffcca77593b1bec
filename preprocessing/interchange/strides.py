"""How far apart the tiles of another tool are, where its files do not say or round it."""

import numpy as np
from numpy.typing import NDArray

from preprocessing.interchange.base import Pair

_SEEN_PX0 = 1e-3  # a tenth of a pixel after a hundred tiles


def stride_of(coords_px0: NDArray[np.int32], candidates: list[Pair]) -> Pair:
    """(x, y) of tiles at `coords_px0` (N, 2), whole pixels; each axis by itself.

    The first of the candidates on whose lattice all tiles lie; else what most neighbours in a row
    (or column) are apart, which is right for pieces of tissue with lattices of their own, too;
    without neighbours the first candidate.
    """
    return _stride(coords_px0, 0, candidates), _stride(coords_px0, 1, candidates)


def _stride(coords_px0: NDArray[np.int32], axis: int, candidates: list[Pair]) -> float:
    starts = coords_px0[:, axis] - int(coords_px0[:, axis].min())
    for stride in (pair[axis] for pair in candidates):
        residual = starts - np.rint(starts / stride) * stride
        if np.ptp(residual) <= 1:
            return stride
    order = np.lexsort((coords_px0[:, axis], coords_px0[:, 1 - axis]))
    steps = np.diff(coords_px0[order], axis=0)
    steps = steps[(steps[:, 1 - axis] == 0) & (steps[:, axis] > 0), axis]
    return _common_step(steps) if len(steps) else candidates[0][axis]


def _common_step(steps: NDArray[np.integer]) -> float:
    """Of steps that are mostly one stride, or some of them where tiles are missing.

    A stride of a fraction shows as two whole numbers; over many steps it averages out.
    """
    values, counts = np.unique(steps, return_counts=True)
    both = counts + np.append(counts[1:] * (np.diff(values) == 1), 0)
    least = values[both.argmax()]
    rough = steps[(steps >= least) & (steps <= least + 1)].mean()
    times = np.rint(steps / rough)
    regular = (times > 0) & (abs(steps - times * rough) <= 1)
    stride = float(steps[regular].sum() / times[regular].sum())
    whole = round(stride)
    return whole if abs(stride - whole) < _SEEN_PX0 else stride
