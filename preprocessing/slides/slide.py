"""Whole-slide files: pyramid, resolution, regions as RGB, read errors as data.

openslide opens every slide and says what it is. Pixels come from one of two readers that give the
same ones: JPEG tiles of TIFF pyramids straight from the file, everything else through openslide,
which also has the last word wherever a stored tile is missing or damaged.
"""

import hashlib
import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Self

import numpy as np
import openslide
from numpy.typing import NDArray
from PIL import Image

from preprocessing.config import ReadingConfig
from preprocessing.errors import UnreadableSlide
from preprocessing.geometry import Level, Pyramid, Size
from preprocessing.manifest import SlideRow
from preprocessing.slides.direct import DirectLevel
from preprocessing.slides.direct_check import WHOLE_PX
from preprocessing.slides.direct_slide import DIRECT, MEGABYTE, DirectSlide
from preprocessing.slides.mpp import Mpp, find_mpp
from preprocessing.slides.overviews import Thumbnail, make_overviews
from preprocessing.slides.properties import (
    bounds_px0,
    kept_properties,
    objective_power,
    stated_properties,
)
from preprocessing.slides.tiff_claims import impossible_claim
from preprocessing.slides.tiff_file import StoredFile

_FINGERPRINT_END_BYTES = 1 << 20
_FINGERPRINT_BLOCKS, _FINGERPRINT_BLOCK_BYTES = 64, 1 << 16
_SAME_SHAPE = 1.01  # of a level and level 0; a far tile is then off by half of that hundredth
_READING = ReadingConfig()
_log = logging.getLogger(__name__)


class Slide:
    """An open slide. Not for use by two threads at once (`another` opens it again for the second);
    close it or use `open_slide`.

    `fingerprint` is the SHA-256 of the file's length, its first and last MiB, 64 blocks of 64 KiB
    spread evenly over it, and openslide's quickhash: it survives a rename, and a change to any
    stretch longer than a 63rd of the file changes it. Companion files count through the quickhash.
    `properties` are those of openslide's that say nothing about a person.
    """

    def __init__(self, row: SlideRow, *, reading: ReadingConfig = _READING) -> None:
        self.slide_id = row.slide_id
        self.path = row.path
        self.reading = reading
        self._file: StoredFile | None = None
        self._sources: dict[int, DirectLevel | str] = {}
        self._drawn_tiles = openslide.OpenSlideCache(reading.cache_mb * MEGABYTE)
        self._handle = self._open()
        try:
            properties = stated_properties(self._handle.properties)
            self.vendor = properties.get("openslide.vendor", "unknown")
            self.properties = kept_properties(properties)
            self.objective_power = objective_power(properties)
            mpp = find_mpp(row, properties)
            self.mpp_source = mpp.source
            self.pyramid = self._pyramid(mpp)
            self.bounds_px0 = bounds_px0(properties)
            self.fingerprint = _fingerprint(row.path, properties.get("openslide.quickhash-1", ""))
        except BaseException:
            self.close()
            raise
        self._direct = DirectSlide(row.path, self.vendor, self.pyramid, reading)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        self._handle.close()
        if self._file is not None:
            self._file.close()

    def another(self) -> Self:
        """A further handle of the same file, for another thread; decoded tiles are shared."""
        other = copy(self)
        other._file, other._sources = None, dict(self._sources)
        other._handle = other._open()
        return other

    def _open(self) -> openslide.OpenSlide:
        # os.path's, as those of Path raise where a folder on the way may not be entered; opening a
        # pipe would wait without end.
        file_or_folder = os.path.isfile(self.path) or os.path.isdir(self.path)  # noqa: PTH112, PTH113
        if not (file_or_folder and os.access(self.path, os.R_OK)):
            raise UnreadableSlide(
                self.slide_id,
                f"no file at {self.path} that may be read; correct 'path' in the manifest",
            )
        if claim := impossible_claim(self.path):
            raise UnreadableSlide(self.slide_id, f"{self.path}: {claim}")
        try:
            # openslide.open_slide would fall back to a plain-image reader for any TIFF or PNG.
            handle = openslide.OpenSlide(str(self.path))
        except openslide.OpenSlideError as error:
            raise UnreadableSlide(
                self.slide_id, f"openslide cannot open {self.path} as a slide: {error}"
            ) from error
        handle.set_cache(self._drawn_tiles)
        return handle

    def _pyramid(self, mpp: Mpp) -> Pyramid:
        levels, note = levels_of(self._handle)
        if note:
            _log.warning("slide %r: %s", self.slide_id, note)
        try:
            return Pyramid(levels, mpp.x, mpp.y)
        except ValueError as error:
            raise UnreadableSlide(
                self.slide_id, f"{self.path}: its levels make no pyramid: {error}"
            ) from error

    @property
    def reader(self) -> str:
        """How levels are read: "direct (<decoder>)" or "openslide: <why not directly>"; where they
        differ, each by its number.
        """
        sources = [self._source(level.index) for level in self.pyramid.levels]
        said = [f"openslide: {why}" if isinstance(why, str) else DIRECT for why in sources]
        if len(set(said)) == 1:
            return said[0]
        return "; ".join(f"level {n}: {what}" for n, what in enumerate(said))

    def stored_tile(self, level: int) -> Size | None:
        """The sides of a level's stored tiles where it is read directly; None elsewhere."""
        source = self._source(level)
        return source.index.tile if isinstance(source, DirectLevel) else None

    def expect(self, level: int, scale: int, uses: Sequence[int] | None) -> None:
        """How often each of a level's stored tiles will be wanted at that scale from now on, so
        that it is held no longer than that; None: nobody knows.
        """
        source = self._source(level)
        if isinstance(source, DirectLevel):
            source.expect(scale, uses)

    def read_region(
        self, level: int, x_px0: float, y_px0: float, size_px: Size
    ) -> NDArray[np.uint8]:
        """(h, w, 3) RGB of `size_px` pixels of `level`, its top-left at whole level-0 pixels.

        Raises `UnreadableSlide` where the file is damaged; the slide stays usable after it.
        """
        self._require_inside(level, x_px0, y_px0, size_px)
        corner = (round(x_px0), round(y_px0))
        downsample = self.pyramid.levels[level].downsample
        x, y = corner[0] / downsample, corner[1] / downsample
        if max(abs(x - round(x)), abs(y - round(y))) < WHOLE_PX:
            region = self.read_direct(level, round(x), round(y), size_px)
            if region is not None:
                return region
        return self._draw(level, *corner, size_px)

    def read_level(self, level: int, x: int, y: int, size_px: Size) -> NDArray[np.uint8]:
        """The same from (x, y) in the level's own pixels; where openslide has to draw them, from
        the nearest level-0 pixel.
        """
        region = self.read_direct(level, x, y, size_px)
        if region is not None:
            return region
        downsample = self.pyramid.levels[level].downsample
        return self.read_region(level, x * downsample, y * downsample, size_px)

    def read_direct(
        self, level: int, x: int, y: int, size_px: Size, *, scale: int = 1
    ) -> NDArray[np.uint8] | None:
        """(h, w, 3) RGB from (x, y) of the level, or of its raster at a scale of 2, 4 or 8.

        None where the direct reader does not serve.
        """
        out = np.empty((size_px.height, size_px.width, 3), dtype=np.uint8)
        return out if self.fill_direct(level, out, x=x, y=y, scale=scale) else None

    def fill_direct(
        self, level: int, out: NDArray[np.uint8], *, x: int, y: int, scale: int = 1
    ) -> bool:
        """The same into `out` (h, w, 3); False where the direct reader does not serve."""
        source = self._source(level)
        if isinstance(source, str) or (scale > 1 and not self.reading.scaled_decoding):
            return False
        return source.fill(self._stored(), out, x=x, y=y, scale=scale)

    def _source(self, level: int) -> DirectLevel | str:
        """The level's direct reader, or why openslide reads it."""
        source = self._sources.get(level)
        if source is None:
            source = self._direct.level(level, self._stored, self._draw)
            self._sources[level] = source
        return source

    def _stored(self) -> StoredFile:
        if self._file is None:
            self._file = StoredFile(self.path)
        return self._file

    def _draw(self, level: int, x_px0: int, y_px0: int, size_px: Size) -> NDArray[np.uint8]:
        """A region as openslide draws it."""
        corner = (x_px0, y_px0)
        try:
            image = self._handle.read_region(corner, level, (size_px.width, size_px.height))
        except openslide.OpenSlideError as error:
            # After one error openslide refuses everything on this handle: a new one is needed.
            broken, self._handle = self._handle, self._open()
            broken.close()
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
        return make_overviews(self, mpp=mpp, longest_px=longest_px)


