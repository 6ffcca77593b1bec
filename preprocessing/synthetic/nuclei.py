"""Nuclei as sprites: rendered once, reduced once per mpp, stamped by the thousand."""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

from preprocessing.synthetic.fields import Raster

ANGLES = 12  # orientations of a sprite in half a turn
VARIANTS = 8  # shapes per orientation
_FINE_UM = 0.25  # rendering raster, before the reduction to the slide's mpp
_BOX_UM = 26.0  # side of the rendering raster: the largest nucleus and a margin


@dataclass(frozen=True)
class Look:
    """How a kind of nucleus looks; pairs are ranges over its variants, darkness is 0 to 1."""

    half_length_um: tuple[float, float]
    half_width_um: tuple[float, float]
    irregularity: float
    darkness: tuple[float, float]
    chromatin: float
    rim: float = 0.0
    nucleoli: int = 0


LOOKS = {
    "spindle": Look((4.2, 8.0), (1.0, 1.9), 0.12, (0.42, 0.62), 0.09),
    "lymphocyte": Look((2.8, 3.6), (2.6, 3.3), 0.07, (0.50, 0.70), 0.12),
    "epithelial": Look((3.8, 5.0), (2.5, 3.4), 0.06, (0.34, 0.52), 0.09, rim=0.08),
    "tumour": Look((4.0, 7.0), (3.0, 4.8), 0.20, (0.26, 0.62), 0.11, rim=0.16, nucleoli=2),
}


@dataclass(frozen=True)
class Nuclei:
    """Nuclei of one kind: (N, 2) centres (x, y); (N,) long-axis angles, radians from x to y."""

    kind: str
    centres_um: NDArray[np.float64]
    angles: NDArray[np.float64]


def _render(rng: np.random.Generator, look: Look, angle: float) -> Raster:
    half = _BOX_UM / 2
    axis_um = np.arange(-half, half, _FINE_UM, dtype=np.float32) + _FINE_UM / 2
    x_um, y_um = axis_um[None, :], axis_um[:, None]
    along = x_um * np.cos(angle) + y_um * np.sin(angle)
    across = y_um * np.cos(angle) - x_um * np.sin(angle)
    theta = np.arctan2(across, along)
    wobble = np.zeros_like(theta)
    for order in range(2, 6):
        amplitude, phase = rng.normal(0, look.irregularity / order), rng.uniform(0, 2 * np.pi)
        wobble += amplitude * np.cos(order * theta + phase)
    half_length_um = rng.uniform(*look.half_length_um)
    half_width_um = rng.uniform(*look.half_width_um)
    radius = np.hypot(along / half_length_um, across / half_width_um) / (1 + wobble)
    depth_um = (1 - radius) * half_width_um
    grain = gaussian_filter(rng.standard_normal(theta.shape), 0.7 / _FINE_UM)
    shade = rng.uniform(*look.darkness) + look.chromatin * grain / grain.std()
    shade += look.rim * np.exp(-((depth_um / 0.8) ** 2))
    for _ in range(rng.integers(0, look.nucleoli + 1)):
        at = rng.uniform(-0.45, 0.45, 2) * (half_length_um, half_width_um)
        shade += 0.32 * np.exp(-((along - at[0]) ** 2 + (across - at[1]) ** 2) / 0.9)
    return (np.clip(shade, 0.15, 1) * np.clip(depth_um / 0.7 + 0.5, 0, 1)).astype(np.float32)


@lru_cache(maxsize=len(LOOKS))
def _renderings(kind: str) -> tuple[Raster, ...]:
    renderings = []
    for index in range(ANGLES * VARIANTS):
        rng = np.random.default_rng([index, sorted(LOOKS).index(kind)])
        renderings.append(_render(rng, LOOKS[kind], np.pi * (index // VARIANTS) / ANGLES))
    return tuple(renderings)


def _trimmed(sprite: Raster) -> Raster:
    """Without empty margins, so that a stamp touches few pixels; the centre stays the centre."""
    rows, columns = np.nonzero(sprite > 0.02)
    side = sprite.shape[0]
    margin_y = min(rows.min(), side - 1 - rows.max())
    margin_x = min(columns.min(), side - 1 - columns.max())
    return np.ascontiguousarray(sprite[margin_y : side - margin_y, margin_x : side - margin_x])


@lru_cache(maxsize=16)
def sprites(kind: str, mpp: float) -> tuple[Raster, ...]:
    """ANGLES x VARIANTS haematoxylin stamps of one kind, angle-major."""
    side_px = round(_BOX_UM / mpp)
    return tuple(
        _trimmed(
            np.asarray(Image.fromarray(fine).resize((side_px, side_px), Image.Resampling.HAMMING))
        )
        for fine in _renderings(kind)
    )


def stamp(raster: Raster, nuclei: Nuclei, *, mpp: float, rng: np.random.Generator) -> None:
    """Paints nuclei into a (height, width) raster in place; where two overlap the darker stays."""
    bank = sprites(nuclei.kind, mpp)
    count = len(nuclei.centres_um)
    bins = np.rint(nuclei.angles / np.pi * ANGLES).astype(np.int64) % ANGLES
    chosen = bins * VARIANTS + rng.integers(0, VARIANTS, count)
    fade = rng.uniform(0.8, 1.0, count).astype(np.float32)
    centres_px = np.rint(nuclei.centres_um / mpp).astype(np.int64)
    height, width = raster.shape
    for index, shade, (x_px, y_px) in zip(chosen, fade, centres_px, strict=True):
        sprite = bank[index]
        rows, columns = sprite.shape
        top, left = y_px - rows // 2, x_px - columns // 2
        if top < 0 or left < 0 or top + rows > height or left + columns > width:
            continue  # tissue keeps away from the slide's border, so hardly any nucleus is lost
        window = raster[top : top + rows, left : left + columns]
        np.maximum(window, sprite * shade, out=window)
