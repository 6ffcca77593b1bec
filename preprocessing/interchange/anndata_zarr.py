"""The elements of AnnData's on-disk format in zarr v3, as far as a table of features needs them.

Every element says by two attributes what it is: `encoding-type` and `encoding-version`.
"""

from collections.abc import Mapping
from typing import Any

import numpy as np
import zarr
from numpy.typing import NDArray

_VERSIONS = {
    "anndata": "0.1.0",
    "dict": "0.1.0",
    **dict.fromkeys(("array", "categorical", "dataframe", "string", "string-array"), "0.2.0"),
}
_SLOTS = ("layers", "obsm", "obsp", "varm", "varp")


def write_table(
    parent: zarr.Group,
    name: str,
    values: NDArray[np.float32],
    *,
    tile_id: NDArray[np.int64],
    region: str,
    uns: Mapping[str, Mapping[str, str]],
) -> zarr.Group:
    """X `values` (N, D), and obs with `tile_id` (N,) and the one category `region`."""
    table = _group(parent, name, "anndata")
    _array(table, "X", values)
    obs = _frame(table, "obs", [str(i) for i in tile_id.tolist()], ["tile_id", "library_id"])
    _array(obs, "tile_id", tile_id)
    library = _group(obs, "library_id", "categorical", ordered=False)
    _strings(library, "categories", [region])
    _array(library, "codes", np.zeros(len(tile_id), dtype=np.int8))
    _frame(table, "var", [str(i) for i in range(values.shape[1])], [])
    for slot in _SLOTS:
        _group(table, slot, "dict")
    unstructured = _group(table, "uns", "dict")
    for key, entries in uns.items():
        group = _group(unstructured, key, "dict")
        for entry, text in entries.items():
            scalar = group.create_array(entry, shape=(), dtype="string")
            scalar[...] = text
            scalar.attrs.update(_encoding("string"))
    return table


def _encoding(kind: str) -> dict[str, Any]:
    return {"encoding-type": kind, "encoding-version": _VERSIONS[kind]}


def _group(parent: zarr.Group, name: str, kind: str, **attributes: Any) -> zarr.Group:
    return parent.create_group(name, attributes={**_encoding(kind), **attributes})


def _frame(parent: zarr.Group, name: str, index: list[str], columns: list[str]) -> zarr.Group:
    attributes = {"_index": "_index", "column-order": columns}
    frame = _group(parent, name, "dataframe", **attributes)
    _strings(frame, "_index", index)
    return frame


def _array(group: zarr.Group, name: str, values: NDArray[Any]) -> None:
    group.create_array(
        name,
        data=np.ascontiguousarray(values),
        attributes=_encoding("array"),
        config={"write_empty_chunks": True},
    )


def _strings(group: zarr.Group, name: str, texts: list[str]) -> None:
    array = group.create_array(
        name, shape=(len(texts),), dtype="string", attributes=_encoding("string-array")
    )
    array[...] = np.array(texts, dtype=object)
