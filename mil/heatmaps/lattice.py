"""Tile scores as rasters: one cell per stride, or two where tiles overlap by a part of it.

Tiles lie on a lattice: tile k starts at origin + k·stride and is r = tile/stride strides wide.
Between two starts the covering tiles change at most once, at the fractional part f of r, so an axis
is cut into the intervals [k, k+f) and [k+f, k+1) strides. Inside a cell of this grid the set of
covering tiles is constant and the mean over them exact: no tile reaches over its own edge.
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
    """One axis of the lattice: `index` (N,) of each tile, and the cells along it."""

    origin_px0: float
    stride_px0: float
    tile_px0: float
    index: NDArray[np.intp]

    @property
    def _strides(self) -> tuple[int, float]:
        ratio = self.tile_px0 / self.stride_px0
        whole = int(np.floor(ratio + 1e-6))
        part = ratio - whole
        return whole, (part if part > 1e-6 else 0.0)

    @property
    def cells_per_stride(self) -> int:
        return 2 if self._strides[1] else 1

    @property
    def cells_per_tile(self) -> int:
        whole, part = self._strides
        return 2 * whole + 1 if part else whole

    @property
    def cells(self) -> int:
        return int(self.index.max()) * self.cells_per_stride + self.cells_per_tile

    def edges_px0(self) -> NDArray[np.float64]:
        """(cells + 1,) where the cells begin and end."""
        cell = np.arange(self.cells + 1)
        start = cell // self.cells_per_stride + (cell % self.cells_per_stride) * self._strides[1]
        return self.origin_px0 + start * self.stride_px0

    def cell_at(self, position_px0: NDArray[np.floating]) -> NDArray[np.intp]:
        """The cell that holds each position, -1 outside of the lattice."""
        cell = np.searchsorted(self.edges_px0(), position_px0, side="right") - 1
        return np.where(cell < self.cells, cell, -1)


def _axis(starts_px0: NDArray[np.int32], *, stride_px0: float, tile_px0: float) -> Axis:
    first = float(starts_px0.min())
    index = np.rint((starts_px0 - first) / stride_px0)
    residual = starts_px0 - first - index * stride_px0
    if np.ptp(residual) > _MAX_ROUNDING_PX0 + 1e-6:
        raise StoreError(
            f"tile corners are {np.ptp(residual):.2f} px off a lattice of {stride_px0:g} px; "
            "expected coordinates and stride of the same grid"
        )
    # The middle of the residuals is the lattice's origin, within half a level-0 pixel.
    origin = first + float(residual.min() + residual.max()) / 2
    return Axis(origin, stride_px0, tile_px0, index.astype(np.intp))


@dataclass(frozen=True, eq=False)
class Lattice:
    """The grid of cells under a slide's tiles."""

    x: Axis
    y: Axis

    @classmethod
    def of(cls, layout: TileLayout) -> Lattice:
        try:
            return cls(
                *(
                    _axis(
                        layout.coords_px0[:, i],
                        stride_px0=layout.stride_px0[i],
                        tile_px0=layout.tile_px0[i],
                    )
                    for i in (0, 1)
                )
            )
        except StoreError as error:
            raise StoreError(f"slide {layout.slide_id!r}: {error}") from error

    def cell_means(self, values: NDArray[np.floating]) -> NDArray[np.float64]:
        """(y.cells, x.cells) mean of `values` (N,) over the tiles on a cell, NaN where none is."""
        total = np.zeros((self.y.cells, self.x.cells))
        count = np.zeros_like(total)
        row0 = self.y.index * self.y.cells_per_stride
        col0 = self.x.index * self.x.cells_per_stride
        for row in range(self.y.cells_per_tile):
            for col in range(self.x.cells_per_tile):
                np.add.at(total, (row0 + row, col0 + col), values)
                np.add.at(count, (row0 + row, col0 + col), 1)
        return np.divide(total, count, out=np.full_like(total, np.nan), where=count > 0)


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
