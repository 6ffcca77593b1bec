"""Thumbnail -> tissue mask: white-balanced saturation above a bounded Otsu threshold, minus ink.

Saturation, 1 - min(r, g, b) / max(r, g, b), is the spread of optical density over the channels:
stain has it at any strength, while glass, dust, shadows and black borders have none. Colours are
divided by the glass colour first, so `r`, `g`, `b` below are transmissions in 0..1.

Fat is glass between membranes too thin for that; where it adjoins tissue it is found by them.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from skimage.filters import threshold_otsu

from preprocessing.config import TissueConfig
from preprocessing.tissue.fat import fat_beside, saturation
from preprocessing.tissue.ink import (
    is_black,
    is_cold_rim,
    is_pale_ink,
    is_red_ink,
    is_red_rim,
    is_vivid_ink,
)
from preprocessing.tissue.rasters import (
    Mask,
    byte_quantile,
    closed,
    dilated,
    grown_within,
    median3,
    without_small,
)

# Otsu always splits, also mere noise or mere tissue: below the floor nothing counts as stained
# (after the medians, noise of sigma 6 on glass stays under 0.02 in 99.9 % of the pixels), above the
# ceiling everything does (pale stroma has 0.1).
_SATURATION_FLOOR = 0.04
_SATURATION_CEILING = 0.10
_MEDIAN_PASSES = 2
_CLOSING_UM = 16.0
# How far the soft rim of ink, of a black border, or JPEG colour bleeding may reach.
_RIM_UM = 40.0
# Smaller dark or coloured specks are pigment, folds or dust inside tissue, not strokes of a pen.
_LEAST_INK_UM2 = 10_000.0
_LEAST_COLD_INK_UM2 = 2_500.0  # nothing in tissue is green
_DIMMEST_GLASS = 120
_LEAST_GLASS = 0.01
_MOST_BLACK = 0.5
_BLACK = 60


@dataclass(frozen=True, eq=False)
class TissueMask:
    """(row, col) booleans over a slide and the level-0 pixels that one mask pixel spans."""

    mask: NDArray[np.bool_]
    px0_per_px_x: float
    px0_per_px_y: float

    def __post_init__(self) -> None:
        if self.mask.ndim != 2 or self.mask.dtype != np.bool_:
            raise ValueError(f"a tissue mask is 2-D bool, got {self.mask.ndim}-D {self.mask.dtype}")
        if not (self.px0_per_px_x > 0 and self.px0_per_px_y > 0):
            raise ValueError(
                "level-0 pixels per mask pixel must be positive, got "
                f"({self.px0_per_px_x!r}, {self.px0_per_px_y!r})"
            )

    @cached_property
    def _integral(self) -> NDArray[np.float64]:
        """(h + 1, w + 1): tissue area above and left of each mask-pixel corner."""
        height, width = self.mask.shape
        integral = np.zeros((height + 1, width + 1))
        integral[1:, 1:] = self.mask.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
        return integral

    def _area_to(self, x_px: NDArray[np.float64], y_px: NDArray[np.float64]) -> NDArray[np.float64]:
        """Tissue area between the origin and each corner; bilinear is exact within a mask pixel."""
        height, width = self.mask.shape
        x, y = np.clip(x_px, 0, width), np.clip(y_px, 0, height)
        col = np.minimum(x.astype(np.intp), width - 1)
        row = np.minimum(y.astype(np.intp), height - 1)
        u, v = x - col, y - row
        area = self._integral
        above = (1 - u) * area[row, col] + u * area[row, col + 1]
        below = (1 - u) * area[row + 1, col] + u * area[row + 1, col + 1]
        return (1 - v) * above + v * below

    def fraction_of(self, boxes_px0: NDArray[Any]) -> NDArray[np.float64]:
        """Share of tissue in each (x, y, width, height) box of level-0 pixels, (N, 4) -> (N,).

        Exact for fractional boxes; what lies outside the mask is not tissue.
        """
        boxes = np.asarray(boxes_px0, dtype=np.float64)
        if boxes.ndim != 2 or boxes.shape[1] != 4:
            raise ValueError(f"expected boxes of shape (N, 4), got {boxes.shape}")
        left, top = boxes[:, 0] / self.px0_per_px_x, boxes[:, 1] / self.px0_per_px_y
        width, height = boxes[:, 2] / self.px0_per_px_x, boxes[:, 3] / self.px0_per_px_y
        if len(boxes) and not (width.min() > 0 and height.min() > 0):
            raise ValueError("boxes must have a positive width and height")
        right, bottom = left + width, top + height
        tissue = (
            self._area_to(right, bottom)
            - self._area_to(left, bottom)
            - self._area_to(right, top)
            + self._area_to(left, top)
        )
        return np.clip(tissue / (width * height), 0, 1)


def find_tissue(
    thumbnail: NDArray[np.uint8],
    config: TissueConfig,
    *,
    px0_per_px_x: float,
    px0_per_px_y: float,
    mpp: float,
) -> TissueMask:
    """Tissue on an (h, w, 3) RGB overview of `mpp` um per pixel.

    A finer overview is reduced to `mask_mpp` first, so the result hardly depends on which levels
    the slide has. A blank slide, and one without transmitted light (fluorescence), has none.
    """
    if thumbnail.ndim != 3 or thumbnail.shape[2] != 3 or thumbnail.dtype != np.uint8:
        raise ValueError(f"expected (h, w, 3) uint8, got {thumbnail.shape} {thumbnail.dtype}")
    if not mpp > 0:
        raise ValueError(f"mpp of the thumbnail must be positive, got {mpp!r}")
    rgb = _reduced(thumbnail, mpp / config.mask_mpp)
    height, width = rgb.shape[:2]
    scale_x, scale_y = thumbnail.shape[1] / width, thumbnail.shape[0] / height
    mask_mpp = mpp * (scale_x * scale_y) ** 0.5
    planes = np.ascontiguousarray(rgb.transpose(2, 0, 1))
    smooth = np.stack([_smooth(plane) for plane in planes])
    glass = _is_glass(smooth)
    if glass.mean() < _LEAST_GLASS and (smooth.max(axis=0) < _BLACK).mean() > _MOST_BLACK:
        mask = np.zeros((height, width), dtype=np.bool_)
    else:
        white = _glass_colour(smooth, glass)
        colour = _transmission(smooth, white)
        foreign = _foreign(colour, mask_mpp)
        tissue = _clean(_stained(colour, foreign), foreign, config, mask_mpp)
        fat = fat_beside(planes, white, tissue, foreign=foreign, mpp=mask_mpp)
        mask = _clean(tissue | fat, foreign, config, mask_mpp) if fat.any() else tissue
    return TissueMask(mask, px0_per_px_x * scale_x, px0_per_px_y * scale_y)


def _reduced(rgb: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Shrunk by the mean over boxes; never enlarged."""
    if factor >= 1:
        return rgb
    height, width = rgb.shape[:2]
    target = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(rgb).resize(target, Image.Resampling.BOX))


