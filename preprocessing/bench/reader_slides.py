"""Slides as scanners store them, made for measuring: painted tissue in tiles of JPEG."""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import simplejpeg
import tifffile
from numpy.typing import NDArray
from PIL import Image

from preprocessing.synthetic import normal
from preprocessing.synthetic.fields import MacroGrid
from preprocessing.synthetic.painting import paint

_PAINTED_PX = 2048  # what is larger repeats it, mirrored
_SOLID_UM = 60.0  # so far from the nearest edge of the tissue: nothing but tissue
_SCAN = 0xDA
_TABLES = (0xDB, 0xC4)


@dataclass(frozen=True)
class Storage:
    """How tiles are stored. `rgb`: components as they are, at full resolution, without a marker
    that says so; else YCbCr 4:2:0.
    """

    tile_px: int
    quality: int
    rgb: bool


YCBCR = Storage(tile_px=256, quality=85, rgb=False)
RGB = Storage(tile_px=240, quality=90, rgb=True)


def painted_tissue(width_px: int, height_px: int, *, mpp: float) -> NDArray[np.uint8]:
    """(height, width, 3) of stroma, glands, fat and lymphocytes, without glass."""
    rng = np.random.default_rng(0)
    side_px = min(_PAINTED_PX, max(width_px, height_px))
    grid = MacroGrid(side_px * mpp, side_px * mpp)
    anatomy = normal.grow_stroma(rng, grid, np.full(grid.shape, _SOLID_UM, dtype=np.float32))
    normal.grow_normal(rng, anatomy)
    piece = paint(rng, anatomy, mpp=mpp)
    row = np.concatenate([piece, piece[:, ::-1]], axis=1)
    block = np.concatenate([row, row[::-1]])
    across, down = -(-width_px // len(block)), -(-height_px // len(block))
    return np.tile(block, (down, across, 1))[:height_px, :width_px]


def write_svs(
    path: Path,
    image: NDArray[np.uint8],
    *,
    mpp: float,
    storage: Storage,
    factors: tuple[int, ...] = (1, 4, 16),
) -> None:
    """A pyramid as Aperio's scanners write it: the JPEG tables once, in a tag, and not in tiles.

    Levels are means over blocks; their sizes are rounded down.
    """
    with tifffile.TiffWriter(path, bigtiff=image.nbytes > 1 << 31) as writer:
        for factor in factors:
            level = Image.fromarray(image).reduce(factor)
            size = (image.shape[1] // factor, image.shape[0] // factor)
            _write_level(writer, np.asarray(level.crop((0, 0, *size))), mpp, storage)


def _write_level(
    writer: tifffile.TiffWriter, level: NDArray[np.uint8], mpp: float, storage: Storage
) -> None:
    tables, _ = split_tables(_encoded(level[: storage.tile_px, : storage.tile_px], storage))
    writer.write(
        (split_tables(_encoded(tile, storage))[1] for tile in _tiles(level, storage.tile_px)),
        shape=level.shape,
        dtype=np.uint8,
        tile=(storage.tile_px, storage.tile_px),
        photometric="rgb" if storage.rgb else "ycbcr",
        subsampling=None if storage.rgb else (2, 2),
        compression="jpeg",
        # Or tifffile would take it upon itself to write YCbCr into the photometric tag.
        compressionargs={"outcolorspace": "rgb"} if storage.rgb else None,
        jpegtables=tables,
        description=f"Aperio Image Library\r\n|AppMag = {10 / mpp:g}|MPP = {mpp:g}",
        metadata=None,
    )


def _tiles(level: NDArray[np.uint8], side: int) -> Iterator[NDArray[np.uint8]]:
    """Row by row; the last ones go on with the level's last pixels."""
    height, width = level.shape[:2]
    padded = np.pad(level, ((0, -height % side), (0, -width % side), (0, 0)), mode="edge")
    for y in range(0, height, side):
        for x in range(0, width, side):
            yield np.ascontiguousarray(padded[y : y + side, x : x + side])


def _encoded(tile: NDArray[np.uint8], storage: Storage) -> bytes:
    tile = next(_tiles(tile, storage.tile_px))
    if storage.rgb:
        planes = (np.ascontiguousarray(tile[..., n]) for n in range(3))
        return simplejpeg.encode_jpeg_yuv_planes(*planes, quality=storage.quality)
    return simplejpeg.encode_jpeg(tile, quality=storage.quality, colorsubsampling="420")


def split_tables(stream: bytes) -> tuple[bytes, bytes]:
    """A JPEG as its tables and the rest of it, both with start and end markers."""
    start, end = stream[:2], stream[-2:]
    tables, rest = [], []
    at = 2
    while stream[at + 1] != _SCAN:
        stop = at + 2 + int.from_bytes(stream[at + 2 : at + 4])
        if stream[at + 1] in _TABLES:
            tables.append(stream[at:stop])
        elif stream[at + 1] < 0xE0:  # application data, such as JFIF, is left out
            rest.append(stream[at:stop])
        at = stop
    return start + b"".join(tables) + end, start + b"".join(rest) + stream[at:]
