"""Are arrays of the kind and content that a feature store's schema asks for?"""

from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import StoreError

if TYPE_CHECKING:
    import zarr

_INFINITY = 0x7C00  # as the bits of a float16; beyond it are those of NaN


def check_array(
    where: str,
    array: "zarr.Array[Any] | NDArray[Any]",
    *,
    dtype: str,
    shape: tuple[int | None, ...],
) -> None:
    """`StoreError` that says `where`; an extent of None may be any."""
    fits = len(array.shape) == len(shape) and all(
        want in (None, got) for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits or str(array.dtype) != dtype:
        wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
        raise StoreError(
            f"{where}: expected {dtype} {wanted}, got {array.dtype} {tuple(array.shape)}"
        )


def rows_fit(values: NDArray[np.float16], read_error: NDArray[np.bool_]) -> NDArray[np.bool_]:
    """(N,) finite where the tile could be read, NaN where not.

    By the bits: numpy takes eight times as long to test float16 for both.
    """
    magnitude = np.ascontiguousarray(values).view(np.uint16) & 0x7FFF
    fits = magnitude.max(axis=1) < _INFINITY
    fits[read_error] = magnitude[read_error].min(axis=1) > _INFINITY
    return fits
