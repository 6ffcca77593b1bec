"""Which levels of a slide are read directly: decided once per slide, for all its handles."""

from collections.abc import Callable
from importlib.metadata import version
from pathlib import Path
from threading import Lock

from preprocessing.config import ReadingConfig
from preprocessing.geometry import Pyramid
from preprocessing.slides.direct import DirectLevel
from preprocessing.slides.direct_check import Draw, difference
from preprocessing.slides.tiff_file import StoredFile
from preprocessing.slides.tiff_index import TileIndex, index_levels
from preprocessing.slides.tile_cache import TileCache

DIRECT = f"direct (simplejpeg {version('simplejpeg')})"
MEGABYTE = 1 << 20
# Vendors whose levels are plain grids of tiles in openslide, too: no overlaps, nothing joined.
_PLAIN_GRIDS = ("aperio", "generic-tiff")


class DirectSlide:
    """The levels of one slide that can be decoded without openslide, checked when first asked for.

    Safe for threads; holds the slide's one cache of decoded tiles and no open file.
    """

    def __init__(self, path: Path, vendor: str, pyramid: Pyramid, reading: ReadingConfig) -> None:
        self._path, self._vendor, self._pyramid = path, vendor, pyramid
        self._cache = TileCache(reading.cache_mb * MEGABYTE)
        self._on = reading.direct
        self._indices: list[TileIndex | str] | None = None
        self._decided: dict[int, DirectLevel | str] = {}
        self._lock = Lock()

    def level(self, level: int, file: Callable[[], StoredFile], draw: Draw) -> DirectLevel | str:
        """The level, or why it is not read directly. `file` opens the slide's file for this
        thread, `draw` is openslide's own reading of a region.
        """
        with self._lock:
            if level not in self._decided:
                self._decided[level] = self._decide(level, file, draw)
            return self._decided[level]

    def _decide(self, level: int, file: Callable[[], StoredFile], draw: Draw) -> DirectLevel | str:
        if not self._on:
            return "reading.direct is off"
        if self._vendor not in _PLAIN_GRIDS:
            return f"format {self._vendor}"
        if self._indices is None:
            sizes = [each.size for each in self._pyramid.levels]
            self._indices = index_levels(self._path, self._vendor, sizes)
        index = self._indices[level]
        if isinstance(index, str):
            return index
        compared = DirectLevel(level, index, TileCache(0))
        found = difference(compared, file(), self._pyramid.levels[level], draw)
        return found or DirectLevel(level, index, self._cache, frames=compared.frames)
