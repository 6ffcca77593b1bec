"""Fat on an overview of a slide: glass between membranes too thin to count as stained."""

from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import ndimage

from preprocessing.tissue.rasters import Mask, closed, dilated, parts_touching

# Stained lines, as pixels of 8 um show them, cover 0.25 to 0.45 of fat, measured over 3 x 3 blocks,
# and nothing of glass; the single line of a bubble's rim would cover 0.1.
_LINE_UM, _BLOCK_UM = 8.0, 32.0
_LINE_SATURATION = 0.04
_LEAST_LINES, _LEAST_GROUND = 0.15, 0.2
_WIDEST_CELL_UM = 100.0  # wider lumina are holes, filled or not by their area
_THINNEST_UM = 32.0
_TISSUE_RIM_UM, _FOREIGN_RIM_UM = 16.0, 40.0  # as far as blur and JPEG carry colour
_SAMPLED = 16  # one of so many pixels tells the noise


def saturation(colour: NDArray[np.float32]) -> NDArray[np.float32]:
    """(h, w) 1 - min / max over the channels (3, h, w): the spread of optical density."""
    return 1 - colour.min(axis=0) / np.maximum(colour.max(axis=0), 1 / 255)


def fat_beside(
    planes: NDArray[np.uint8],
    white: NDArray[np.float32],
    tissue: Mask,
    *,
    foreign: Mask,
    mpp: float,
) -> Mask:
    """Fat outside of `tissue` and `foreign` matter that is in one piece with the tissue.

    From the colours (3, h, w) before medians, which wipe out lines, and the colour (3,) of glass.
    Neither tissue and foreign matter nor their blurred edges count, as lines or as ground.
    """
    near_tissue = dilated(tissue, ceil(_TISSUE_RIM_UM / mpp))
    ground = ~(near_tissue | dilated(foreign, ceil(_FOREIGN_RIM_UM / mpp)))
    if not (tissue.any() and ground.any()):
        return np.zeros_like(tissue)
    # Not clipped at white, because noise goes beyond it.
    colour = np.divide(planes, white[:, None, None], dtype=np.float32)
    if (side := round(_LINE_UM / mpp)) > 1:
        for plane in colour:
            ndimage.uniform_filter(plane, side, output=plane, mode="nearest")
    spread = saturation(colour)
    # Noise on glass has a saturation, too: a pixel in a million has more than 6 times as much as
    # a fifth of them, and a fifth are glass also where most is fat.
    noise = float(np.quantile(spread[ground][::_SAMPLED], 0.2))
    block_px = max(1, round(_BLOCK_UM / mpp))
    # Against the palest nearby, or glass of an uneven tint would be full of lines.
    lines = spread - _least_nearby(spread, block_px) > max(_LINE_SATURATION, 6 * noise)
    lines &= ground
    dense = _are_dense(lines, ground, block_px)
    if not dense.any():
        return dense
    fat = dense & closed(lines | tissue, max(1, round(_WIDEST_CELL_UM / 2 / mpp))) & ~foreign
    # A lone line that ends at tissue is dense there, but thin.
    whole = _opened(fat | tissue, max(1, round(_THINNEST_UM / 2 / mpp)))
    return parts_touching((fat & whole) | tissue, tissue) & ~tissue


def _opened(mask: Mask, radius_px: int) -> Mask:
    return dilated(~dilated(~mask, radius_px), radius_px)


def _are_dense(lines: Mask, ground: Mask, block_px: int) -> Mask:
    """Whether lines cover enough of the ground around: of the block and its eight neighbours."""
    area, of_lines = (
        ndimage.uniform_filter(
            _blocks(mask, block_px).mean(axis=(1, 3), dtype=np.float32), 3, mode="nearest"
        )
        for mask in (ground, lines)
    )
    dense = (of_lines > _LEAST_LINES * area) & (area > _LEAST_GROUND)
    return _pixels(dense, block_px, lines.shape)


def _least_nearby(plane: NDArray[np.float32], block_px: int) -> NDArray[np.float32]:
    """The least value in the block and its eight neighbours."""
    least = ndimage.minimum_filter(_blocks(plane, block_px).min(axis=(1, 3)), 3, mode="nearest")
    return _pixels(least, block_px, plane.shape)


def _blocks(plane: NDArray[Any], side_px: int) -> NDArray[Any]:
    """(rows, side, columns, side); the last blocks continue the border."""
    height, width = plane.shape
    padded = np.pad(plane, ((0, -height % side_px), (0, -width % side_px)), mode="edge")
    return padded.reshape(padded.shape[0] // side_px, side_px, -1, side_px)


def _pixels(of_blocks: NDArray[Any], side_px: int, shape: tuple[int, ...]) -> NDArray[Any]:
    pixels = np.repeat(np.repeat(of_blocks, side_px, axis=0), side_px, axis=1)
    return pixels[: shape[0], : shape[1]]
