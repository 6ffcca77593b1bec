"""THE schema of a slide's feature store, and the only code that writes or opens one.

`<slide_id>.zarr` is a zarr v3 group (N tiles, D numbers per tile):

    coords           (N, 2) int32    top-left (x, y), level-0 pixels
    tissue_fraction  (N,)   float32
    read_error       (N,)   bool     the tile could not be read; its features are NaN
    quality          (N, 3) float32  sharpness, ink, blank (`QUALITY`); NaN where not known
    features/<name>  (N, D) float16  one array per encoder, uncompressed, chunks of up to 4096 rows
    thumbnail        (h, w, 3) uint8
    tissue_mask      (h, w) bool
    attribute `histomil`             a `Provenance`

Every array has the SHA-256 of its bytes as attribute `sha256`. A store is written under a partial
name and renamed, so `<slide_id>.zarr` is whole or absent. zarr reads a lost chunk as zeros without
a word, so `open_store` looks at every chunk file.
"""

import hashlib
import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import ValidationError

from preprocessing.artefacts import whole_folder
from preprocessing.config import QualityConfig
from preprocessing.errors import NoTissue, StoreError
from preprocessing.stores.array_checks import check_array, rows_fit
from preprocessing.stores.limits import within
from preprocessing.stores.provenance import SCHEMA_VERSION, EncoderRecord, Provenance
from preprocessing.stores.zarr_arrays import (
    check_chunks,
    checksum,
    damaged,
    open_array,
    read_array,
    recorded_checksum,
    write_array,
)

ATTRIBUTE = "histomil"
QUALITY = ("sharpness", "ink", "blank")
_NO_LIMITS = QualityConfig()


@dataclass(frozen=True, eq=False)
class SlideFeatures:
    """Everything a store holds, in memory; `features` is keyed as `provenance.encoders`."""

    provenance: Provenance
    coords_px0: NDArray[np.int32]
    tissue_fraction: NDArray[np.float32]
    read_error: NDArray[np.bool_]
    quality: NDArray[np.float32]
    features: dict[str, NDArray[np.float16]]
    thumbnail: NDArray[np.uint8]
    tissue_mask: NDArray[np.bool_]


def store_path(folder: Path, slide_id: str) -> Path:
    return folder / f"{slide_id}.zarr"


def features_key(encoder: str) -> str:
    """The array's key; hub names contain '/', which would open a sub-group, so it is quoted."""
    return f"features/{quote(encoder, safe='')}"


def write_store(folder: Path, contents: SlideFeatures) -> Path:
    """Write to a partial name and rename; an existing store of the slide is replaced.

    Raises `NoTissue` for N = 0 and `StoreError` for contents that break the schema.
    """
    slide_id = contents.provenance.slide_id
    if len(contents.coords_px0) == 0:
        raise NoTissue(slide_id, "no tile to store; see grid.min_tissue and the tissue settings")
    arrays = _arrays_of(contents)
    _check_contents(arrays, contents)
    final = store_path(folder, slide_id)
    if final.exists() and not final.is_dir():
        raise StoreError(f"{final}: expected a folder or nothing, found a file; move it away")
    with whole_folder(final) as partial:
        _write_group(partial, arrays, contents.provenance)
    return final


def open_store(path: Path, limits: QualityConfig = _NO_LIMITS) -> "FeatureStore":
    """Open and check against the schema; `StoreError` says what is missing or of another kind.

    `limits` say which of the readable tiles are `usable`.
    """
    provenance = _read_provenance(path)
    name = provenance.slide_id
    if store_path(path.parent, name) != path:
        raise StoreError(f"{path}: holds slide {name!r}; give the folder its slide's name")
    tiles = open_array(path, "coords").shape[0]
    checksums = {}
    for key, (dtype, shape) in _schema(tiles, provenance).items():
        array = open_array(path, key)
        check_array(f"{path}: {key}", array, dtype=dtype, shape=shape)
        check_chunks(path / key, array)
        checksums[key] = recorded_checksum(path / key, array)
    return FeatureStore(path, provenance, limits, checksums, tiles=tiles)


