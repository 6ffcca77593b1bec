"""Tiles of a slide -> batches of RGB arrays at the requested resolution.

A tile's box is fractional in the pixels of the level it is read from. It is cut by Pillow's
antialiased bicubic resampling with the box as its source, whose filter also sees the pixels
around the box, so that neighbouring tiles agree at their common edge. A box of whole pixels and
equal size is copied untouched.

Where a level is read directly and a tile is about twice as coarse or more, the level is decoded at
1/2, 1/4 or 1/8, and the tile is cut from that raster in the same way (`decoded_scale`).
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
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing.errors import UnreadableSlide
from preprocessing.geometry import LEVEL_TOLERANCE, Size, TileGeometry
from preprocessing.slides.direct import SCALES
from preprocessing.slides.direct_order import reading_order
from preprocessing.slides.direct_slide import MEGABYTE
from preprocessing.slides.slide import Slide
from preprocessing.slides.tile_memory import SpareArrays

RESAMPLING = Image.Resampling.BICUBIC
_BICUBIC_SUPPORT_PX = 2
_WHOLE_PX = 1e-6  # a fraction this small is float rounding
_ABOUT_TWICE = 1.9  # scanners' pixels "of 0.25 um" have up to 0.263


@dataclass(frozen=True, eq=False)
class TileBatch:
    """`tiles` (B, tile_px, tile_px, 3) uint8 of the coordinates numbered `rows` (B,) int64; where
    `readable` (B,) is False a tile is all zero and means nothing.
    """

    tiles: NDArray[np.uint8]
    readable: NDArray[np.bool_]
    rows: NDArray[np.int64]


def read_batches(
    handles: Sequence[Slide],
    coords_px0: NDArray[np.int32],
    geometry: TileGeometry,
    *,
    batch_size: int,
) -> Generator[TileBatch]:
    """The tiles at `coords_px0` (N, 2), top-left (x, y) in level-0 pixels, each in one batch.

    They come in an order that suits the slide's storage and depends on nothing else. `handles` are
    one slide and what its `another` gave: one thread each reads a whole batch, at most one batch
    per handle and one more ahead of what was taken. Close the generator before the handles.
    """
    slide = handles[0]
    with read_side(slide.slide_id, slide.path):
        plan = _plan(slide, coords_px0, geometry)
    side = geometry.tile_px
    # Those read ahead, and some with whoever takes them.
    memory = SpareArrays((batch_size, side, side, 3), most=2 * len(handles) + 8)
    idle: SimpleQueue[Slide] = SimpleQueue()
    for handle in handles:
        idle.put(handle)

    def read(start: int) -> TileBatch:
        handle = idle.get()
        rows = plan.rows[start : start + batch_size]
        try:
            return _read_batch(handle, coords_px0, rows, geometry, plan, memory.take(len(rows)))
        finally:
            idle.put(handle)

    starts = iter(range(0, len(coords_px0), batch_size))
    # Decoders, openslide and Pillow release the interpreter lock: reading overlaps computing.
    pool = ThreadPoolExecutor(max_workers=len(handles), thread_name_prefix="reader")
    try:
        pending = deque(pool.submit(read, start) for start in islice(starts, len(handles) + 1))
        while pending:
            batch = pending.popleft().result()
            pending.extend(pool.submit(read, start) for start in islice(starts, 1))
            yield batch
    finally:
        pool.shutdown(cancel_futures=True)
        slide.expect(geometry.level, plan.scale, None)


class _Plan(NamedTuple):
    """`rows` (N,) in the order to read them. `corners` (N, 2): where the tiles begin in the raster
    at that scale, if each is to be copied from there pixel by pixel.
    """

    rows: NDArray[np.int64]
    scale: int = 1
    corners: NDArray[np.int64] | None = None


def _plan(slide: Slide, coords_px0: NDArray[np.int32], geometry: TileGeometry) -> _Plan:
    """The slide is told which stored tiles it takes."""
    stored = slide.stored_tile(geometry.level)
    if stored is None:
        return _Plan(np.arange(len(coords_px0)))
    scale, raster, px0_per_px = _raster(slide, geometry)
    tile = Size(stored.width // scale, stored.height // scale)
    starts = coords_px0.reshape(-1, 2) / px0_per_px
    x = _spans(starts[:, 0], geometry.read_px_x / scale, geometry.tile_px, raster.width)
    y = _spans(starts[:, 1], geometry.read_px_y / scale, geometry.tile_px, raster.height)
    order = reading_order(
        np.stack([x.first, y.first, x.stop, y.stop], axis=1),
        raster=raster,
        tile=tile,
        most_held=slide.reading.cache_mb * MEGABYTE // (3 * tile.width * tile.height),
    )
    slide.expect(geometry.level, scale, order.uses.tolist())
    whole = bool((x.whole & y.whole).all())
    return _Plan(order.boxes, scale, np.stack([x.first, y.first], axis=1) if whole else None)


def _raster(slide: Slide, geometry: TileGeometry) -> tuple[int, Size, float]:
    """The scale at which tiles are decoded, that raster's size, and level-0 pixels per its own."""
    scale = decoded_scale(slide, geometry)
    level = slide.pyramid.levels[geometry.level]
    size = Size(ceil(level.size.width / scale), ceil(level.size.height / scale))
    return scale, size, level.downsample * scale