def _smooth(plane: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Medians of colours, because the saturation of noise has a positive mean."""
    for _ in range(_MEDIAN_PASSES):
        plane = median3(plane)
    return plane


def _is_glass(planes: NDArray[np.uint8]) -> Mask:
    """About as bright as the picture gets and nearly grey; pink, however pale, is stain.

    Planes are (3, h, w) here and below.
    """
    red, green, blue = planes
    low, high = planes.min(axis=0), planes.max(axis=0)
    bright = low >= max(_DIMMEST_GLASS, 0.8 * byte_quantile(low, 0.99))
    pink = np.minimum(red, blue) > np.minimum(green, 249) + 6  # the sum stays a byte
    return bright & (high - low <= 25) & ~pink


def _glass_colour(planes: NDArray[np.uint8], glass: Mask) -> NDArray[np.float32]:
    """(3,) the median colour of glass; white where too little glass is seen.

    What was not scanned is pure white and no glass, unless there is no other.
    """
    scanned = glass & (planes.min(axis=0) < 255)
    if scanned.mean() >= _LEAST_GLASS:
        glass = scanned
    if glass.mean() < _LEAST_GLASS:
        return np.full(3, 255, dtype=np.float32)
    return np.array([byte_quantile(plane[glass], 0.5) for plane in planes], dtype=np.float32)


def _transmission(planes: NDArray[np.uint8], white: NDArray[np.float32]) -> NDArray[np.float32]:
    colour = planes / white[:, None, None]
    return np.minimum(colour, 1, out=colour)


def _stained(colour: NDArray[np.float32], foreign: Mask) -> Mask:
    saturated = saturation(colour)
    candidates = saturated[~foreign]
    threshold = _SATURATION_FLOOR
    if candidates.size and candidates.min() < candidates.max():
        threshold = min(max(threshold, float(threshold_otsu(candidates))), _SATURATION_CEILING)
    return (saturated > threshold) & ~foreign


def _foreign(colour: NDArray[np.float32], mpp: float) -> Mask:
    """Ink, black borders, and their rims."""
    low, high = colour.min(axis=0), colour.max(axis=0)
    least_px, least_cold_px = _LEAST_INK_UM2 / mpp**2, _LEAST_COLD_INK_UM2 / mpp**2
    black = without_small(is_black(low, high), least_px)
    red = without_small(is_red_ink(*colour, low=low, high=high), least_px)
    vivid = without_small(is_vivid_ink(*colour, low=low, high=high), least_cold_px)
    pale = without_small(is_pale_ink(*colour[:2], low=low, high=high), least_cold_px)
    # No further than a rim: IHC tissue has the colours of a cold rim all over.
    steps = ceil(_RIM_UM / mpp)
    cold = grown_within(vivid, steps=steps, within=vivid | is_cold_rim(*colour)) | pale
    red = grown_within(red, steps=steps, within=red | is_red_rim(*colour))
    return dilated(cold | black, 2) | red


def _clean(stained: Mask, foreign: Mask, config: TissueConfig, mpp: float) -> Mask:
    """Close gaps, fill small holes, drop small islands; foreign matter stays out."""
    whole = closed(stained, max(1, round(_CLOSING_UM / mpp)))
    whole = ~without_small(~whole, config.max_hole_um2 / mpp**2) & ~foreign
    return without_small(whole, config.min_area_um2 / mpp**2)
