"""Small slides as scanners, converters and accidents leave them, to make an archive of."""

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image
from tiff_files import TILE_PX, block_mean

Pixels = NDArray[np.uint8]


def tissue(width: int = 768, height: int = 768, *, seed: int = 0) -> Pixels:
    """White glass with a purple block in the middle, of which every spot is different."""
    image = np.full((height, width, 3), 244, dtype=np.uint8)
    top, left = height // 6, width // 6
    rows, cols = (height - 2 * top) // 16, (width - 2 * left) // 16
    colours = np.array([150, 70, 150])
    colours = colours + np.random.default_rng(seed).integers(-25, 26, (rows, cols, 3))
    block = np.repeat(np.repeat(colours, 16, axis=0), 16, axis=1)
    image[top : top + 16 * rows, left : left + 16 * cols] = block
    return image


def write_jpeg(
    path: Path, image: Pixels, *, mpp: float, rgb: bool = False, factors: tuple[int, ...] = (1, 4)
) -> Path:
    """A pyramid of JPEG tiles: YCbCr with colour at half the resolution, or plain RGB."""
    coding = {"outcolorspace": "rgb"} if rgb else {}
    with tifffile.TiffWriter(path) as tiff:
        for factor in factors:
            tiff.write(
                block_mean(image, factor),
                tile=(TILE_PX, TILE_PX),
                photometric="rgb",
                compression="jpeg",
                compressionargs={"level": 90, **coding},
                subsampling=None if rgb else (2, 2),
                subfiletype=0 if factor == 1 else 1,
                resolution=(10_000 / mpp, 10_000 / mpp),
                resolutionunit="CENTIMETER",
                metadata=None,
            )
    return path


def write_svs(
    path: Path, image: Pixels, *, mpp: float | str | None, power: float | None = 20
) -> Path:
    """As Aperio does: the resolution in the description, a thumbnail, and a label."""
    height, width = image.shape[:2]
    stated = {"AppMag": power, "MPP": mpp, "User": "Dr. Jones", "Filename": "Smith_John"}
    described = "".join(f"|{key} = {value}" for key, value in stated.items() if value is not None)
    size = f"{width}x{height} [0,0 {width}x{height}] ({TILE_PX}x{TILE_PX}) JPEG/RGB Q=90"
    about = f"Aperio Image Library v11.2.1 \r\n{size}{described}"
    tiled = {"tile": (TILE_PX, TILE_PX), "compression": "jpeg", "subsampling": (2, 2)}
    common = {"photometric": "rgb", "metadata": None, "software": False}
    with tifffile.TiffWriter(path) as tiff:
        tiff.write(image, description=about, **tiled, **common)
        tiff.write(block_mean(image, 8), description=about, rowsperstrip=16, **common)
        tiff.write(block_mean(image, 4), description=about, **tiled, **common)
        label = "Aperio Image Library v11.2.1 \r\nlabel 64x64"
        tiff.write(image[:64, :64], description=label, subfiletype=1, rowsperstrip=64, **common)
    return path


def write_strips(path: Path, image: Pixels) -> Path:
    tifffile.imwrite(path, image, photometric="rgb", metadata=None)
    return path


def write_deep(path: Path, image: Pixels, *, mpp: float) -> Path:
    """16 bits a channel."""
    return _tiled(path, image.astype(np.uint16) * 257, mpp=mpp)


def write_alpha(path: Path, image: Pixels, *, mpp: float) -> Path:
    opaque = np.full((*image.shape[:2], 1), 255, dtype=np.uint8)
    return _tiled(path, np.dstack([image, opaque]), mpp=mpp, extrasamples=["unassalpha"])


def _tiled(
    path: Path, image: NDArray[np.unsignedinteger], *, mpp: float, **options: object
) -> Path:
    tifffile.imwrite(
        path,
        image,
        tile=(TILE_PX, TILE_PX),
        photometric="rgb",
        compression="deflate",
        resolution=(10_000 / mpp, 10_000 / mpp),
        resolutionunit="CENTIMETER",
        metadata=None,
        **options,
    )
    return path


def cut(path: Path, *, share: float) -> Path:
    """What a copy leaves that was stopped."""
    contents = path.read_bytes()
    path.write_bytes(contents[: int(share * len(contents))])
    return path


def contradict(path: Path, *, um: float) -> Path:
    """Resolution tags of `um`, whatever the vendor says."""
    with tifffile.TiffFile(path, mode="r+b") as tiff:
        tags = tiff.pages[0].tags
        for name in ("XResolution", "YResolution"):
            tags[name].overwrite((round(10_000 / um), 1))
        tags["ResolutionUnit"].overwrite(3)
    return path


def write_picture(path: Path, image: Pixels) -> Path:
    Image.fromarray(image).save(path, format="JPEG")
    return path
