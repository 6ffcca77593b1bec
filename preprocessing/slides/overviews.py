"""Pictures of a whole slide: one to measure tissue on, one to look at."""

from collections.abc import Iterator
from dataclasses import dataclass
from math import ceil, floor, sqrt
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing.errors import UnreadableSlide
from preprocessing.geometry import Level, Size
from preprocessing.slides.direct import SCALES

if TYPE_CHECKING:
    from preprocessing.slides.slide import Slide

_BLOCK_PX = 2048  # overviews are read in blocks, so that a one-level slide fits into memory
_SMALLEST_BLOCK_PX = 256  # an unreadable block is quartered down to about this side

_Box = tuple[int, int, int, int]  # left, top, width, height in pixels of some level


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """(h, w, 3) RGB of the whole slide; one of its pixels is exactly `px0_per_px_x` by
    `px0_per_px_y` level-0 pixels, the last column and row are averages of what is left.

    `unreadable` (h, w) marks what no level could give; there the picture is white. Where pixels are
    not square, `mpp` is the side of a square of their area.
    """

    rgb: NDArray[np.uint8]
    unreadable: NDArray[np.bool_]
    px0_per_px_x: float
    px0_per_px_y: float
    mpp: float

    def within(self, longest_px: int) -> "Thumbnail":
        """Shrunk by means over boxes to fit into a square of `longest_px`; never enlarged."""
        height, width = self.unreadable.shape
        factor = max(width, height) / longest_px
        if factor <= 1:
            return self
        size = (max(1, round(width / factor)), max(1, round(height / factor)))
        rgb = Image.fromarray(self.rgb).resize(size, Image.Resampling.BOX)
        share = Image.fromarray(self.unreadable.astype(np.float32))
        lost = share.resize(size, Image.Resampling.BOX)
        x, y = width / size[0], height / size[1]
        return Thumbnail(
            np.asarray(rgb),
            np.asarray(lost) > 0,
            self.px0_per_px_x * x,
            self.px0_per_px_y * y,
            self.mpp * sqrt(x * y),
        )


def make_overviews(slide: "Slide", *, mpp: float, longest_px: int) -> tuple[Thumbnail, Thumbnail]:
    """See `Slide.overviews`."""
    levels = slide.pyramid.levels
    measured = levels[slide.pyramid.coarsest_level_for(mpp) or 0]
    enough = [n for n in levels if max(n.size.width, n.size.height) >= longest_px]
    shown = enough[-1] if enough else levels[0]
    for_mpp = max(1, floor(mpp / max(slide.pyramid.mpp_at(measured.index)) + 1e-9))
    for_size = ceil(max(shown.size.width, shown.size.height) / longest_px)
    if measured is shown:
        view = _reduced(slide, measured, min(for_mpp, for_size))
        return view, view.within(longest_px)
    return _reduced(slide, measured, for_mpp), _reduced(slide, shown, for_size)


