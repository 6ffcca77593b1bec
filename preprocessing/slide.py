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

# Scanner properties without names, dates or free text, which may identify a patient.
_KEPT_PROPERTIES = (
    "openslide.vendor",
    "openslide.mpp-x",
    "openslide.mpp-y",
    "openslide.objective-power",
    "openslide.quickhash-1",
    "openslide.icc-size",
    "tiff.ResolutionUnit",
    "tiff.XResolution",
    "tiff.YResolution",
)
_FINGERPRINT_BYTES = 1 << 20
_BLOCK_PX = 2048  # overviews are read in blocks, so that a one-level slide fits into memory
_SMALLEST_BLOCK_PX = 256  # an unreadable block is quartered down to about this side


@dataclass(frozen=True, eq=False)
class Thumbnail:
    """(h, w, 3) RGB of the whole slide; one of its pixels is exactly `px0_per_px_x` by
    `px0_per_px_y` level-0 pixels, the last column and row are averages of what is left.

    `unreadable` (h, w) marks what could not be read; there the picture is white.
    """

    rgb: NDArray[np.uint8]
    unreadable: NDArray[np.bool_]
    px0_per_px_x: float
    px0_per_px_y: float
    mpp: float


class Slide:
    """An open slide. Not for use by two threads at once; close it or use `open_slide`.

    `fingerprint` is the SHA-256 of the file's length, its first and last MiB, and openslide's
    quickhash (which covers the companion files of multi-file formats): it survives a rename.
    """

    def __init__(self, row: SlideRow) -> None:
        self.slide_id = row.slide_id
        self.path = row.path
        self._handle = self._open()
        try:
            properties = dict(self._handle.properties)
            self.properties = {k: properties[k] for k in _KEPT_PROPERTIES if k in properties}
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

    def thumbnail(self, mpp: float) -> Thumbnail:
        """The whole slide at `mpp` um/px or at most twice finer, from the coarsest level that
        serves; coarser only where level 0 is.
        """
        index = self.pyramid.coarsest_level_for(mpp) or 0
        factor = max(1, floor(mpp / max(self.pyramid.mpp_at(index)) + 1e-9))
        return self._reduced(self.pyramid.levels[index], factor)

    def thumbnail_within(self, longest_px: int) -> Thumbnail:
        """The whole slide as large as fits into a square of `longest_px`."""
        enough = [
            level
            for level in self.pyramid.levels
            if max(level.size.width, level.size.height) >= longest_px
        ]
        level = enough[-1] if enough else self.pyramid.levels[0]
        factor = ceil(max(level.size.width, level.size.height) / longest_px)
        return self._reduced(level, factor)

    def _reduced(self, level: Level, factor: int) -> Thumbnail:
        """Means over `factor` x `factor` pixels of a level, read block by block."""
        shape = (ceil(level.size.height / factor), ceil(level.size.width / factor))
        rgb = np.full((*shape, 3), 255, dtype=np.uint8)
        unreadable = np.zeros(shape, dtype=bool)
        blocks = list(_split((0, 0, level.size.width, level.size.height), _BLOCK_PX, factor))
        while blocks:
            left, top, width, height = block = blocks.pop()
            rows = slice(top // factor, ceil((top + height) / factor))
            cols = slice(left // factor, ceil((left + width) / factor))
            x_px0, y_px0 = left * level.downsample, top * level.downsample
            try:
                region = self.read_region(level.index, x_px0, y_px0, Size(width, height))
            except UnreadableSlide:
                if max(width, height) > max(_SMALLEST_BLOCK_PX, factor):
                    blocks += _split(block, max(width, height) // 2, factor)
                else:
                    unreadable[rows, cols] = True
            else:
                rgb[rows, cols] = np.asarray(Image.fromarray(region).reduce(factor))
        if unreadable.all():
            raise UnreadableSlide(
                self.slide_id,
                f"{self.path}: opens, but no region of level {level.index} can be read",
            )
        scale = factor * level.downsample
        mpp = max(self.pyramid.mpp_x, self.pyramid.mpp_y) * scale
        return Thumbnail(rgb, unreadable, scale, scale, mpp)


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
    with path.open("rb") as file:
        digest.update(file.read(_FINGERPRINT_BYTES))
        file.seek(max(0, length - _FINGERPRINT_BYTES))
        digest.update(file.read(_FINGERPRINT_BYTES))
    return digest.hexdigest()


def _on_white(image: Image.Image) -> NDArray[np.uint8]:
    """RGBA to RGB; openslide leaves unscanned areas transparent, and glass is white."""
    if image.getchannel("A").getextrema() != (255, 255):
        image = Image.alpha_composite(Image.new("RGBA", image.size, (255, 255, 255, 255)), image)
    return np.array(image.convert("RGB"))


def _split(
    box: tuple[int, int, int, int], side: int, factor: int
) -> Iterator[tuple[int, int, int, int]]:
    """Cover a (left, top, width, height) box with boxes of about `side`, aligned to `factor`."""
    step = max(1, side // factor) * factor
    left, top, width, height = box
    for y in range(top, top + height, step):
        for x in range(left, left + width, step):
            yield x, y, min(step, left + width - x), min(step, top + height - y)
