"""Tile grid + tissue mask -> the tiles of a slide, in a fixed order."""

from dataclasses import dataclass
from math import floor

import numpy as np
from numpy.typing import NDArray

from preprocessing.geometry import Size, TileGeometry
from preprocessing.tissue.segmentation import TissueMask

# Sums of fractional strides may miss an exact fit by float rounding, never by this much.
_SLACK_PX0 = 1e-6
_SLACK_FRACTION = 1e-9


@dataclass(frozen=True, eq=False)
class Tiles:
    """`coords_px0` (N, 2) int32 top-left (x, y), `tissue_fraction` (N,) float32; y, then x."""

    coords_px0: NDArray[np.int32]
    tissue_fraction: NDArray[np.float32]

    def __len__(self) -> int:
        return len(self.coords_px0)


def make_grid(
    size_px0: Size,
    geometry: TileGeometry,
    tissue: TissueMask,
    *,
    min_tissue: float,
    bounds_px0: tuple[int, int, int, int] | None = None,
) -> Tiles:
    """Every lattice tile that lies wholly in the slide with at least `min_tissue` tissue.

    `bounds_px0` (x, y, width, height), where the vendor gives it, moves the lattice's origin and
    limits it. A corner is the exact lattice point rounded, pulled in where it would stick out.
    """
    left, top, right, bottom = _area(size_px0, bounds_px0)
    xs = _axis(left, right, tile=geometry.tile_px0_x, stride=geometry.stride_px0_x)
    ys = _axis(top, bottom, tile=geometry.tile_px0_y, stride=geometry.stride_px0_y)
    grid_y, grid_x = np.meshgrid(ys, xs, indexing="ij")
    coords = np.stack([grid_x.ravel(), grid_y.ravel()], axis=1)
    sides = np.broadcast_to([geometry.tile_px0_x, geometry.tile_px0_y], coords.shape)
    fraction = tissue.fraction_of(np.concatenate([coords, sides], axis=1))
    kept = fraction >= min_tissue - _SLACK_FRACTION
    return Tiles(coords[kept].astype(np.int32), fraction[kept].astype(np.float32))


def _area(size_px0: Size, bounds: tuple[int, int, int, int] | None) -> tuple[int, int, int, int]:
    """(left, top, right, bottom) of the bounds within the slide."""
    if bounds is None:
        return 0, 0, size_px0.width, size_px0.height
    x, y, width, height = bounds
    right, bottom = min(x + width, size_px0.width), min(y + height, size_px0.height)
    return max(x, 0), max(y, 0), right, bottom


def _axis(start: int, stop: int, *, tile: float, stride: float) -> NDArray[np.int64]:
    """Whole-pixel origins of all tiles between start and stop along one axis."""
    last = stop - tile + _SLACK_PX0
    if last < start:
        return np.zeros(0, dtype=np.int64)
    exact = start + stride * np.arange(floor((last - start) / stride) + 1)
    return np.minimum(np.floor(exact + 0.5), floor(last)).astype(np.int64)
