"""Tiles of a slide -> batches of RGB arrays at the requested resolution.

A tile's box is fractional in the pixels of the level it is read from. It is cut by Pillow's
antialiased bicubic resampling with the box as its source, whose filter also sees the pixels
around the box, so that neighbouring tiles agree at their common edge. A box of whole pixels and
equal size is copied untouched.
"""

from collections import deque
from collections.abc import Generator, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from math import ceil, floor
from pathlib import Path
from queue import SimpleQueue

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing.errors import UnreadableSlide
from preprocessing.geometry import Size, TileGeometry
from preprocessing.slide import Slide

RESAMPLING = Image.Resampling.BICUBIC
_BICUBIC_SUPPORT_PX = 2
_WHOLE_PX = 1e-6  # a fraction this small is float rounding


@dataclass(frozen=True, eq=False)
class TileBatch:
    """`tiles` (B, tile_px, tile_px, 3) uint8; where `readable` (B,) is False a tile is all zero
    and means nothing.
    """

    tiles: NDArray[np.uint8]
    readable: NDArray[np.bool_]


def read_batches(
    handles: Sequence[Slide],
    coords_px0: NDArray[np.int32],
    geometry: TileGeometry,
    *,
    batch_size: int,
) -> Generator[TileBatch]:
    """Tiles in the order of `coords_px0` (N, 2), top-left (x, y) in level-0 pixels.

    `handles` are the same slide opened several times: one thread each reads a whole batch, at
    most one batch per handle and one more ahead of what was taken. Close the generator before
    the handles.
    """
    idle: SimpleQueue[Slide] = SimpleQueue()
    for handle in handles:
        idle.put(handle)

    def read(start: int) -> TileBatch:
        handle = idle.get()
        try:
            return _read_batch(handle, coords_px0[start : start + batch_size], geometry)
        finally:
            idle.put(handle)

    starts = iter(range(0, len(coords_px0), batch_size))
    # openslide and Pillow release the interpreter lock, so reading overlaps computing.
    pool = ThreadPoolExecutor(max_workers=len(handles), thread_name_prefix="reader")
    try:
        pending = deque(pool.submit(read, start) for start in islice(starts, len(handles) + 1))
        while pending:
            batch = pending.popleft().result()
            pending.extend(pool.submit(read, start) for start in islice(starts, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)


def _read_batch(slide: Slide, coords_px0: NDArray[np.int32], geometry: TileGeometry) -> TileBatch:
    side = geometry.tile_px
    tiles = np.zeros((len(coords_px0), side, side, 3), dtype=np.uint8)
    readable = np.ones(len(coords_px0), dtype=bool)
    with read_side(slide.slide_id, slide.path):
        for row, (x_px0, y_px0) in enumerate(coords_px0.tolist()):
            try:
                tiles[row] = read_tile(slide, geometry, x_px0=x_px0, y_px0=y_px0)
            except UnreadableSlide:
                readable[row] = False
    return TileBatch(tiles, readable)


@contextmanager
def read_side(slide_id: str, path: Path) -> Iterator[None]:
    """What the operating system refuses in here is the slide's fault, not the output's."""
    try:
        yield
    except OSError as error:
        raise UnreadableSlide(slide_id, f"{path}: reading failed: {error}") from error


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
        resample=RESAMPLING,
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
