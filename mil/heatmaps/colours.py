"""Tile values as colours, the same for every slide of a cohort."""

from __future__ import annotations

from collections.abc import Callable

import matplotlib as mpl
import numpy as np
from numpy.typing import NDArray

from mil.heatmaps.lattice import tile_raster
from mil.heatmaps.scores import ATTENTION_LIMIT, TileLayout, log2_relative_attention

Colouring = Callable[[NDArray[np.float64]], NDArray[np.uint8]]
"""Values of any shape to RGBA (..., 4) uint8; NaN is fully transparent."""

# Both ends of managua stay apart from the colours of H&E and from each other, for colour-blind eyes
# too; reversed, blue-white speaks against and yellow for the positive answer.
EVIDENCE_COLORMAP = "managua_r"
ATTENTION_COLORMAP = "viridis"
_EVIDENCE_ALPHA = 0.75
_EVIDENCE_EXPONENT = 0.7
_ATTENTION_ALPHA = 0.5


def evidence_colouring(limit: float) -> Colouring:
    """Signed evidence between -`limit` and `limit`; weak evidence is transparent.

    The middle of the map is dark, so opacity 0.75·(|v|/limit)^0.7 keeps it from reading as strong.
    """

    def colour(values: NDArray[np.float64]) -> NDArray[np.uint8]:
        position = np.clip(values / limit, -1, 1)
        alpha = _EVIDENCE_ALPHA * np.abs(position) ** _EVIDENCE_EXPONENT
        return _rgba(EVIDENCE_COLORMAP, (position + 1) / 2, alpha)

    return colour


def attention_colouring(relative: NDArray[np.float64]) -> NDArray[np.uint8]:
    """Attention relative to uniform, on a log2 scale of ±`ATTENTION_LIMIT`."""
    position = (log2_relative_attention(relative) / ATTENTION_LIMIT + 1) / 2
    return _rgba(ATTENTION_COLORMAP, position, np.full_like(position, _ATTENTION_ALPHA))


def overlay_rgba(
    values: NDArray[np.floating],
    layout: TileLayout,
    *,
    shape: tuple[int, int],
    px0_per_px: tuple[float, float],
    colouring: Colouring,
) -> NDArray[np.uint8]:
    """Tile `values` (N,) as an overlay (h, w, 4) of `shape` (h, w), the whole slide.

    Transparent where no tile was scored; values of overlapping tiles are averaged, then coloured.
    """
    return colouring(tile_raster(values, layout, shape=shape, px0_per_px=px0_per_px))


def blend(rgba: NDArray[np.uint8], background: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """`rgba` (h, w, 4) over an opaque `background` (h, w, 3)."""
    alpha = rgba[..., 3:].astype(np.float64) / 255
    mixed = rgba[..., :3] * alpha + background * (1 - alpha)
    return np.rint(mixed).astype(np.uint8)


def _rgba(
    colormap: str, position: NDArray[np.float64], alpha: NDArray[np.float64]
) -> NDArray[np.uint8]:
    known = np.isfinite(position)
    rgba = mpl.colormaps[colormap](np.where(known, position, 0.0))
    rgba[..., 3] = np.where(known, alpha, 0.0)
    return np.rint(rgba * 255).astype(np.uint8)
