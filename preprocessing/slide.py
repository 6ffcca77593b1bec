"""Whole-slide files through openslide: pyramid, resolution, regions as RGB, read errors as data."""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from preprocessing.errors import UnreadableSlide
from preprocessing.geometry import Level, Pyramid, Size
from preprocessing.manifest import SlideRow
from preprocessing.mpp import find_mpp

_FINGERPRINT_END_BYTES = 1 << 20
_FINGERPRINT_BLOCKS, _FINGERPRINT_BLOCK_BYTES = 64, 1 << 16
_BLOCK_PX = 2048  # overviews are read in blocks, so that a one-level slide fits into memory
_SMALLEST_BLOCK_PX = 256  # an unreadable block is quartered down to about this side

_Box = tuple[int, int, int, int]  # left, top, width, height in pixels of some level


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """(h, w, 3) RGB of the whole slide; one of its pixels is exactly `px0_per_px_x` by
    `px0_per_px_y` level-0 pixels, the last column and row are averages of what is left.

    `unreadable` (h, w) marks what no level could give; there the picture is white.
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
            self.mpp * max(x, y),
        )


class Slide:
    """An open slide. Not for use by two threads at once; close it or use `open_slide`.

    `fingerprint` is the SHA-256 of the file's length, its first and last MiB, 64 blocks of 64 KiB
    spread evenly over it, and openslide's quickhash: it survives a rename, and a change to any
    stretch longer than a 63rd of the file changes it. Companion files count through the quickhash.
    """

    def __init__(self, row: SlideRow) -> None:
        self.slide_id = row.slide_id
        self.path = row.path
        self._handle = self._open()
        try:
            properties = dict(self._handle.properties)
            self.vendor = properties.get("openslide.vendor", "unknown")
            mpp = find_mpp(row, properties)
            self.mpp_source = mpp.source
            self.pyramid = Pyramid(_levels(self._handle), mpp.x, mpp.y)
            self.bounds_px0 = _bounds(properties)
            self.fingerprint = _fingerprint(row.path, properties.get("openslide.quickhash-1", ""))
        except BaseException:
            self.close()
            raise

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    def close(self) -> None:
        self._handle.close()

    def _open(self) -> openslide.OpenSlide:
        if not self.path.exists():
            raise UnreadableSlide(
                self.slide_id, f"no file at {self.path}; correct 'path' in the manifest"
            )
        try:
            # openslide.open_slide would fall back to a plain-image reader for any TIFF or PNG.
            return openslide.OpenSlide(str(self.path))
        except openslide.OpenSlideError as error:
            raise UnreadableSlide(
                self.slide_id, f"openslide cannot open {self.path} as a slide: {error}"
            ) from error

    def read_region(
        self, level: int, x_px0: float, y_px0: float, size_px: Size
    ) -> NDArray[np.uint8]:
        """(h, w, 3) RGB of `size_px` pixels of `level`, its top-left at whole level-0 pixels.

        Raises `UnreadableSlide` where the file is damaged; the slide stays usable after it.
        """
        self._require_inside(level, x_px0, y_px0, size_px)
        corner = (round(x_px0), round(y_px0))
        try:
            image = self._handle.read_region(corner, level, (size_px.width, size_px.height))
        except openslide.OpenSlideError as error:
            # After one error openslide refuses everything on this handle: a new one is needed.
            self._handle.close()
            self._handle = self._open()
            raise UnreadableSlide(
                self.slide_id,
                f"{self.path}: level {level}, {size_px.width} x {size_px.height} px at "
                f"{corner} cannot be read: {error}",
            ) from error
        return _on_white(image)

    def _require_inside(self, level: int, x_px0: float, y_px0: float, size_px: Size) -> None:
        whole = self.pyramid.levels[level]
        # One pixel of play: vendors round level sizes, corners are rounded to level-0 pixels.
        right = x_px0 / whole.downsample + size_px.width - 1
        bottom = y_px0 / whole.downsample + size_px.height - 1
        if min(x_px0, y_px0) < 0 or right > whole.size.width or bottom > whole.size.height:
            raise ValueError(
                f"slide {self.slide_id!r}: {size_px} at level-0 ({x_px0}, {y_px0}) leaves "
                f"level {level} of {whole.size}"
            )

    def overviews(self, *, mpp: float, longest_px: int) -> tuple[Thumbnail, Thumbnail]:
        """The whole slide to measure on and to look at, from the coarsest levels that serve.

        The first has `mpp` um/px or is finer (coarser only where level 0 is), the second fits into
        a square of `longest_px`. A level that serves both is read once.
        """
        levels = self.pyramid.levels
        measured = levels[self.pyramid.coarsest_level_for(mpp) or 0]
        enough = [n for n in levels if max(n.size.width, n.size.height) >= longest_px]
        shown = enough[-1] if enough else levels[0]
        for_mpp = max(1, floor(mpp / max(self.pyramid.mpp_at(measured.index)) + 1e-9))
        for_size = ceil(max(shown.size.width, shown.size.height) / longest_px)
        if measured is shown:
            view = self._reduced(measured, min(for_mpp, for_size))
            return view, view.within(longest_px)
        return self._reduced(measured, for_mpp), self._reduced(shown, for_size)

    def _reduced(self, level: Level, factor: int) -> Thumbnail:
        """Means over `factor` x `factor` pixels of a level, read block by block."""
        shape = (ceil(level.size.height / factor), ceil(level.size.width / factor))
        rgb = np.empty((*shape, 3), dtype=np.uint8)
        unreadable = np.zeros(shape, dtype=bool)
        for box in _split((0, 0, level.size.width, level.size.height), _BLOCK_PX, factor):
            left, top, width, height = box
            rows = slice(top // factor, ceil((top + height) / factor))
            cols = slice(left // factor, ceil((left + width) / factor))
            image = self._read_box(level, box).reduce(factor)
            rgb[rows, cols] = np.asarray(image.convert("RGB"))
            if image.mode == "RGBA":
                unreadable[rows, cols] = np.asarray(image.getchannel("A")) < 255
        if unreadable.all():
            raise UnreadableSlide(
                self.slide_id,
                f"{self.path}: opens, but no region of level {level.index} can be read, nor of a "
                "finer one",
            )
        rgb[unreadable] = 255
        scale = factor * level.downsample
        mpp = max(self.pyramid.mpp_x, self.pyramid.mpp_y) * scale
        return Thumbnail(rgb, unreadable, scale, scale, mpp)

    def _read_box(self, level: Level, box: _Box) -> Image.Image:
        """A box of level pixels as RGB, or as RGBA, transparent where no level can be read."""
        left, top, width, height = box
        longest = max(width, height)
        side = _BLOCK_PX
        if longest <= _BLOCK_PX:
            x_px0, y_px0 = left * level.downsample, top * level.downsample
            try:
                region = self.read_region(level.index, x_px0, y_px0, Size(width, height))
            except UnreadableSlide:
                if longest <= _SMALLEST_BLOCK_PX:
                    return self._read_finer(level, box)
                side = ceil(longest / 2)
            else:
                return Image.fromarray(region)
        image = Image.new("RGBA", (width, height))
        for part in _split(box, side, 1):
            image.paste(self._read_box(level, part), (part[0] - left, part[1] - top))
        return image

    def _read_finer(self, level: Level, box: _Box) -> Image.Image:
        """The same from the next finer level, averaged; nothing below level 0."""
        left, top, width, height = box
        if level.index == 0:
            return Image.new("RGBA", (width, height))
        finer = self.pyramid.levels[level.index - 1]
        ratio = level.downsample / finer.downsample
        x, right = _scaled(left, width, ratio=ratio, end=finer.size.width)
        y, bottom = _scaled(top, height, ratio=ratio, end=finer.size.height)
        first_x, first_y = floor(x), floor(y)
        source = (first_x, first_y, ceil(right) - first_x, ceil(bottom) - first_y)
        part = (x - first_x, y - first_y, right - first_x, bottom - first_y)
        image = self._read_box(finer, source)
        return image.resize((width, height), Image.Resampling.BOX, box=part)


@contextmanager
def open_slide(row: SlideRow) -> Iterator[Slide]:
    """Raises `UnreadableSlide` or `MppError`, both naming the slide."""
    with Slide(row) as slide:
        yield slide


def _levels(handle: openslide.OpenSlide) -> tuple[Level, ...]:
    sizes = zip(handle.level_dimensions, handle.level_downsamples, strict=True)
    return tuple(
        Level(index, Size(width, height), downsample)
        for index, ((width, height), downsample) in enumerate(sizes)
    )


def _bounds(properties: dict[str, str]) -> tuple[int, int, int, int] | None:
    """(x, y, width, height) of the scanned area, in level-0 pixels, where the vendor states it."""
    keys = [f"openslide.bounds-{name}" for name in ("x", "y", "width", "height")]
    if any(key not in properties for key in keys):
        return None
    x, y, width, height = (int(properties[key]) for key in keys)
    return x, y, width, height


def _fingerprint(path: Path, quickhash: str) -> str:
    length = path.stat().st_size
    digest = hashlib.sha256(f"{length} {quickhash} ".encode())
    end = max(0, length - _FINGERPRINT_END_BYTES)
    last = max(0, length - _FINGERPRINT_BLOCK_BYTES)
    spread = [last * n // (_FINGERPRINT_BLOCKS - 1) for n in range(_FINGERPRINT_BLOCKS)]
    with path.open("rb", buffering=0) as file:
        for offset in (0, end):
            file.seek(offset)
            digest.update(file.read(_FINGERPRINT_END_BYTES))
        for offset in spread:
            file.seek(offset)
            digest.update(file.read(_FINGERPRINT_BLOCK_BYTES))
    return digest.hexdigest()


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    """RGBA to RGB; openslide leaves unscanned areas transparent, and glass is white."""
    if image.getchannel("A").getextrema() != (255, 255):
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.array(image.convert("RGB"))


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
