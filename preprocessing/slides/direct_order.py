"""In which order boxes are read, so that each stored tile is decoded about once."""

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from preprocessing.geometry import Size


class ReadingOrder(NamedTuple):
    """`boxes` (N,): their numbers, the first to read first. `uses`: how often each stored tile,
    numbered row by row, is under a box.
    """

    boxes: NDArray[np.int64]
    uses: NDArray[np.int64]


def reading_order(
    boxes: NDArray[np.int64], *, raster: Size, tile: Size, most_held: int
) -> ReadingOrder:
    """Row by row within upright bands.

    `boxes` (N, 4) are left, top, right and bottom (exclusive) in pixels of a raster that is stored
    in tiles. A row of stored tiles on which a row of boxes ends is wanted again by the next row of
    boxes: bands are so narrow that it takes half of `most_held` tiles to hold it so long, the
    rest being for what other threads read meanwhile. At most the tiles on a seam between bands
    are decoded twice.
    """
    across, down = -(-raster.width // tile.width), -(-raster.height // tile.height)
    if not len(boxes):
        return ReadingOrder(np.zeros(0, dtype=np.int64), np.zeros(across * down, dtype=np.int64))
    left, top, right, bottom = boxes.T
    col, row = left // tile.width, top // tile.height
    cols, rows = (right - 1) // tile.width - col + 1, (bottom - 1) // tile.height - row + 1
    uses = np.zeros(across * down, dtype=np.int64)
    for dx in range(cols.max()):
        for dy in range(rows.max()):
            under = (dx < cols) & (dy < rows)
            numbers = (row + dy) * across + col + dx
            uses += np.bincount(numbers[under], minlength=across * down)
    sweep = rows.max() + 1
    band = max(most_held // (2 * sweep), cols.max())
    return ReadingOrder(np.lexsort((left, top, col // band)), uses)
