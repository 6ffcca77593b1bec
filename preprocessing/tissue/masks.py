"""Tissue masks that another program made: one PNG a slide."""

import warnings
from math import ceil
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from preprocessing.errors import SlideError
from preprocessing.geometry import Size
from preprocessing.tissue.segmentation import TissueMask


def read_mask(path: Path, *, slide_id: str, size_px0: Size, least_px0_per_px: float) -> TissueMask:
    """The PNG at `path` as the tissue of a slide of `size_px0`, white where there is tissue.

    It shows the whole of level 0, at any scale, the same in x and y; one finer than
    `least_px0_per_px` is reduced to about that, where a pixel is what most of it is. White is more
    than half of what the PNG's pixels can be; in a mask of zeros and ones, 1. Raises `SlideError`
    where there is no such file or its shape or values are others.
    """
    white = _read_white(path, slide_id)
    height, width = white.shape
    if not _fits(Size(width, height), size_px0):
        raise SlideError(
            slide_id,
            f"{path}: expected a mask of the whole slide, {size_px0.width} x {size_px0.height} px "
            f"at any one scale, got {width} x {height} px: for this width the height would be "
            f"{width * size_px0.height / size_px0.width:.0f}; export the mask again, uncropped",
        )
    factor = max(1, int(least_px0_per_px * min(width / size_px0.width, height / size_px0.height)))
    scale_x, scale_y = size_px0.width / width, size_px0.height / height
    if factor > 1:
        white = _mostly(white, factor)
    return TissueMask(white, scale_x * factor, scale_y * factor)


def _read_white(path: Path, slide_id: str) -> NDArray[np.bool_]:
    if not path.is_file():
        raise SlideError(
            slide_id, f"no mask at {path}; tissue.masks expects a PNG for every slide of the study"
        )
    try:
        with warnings.catch_warnings():
            # A mask as large as its slide is no attack, and Pillow refuses what is far larger.
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(path, formats=["PNG"]) as image:
                deep = image.mode.startswith("I")
                values = np.asarray(image if deep else image.convert("L"))
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise SlideError(
            slide_id, f"{path}: expected a mask as PNG of at most 178 million pixels, got {error!r}"
        ) from error
    brightest, most = int(values.max()), 65535 if deep else 255
    if 1 < brightest <= most // 2:
        raise SlideError(
            slide_id,
            f"{path}: expected a mask of 0 and {most} (tissue), or of 0 and 1, but the brightest "
            f"pixel has {brightest}; write tissue as white",
        )
    return values > (0 if brightest <= 1 else most // 2)


def _fits(mask: Size, slide: Size) -> bool:
    """Whether both sides are the slide's divided by one number, up or down to a whole pixel."""
    least = max(slide.width / (mask.width + 1), slide.height / (mask.height + 1))
    most = min(slide.width / max(mask.width - 1, 1e-9), slide.height / max(mask.height - 1, 1e-9))
    return least < most


def _mostly(white: NDArray[np.bool_], factor: int) -> NDArray[np.bool_]:
    """Of each block, what at least half of it is; the last ones reach past the mask: not tissue."""
    height, width = white.shape
    rows, cols = ceil(height / factor), ceil(width / factor)
    padded = np.pad(white, ((0, rows * factor - height), (0, cols * factor - width)))
    return padded.reshape(rows, factor, cols, factor).mean(axis=(1, 3)) >= 0.5