def _read_batch(
    slide: Slide,
    coords_px0: NDArray[np.int32],
    rows: NDArray[np.int64],
    geometry: TileGeometry,
    plan: _Plan,
    tiles: NDArray[np.uint8],
) -> TileBatch:
    readable = np.ones(len(rows), dtype=bool)
    corners = None if plan.corners is None else plan.corners[rows].tolist()
    with read_side(slide.slide_id, slide.path):
        for place, (x_px0, y_px0) in enumerate(coords_px0[rows].tolist()):
            tile = tiles[place]
            if corners is not None:
                x, y = corners[place]
                if slide.fill_direct(geometry.level, tile, x=x, y=y, scale=plan.scale):
                    continue
            try:
                read_tile(slide, geometry, x_px0=x_px0, y_px0=y_px0, out=tile)
            except UnreadableSlide:
                readable[place] = False
                tile[:] = 0
    return TileBatch(tiles, readable, rows)


@contextmanager
def read_side(slide_id: str, path: Path) -> Iterator[None]:
    """What the operating system refuses in here is the slide's fault, not the output's."""
    try:
        yield
    except OSError as error:
        raise UnreadableSlide(slide_id, f"{path}: reading failed: {error}") from error


def decoded_scale(slide: Slide, geometry: TileGeometry) -> int:
    """At what scale the level's tiles are decoded, 1 where the direct reader does not serve.

    2 where tiles are about twice as coarse on both axes, such as 0.5 um/px from 0.253, or coarser;
    4 and 8 only where that leaves a factor of two to antialiased resampling. On real tissue,
    features of tiles decoded at 1/2 alone differ from resampled ones no more than resampling
    filters do among each other; at 1/4 alone they do.
    """
    if not slide.reading.scaled_decoding or slide.stored_tile(geometry.level) is None:
        return 1
    coarser = min(geometry.read_px_x, geometry.read_px_y) / geometry.tile_px
    if coarser < _ABOUT_TWICE:
        return 1
    return max(s for s in SCALES if s <= max(2, coarser * (1 + LEVEL_TOLERANCE) / 2))


def read_tile(
    slide: Slide,
    geometry: TileGeometry,
    *,
    x_px0: int,
    y_px0: int,
    out: NDArray[np.uint8] | None = None,
) -> NDArray[np.uint8]:
    """(tile_px, tile_px, 3) of the box that starts at (x_px0, y_px0), in `out` where that is given.

    Raises `UnreadableSlide` where the file is damaged.
    """
    if out is None:
        out = np.empty((geometry.tile_px, geometry.tile_px, 3), dtype=np.uint8)
    if not _cut_directly(slide, geometry, x_px0, y_px0, out):
        out[:] = _cut_as_drawn(slide, geometry, x_px0, y_px0)
    return out


