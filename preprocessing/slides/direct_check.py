"""Whether a slide's tiles, decoded straight from the file, are what openslide shows of them.

A few places of a level are read both ways: its first corner, the tiles with the most detail (whose
streams are the longest) in the upper and in the lower half, and the far edge. openslide starts a
region at whole level-0 pixels; where that is no whole pixel of the level it interpolates, and the
same interpolation of the direct pixels is then compared, which leaves room for rounding alone.
The first corner is whole in every level, and there the pixels must be identical.
"""

from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from math import ceil, floor
from typing import Self

import numpy as np
from numpy.typing import NDArray

from preprocessing.errors import UnreadableSlide
from preprocessing.geometry import Level, Size
from preprocessing.slides.direct import DirectLevel
from preprocessing.slides.tiff_file import StoredFile
from preprocessing.slides.tiff_index import TileIndex
from preprocessing.slides.tile_cache import Raster

Draw = Callable[[int, int, int, Size], Raster]
"""openslide's own drawing: (level, x_px0, y_px0, size) -> (h, w, 3) RGB, or UnreadableSlide."""

_SIDE_PX = 128
_CANDIDATES = 3  # tiles tried at a place: the first may be missing or damaged
# cairo places pictures on a raster of 256ths: what is nearer to a whole pixel is drawn as whole.
WHOLE_PX = 1 / 1024
_ROUNDING = 4  # grey levels: 8 bit weights, and two tiles' rounded shares at a seam

_Place = tuple[int, int, int, int]  # left, top, width, height in pixels of the level


def difference(direct: DirectLevel, file: StoredFile, level: Level, draw: Draw) -> str:
    """What keeps `direct` from standing in for openslide at this level; empty where nothing does.

    The frame headers of the tiles compared are entered in `direct.frames`.
    """
    compared = 0
    for candidates in _places(direct.index):
        for place in candidates:
            found = _compared(direct, file, level, place=place, draw=draw)
            if found is None:
                continue
            most, allowed = found
            if most > allowed:
                left, top, width, height = place
                return (
                    f"pixels differ from openslide's by up to {most:.0f} grey levels within "
                    f"{width} x {height} px at ({left}, {top})"
                )
            compared += 1
            break
    return "" if compared else "no part of it could be compared with openslide"


def _places(index: TileIndex) -> Iterator[list[_Place]]:
    """For each kind of place, where to look for it, the most telling first."""
    yield [_box(index, 0, 0)]
    detail = np.asarray(index.byte_counts, dtype=np.int64).reshape(index.down, index.across)
    half = ceil(index.down / 2)
    for first, rows in ((0, detail[:half]), (half, detail[half:])):
        # In the middle of one tile: each more under the place would cost two decodings.
        yield [
            _box(
                index,
                col * index.tile.width + (index.tile.width - _SIDE_PX) // 2,
                (first + row) * index.tile.height + (index.tile.height - _SIDE_PX) // 2,
            )
            for row, col in _richest(rows)
        ]
    far = np.zeros_like(detail)
    far[-1], far[:, -1] = detail[-1], detail[:, -1]
    yield [
        _box(index, (col + 1) * index.tile.width, (row + 1) * index.tile.height)
        for row, col in _richest(far)
    ]


def _richest(detail: NDArray[np.int64]) -> list[tuple[int, int]]:
    """(row, col) of the tiles with the longest streams."""
    order = np.argsort(-detail, axis=None, kind="stable")[:_CANDIDATES]
    rows, cols = np.unravel_index(order, detail.shape)
    return list(zip(rows.tolist(), cols.tolist(), strict=True))


def _box(index: TileIndex, left: int, top: int) -> _Place:
    """A place about there, pushed into the level."""
    width, height = min(_SIDE_PX, index.size.width), min(_SIDE_PX, index.size.height)
    left = min(max(left, 0), index.size.width - width)
    return left, min(max(top, 0), index.size.height - height), width, height


def _compared(
    direct: DirectLevel, file: StoredFile, level: Level, *, place: _Place, draw: Draw
) -> tuple[float, int] | None:
    """(the largest difference, what rounding explains of it); None where one way cannot read."""
    left, top, width, height = place
    x_px0, y_px0 = round(left * level.downsample), round(top * level.downsample)
    x = _Axis.of(x_px0 / level.downsample, width, end=level.size.width)
    y = _Axis.of(y_px0 / level.downsample, height, end=level.size.height)
    pixels = np.empty((y.read, x.read, 3), dtype=np.uint8)
    before = set(direct.frames)
    for number in direct.index.under(x.first, y.first, Size(x.read, y.read)):
        frame = direct.frame_of(file, number)
        if frame is not None:
            direct.frames.add(frame)
    drawn = None
    if direct.fill(file, pixels, x=x.first, y=y.first):
        with suppress(UnreadableSlide):
            drawn = draw(level.index, x_px0, y_px0, Size(x.drawn, y.drawn))
    if drawn is None:
        direct.frames = before
        return None
    expected = x.between(y.between(pixels.astype(np.float64), axis=0), axis=1)
    allowed = 0 if x.shift == y.shift == 0 else _ROUNDING
    return float(np.abs(drawn - expected).max()), allowed


@dataclass(frozen=True)
class _Axis:
    """openslide draws `drawn` pixels, each `shift` of a pixel after a whole one from `first` on."""

    first: int
    shift: float
    drawn: int

    @classmethod
    def of(cls, start: float, length: int, *, end: int) -> Self:
        if abs(start - round(start)) < WHOLE_PX:
            return cls(round(start), 0.0, length)
        first = floor(start)
        return cls(first, start - first, min(length, end - first - 1))

    @property
    def read(self) -> int:
        return self.drawn + (self.shift > 0)

    def between(self, pixels: NDArray[np.float64], *, axis: int) -> NDArray[np.float64]:
        if self.shift == 0:
            return pixels
        before, after = (np.take(pixels, range(n, n + self.drawn), axis) for n in (0, 1))
        return before * (1 - self.shift) + after * self.shift
