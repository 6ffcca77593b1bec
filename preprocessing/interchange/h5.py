"""HDF5 as CLAM, TRIDENT and STAMP write it."""

from typing import Any

import h5py
import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import StoreError


def dataset(file: h5py.File, key: str) -> h5py.Dataset:
    found = file.get(key)
    if not isinstance(found, h5py.Dataset):
        raise StoreError(
            f"{file.filename}: no dataset {key!r}, present: {', '.join(file) or 'none'}; name the "
            "format that this file is of"
        )
    return found


def attribute(of: h5py.Dataset | h5py.File, key: str) -> Any:
    if key not in of.attrs:
        raise StoreError(
            f"{of.file.filename}: {of.name} has no attribute {key!r}, present: "
            f"{', '.join(of.attrs) or 'none'}; name the format that this file is of"
        )
    return of.attrs[key]


def attributes(of: h5py.Dataset | h5py.File) -> dict[str, Any]:
    return dict(of.attrs)


def integers(of: h5py.Dataset, key: str) -> tuple[int, int]:
    first, second = np.asarray(attribute(of, key)).tolist()
    return int(first), int(second)


def grown(file: h5py.File, key: str, values: NDArray[Any], *, rows_per_chunk: int) -> h5py.Dataset:
    """A dataset that can be appended to, as tools leave it that write batch by batch."""
    width = values.shape[1]
    return file.create_dataset(
        key, data=values, maxshape=(None, width), chunks=(rows_per_chunk, width)
    )
