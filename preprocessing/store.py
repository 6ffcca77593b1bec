"""THE schema of a slide's feature store, and the only code that writes or opens one.

`<slide_id>.zarr` is a zarr v3 group (N tiles, D numbers per tile):

    coords           (N, 2) int32    top-left (x, y), level-0 pixels
    tissue_fraction  (N,)   float32
    read_error       (N,)   bool     the tile could not be read; its features are NaN
    quality          (N, 3) float32  sharpness, ink, blank (`QUALITY`); NaN where not known
    features/<name>  (N, D) float16  one array per encoder, uncompressed, chunks of 1-4 MiB
    thumbnail        (h, w, 3) uint8
    tissue_mask      (h, w) bool
    attribute `histomil`             a `Provenance`

A store is written under a partial name and renamed, so `<slide_id>.zarr` is whole or absent.
zarr reads a lost chunk as zeros without a word, so `open_store` looks at every chunk file.
"""

from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any
from urllib.parse import quote

import numpy as np
import zarr
from numpy.typing import NDArray
from pydantic import Field, ValidationError

from preprocessing.artefacts import whole_folder
from preprocessing.config import GridConfig, ReadingConfig, Section, TissueConfig
from preprocessing.errors import NoTissue, StoreError
from preprocessing.zarr_arrays import (
    READ_FAILURES,
    check_chunks,
    damaged,
    open_array,
    read_array,
)

SCHEMA_VERSION = 2
ATTRIBUTE = "histomil"
QUALITY = ("sharpness", "ink", "blank")
_CHUNK_BYTES = 2 << 20


class EncoderRecord(Section):
    """What made one features array; `transform` describes the way from uint8 tile to input."""

    dim: int = Field(gt=0)
    weight_digest: str
    transform: str
    precision: str
    licence: str


class Provenance(Section):
    """Where every number of a store comes from; kept as the group's JSON attribute."""

    schema_version: int = SCHEMA_VERSION
    slide_id: str
    patient_id: str
    slide_fingerprint: str
    vendor: str
    level0_width: int = Field(gt=0)
    level0_height: int = Field(gt=0)
    bounds_px0: tuple[int, int, int, int] | None = Field(description="x, y, width, height")
    mpp_x: float = Field(gt=0)
    mpp_y: float = Field(gt=0)
    mpp_source: str
    objective_power: float | None = None
    properties: dict[str, str] = Field(default={}, description="the vendor's, of a fixed whitelist")
    tile_px: int = Field(gt=0)
    tile_px0_x: float = Field(gt=0)
    tile_px0_y: float = Field(gt=0)
    stride_px0_x: float = Field(gt=0)
    stride_px0_y: float = Field(gt=0)
    requested_mpp: float = Field(gt=0)
    effective_mpp_x: float = Field(gt=0)
    effective_mpp_y: float = Field(gt=0)
    read_level: int = Field(ge=0)
    read_level_mpp: tuple[float, float] | None = Field(default=None, description="x, y")
    reading: ReadingConfig = ReadingConfig()
    reader: str = Field(default="", description="what decoded the tiles, and why not directly")
    decoded_scale: int = Field(default=1, description="1/2, 1/4 and 1/8 decoding are 2, 4 and 8")
    resampling: str = ""
    extraction_version: int = Field(default=0, description="0: from before it was recorded")
    tissue: TissueConfig
    tissue_digest: str = Field(default="", description="of the mask and region files of the slide")
    grid: GridConfig
    thumbnail_px0_per_px_x: float = Field(gt=0)
    thumbnail_px0_per_px_y: float = Field(gt=0)
    mask_px0_per_px_x: float = Field(gt=0)
    mask_px0_per_px_y: float = Field(gt=0)
    imported_from: str = Field(default="", description="the other tool, where it made the tiles")
    versions: dict[str, str]
    created: str = Field(description="ISO 8601, UTC")
    encoders: dict[str, EncoderRecord]


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


def partial_stores(folder: Path, slide_id: str) -> list[Path]:
    """What interrupted writers of this slide left behind; safe to delete when none is running."""
    return sorted(folder.glob(f"{slide_id}.zarr.partial-*"))


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


def open_store(path: Path) -> "FeatureStore":
    """Open and check against the schema; `StoreError` says what is missing or of another kind."""
    group, provenance = _open_group(path)
    tiles = open_array(group, path, "coords").shape[0]
    for key, (dtype, shape) in _schema(tiles, provenance).items():
        array = open_array(group, path, key)
        _check_array(f"{path}: {key}", array, dtype=dtype, shape=shape)
        check_chunks(path / key, array)
    return FeatureStore(path, group, provenance)


