"""Anatomy to pixels: stain amounts at a slide's own mpp and Beer-Lambert colours."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from preprocessing.synthetic.anatomy import Anatomy
from preprocessing.synthetic.fields import (
    FIBRE_UM,
    TEXTURE_PX,
    Raster,
    fibre_texture,
    grain_texture,
)
from preprocessing.synthetic.nuclei import stamp

_STRIP_PX = 256  # rows painted at a time: the working rasters stay in the processor's cache
# Optical density (R, G, B), near Ruifrok and Johnston (2001); eosin pinker, as on scans.
_HAEMATOXYLIN_OD = np.array([0.66, 0.70, 0.29])
_EOSIN_OD = np.array([0.10, 0.86, 0.42])
_ZERO = 12  # code of no stain: a little below lies the noise of an empty scan


@dataclass(frozen=True)
class Stain:
    """One slide's staining and scanner: every 8 bit (haematoxylin, eosin) pair as packed RGB."""

    table: NDArray[np.uint32]

    @classmethod
    def draw(cls, rng: np.random.Generator) -> "Stain":
        haematoxylin = _HAEMATOXYLIN_OD + rng.normal(0, 0.035, 3)
        eosin = np.clip(_EOSIN_OD + rng.normal(0, 0.05, 3), 0.03, None)
        haematoxylin *= rng.uniform(1.45, 2.1)
        eosin *= rng.uniform(0.75, 1.3)
        glass = rng.uniform(236, 248) + rng.normal(0, 1.5, 3)
        amount = (np.arange(256) - _ZERO) / (255.0 - _ZERO)
        density = amount[:, None, None] * haematoxylin + amount[None, :, None] * eosin
        rgb = np.clip(np.rint(glass * 10**-density), 0, 255).astype(np.uint32)
        return cls((rgb @ np.array([1, 1 << 8, 1 << 16], dtype=np.uint32)).ravel())


def paint(rng: np.random.Generator, anatomy: Anatomy, *, mpp: float) -> NDArray[np.uint8]:
    """The slide at `mpp` as (height, width, 3) RGB."""
    width_px = round(anatomy.grid.width_um / mpp)
    height_px = round(anatomy.grid.height_um / mpp)
    stain = Stain.draw(rng)
    nuclear = np.zeros((height_px, width_px), dtype=np.float32)
    for nuclei in anatomy.nuclei:
        stamp(nuclear, nuclei, mpp=mpp, rng=rng)
    blood = _red_cells(anatomy, (width_px, height_px), mpp=mpp)
    shift = rng.integers(0, TEXTURE_PX, 4)
    layers = _Layers(anatomy, mpp, (width_px, height_px), shift)
    packed = np.empty((height_px, width_px), dtype=np.uint32)
    for top in range(0, height_px, _STRIP_PX):
        rows = slice(top, min(top + _STRIP_PX, height_px))
        packed[rows] = stain.table[layers.codes(rows, nuclear[rows], blood[rows])]
    rgbx = packed.astype("<u4", copy=False).view(np.uint8).reshape(height_px, width_px, 4)
    return np.ascontiguousarray(rgbx[..., :3])


@dataclass(frozen=True)
class _Layers:
    anatomy: Anatomy
    mpp: float
    slide_px: tuple[int, int]
    shift: NDArray[np.int64]

    def _up(self, raster: Raster, rows: slice) -> Raster:
        """A strip of a macro raster at the slide's mpp, seamless over strips."""
        width_px, height_px = self.slide_px
        macro_rows, macro_columns = raster.shape
        scale = macro_rows / height_px
        image = Image.fromarray(np.ascontiguousarray(raster, dtype=np.float32))
        strip = image.resize(
            (width_px, rows.stop - rows.start),
            Image.Resampling.BILINEAR,
            box=(0, rows.start * scale, macro_columns, rows.stop * scale),
        )
        return np.asarray(strip)

    def codes(self, rows: slice, nuclear: Raster, blood: Raster) -> NDArray[np.int32]:
        """Indices into the stain table, (rows, width)."""
        anatomy, mask = self.anatomy, TEXTURE_PX - 1
        across = (self._up(anatomy.across_um, rows) / FIBRE_UM).astype(np.int32) & mask
        along = (self._up(anatomy.along_um, rows) / FIBRE_UM).astype(np.int32) & mask
        fibre = fibre_texture().ravel()[across * TEXTURE_PX + along]
        y = (np.arange(rows.start, rows.stop) + self.shift[0]) & mask
        x = (np.arange(self.slide_px[0]) + self.shift[1]) & mask
        grain = grain_texture(self.mpp)[y[:, None], x[None, :]]
        solid = np.clip((self._up(anatomy.solid_um, rows) + 0.3 * grain) / 1.2 + 0.5, 0, 1)
        eosin = self._up(anatomy.eosin, rows) * (1 + 0.10 * grain)
        eosin += self._up(anatomy.fibre, rows) * fibre
        eosin *= solid * (1 - 0.45 * nuclear)
        eosin = np.maximum(eosin, blood)
        ground = self._up(anatomy.haematoxylin, rows) * (1 + 0.14 * grain) * solid
        haematoxylin = np.maximum(ground, nuclear * (1 + 0.05 * grain))
        span = 255.0 - _ZERO
        eosin_code = np.clip(eosin * span + (_ZERO + 0.5) + 1.6 * grain, 0, 255)
        return (np.clip(haematoxylin * span + _ZERO, 0, 255).astype(np.int32) << 8) | (
            eosin_code.astype(np.int32)
        )


def _red_cells(anatomy: Anatomy, slide_px: tuple[int, int], *, mpp: float) -> Raster:
    """Eosin of the red cells: flat discs of 6 um."""
    image = Image.new("L", slide_px)
    draw = ImageDraw.Draw(image)
    for x_um, y_um in np.concatenate([np.zeros((0, 2)), *anatomy.red_cells_um]):
        x, y, radius = x_um / mpp, y_um / mpp, 3.0 / mpp
        draw.ellipse((x - radius, y - 0.85 * radius, x + radius, y + 0.85 * radius), fill=175)
    return np.asarray(image, dtype=np.float32) / np.float32(255)
