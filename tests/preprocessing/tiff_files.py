"""Small tiled TIFFs that openslide opens, for tests that need a slide of known content."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from preprocessing.bench.reader_slides import Storage

TILE_PX = 256
YCBCR = Storage(tile_px=64, quality=85, rgb=False)
RGB = Storage(tile_px=48, quality=90, rgb=True)


def write_tiff(
    path: Path,
    image: NDArray[np.uint8],
    *,
    mpp: tuple[float, float] | None = (0.5, 0.5),
    factors: tuple[int, ...] = (1,),
    compression: str = "deflate",
) -> Path:
    """A pyramid of block means; `deflate` keeps every pixel as it is."""
    resolution = {}
    if mpp is not None:
        per_cm = (10_000 / mpp[0], 10_000 / mpp[1])
        resolution = {"resolution": per_cm, "resolutionunit": "CENTIMETER"}
    with tifffile.TiffWriter(path) as writer:
        for factor in factors:
            writer.write(
                block_mean(image, factor),
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression=compression,
                subfiletype=0 if factor == 1 else 1,
                metadata=None,
                **resolution,
            )
    return path


def block_mean(image: NDArray[np.uint8], factor: int) -> NDArray[np.uint8]:
    """Means over whole blocks; a rest at the right and lower edge is cut off."""
    height, width = (n // factor for n in image.shape[:2])
    whole = image[: height * factor, : width * factor].astype(np.float64)
    means = whole.reshape(height, factor, width, factor, 3).mean(axis=(1, 3))
    return np.floor(means + 0.5).astype(np.uint8)


@contextmanager
def stored_tile(
    path: Path, *, col: int, row: int, level: int = 0
) -> Iterator[tuple[tifffile.TiffPage, int]]:
    """The directory of a level, open for changes, and the number of one of its tiles."""
    with tifffile.TiffFile(path, mode="r+b") as file:
        page = [page for page in file.pages if page.is_tiled][level]
        across = -(-page.imagewidth // page.tilewidth)
        yield page, row * across + col


def damage_tile(path: Path, *, col: int, row: int, level: int = 0, kept: float = 0.0) -> None:
    """Overwrite the stored bytes of one tile with zeros, all but the first share `kept`."""
    with stored_tile(path, col=col, row=row, level=level) as (page, number):
        offset, length = page.dataoffsets[number], page.databytecounts[number]
    first = round(length * kept)
    with path.open("r+b") as stream:
        stream.seek(offset + first)
        stream.write(bytes(length - first))


def replace_tile(path: Path, stored: bytes, *, col: int, row: int, level: int = 0) -> None:
    """Another stream for one tile, at the end of the file; an empty one makes it missing."""
    end = path.stat().st_size
    with path.open("ab") as stream:
        stream.write(stored)
    with stored_tile(path, col=col, row=row, level=level) as (page, number):
        for tag, value in (("TileOffsets", end), ("TileByteCounts", len(stored))):
            values = list(page.tags[tag].value)
            values[number] = value
            page.tags[tag].overwrite(values)


def noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def texture(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    """Colours that change over some ten pixels, with a little noise: JPEG keeps most of it."""
    coarse = Image.fromarray(noise(-(-width // 12), -(-height // 12), seed))
    smooth = np.asarray(coarse.resize((width, height), Image.Resampling.BICUBIC))
    grain = noise(width, height, seed + 1) // 16
    return (smooth // 8 * 7 + grain).astype(np.uint8)
