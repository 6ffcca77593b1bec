"""A pyramidal tiled TIFF as scanners write it: JPEG tiles, levels halved by area averaging."""

from pathlib import Path

import numpy as np
import tifffile
from numpy.typing import NDArray
from PIL import Image

from preprocessing.artefacts import whole_file

_TILE_PX = 256
_JPEG_QUALITY = 80
_LAST_LEVEL_PX = 512  # the pyramid ends with the first level whose longest side is not larger
_CENTIMETRE_UM = 10_000
_REDUCED_IMAGE = 1  # TIFF NewSubfileType


def write_pyramid(path: Path, rgb: NDArray[np.uint8], *, mpp: float) -> None:
    """(height, width, 3) RGB at `mpp` -> TIFF whose resolution tags openslide turns into mpp."""
    level = Image.fromarray(rgb)
    with (
        whole_file(path) as partial,
        tifffile.TiffWriter(partial) as tiff,
    ):
        level_mpp = mpp
        while True:
            tiff.write(
                np.asarray(level),
                tile=(_TILE_PX, _TILE_PX),
                photometric="rgb",  # of the input; JPEG stores it as YCbCr
                compression="jpeg",
                compressionargs={"level": _JPEG_QUALITY},
                resolution=(_CENTIMETRE_UM / level_mpp, _CENTIMETRE_UM / level_mpp),
                resolutionunit="CENTIMETER",
                subfiletype=0 if level_mpp == mpp else _REDUCED_IMAGE,
                metadata=None,
            )
            if max(level.size) <= _LAST_LEVEL_PX:
                break
            level = level.reduce(2)
            level_mpp *= 2
