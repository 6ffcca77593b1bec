"""Where the JPEG tiles of a TIFF pyramid lie: its directories, read without any pixel."""

import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import ceil
from pathlib import Path

import numpy as np
import tifffile

from preprocessing.geometry import Size
from preprocessing.slides.tiff_jpeg import stream_head

_JPEG, _RGB, _YCBCR = 7, 2, 6
_MULTIPLE_PX = 16  # TIFF asks it of a tile's sides; an eighth of it is then whole, too
# What tifffile makes of damaged tags has any type, and what it raises is not one class.
DAMAGED = (
    *(tifffile.TiffFileError, struct.error),
    *(ValueError, LookupError, TypeError, AttributeError, ArithmeticError),
)


@dataclass(frozen=True, eq=False)
class TileIndex:
    """The tiles of one level, row by row; the last of a row or column may reach over its edge.

    `head` is what each stream begins with in place of its own start marker.
    """

    size: Size
    tile: Size
    offsets: Sequence[int]
    byte_counts: Sequence[int]
    head: bytes
    rgb: bool

    @property
    def across(self) -> int:
        return ceil(self.size.width / self.tile.width)

    @property
    def down(self) -> int:
        return ceil(self.size.height / self.tile.height)

    def under(self, x: int, y: int, size: Size) -> Iterator[int]:
        """The numbers of the tiles under a box of level pixels."""
        tile = self.tile
        for row in range(y // tile.height, (y + size.height - 1) // tile.height + 1):
            for col in range(x // tile.width, (x + size.width - 1) // tile.width + 1):
                yield row * self.across + col


def index_levels(path: Path, vendor: str, sizes: Sequence[Size]) -> list[TileIndex | str]:
    """The tiles of each level of those sizes, or why that level's are not to be had.

    Levels are found by their size, which must be that of one tiled directory alone.
    """
    try:
        with tifffile.TiffFile(path) as tiff:
            pages = [p for p in tiff.pages if isinstance(p, tifffile.TiffPage) and p.is_tiled]
            found = [_level(pages, size) for size in sizes]
    except DAMAGED as error:
        return [f"its TIFF directories cannot be read: {error}"] * len(sizes)
    return _as_drawn_by_aperio(found) if vendor == "aperio" else found


def _level(pages: Sequence[tifffile.TiffPage], size: Size) -> TileIndex | str:
    fitting = [p for p in pages if (p.imagewidth, p.imagelength) == (size.width, size.height)]
    if len(fitting) != 1:
        return f"{len(fitting)} tiled directories of {size.width} x {size.height} px"
    (page,) = fitting
    kind = _unlike_plain_jpeg(page)
    if kind:
        return kind
    rgb = page.photometric == _RGB
    head = stream_head(page.jpegtables, rgb=rgb)
    if head is None:
        return "JPEGTables hold more than tables"
    tile = Size(page.tilewidth, page.tilelength)
    listed = (page.dataoffsets, page.databytecounts)
    # A damaged directory may hold text there, or numbers beyond any file.
    offsets, byte_counts = (np.asarray(each, dtype=np.int64).tolist() for each in listed)
    index = TileIndex(size, tile, offsets, byte_counts, head, rgb)
    tiles = index.across * index.down
    if not len(index.offsets) == len(index.byte_counts) == tiles:
        return f"{tiles} tiles expected, {len(index.offsets)} listed"
    return index


def _unlike_plain_jpeg(page: tifffile.TiffPage) -> str:
    """What keeps a directory's tiles from being ordinary 8 bit JPEG in colour; else empty."""
    if page.compression != _JPEG:
        return f"compression {getattr(page.compression, 'name', page.compression)}"
    if page.photometric not in (_RGB, _YCBCR):
        return f"photometric {getattr(page.photometric, 'name', page.photometric)}"
    if page.tilewidth % _MULTIPLE_PX or page.tilelength % _MULTIPLE_PX:
        return f"tiles of {page.tilewidth} x {page.tilelength} px"
    layout = {
        "BitsPerSample": (page.bitspersample, 8),
        "SamplesPerPixel": (page.samplesperpixel, 3),
        "PlanarConfiguration": (page.planarconfig, 1),
        "SampleFormat": (page.sampleformat, 1),
        "FillOrder": (page.fillorder, 1),
        "ImageDepth": (page.imagedepth, 1),
        "TileDepth": (page.tiledepth, 1),
    }
    odd = [f"{tag} {value}" for tag, (value, usual) in layout.items() if value != usual]
    return ", ".join(odd)


def _as_drawn_by_aperio(levels: list[TileIndex | str]) -> list[TileIndex | str]:
    """Without levels below which a tile is missing: openslide redraws parts of those from finer
    ones, whatever their own tiles hold.
    """
    kept: list[TileIndex | str] = []
    whole = True
    for level in levels:
        understood = isinstance(level, TileIndex)
        redrawn = understood and not whole
        kept.append("a finer level lacks tiles, or is not understood" if redrawn else level)
        whole = whole and understood and 0 not in level.byte_counts
    return kept
