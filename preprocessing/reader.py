"""Tiles of a slide -> batches of RGB arrays at the requested resolution.

A tile's box is fractional in the pixels of the level it is read from. It is cut by Pillow's
antialiased bicubic resampling with the box as its source, whose filter also sees the pixels
around the box, so that neighbouring tiles agree at their common edge. A box of whole pixels and
equal size is copied untouched.
"""

from collections import deque
from collections.abc import Generator, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from math import ceil, floor
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing.errors import UnreadableSlide
from preprocessing.geometry import Size, TileGeometry
from preprocessing.slide import Slide

_BICUBIC_SUPPORT_PX = 2
_WHOLE_PX = 1e-6  # a fraction this small is float rounding
_T = TypeVar("_T")


@dataclass(frozen=True, eq=False)
class TileBatch:
    """`tiles` (B, tile_px, tile_px, 3) uint8; where `readable` (B,) is False a tile is all zero
    and means nothing.
    """

    tiles: NDArray[np.uint8]
    readable: NDArray[np.bool_]


def read_batches(
    slide: Slide, coords_px0: NDArray[np.int32], geometry: TileGeometry, *, batch_size: int
) -> Iterator[TileBatch]:
    """Tiles in the order of `coords_px0` (N, 2), top-left (x, y) in level-0 pixels."""
    for start in range(0, len(coords_px0), batch_size):
        corners = coords_px0[start : start + batch_size]
        side = geometry.tile_px
        tiles = np.zeros((len(corners), side, side, 3), dtype=np.uint8)
        readable = np.ones(len(corners), dtype=bool)
        for row, (x_px0, y_px0) in enumerate(corners.tolist()):
            try:
                tiles[row] = read_tile(slide, geometry, x_px0=x_px0, y_px0=y_px0)
            except UnreadableSlide:
                readable[row] = False
        yield TileBatch(tiles, readable)


def read_tile(slide: Slide, geometry: TileGeometry, *, x_px0: int, y_px0: int) -> NDArray[np.uint8]:
    """(tile_px, tile_px, 3) of the box that starts at (x_px0, y_px0).

    Raises `UnreadableSlide` where the file is damaged.
    """
    level = slide.pyramid.levels[geometry.level]
    x = _span(x_px0 / level.downsample, geometry.read_px_x, geometry.tile_px, level.size.width)
    y = _span(y_px0 / level.downsample, geometry.read_px_y, geometry.tile_px, level.size.height)
    # Regions start at whole level-0 pixels, so at a coarse level they start where that falls.
    origin_px0 = (round(x.first * level.downsample), round(y.first * level.downsample))
    size = Size(x.stop - x.first, y.stop - y.first)
    region = slide.read_region(geometry.level, *origin_px0, size)
    if x.whole and y.whole:
        return region
    left, right = x.within(origin_px0[0] / level.downsample)
    top, bottom = y.within(origin_px0[1] / level.downsample)
    tile = Image.fromarray(region).resize(
        (geometry.tile_px, geometry.tile_px),
        resample=Image.Resampling.BICUBIC,
        box=(left, top, right, bottom),
    )
    return np.array(tile)


@dataclass(frozen=True)
class _Span:
    """A tile along one axis, in level pixels: wanted [start, end), to be read [first, stop)."""

    start: float
    end: float
    first: int
    stop: int
    whole: bool

    def within(self, origin: float) -> tuple[float, float]:
        """The wanted interval relative to the region read, which begins at `origin`."""
        length = self.stop - self.first
        return max(0.0, self.start - origin), min(float(length), self.end - origin)


def _span(start: float, read_px: float, tile_px: int, level_px: int) -> _Span:
    end = start + read_px
    whole = abs(start - round(start)) < _WHOLE_PX and abs(read_px - tile_px) < _WHOLE_PX
    if whole:
        return _Span(start, end, round(start), round(start) + tile_px, whole)
    margin = _BICUBIC_SUPPORT_PX * max(1.0, read_px / tile_px)
    first, stop = max(0, floor(start - margin)), min(level_px, ceil(end + margin))
    return _Span(start, end, first, stop, whole)


def prefetch(items: Iterator[_T], *, ahead: int = 2) -> Generator[_T]:
    """The same items, at most `ahead` of them made early by one other thread.

    openslide and Pillow release the interpreter lock, so reading overlaps computing. Close the
    generator before what `items` reads from.
    """
    pool = ThreadPoolExecutor(max_workers=1, thread_name_prefix="reader")
    try:
        pending: deque[Future[_T | None]] = deque(
            pool.submit(next, items, None) for _ in range(ahead)
        )
        while (item := pending.popleft().result()) is not None:
            pending.append(pool.submit(next, items, None))
            yield item
    finally:
        pool.shutdown(cancel_futures=True)