@contextmanager
def open_slide(row: SlideRow, *, reading: ReadingConfig = _READING) -> Iterator[Slide]:
    """Raises `UnreadableSlide` or `MppError`, both naming the slide."""
    with Slide(row, reading=reading) as slide:
        yield slide


def levels_of(handle: openslide.OpenSlide) -> tuple[tuple[Level, ...], str]:
    """The pyramid's rasters, level 0 first, and what is wrong with the next one; empty where all
    serve. They end before one that cannot be a picture of all of level 0: its downsample,
    openslide's mean of both axes, would misplace every tile.
    """
    levels: list[Level] = []
    for size, downsample in zip(handle.level_dimensions, handle.level_downsamples, strict=True):
        level = Level(len(levels), Size(*size), downsample)
        if levels and not _same_shape(level.size, levels[0].size):
            across, down = (handle.dimensions[axis] / size[axis] for axis in (0, 1))
            return tuple(levels), (
                f"level {level.index} of {size[0]} x {size[1]} px, {across:.4g} times smaller than "
                f"level 0 in width and {down:.4g} times in height, cannot show the same area: it "
                "and what is coarser are computed from finer levels"
            )
        levels.append(level)
    return tuple(levels), ""


def _same_shape(one: Size, whole: Size) -> bool:
    """But for vendors' rounding of sizes, up or down to whole pixels."""
    too_wide = (one.width - 1) * whole.height > _SAME_SHAPE * (one.height + 1) * whole.width
    too_high = (one.height - 1) * whole.width > _SAME_SHAPE * (one.width + 1) * whole.height
    return not (too_wide or too_high)


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
