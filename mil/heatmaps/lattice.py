"""Tile scores as rasters: one cell per stride, or two where tiles overlap by a part of it.

Tiles lie on a lattice: tile k starts at origin + k·stride and is r = tile/stride strides wide.
Between two starts the covering tiles change at most once, at the fractional part f of r, so an axis
is cut into the intervals [k, k+f) and [k+f, k+1) strides. Inside a cell of this grid the set of
covering tiles is constant and the mean over them exact: no tile reaches over its own edge.

Other tools give every piece of tissue a lattice of its own. Where a layout allows that, an axis is
cut at every start and end of a tile instead.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from mil.heatmaps.scores import TileLayout
from preprocessing.errors import StoreError

_MAX_ROUNDING_PX0 = 1.0  # corners are rounded to whole pixels, the origin is estimated from them


@dataclass(frozen=True, eq=False)
class Axis:
    """One axis cut into cells at `edges_px0` (cells + 1,).

    Tile i covers the cells `first[i]` to `last[i]` - 1.
    """

    edges_px0: NDArray[np.float64]
    first: NDArray[np.intp]
    last: NDArray[np.intp]

    @property
    def cells(self) -> int:
        return len(self.edges_px0) - 1

    def cell_at(self, position_px0: NDArray[np.floating]) -> NDArray[np.intp]:
        """The cell that holds each position, -1 outside of the axis."""
        cell = np.searchsorted(self.edges_px0, position_px0, side="right") - 1
        return np.where(cell < self.cells, cell, -1)


def _on_lattice(starts_px0: NDArray[np.int32], *, stride_px0: float, tile_px0: float) -> Axis:
    lowest = float(starts_px0.min())
    index = np.rint((starts_px0 - lowest) / stride_px0)
    residual = starts_px0 - lowest - index * stride_px0
    if np.ptp(residual) > _MAX_ROUNDING_PX0 + 1e-6:
        raise StoreError(
            f"tile corners are {np.ptp(residual):.2f} px off a lattice of {stride_px0:g} px; "
            "expected coordinates and stride of the same grid"
        )
    # The middle of the residuals is the lattice's origin, within half a level-0 pixel.
    origin = lowest + float(residual.min() + residual.max()) / 2
    whole = int(np.floor(tile_px0 / stride_px0 + 1e-6))
    part = tile_px0 / stride_px0 - whole
    per_stride, per_tile = (2, 2 * whole + 1) if part > 1e-6 else (1, whole)
    first = index.astype(np.intp) * per_stride
    cell = np.arange(int(first.max()) + per_tile + 1)
    edges = cell // per_stride + (cell % per_stride) * part
    return Axis(origin + edges * stride_px0, first, first + per_tile)


def _between_corners(starts_px0: NDArray[np.int32], *, tile_px0: float) -> Axis:
    """Corners that rounding alone may have parted are one edge."""
    corners = np.unique(np.concatenate([starts_px0, starts_px0 + tile_px0]))
    edges = [float(corners[0])]
    for corner in corners.tolist():
        if corner - edges[-1] > _MAX_ROUNDING_PX0:
            edges.append(corner)
    cuts = np.array(edges)
    first, last = (
        np.searchsorted(cuts, ends, side="right") - 1
        for ends in (starts_px0, starts_px0 + tile_px0)
    )
    return Axis(cuts, first, last)


@dataclass(frozen=True, eq=False)
class Lattice:
    """The grid of cells under a slide's tiles."""

    x: Axis
    y: Axis

    @classmethod
    def of(cls, layout: TileLayout) -> Lattice:
        try:
            return cls(*(_axis(layout, i) for i in (0, 1)))
        except StoreError as error:
            raise StoreError(f"slide {layout.slide_id!r}: {error}") from error

    def cell_means(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """(y.cells, x.cells) mean of `values` (N,) over the tiles on a cell, NaN where none is."""
        total = np.zeros((self.y.cells, self.x.cells))
        count = np.zeros_like(total)
        rows, columns = self.y.last - self.y.first, self.x.last - self.x.first
        for row in range(rows.max()):
            for column in range(columns.max()):
                covers = (row < rows) & (column < columns)
                cells = (self.y.first[covers] + row, self.x.first[covers] + column)
                np.add.at(total, cells, values[covers])
                np.add.at(count, cells, 1)
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


def _axis(layout: TileLayout, i: int) -> Axis:
    starts_px0, tile_px0 = layout.coords_px0[:, i], layout.tile_px0[i]
    try:
        return _on_lattice(starts_px0, stride_px0=layout.stride_px0[i], tile_px0=tile_px0)
    except StoreError:
        if layout.one_lattice:
            raise
        return _between_corners(starts_px0, tile_px0=tile_px0)


def tile_raster(
    values: NDArray[np.floating],
    layout: TileLayout,
    *,
    shape: tuple[int, int],
    px0_per_px: tuple[float, float],
) -> NDArray[np.float64]:
    """Tile `values` (N,) on a raster (h, w) that begins at the slide's corner; NaN off the tiles.

    A pixel takes the cell under its centre: nearest neighbour, so tile edges stay where they are.
    """
    lattice = Lattice.of(layout)
    means = lattice.cell_means(values)
    rows = lattice.y.cell_at((np.arange(shape[0]) + 0.5) * px0_per_px[1])
    cols = lattice.x.cell_at((np.arange(shape[1]) + 0.5) * px0_per_px[0])
    raster = means[np.ix_(rows, cols)]
    raster[rows < 0, :] = np.nan
    raster[:, cols < 0] = np.nan
    return raster
