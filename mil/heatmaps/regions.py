"""Connected regions of tiles and their outlines, on the lattice that the tiles share."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from mil.heatmaps.lattice import Lattice
from mil.heatmaps.scores import TileLayout

Ring = list[tuple[int, int]]
"""A closed ring of (x, y) corners; in file coordinates shells run counter-clockwise."""


@dataclass(frozen=True, eq=False)
class Region:
    """Tiles that touch along an edge: their rows in the layout, and the outline of their union.

    `rings` in level-0 pixels: the shell first, then its holes.
    """

    tiles: NDArray[np.intp]
    rings: list[Ring]
    area_px0: float


def connected_regions(layout: TileLayout, chosen: NDArray[np.bool_]) -> list[Region]:
    """The regions of the `chosen` (N,) tiles, in reading order of their first cell."""
    lattice = Lattice.of(layout)
    covered = np.nan_to_num(lattice.cell_means(chosen.astype(np.float64))) > 0
    labels = np.zeros(covered.shape, dtype=np.intp)
    ndimage.label(covered, output=labels)  # neighbours across an edge, not across a corner
    label_of_tile = np.where(chosen, labels[lattice.y.first, lattice.x.first], 0)
    low = layout.coords_px0.min(axis=0)
    high = np.floor(layout.coords_px0.max(axis=0) + np.array(layout.tile_px0))
    edges_x = np.clip(np.rint(lattice.x.edges_px0), low[0], high[0]).astype(int)
    edges_y = np.clip(np.rint(lattice.y.edges_px0), low[1], high[1]).astype(int)
    regions = []
    for label, (rows, cols) in enumerate(ndimage.find_objects(labels), start=1):
        cells = labels[rows, cols] == label
        xs = edges_x[cols.start : cols.stop + 1]
        ys = edges_y[rows.start : rows.stop + 1]
        rings = [[(int(xs[x]), int(ys[y])) for x, y in ring] for ring in outlines(cells)]
        area = float((cells * np.outer(np.diff(ys), np.diff(xs))).sum())
        regions.append(Region(np.flatnonzero(label_of_tile == label), rings, area))
    return regions


def outlines(cells: NDArray[np.bool_]) -> list[Ring]:
    """The boundary of one edge-connected component of a (rows, columns) raster, in cell corners.

    The shell comes first. Rings are split where they touch at a corner, so none crosses itself.
    """
    following = _boundary_edges(cells)
    rings = []
    while following:
        start = min(following, key=lambda corner: (corner[1], corner[0]))
        rings.append(_walk(following, start))
    return rings


def _boundary_edges(cells: NDArray[np.bool_]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Unit edges start -> ends, with the cell on the side that makes shells counter-clockwise."""
    padded = np.pad(cells, 1)
    following: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)
    sides = (  # offset of the neighbour (row, col), start and end corner (x, y) of the shared edge
        ((-1, 0), (0, 0), (1, 0)),
        ((0, 1), (1, 0), (1, 1)),
        ((1, 0), (1, 1), (0, 1)),
        ((0, -1), (0, 1), (0, 0)),
    )
    for (d_row, d_col), start, end in sides:
        neighbour = np.roll(padded, (-d_row, -d_col), axis=(0, 1))[1:-1, 1:-1]
        for row, col in np.argwhere(cells & ~neighbour).tolist():
            following[col + start[0], row + start[1]].append((col + end[0], row + end[1]))
    return following


def _walk(following: dict[tuple[int, int], list[tuple[int, int]]], start: tuple[int, int]) -> Ring:
    """Takes one ring out of `following`, keeping only the corners where it turns."""
    here, heading = start, (1, 0)
    ring: Ring = []
    while True:
        ends = following[here]
        # Two ways on exist where cells meet at a corner alone: turning away from the cell at hand
        # parts the ring there, so that inside and outside never touch themselves.
        end = max(ends, key=lambda corner: _turn_away(heading, here, corner))
        ends.remove(end)
        if not ends:
            del following[here]
        step = (end[0] - here[0], end[1] - here[1])
        if step != heading or here == start:
            ring.append(here)
        here, heading = end, step
        if here == start:
            return [*ring, start]


def _turn_away(heading: tuple[int, int], here: tuple[int, int], corner: tuple[int, int]) -> int:
    """1 for a turn away from the cell beside the edge, 0 straight on, -1 for one around it."""
    step = (corner[0] - here[0], corner[1] - here[1])
    return -(heading[0] * step[1] - heading[1] * step[0])