def _cut_directly(
    slide: Slide, geometry: TileGeometry, x_px0: int, y_px0: int, out: NDArray[np.uint8]
) -> bool:
    """Into `out`; False where the direct reader does not serve."""
    if slide.stored_tile(geometry.level) is None:
        return False
    scale, raster, px0_per_px = _raster(slide, geometry)
    x = _span(x_px0 / px0_per_px, geometry.read_px_x / scale, geometry.tile_px, raster.width)
    y = _span(y_px0 / px0_per_px, geometry.read_px_y / scale, geometry.tile_px, raster.height)
    if x.whole and y.whole:
        return slide.fill_direct(geometry.level, out, x=x.first, y=y.first, scale=scale)
    size = Size(x.stop - x.first, y.stop - y.first)
    region = slide.read_direct(geometry.level, x.first, y.first, size, scale=scale)
    if region is None:
        return False
    (left, right), (top, bottom) = x.within(x.first), y.within(y.first)
    out[:] = _resampled(region, geometry, (left, top, right, bottom))
    return True


def _cut_as_drawn(
    slide: Slide, geometry: TileGeometry, x_px0: int, y_px0: int
) -> NDArray[np.uint8]:
    """The tile from a region that starts at whole level-0 pixels, as openslide's do."""
    level = slide.pyramid.levels[geometry.level]
    x = _span(x_px0 / level.downsample, geometry.read_px_x, geometry.tile_px, level.size.width)
    y = _span(y_px0 / level.downsample, geometry.read_px_y, geometry.tile_px, level.size.height)
    # At a coarse level the region starts where its level-0 pixel falls, between two of its own.
    origin_px0 = (round(x.first * level.downsample), round(y.first * level.downsample))
    size = Size(x.stop - x.first, y.stop - y.first)
    region = slide.read_region(geometry.level, *origin_px0, size)
    if x.whole and y.whole:
        return region
    left, right = x.within(origin_px0[0] / level.downsample)
    top, bottom = y.within(origin_px0[1] / level.downsample)
    return _resampled(region, geometry, (left, top, right, bottom))


def _resampled(
    region: NDArray[np.uint8], geometry: TileGeometry, box: tuple[float, float, float, float]
) -> NDArray[np.uint8]:
    side = (geometry.tile_px, geometry.tile_px)
    return np.asarray(Image.fromarray(region).resize(side, resample=RESAMPLING, box=box))


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
    # Levels' sizes are rounded, downsamples means: what ends beyond a level is stretched a little.
    whole = whole and round(start) + tile_px <= level_px
    if whole:
        return _Span(start, end, round(start), round(start) + tile_px, whole)
    margin = _BICUBIC_SUPPORT_PX * max(1.0, read_px / tile_px)
    first, stop = max(0, floor(start - margin)), min(level_px, ceil(end + margin))
    return _Span(start, end, first, stop, whole)


class _Spans(NamedTuple):
    """`_Span` of many tiles at once."""

    first: NDArray[np.int64]
    stop: NDArray[np.int64]
    whole: NDArray[np.bool_]


def _spans(starts: NDArray[np.float64], read_px: float, tile_px: int, level_px: int) -> _Spans:
    near = np.rint(starts)
    whole = (np.abs(starts - near) < _WHOLE_PX) & (abs(read_px - tile_px) < _WHOLE_PX)
    whole &= near + tile_px <= level_px
    margin = _BICUBIC_SUPPORT_PX * max(1.0, read_px / tile_px)
    first = np.where(whole, near, np.maximum(np.floor(starts - margin), 0))
    end = np.minimum(np.ceil(starts + read_px + margin), level_px)
    stop = np.where(whole, near + tile_px, end)
    return _Spans(first.astype(np.int64), stop.astype(np.int64), whole)