class FeatureStore:
    """An open, checked store; its arrays are read when asked for, all but features once."""

    def __init__(
        self,
        path: Path,
        provenance: Provenance,
        limits: QualityConfig,
        checksums: dict[str, str],
        *,
        tiles: int,
    ) -> None:
        self.path = path
        self.provenance = provenance
        self._limits = limits
        self._checksums = checksums
        self._tiles = tiles

    def __len__(self) -> int:
        return self._tiles

    @cached_property
    def coords_px0(self) -> NDArray[np.int32]:
        return self._read("coords")

    @cached_property
    def tissue_fraction(self) -> NDArray[np.float32]:
        return self._read("tissue_fraction")

    @cached_property
    def read_error(self) -> NDArray[np.bool_]:
        return self._read("read_error")

    @cached_property
    def quality(self) -> NDArray[np.float32]:
        return self._read("quality")

    @cached_property
    def thumbnail(self) -> NDArray[np.uint8]:
        return self._read("thumbnail")

    @cached_property
    def tissue_mask(self) -> NDArray[np.bool_]:
        return self._read("tissue_mask")

    @cached_property
    def usable(self) -> NDArray[np.bool_]:
        """(N,) the tiles that could be read and are within the limits."""
        usable = ~self.read_error
        if self._limits != _NO_LIMITS:
            # Not `self.quality`, which would be kept: thousands of stores may be open.
            usable[usable] = within(self._read("quality")[usable], self._limits, str(self.path))
        return usable

    @property
    def encoders(self) -> tuple[str, ...]:
        return tuple(self.provenance.encoders)

    def encoder_record(self, encoder: str) -> EncoderRecord:
        """How the features of `encoder` were made."""
        if encoder not in self.provenance.encoders:
            raise StoreError(
                f"{self.path}: no features of encoder {encoder!r}, present: "
                f"{', '.join(self.encoders)}; extract them or change encoder.name"
            )
        return self.provenance.encoders[encoder]

    def features(self, encoder: str) -> NDArray[np.float16]:
        """(N, D), read from disk at every call; NaN rows where `read_error`."""
        self.encoder_record(encoder)
        return self._read(features_key(encoder))

    def verified_features(self, encoder: str) -> NDArray[np.float16]:
        """As `features`; `StoreError` unless they are, bit for bit, what was written."""
        self.encoder_record(encoder)
        return self._verified(features_key(encoder))

    def verify(self) -> None:
        """Reads every array; `StoreError` for the first that is not what was written."""
        for key in self._checksums:
            self._verified(key)

    def content(self, encoder: str) -> str:
        """A digest of the features of the usable tiles, their order and their places."""
        self.encoder_record(encoder)
        written = [self._checksums[key] for key in ("coords", features_key(encoder))]
        return hashlib.sha256(" ".join([*written, checksum(self.usable)]).encode()).hexdigest()

    def _verified(self, key: str) -> NDArray[Any]:
        values, wanted = self._read(key), self._checksums[key]
        if checksum(values) != wanted:
            raise damaged(self.path / key, f"its values are not those written (SHA-256 {wanted})")
        return values

    def _read(self, key: str) -> NDArray[Any]:
        return read_array(self.path, key)


def _schema(tiles: int, provenance: Provenance) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """Key -> dtype and shape, None where any extent is right."""
    schema: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "coords": ("int32", (tiles, 2)),
        "tissue_fraction": ("float32", (tiles,)),
        "read_error": ("bool", (tiles,)),
        "quality": ("float32", (tiles, len(QUALITY))),
        "thumbnail": ("uint8", (None, None, 3)),
        "tissue_mask": ("bool", (None, None)),
    }
    for name, record in provenance.encoders.items():
        schema[features_key(name)] = ("float16", (tiles, record.dim))
    return schema


def _arrays_of(contents: SlideFeatures) -> dict[str, NDArray[Any]]:
    return {
        "coords": contents.coords_px0,
        "tissue_fraction": contents.tissue_fraction,
        "read_error": contents.read_error,
        "quality": contents.quality,
        "thumbnail": contents.thumbnail,
        "tissue_mask": contents.tissue_mask,
        **{features_key(name): values for name, values in contents.features.items()},
    }


def _check_contents(arrays: dict[str, NDArray[Any]], contents: SlideFeatures) -> None:
    provenance = contents.provenance
    where = f"slide {provenance.slide_id!r}"
    if not provenance.encoders or set(provenance.encoders) != set(contents.features):
        raise StoreError(
            f"{where}: expected features of the recorded encoders {sorted(provenance.encoders)}, "
            f"got {sorted(contents.features)}"
        )
    for key, (dtype, shape) in _schema(len(contents.coords_px0), provenance).items():
        check_array(f"{where}: {key}", arrays[key], dtype=dtype, shape=shape)
    for name, values in contents.features.items():
        bad = np.flatnonzero(~rows_fit(values, contents.read_error))
        if len(bad):
            raise StoreError(
                f"{where}: encoder {name!r}: expected finite rows for readable tiles and NaN for "
                f"unreadable ones, {len(bad)} of {len(values)} rows differ, first row {bad[0]} "
                f"(float16 ends at {np.finfo(np.float16).max:g})"
            )


def _write_group(path: Path, arrays: dict[str, NDArray[Any]], provenance: Provenance) -> None:
    group = zarr.create_group(path, zarr_format=3)
    for key, values in arrays.items():
        write_array(group, key, values, raw=key.startswith("features/"))
    # Last, so that a copy that stopped early is likely to lack it.
    group.attrs[ATTRIBUTE] = provenance.model_dump(mode="json")


def _read_provenance(path: Path) -> Provenance:
    if not path.is_dir():
        raise StoreError(f"{path}: no such feature store; extract the slide's features first")
    if ".partial-" in path.name:
        raise damaged(path, "its name says that it was never finished")
    try:
        root = json.loads((path / "zarr.json").read_bytes())
        kind = root["zarr_format"], root["node_type"]
        record = (root.get("attributes") or {}).get(ATTRIBUTE)
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise StoreError(f"{path}: expected a zarr v3 group, got {error!r}") from error
    if kind != (3, "group"):
        raise StoreError(f"{path}: expected a zarr v3 group, got {kind[1]!r} of version {kind[0]}")
    return _provenance(path, record)


def _provenance(path: Path, record: object) -> Provenance:
    if not isinstance(record, dict):
        raise StoreError(f"{path}: no attribute {ATTRIBUTE!r}: not a histomil store or unfinished")
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path}: schema version {version!r}, this histomil reads {SCHEMA_VERSION}; "
            "extract the features again or use the version that wrote them"
        )
    try:
        return Provenance.model_validate(record)
    except ValidationError as error:
        raise StoreError(f"{path}: attribute {ATTRIBUTE!r} is not a provenance: {error}") from error
