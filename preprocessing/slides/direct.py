"""JPEG tiles of a TIFF slide decoded straight from the file, past openslide's drawing.

libjpeg-turbo with its default settings gives the very pixels that openslide shows; openslide then
spends most of its time on painting them. Whether that holds for a slide is checked on the slide
itself, level by level, before anything is read this way (`direct_check`).
"""

from collections.abc import Collection, Sequence
from functools import lru_cache, partial

import numpy as np
from PIL import Image
from simplejpeg import decode_jpeg

from preprocessing.geometry import Size
from preprocessing.slides.tiff_file import StoredFile
from preprocessing.slides.tiff_index import TileIndex
from preprocessing.slides.tiff_jpeg import frame_header, frame_size
from preprocessing.slides.tile_cache import Raster, TileCache

SCALES = (1, 2, 4, 8)
"""What libjpeg can divide a raster by while it decodes, by smaller inverse transforms."""


class DirectLevel:
    """One level as a raster of whole pixels; safe for threads.

    At a scale of 2, 4 or 8 the raster is that much coarser, and each of its pixels covers exactly
    scale x scale pixels of the level (fewer at the right and lower edge).
    """

    def __init__(
        self, level: int, index: TileIndex, cache: TileCache, *, frames: Collection[bytes] = ()
    ) -> None:
        self.index = index
        self.frames = set(frames)
        """The frame headers that were compared with openslide; tiles of others are not decoded."""
        self._level, self._cache = level, cache
        self._across = index.across

    def expect(self, scale: int, uses: Sequence[int] | None) -> None:
        """How often each tile will be wanted at that scale from now on; None: nobody knows."""
        self._cache.expect((self._level, scale), uses)

    def fill(self, file: StoredFile, out: Raster, *, x: int, y: int, scale: int = 1) -> bool:
        """Put the raster's pixels from (x, y) into `out` (h, w, 3), C-contiguous.

        False where the box leaves the raster or a tile is missing, damaged or of an unknown kind;
        `out` means nothing then.
        """
        height, width = out.shape[:2]
        right, bottom = x + width, y + height
        whole, tile = self.index.size, self.index.tile
        inside = (right - 1) * scale < whole.width and (bottom - 1) * scale < whole.height
        if x < 0 or y < 0 or not inside:
            return False
        tile_w, tile_h = tile.width // scale, tile.height // scale
        family = (self._level, scale)
        if (width, height) == (tile_w, tile_h) and x % tile_w == 0 == y % tile_h:
            number = y // tile_h * self._across + x // tile_w
            cut = self._inside(number) != tile
            if not cut and self._cache.sole_use(family, number):
                return self._decoded(file, number, scale, out) is not None
        cols = _pieces(x, width, tile_w)
        for row, to_y, from_y in _pieces(y, height, tile_h):
            for col, to_x, from_x in cols:
                number = row * self._across + col
                pixels = self._cache.found(family, number)
                if pixels is None:
                    make = partial(self._decoded, file, number, scale)
                    pixels = self._cache.made(family, number, make)
                    if pixels is None:
                        return False
                out[to_y, to_x] = pixels[from_y, from_x]
        return True

    def frame_of(self, file: StoredFile, number: int) -> bytes | None:
        """The frame header of a tile that can be decoded as the photometric tag says."""
        stream = self._stream(file, number)
        frame = stream and self._frame(stream)
        tile = self.index.tile
        return frame if frame and frame_size(frame) == (tile.width, tile.height) else None

    def _stream(self, file: StoredFile, number: int) -> bytes | None:
        index = self.index
        return file.stream(index.offsets[number], index.byte_counts[number], index.head)

    def _frame(self, stream: bytes) -> bytes | None:
        return frame_header(stream, start=len(self.index.head), rgb=self.index.rgb)

    def _decoded(
        self, file: StoredFile, number: int, scale: int, out: Raster | None = None
    ) -> Raster | None:
        """The tile, in `out` where that is given: only for a tile that lies within the level."""
        if scale > 1 and (inside := self._inside(number)) != self.index.tile:
            # What a file stores beyond the edge is nobody's: black, white or the last pixel again.
            # The coarser transforms would blend it with what is shown.
            whole = self._decoded(file, number, 1)
            if whole is None:
                return None
            return block_means(whole[: inside.height, : inside.width], scale)
        stream = self._stream(file, number)
        if stream is None or self._frame(stream) not in self.frames:
            return None
        width, height = self.index.tile.width // scale, self.index.tile.height // scale
        try:
            # The smallest raster that is at least so large: the one at that scale.
            tile = decode_jpeg(stream, min_width=width, min_height=height, strict=True, buffer=out)
        except ValueError:
            return None
        return tile if tile.shape == (height, width, 3) else None

    def _inside(self, number: int) -> Size:
        """What of a tile lies within the level."""
        row, col = divmod(number, self._across)
        whole, tile = self.index.size, self.index.tile
        width = min(tile.width, whole.width - col * tile.width)
        return Size(width, min(tile.height, whole.height - row * tile.height))


@lru_cache(maxsize=4096)  # the columns of a grid come again in each of its rows
def _pieces(start: int, length: int, tile: int) -> tuple[tuple[int, slice, slice], ...]:
    """The tiles under [start, start + length): their number, their place in it, what of them."""
    pieces = []
    for number in range(start // tile, (start + length - 1) // tile + 1):
        first = number * tile - start
        to, stop = max(first, 0), min(first + tile, length)
        pieces.append((number, slice(to, stop), slice(to - first, stop - first)))
    return tuple(pieces)


def block_means(raster: Raster, scale: int) -> Raster:
    """Rounded means over blocks of scale x scale pixels; at the far edges over what there is, less
    than one grey level off.
    """
    return np.asarray(Image.fromarray(raster).reduce(scale))
