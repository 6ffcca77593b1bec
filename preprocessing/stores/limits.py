"""Which tiles keep the limits of quality that a study sets."""

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import QualityConfig
from preprocessing.errors import StoreError

_LEAST = {"min_sharpness": 0}
_MOST = {"max_ink": 1, "max_blank": 2}
"""Keys of the configuration and columns of `store.QUALITY`."""


def within(quality: NDArray[np.float32], limits: QualityConfig, where: str) -> NDArray[np.bool_]:
    """(N,) whether each row of `quality` (N, 3) keeps every limit; a value at a limit keeps it.

    The rows are those of readable tiles. Raises `StoreError`, which names `where` they come from,
    if a limit asks for a value that is not known (NaN).
    """
    set_ = limits.model_dump(exclude_none=True)
    for key, column in {**_LEAST, **_MOST}.items():
        unknown = int(np.isnan(quality[:, column]).sum()) if key in set_ else 0
        if unknown:
            raise StoreError(
                f"{where}: quality.{key} is set, but not known for {unknown} of {len(quality)} "
                "tiles; extract the slide again, or remove the limit"
            )
    outside = breaches(quality, limits).values()
    return ~np.any([*outside, np.zeros(len(quality), dtype=bool)], axis=0)


def breaches(quality: NDArray[np.float32], limits: QualityConfig) -> dict[str, NDArray[np.bool_]]:
    """For every limit that is set: (N,) which tiles break it; what is not known breaks none."""
    set_ = limits.model_dump(exclude_none=True)
    # float32, or a stored value at a limit would fall on its other side
    least = {k: quality[:, n] < np.float32(set_[k]) for k, n in _LEAST.items() if k in set_}
    most = {k: quality[:, n] > np.float32(set_[k]) for k, n in _MOST.items() if k in set_}
    return least | most
