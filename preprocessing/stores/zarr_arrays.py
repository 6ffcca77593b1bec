"""Zarr arrays without zarr's silences: a lost chunk file is an error here, not zeros.

Every array carries the SHA-256 of its bytes (`CHECKSUM`, an attribute), so that a reader can prove
that it holds what was written.
"""

import hashlib
import json
import os
import sys
from math import ceil, prod
from pathlib import Path
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray
from zarr.storage import LocalStore, StorePath

from preprocessing.errors import StoreError

CHECKSUM = "sha256"
ROWS_PER_CHUNK = 4096
# What zarr raises, without a base class of its own, for absent, cut or garbled files.
READ_FAILURES = (OSError, ValueError, TypeError, KeyError, RuntimeError)


def damaged(where: Path, what: str) -> StoreError:
    return StoreError(f"{where}: incomplete or damaged store, {what}; delete it and extract again")


def checksum(values: NDArray[Any]) -> str:
    """SHA-256 of the values' bytes, in C order."""
    return hashlib.sha256(np.ascontiguousarray(values).data).hexdigest()


def write_array(group: zarr.Group, key: str, values: NDArray[Any], *, raw: bool) -> None:
    """`raw`: without a codec, in chunks of at most `ROWS_PER_CHUNK` rows; else one chunk.

    Rows are shared out evenly, because zarr pads the last chunk to full size.
    """
    pieces = ceil(len(values) / ROWS_PER_CHUNK) if raw else 1
    group.create_array(
        key,
        data=np.ascontiguousarray(values),
        chunks=(ceil(len(values) / pieces), *values.shape[1:]),
        # Features do not compress, and whole bags read twice as fast without a codec.
        compressors=None if raw else "auto",
        # Chunks of zeros would be left out otherwise, and look like lost ones.
        config={"write_empty_chunks": True},
        attributes={CHECKSUM: checksum(values)},
    )


def open_array(store: Path, key: str) -> "zarr.Array[Any]":
    """From its metadata file alone: a group would hand each of its members to an event loop, which
    costs several times as much as the file does.
    """
    try:
        metadata = json.loads((store / key / "zarr.json").read_bytes())
        return zarr.Array.from_dict(StorePath(LocalStore(store, read_only=True), key), metadata)
    except READ_FAILURES as error:
        raise damaged(store / key, f"the array cannot be opened: {error!r}") from error


def read_array(store: Path, key: str) -> NDArray[Any]:
    array = open_array(store, key)
    check_chunks(store / key, array)
    try:
        return _read_raw(store / key, array) if _is_raw(array) else np.asarray(array[...])
    except READ_FAILURES as error:
        raise damaged(store / key, f"reading failed: {error}") from error


def recorded_checksum(folder: Path, array: "zarr.Array[Any]") -> str:
    """What `checksum` was of the values when they were written."""
    recorded = array.attrs.get(CHECKSUM)
    if not isinstance(recorded, str):
        raise damaged(folder, f"the array has no attribute {CHECKSUM!r}")
    return recorded


def _is_raw(array: "zarr.Array[Any]") -> bool:
    """Whether the chunk files are the rows themselves, as `write_array` leaves features."""
    native = {"name": "bytes", "configuration": {"endian": sys.byteorder}}
    codecs = array.metadata.to_dict().get("codecs")
    return codecs == (native,) and array.chunks[1:] == array.shape[1:]


def _read_raw(folder: Path, array: "zarr.Array[Any]") -> NDArray[Any]:
    """Each chunk straight into its place. zarr makes bytes of a file and then copies these, in
    threads that it hands every chunk to: twice the time, and more on a busy machine.
    """
    values = np.empty(array.shape, array.dtype)
    rows, inner = array.chunks[0], ["0"] * (array.ndim - 1)
    for number, start in enumerate(range(0, len(values), rows)):
        place = values[start : start + rows].data.cast("B")
        with folder.joinpath("c", str(number), *inner).open("rb", buffering=0) as chunk:
            if chunk.readinto(place) != len(place):
                raise ValueError(f"chunk {number} is cut off")
    return values


def check_chunks(folder: Path, array: "zarr.Array[Any]") -> None:
    """Every chunk file is there and, without a codec, of full length."""
    counts = [ceil(n / chunk) for n, chunk in zip(array.shape, array.chunks, strict=True)]
    full_bytes = None if array.compressors else prod(array.chunks) * array.dtype.itemsize
    for index in np.ndindex(*counts):
        chunk = os.path.join(folder, "c", *map(str, index))  # noqa: PTH118 - a third of the time
        try:
            found_bytes = os.stat(chunk).st_size  # noqa: PTH116
        except OSError as error:
            raise damaged(Path(chunk), "this chunk is missing") from error
        if found_bytes == 0 or full_bytes not in (None, found_bytes):
            wanted = "some" if full_bytes is None else str(full_bytes)
            raise damaged(Path(chunk), f"expected {wanted} bytes, got {found_bytes}")
