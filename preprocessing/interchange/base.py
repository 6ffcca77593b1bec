"""What the formats have in common: what they read into, write from, and must be told."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import ConfigError, HistomilError, StoreError
from preprocessing.stores.store import FeatureStore

Pair = tuple[float, float]
"""(x, y) or (width, height)"""

CoordsUnit = Literal["px0", "um", "stamp-v1"]
"""Level-0 pixels; micrometres; or STAMP's of before 2.0, where 224 mean 256 um."""


@dataclass(frozen=True)
class GivenFacts:
    """What the caller says because the files do not; a fact that a file states must agree.

    `mpp` (um per level-0 pixel) and `level0_size` (width, height) are for slides whose manifest row
    and slide file do not say. A tile is `tile_px` pixels wide as the encoder saw it, `tile_px0` on
    level 0, and was asked for at `tile_mpp` um per pixel. `their_encoder` is the encoder's name in
    the source where it is another; `coords_dir` CLAM's folder of patches where it lies elsewhere;
    `grid` the one of several in a raw2features store.
    """

    mpp: float | None = None
    tile_px: int | None = None
    tile_mpp: float | None = None
    tile_px0: float | None = None
    level0_size: tuple[int, int] | None = None
    coords_unit: CoordsUnit | None = None
    coords_dir: Path | None = None
    their_encoder: str | None = None
    grid: str | None = None
    weight_digest: str | None = None

    def __post_init__(self) -> None:
        for name in ("mpp", "tile_px", "tile_mpp", "tile_px0"):
            value = getattr(self, name)
            if value is not None and not (isfinite(value) and value > 0):
                raise ConfigError(f"{name}: expected a positive number, got {value!r}")
        if self.level0_size is not None and min(self.level0_size) <= 0:
            raise ConfigError(f"level0_size: expected width and height, got {self.level0_size}")


@dataclass(frozen=True, eq=False)
class ForeignTiles:
    """What another tool's files say of a slide's tiles; None where they do not say.

    `coords` (N, 2) are top-left corners (x, y) in `coords_unit`, `features` (N, D) of any float
    type; `tile_um` and `tile_px0` are a tile's side, `record` fields of an `EncoderRecord`.
    """

    path: Path
    coords: NDArray[Any]
    coords_unit: CoordsUnit | None
    features: NDArray[np.floating]
    tile_px: int | None = None
    tile_mpp: float | None = None
    tile_px0: Pair | None = None
    tile_um: float | None = None
    stride_px0: Pair | None = None
    mpp: Pair | None = None
    level0_size: tuple[int, int] | None = None
    bounds_px0: tuple[int, int, int, int] | None = None
    read_level: int = 0
    tissue_fraction: NDArray[np.float32] | None = None
    record: dict[str, str] = field(default_factory=dict)


class OutgoingSlide:
    """The usable tiles of a store, as the formats write them; arrays are read when asked for."""

    def __init__(self, store: FeatureStore, encoder: str) -> None:
        self.encoder = encoder
        self.record = store.encoder_record(encoder)
        self.provenance = store.provenance
        self.left_out = len(store) - int(store.usable.sum())
        self._store = store

    @property
    def slide_id(self) -> str:
        return self.provenance.slide_id

    @property
    def coords_px0(self) -> NDArray[np.int32]:
        """(N, 2) top-left corners, (x, y)"""
        return self._store.coords_px0[self._store.usable]

    @property
    def tissue_fraction(self) -> NDArray[np.float32]:
        return self._store.tissue_fraction[self._store.usable]

    def features(self) -> NDArray[np.float16]:
        """(N, D), as they were written: checked against their checksum."""
        return self._store.verified_features(self.encoder)[self._store.usable]

    @property
    def level0_size(self) -> tuple[int, int]:
        return self.provenance.level0_width, self.provenance.level0_height

    @property
    def tile_px0(self) -> float:
        """The one side that other tools know of a tile, in level-0 pixels."""
        sides = self.provenance.tile_px0_x, self.provenance.tile_px0_y
        return _one_side(self, sides, "level-0 pixels")

    @property
    def tile_um(self) -> float:
        """The same in micrometres: of an import, tiles may be square in pixels alone."""
        made = self.provenance
        sides = made.tile_px * made.effective_mpp_x, made.tile_px * made.effective_mpp_y
        return _one_side(self, sides, "um")

    @property
    def stride_px0(self) -> float:
        sides = self.provenance.stride_px0_x, self.provenance.stride_px0_y
        return _one_side(self, sides, "level-0 pixels")

    @property
    def mpp(self) -> float:
        """The one resolution of level 0 that other tools know."""
        return (self.provenance.mpp_x + self.provenance.mpp_y) / 2

    @property
    def overlap_px(self) -> int:
        """Of neighbours, in pixels of the tile; 0 where there are gaps between them."""
        share = 1 - self.stride_px0 / self.tile_px0
        return max(0, round(self.provenance.tile_px * share))


class Format(Protocol):
    """One tool's files. `source` and `target` are folders; `encoder` is the name in them."""

    name: str

    def read(self, source: Path, slide_id: str, encoder: str, given: GivenFacts) -> ForeignTiles:
        """`StoreError` names the file that is absent or cannot be read, and what it lacks."""
        ...

    def paths(self, target: Path, slide: OutgoingSlide) -> list[Path]:
        """What `write` will make."""
        ...

    def write(self, target: Path, slide: OutgoingSlide) -> None:
        """Makes `paths`, each whole or not at all; none of them may exist."""
        ...


def plain_name(encoder: str) -> str:
    """As a file or folder: hub names contain ':' and '/'."""
    return re.sub(r"[^A-Za-z0-9._-]", "_", encoder)


@contextmanager
def reading(path: Path, tool: str) -> Iterator[None]:
    """What h5py, zarr, torch and pyarrow raise for absent or garbled files becomes a StoreError."""
    if not path.exists():
        raise StoreError(f"{path}: no such file; name the folder in which {tool}'s files are")
    try:
        yield
    except HistomilError:
        raise  # names the file already
    except Exception as error:  # the files may hold anything, and fail this slide alone
        raise StoreError(f"{path}: cannot be read as {tool} writes it: {error!r}") from error


def _one_side(slide: OutgoingSlide, sides: Pair, unit: str) -> float:
    """Pixels that are not square make tiles oblong, in level-0 pixels or in micrometres."""
    if max(sides) > 1.02 * min(sides):
        raise StoreError(
            f"slide {slide.slide_id!r}: tiles of {sides[0]:g} x {sides[1]:g} {unit}; other tools "
            "know square ones alone, so that this slide cannot be exported"
        )
    return sum(sides) / 2