def _reduced(slide: "Slide", level: Level, factor: int) -> Thumbnail:
    """Means over `factor` x `factor` pixels of a level, read block by block."""
    shape = (ceil(level.size.height / factor), ceil(level.size.width / factor))
    rgb = np.empty((*shape, 3), dtype=np.uint8)
    unreadable = np.zeros(shape, dtype=bool)
    for box in _split((0, 0, level.size.width, level.size.height), _BLOCK_PX, factor):
        left, top, width, height = box
        rows = slice(top // factor, ceil((top + height) / factor))
        cols = slice(left // factor, ceil((left + width) / factor))
        means = _scaled_means(slide, level, box, factor)
        if means is not None:
            rgb[rows, cols] = means
            continue
        image = _read_box(slide, level, box).reduce(factor)
        rgb[rows, cols] = np.asarray(image.convert("RGB"))
        if image.mode == "RGBA":
            unreadable[rows, cols] = np.asarray(image.getchannel("A")) < 255
    if unreadable.all():
        raise UnreadableSlide(
            slide.slide_id,
            f"{slide.path}: opens, but no region of level {level.index} can be read, nor of a "
            "finer one",
        )
    rgb[unreadable] = 255
    scale = factor * level.downsample
    mpp = sqrt(slide.pyramid.mpp_x * slide.pyramid.mpp_y) * scale  # of areas
    return Thumbnail(rgb, unreadable, scale, scale, mpp)


def _scaled_means(slide: "Slide", level: Level, box: _Box, factor: int) -> NDArray[np.uint8] | None:
    """A box's means from pixels that were made coarser while they were decoded.

    None where that cannot be had, or where `factor` is below the coarsest scale and no scale
    itself. Above it a decoded pixel may belong to two means, by so many level pixels each.
    """
    scale = min(factor, SCALES[-1])
    if scale == 1 or scale not in SCALES:
        return None
    left, top, width, height = box
    x, y = left // scale, top // scale
    size = Size(ceil((left + width) / scale) - x, ceil((top + height) / scale) - y)
    raster = slide.read_direct(level.index, x, y, size, scale=scale)
    if raster is None or scale == factor:
        return raster
    rows = _overlaps(top, height, factor=factor, scale=scale)
    cols = _overlaps(left, width, factor=factor, scale=scale)
    # Sums of whole numbers: exact in float64, in whatever order.
    sums = np.tensordot(rows, np.tensordot(cols, raster, axes=(1, 1)), axes=(1, 1))
    pixels = rows.sum(axis=1)[:, None] * cols.sum(axis=1)
    return np.floor(sums / pixels[..., None] + 0.5).astype(np.uint8)


def _overlaps(start: int, length: int, *, factor: int, scale: int) -> NDArray[np.float64]:
    """(means, raster pixels): how many level pixels of [start, start + length) they share."""
    stop = start + length
    mean = np.arange(start, stop, factor)[:, None]
    pixel = np.arange(start // scale, ceil(stop / scale)) * scale
    ends = np.minimum(np.minimum(mean + factor, stop), pixel + scale)
    return np.maximum(ends - np.maximum(mean, pixel), 0).astype(np.float64)


def _read_box(slide: "Slide", level: Level, box: _Box) -> Image.Image:
    """A box of level pixels as RGB, or as RGBA, transparent where no level can be read."""
    left, top, width, height = box
    longest = max(width, height)
    side = _BLOCK_PX
    if longest <= _BLOCK_PX:
        try:
            region = slide.read_level(level.index, left, top, Size(width, height))
        except UnreadableSlide:
            if longest <= _SMALLEST_BLOCK_PX:
                return _read_finer(slide, level, box)
            side = ceil(longest / 2)
        else:
            return Image.fromarray(region)
    image = Image.new("RGBA", (width, height))
    for part in _split(box, side, 1):
        image.paste(_read_box(slide, level, part), (part[0] - left, part[1] - top))
    return image


def _read_finer(slide: "Slide", level: Level, box: _Box) -> Image.Image:
    """The same from the next finer level, averaged; nothing below level 0."""
    left, top, width, height = box
    if level.index == 0:
        return Image.new("RGBA", (width, height))
    finer = slide.pyramid.levels[level.index - 1]
    ratio = level.downsample / finer.downsample
    x, right = _scaled(left, width, ratio=ratio, end=finer.size.width)
    y, bottom = _scaled(top, height, ratio=ratio, end=finer.size.height)
    first_x, first_y = floor(x), floor(y)
    source = (first_x, first_y, ceil(right) - first_x, ceil(bottom) - first_y)
    part = (x - first_x, y - first_y, right - first_x, bottom - first_y)
    image = _read_box(slide, finer, source)
    return image.resize((width, height), Image.Resampling.BOX, box=part)


def _scaled(first: int, length: int, *, ratio: float, end: int) -> tuple[float, float]:
    """[first, first + length) in pixels of a finer level, kept inside it: sizes are rounded."""
    return min(first * ratio, end - 1), min((first + length) * ratio, end)


def _split(box: _Box, side: int, factor: int) -> Iterator[_Box]:
    """Cover a box with boxes of about `side`, aligned to `factor`."""
    step = max(1, side // factor) * factor
    left, top, width, height = box
    for y in range(top, top + height, step):
        for x in range(left, left + width, step):
            yield x, y, min(step, left + width - x), min(step, top + height - y)
