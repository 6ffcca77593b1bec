"""Groups and arrays of foreign zarr stores, typed as loosely as they are."""

from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from preprocessing.errors import StoreError


def open_root(path: Path) -> zarr.Group:
    """By the metadata of each member: a consolidated copy may be older."""
    return zarr.open_group(path, mode="r", use_consolidated=False)


def group_at(group: zarr.Group, key: str) -> zarr.Group:
    found = group.get(key)
    if not isinstance(found, zarr.Group):
        raise StoreError(
            f"{group.store_path}: no group {key!r}, present: {', '.join(sorted(group.keys()))}"
        )
    return found


def array_at(group: zarr.Group, key: str) -> "zarr.Array[Any]":
    found = group.get(key)
    if not isinstance(found, zarr.Array):
        raise StoreError(
            f"{group.store_path}: no array {key!r}, present: {', '.join(sorted(group.keys()))}"
        )
    return found


def values_at(group: zarr.Group, key: str) -> NDArray[Any]:
    """All of an array. A lost chunk would read as zeros: only that of a single row may be absent,
    which writers leave out where it is zero.
    """
    array = array_at(group, key)
    lost = array.nchunks - array.nchunks_initialized
    if lost > 0 and array.shape[0] > 1:
        raise StoreError(
            f"{group.store_path}: array {key!r} lacks {lost} of {array.nchunks} chunks; copy the "
            "store again, or make it anew"
        )
    return np.asarray(array[...])


def attributes(of: "zarr.Group | zarr.Array[Any]") -> dict[str, Any]:
    return dict(of.attrs)
