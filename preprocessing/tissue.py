"""Thumbnail -> tissue mask: white-balanced saturation above a bounded Otsu threshold, minus ink.

Saturation, 1 - min(r, g, b) / max(r, g, b), is the spread of optical density over the channels:
stain has it at any strength, while glass, dust, shadows and black borders have none. Colours are
divided by the glass colour first, so `r`, `g`, `b` below are transmissions in 0..1.
"""

from dataclasses import dataclass
from functools import cached_property
from math import ceil
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageFilter
from scipy import ndimage
from skimage.filters import threshold_otsu

from preprocessing.config import TissueConfig

# Otsu always splits, also mere noise or mere tissue: below the floor nothing counts as stained
# (after the medians, noise of sigma 6 on glass stays under 0.02 in 99.9 % of the pixels), above the
# ceiling everything does (pale stroma has 0.1).
_SATURATION_FLOOR = 0.04
_SATURATION_CEILING = 0.10
_MEDIAN_PX, _MEDIAN_PASSES = 3, 2
_CLOSING_UM = 16.0
# How far the soft rim of ink, of a black border, or JPEG colour bleeding may reach.
_RIM_UM = 40.0
# Smaller dark or coloured specks are pigment, folds or dust inside tissue, not strokes of a pen.
_LEAST_INK_UM2 = 10_000.0
# Ruifrok's haematoxylin vector reaches 0.6 at optical density 1, which tissue has in nuclei alone:
# if those were at 1.5 and covered 60 % of a ground at 0.3, the average would be 0.5.
_MOST_SATURATED_HAEMATOXYLIN = 0.6
_DIMMEST_GLASS = 120
_LEAST_GLASS = 0.01
_MOST_BLACK = 0.5
_BLACK = 60

Mask = NDArray[np.bool_]


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
    planes = _smooth_planes(rgb)
    glass = _is_glass(planes)
    if glass.mean() < _LEAST_GLASS and (planes.max(axis=0) < _BLACK).mean() > _MOST_BLACK:
        mask = np.zeros((height, width), dtype=np.bool_)
    else:
        colour = _transmission(planes, glass)
        foreign = _foreign(colour, mask_mpp)
        mask = _clean(_stained(colour, foreign), foreign, config, mask_mpp)
    return TissueMask(mask, px0_per_px_x * scale_x, px0_per_px_y * scale_y)


def _reduced(rgb: NDArray[np.uint8], factor: float) -> NDArray[np.uint8]:
    """Shrunk by the mean over boxes; never enlarged."""
    if factor >= 1:
        return rgb
    height, width = rgb.shape[:2]
    target = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(rgb).resize(target, Image.Resampling.BOX))


def _smooth_planes(rgb: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """(3, h, w) after medians: of colours, because the saturation of noise has a positive mean."""
    picture = Image.fromarray(rgb)
    for _ in range(_MEDIAN_PASSES):
        picture = picture.filter(ImageFilter.MedianFilter(_MEDIAN_PX))
    return np.ascontiguousarray(np.asarray(picture).transpose(2, 0, 1))


def _is_glass(planes: NDArray[np.uint8]) -> Mask:
    """About as bright as the picture gets and nearly grey; pink, however pale, is stain.

    Planes are (3, h, w) here and below.
    """
    red, green, blue = planes.astype(np.int16)
    low, high = planes.min(axis=0), planes.max(axis=0)
    bright = low >= max(_DIMMEST_GLASS, 0.8 * np.percentile(low, 99))
    return bright & (high - low <= 25) & (green >= np.minimum(red, blue) - 6)


def _transmission(planes: NDArray[np.uint8], glass: Mask) -> NDArray[np.float32]:
    """Colours divided by the median glass colour; by white where too little glass is seen."""
    white = np.full(3, 255.0)
    if glass.mean() >= _LEAST_GLASS:
        white = np.median(planes[:, glass], axis=1)
    return np.minimum(planes / white.astype(np.float32)[:, None, None], 1)


def _saturation(colour: NDArray[np.float32]) -> NDArray[np.float32]:
    return 1 - colour.min(axis=0) / np.maximum(colour.max(axis=0), 1 / 255)


def _stained(colour: NDArray[np.float32], foreign: Mask) -> Mask:
    saturation = _saturation(colour)
    candidates = saturation[~foreign]
    threshold = _SATURATION_FLOOR
    if candidates.size and candidates.min() < candidates.max():
        threshold = min(max(threshold, float(threshold_otsu(candidates))), _SATURATION_CEILING)
    return (saturation > threshold) & ~foreign


def _foreign(colour: NDArray[np.float32], mpp: float) -> Mask:
    """Ink of four colours, black borders, and their rims.

    Haematoxylin and eosin take no less green than red, so strongly blue, green or cyan with less
    red than green is ink. Haematoxylin without eosin (IHC) may look blue, but an average over some
    um of its tissue is never as saturated as ink. Red ink takes blue as much as green does, eosin
    and haematoxylin do not.
    """
    red, green, blue = colour
    saturation, high = _saturation(colour), colour.max(axis=0)
    black = (high < 0.2) | ((high < 0.43) & (high - colour.min(axis=0) < 0.1))
    cold = ((green - red > 0.2) & (saturation > 0.3)) | (
        (blue - red > 0.25) & (green - red > -0.04) & (saturation > _MOST_SATURATED_HAEMATOXYLIN)
    )
    cold_rim = (green - red > 0.02) | ((blue - red > 0.05) & (green - red > -0.02))
    # In between, so that brown chromogens, with far less blue than green, are not taken for ink.
    warm = (saturation > 0.6) & (np.abs(blue - green) < 0.2 * (red - green))
    warm_rim = np.abs(blue - green) < 0.3 * (red - green)
    black, cold, warm = (_without_small(m, _LEAST_INK_UM2 / mpp**2) for m in (black, cold, warm))
    # No further than a rim: IHC tissue has the colours of a cold rim all over.
    steps = ceil(_RIM_UM / mpp)
    cold_ink = _grown(cold, steps=steps, within=cold | cold_rim)
    warm_ink = _grown(warm, steps=steps, within=warm | warm_rim)
    return _grown(cold_ink | black, steps=2) | warm_ink


def _grown(mask: Mask, *, steps: int, within: Mask | None = None) -> Mask:
    """Dilated by so many pixels."""
    grown = np.zeros_like(mask)
    ndimage.binary_dilation(mask, iterations=steps, mask=within, output=grown)
    return grown


def _clean(stained: Mask, foreign: Mask, config: TissueConfig, mpp: float) -> Mask:
    """Close gaps, fill small holes, drop small islands; foreign matter stays out."""
    radius = max(1, round(_CLOSING_UM / mpp))
    grid_y, grid_x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    disk = grid_x**2 + grid_y**2 <= radius**2
    # Padded, because a closing without surroundings eats tissue along the edge of the picture.
    padded = np.pad(stained, radius, mode="edge")
    inner = slice(radius, -radius)
    closed = np.zeros_like(padded)
    ndimage.binary_closing(padded, structure=disk, output=closed)
    whole = ~_without_small(~closed[inner, inner], config.max_hole_um2 / mpp**2) & ~foreign
    return _without_small(whole, config.min_area_um2 / mpp**2)


def _without_small(mask: Mask, least_px: float) -> Mask:
    """The mask less its connected parts of fewer than `least_px` pixels."""
    labels = np.zeros(mask.shape, dtype=np.int32)
    ndimage.label(mask, output=labels)
    areas = np.bincount(labels.ravel())
    kept = areas >= least_px
    kept[0] = False
    return kept[labels]
