"""Reading zarr arrays without zarr's silences: a lost chunk file is an error here, not zeros."""

from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

from preprocessing.errors import StoreError

# What zarr raises, without a base class of its own, for absent, cut or garbled files.
READ_FAILURES = (OSError, ValueError, TypeError, KeyError, RuntimeError)


def damaged(where: Path, what: str) -> StoreError:
    return StoreError(f"{where}: incomplete or damaged store, {what}; delete it and extract again")


def open_array(group: zarr.Group, path: Path, key: str) -> "zarr.Array[Any]":
    try:
        array = group[key]
    except READ_FAILURES as error:
        raise damaged(path / key, f"the array cannot be opened: {error!r}") from error
    if not isinstance(array, zarr.Array):
        raise damaged(path / key, "expected an array, found a group")
    return array


def read_array(group: zarr.Group, path: Path, key: str) -> NDArray[Any]:
    array = open_array(group, path, key)
    try:
        return np.asarray(array[...])
    except READ_FAILURES as error:
        raise damaged(path / key, f"reading failed: {error}") from error


def check_chunks(folder: Path, array: "zarr.Array[Any]") -> None:
    """Every chunk file is there and, without a codec, of full length."""
    counts = [ceil(n / chunk) for n, chunk in zip(array.shape, array.chunks, strict=True)]
    full_bytes = None if array.compressors else prod(array.chunks) * array.dtype.itemsize
    for index in np.ndindex(*counts):
        chunk = folder.joinpath("c", *map(str, index))
        found_bytes = chunk.stat().st_size if chunk.is_file() else None
        if found_bytes is None:
            raise damaged(chunk, "this chunk is missing")
        if found_bytes == 0 or full_bytes not in (None, found_bytes):
            wanted = "some" if full_bytes is None else str(full_bytes)
            raise damaged(chunk, f"expected {wanted} bytes, got {found_bytes}")
