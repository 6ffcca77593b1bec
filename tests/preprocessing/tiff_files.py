"""Small tiled TIFFs that openslide opens, for tests that need a slide of known content."""

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray

TILE_PX = 256


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


def damage_tile(path: Path, *, col: int, row: int) -> None:
    """Overwrite the stored bytes of one level-0 tile with zeros."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[0]
        across = -(-page.imagewidth // TILE_PX)
        index = row * across + col
        offset, length = page.dataoffsets[index], page.databytecounts[index]
    with path.open("r+b") as stream:
        stream.seek(offset)
        stream.write(bytes(length))


def noise(width: int, height: int, seed: int = 0) -> NDArray[np.uint8]:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)