class FeatureStore:
    """An open, checked store. Small arrays are read at once, pictures and features when asked."""

    def __init__(self, path: Path, group: zarr.Group, provenance: Provenance) -> None:
        self.path = path
        self.provenance = provenance
        self._group = group
        self.coords_px0: NDArray[np.int32] = self._read("coords")
        self.tissue_fraction: NDArray[np.float32] = self._read("tissue_fraction")
        self.read_error: NDArray[np.bool_] = self._read("read_error")
        self.quality: NDArray[np.float32] = self._read("quality")

    def __len__(self) -> int:
        return len(self.coords_px0)

    @property
    def usable(self) -> NDArray[np.bool_]:
        return ~self.read_error

    @cached_property
    def thumbnail(self) -> NDArray[np.uint8]:
        return self._read("thumbnail")

    @cached_property
    def tissue_mask(self) -> NDArray[np.bool_]:
        return self._read("tissue_mask")

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

    def _read(self, key: str) -> NDArray[Any]:
        return read_array(self._group, self.path, key)


def _schema(tiles: int, provenance: Provenance) -> dict[str, tuple[str, tuple[int | None, ...]]]:
    """Key -> dtype and shape, None where any extent is right."""
    fixed: dict[str, tuple[str, tuple[int | None, ...]]] = {
        "coords": ("int32", (tiles, 2)),
        "tissue_fraction": ("float32", (tiles,)),
        "read_error": ("bool", (tiles,)),
        "quality": ("float32", (tiles, len(QUALITY))),
        "thumbnail": ("uint8", (None, None, 3)),
        "tissue_mask": ("bool", (None, None)),
    }
    per_encoder = {
        features_key(name): ("float16", (tiles, record.dim))
        for name, record in provenance.encoders.items()
    }
    return fixed | per_encoder


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


def _check_array(
    where: str,
    array: "zarr.Array[Any] | NDArray[Any]",
    *,
    dtype: str,
    shape: tuple[int | None, ...],
) -> None:
    fits = len(array.shape) == len(shape) and all(
        want in (None, got) for want, got in zip(shape, array.shape, strict=True)
    )
    if not fits or str(array.dtype) != dtype:
        wanted = "(" + ", ".join("any" if n is None else str(n) for n in shape) + ")"
        raise StoreError(
            f"{where}: expected {dtype} {wanted}, got {array.dtype} {tuple(array.shape)}"
        )


def _check_contents(arrays: dict[str, NDArray[Any]], contents: SlideFeatures) -> None:
    provenance = contents.provenance
    where = f"slide {provenance.slide_id!r}"
    if not provenance.encoders or set(provenance.encoders) != set(contents.features):
        raise StoreError(
            f"{where}: expected features of the recorded encoders {sorted(provenance.encoders)}, "
            f"got {sorted(contents.features)}"
        )
    for key, (dtype, shape) in _schema(len(contents.coords_px0), provenance).items():
        _check_array(f"{where}: {key}", arrays[key], dtype=dtype, shape=shape)
    for name, values in contents.features.items():
        finite, absent = np.isfinite(values).all(axis=1), np.isnan(values).all(axis=1)
        bad = np.flatnonzero(~np.where(contents.read_error, absent, finite))
        if len(bad):
            raise StoreError(
                f"{where}: encoder {name!r}: expected finite rows for readable tiles and NaN for "
                f"unreadable ones, {len(bad)} of {len(values)} rows differ, first row {bad[0]} "
                f"(float16 ends at {np.finfo(np.float16).max:g})"
            )


def _write_group(path: Path, arrays: dict[str, NDArray[Any]], provenance: Provenance) -> None:
    group = zarr.create_group(path, zarr_format=3)
    for key, values in arrays.items():
        is_features = key.startswith("features/")
        rows = max(1, _CHUNK_BYTES // values[0].nbytes) if is_features else len(values)
        group.create_array(
            key,
            data=np.ascontiguousarray(values),
            chunks=(min(rows, len(values)), *values.shape[1:]),
            # Features do not compress, and whole bags read twice as fast without a codec.
            compressors=None if is_features else "auto",
            # Chunks of zeros would be left out otherwise, and look like lost ones.
            config={"write_empty_chunks": True},
        )
    # Last, so that a copy that stopped early is likely to lack it.
    group.attrs[ATTRIBUTE] = provenance.model_dump(mode="json")


def _open_group(path: Path) -> tuple[zarr.Group, Provenance]:
    if not path.is_dir():
        raise StoreError(f"{path}: no such feature store; extract the slide's features first")
    if ".partial-" in path.name:
        raise damaged(path, "its name says that it was never finished")
    try:
        group = zarr.open_group(path, mode="r", zarr_format=3)
    except READ_FAILURES as error:
        raise StoreError(f"{path}: expected a zarr v3 group, got {error}") from error
    record = group.attrs.get(ATTRIBUTE)
    if not isinstance(record, dict):
        raise StoreError(f"{path}: no attribute {ATTRIBUTE!r}: not a histomil store or unfinished")
    version = record.get("schema_version")
    if version != SCHEMA_VERSION:
        raise StoreError(
            f"{path}: schema version {version!r}, this histomil reads {SCHEMA_VERSION}; "
            "extract the features again or use the version that wrote them"
        )
    try:
        return group, Provenance.model_validate(record)
    except ValidationError as error:
        raise StoreError(f"{path}: attribute {ATTRIBUTE!r} is not a provenance: {error}") from error
