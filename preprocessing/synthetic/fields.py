"""Random fields in physical space: what two scans of one tissue at different mpp share.

Low-frequency fields live on a raster of `MACRO_UM` per pixel and are interpolated where pixels
are painted; fine textures are seamless squares, looked up with wrapped indices.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter

MACRO_UM = 2.0
FIBRE_UM = 0.4  # finer than its finest thread, so that any mpp can look it up pixel by pixel
TEXTURE_PX = 1024  # a power of two: wrapping is a bit mask

Raster = NDArray[np.float32]


@dataclass(frozen=True)
class MacroGrid:
    """The raster of `MACRO_UM` pixels over a slide of that extent; arrays are (rows, columns)."""

    width_um: float
    height_um: float

    @property
    def shape(self) -> tuple[int, int]:
        return round(self.height_um / MACRO_UM), round(self.width_um / MACRO_UM)

    def axes_um(self) -> tuple[Raster, Raster]:
        """Pixel centres as an open mesh: x (1, columns) and y (rows, 1)."""
        rows, columns = self.shape
        x_um = (np.arange(columns, dtype=np.float32) + 0.5) * MACRO_UM
        y_um = (np.arange(rows, dtype=np.float32) + 0.5) * MACRO_UM
        return x_um[None, :], y_um[:, None]

    def at(self, raster: NDArray, points_um: NDArray) -> NDArray:
        """The raster's values at (N, 2) points (x, y); points outside take the border's value."""
        columns_rows = (points_um / MACRO_UM).astype(np.int64)
        rows, columns = self.shape
        row = columns_rows[:, 1].clip(0, rows - 1)
        return raster[row, columns_rows[:, 0].clip(0, columns - 1)]


def smooth_noise(rng: np.random.Generator, grid: MacroGrid, scale_um: float) -> Raster:
    """Zero mean, unit variance, features of about `scale_um`: bicubic through random knots."""
    rows, columns = grid.shape
    knot_px = scale_um / MACRO_UM
    knots = rng.standard_normal(
        (int(np.ceil(rows / knot_px)) + 3, int(np.ceil(columns / knot_px)) + 3), dtype=np.float32
    )
    left, top = 1 + rng.random(), 1 + rng.random()
    box = (left, top, left + columns / knot_px, top + rows / knot_px)
    noise = Image.fromarray(knots).resize((columns, rows), Image.Resampling.BICUBIC, box=box)
    # 0.68: the standard deviation that bicubic interpolation leaves of the knots' one
    return np.asarray(noise, dtype=np.float32) / np.float32(0.68)


def jittered_points(
    rng: np.random.Generator, grid: MacroGrid, *, spacing_um: float, jitter: float
) -> NDArray[np.float64]:
    """(N, 2) points (x, y) of a hexagonal lattice, each moved by up to `jitter` spacings."""
    step_y_um = spacing_um * np.sqrt(0.75)
    rows = int(grid.height_um / step_y_um) + 1
    columns = int(grid.width_um / spacing_um) + 1
    row, column = np.mgrid[0:rows, 0:columns]
    lattice = np.stack([(column + 0.5 * (row % 2)) * spacing_um, row * step_y_um], axis=-1)
    points = lattice.reshape(-1, 2) + rng.uniform(-jitter, jitter, (rows * columns, 2)) * spacing_um
    outside = (points < 0) | (points >= [grid.width_um, grid.height_um])
    return points[~outside.any(axis=1)]


def _wrapped(rng: np.random.Generator, sigma_px: tuple[float, float]) -> Raster:
    white = rng.standard_normal((TEXTURE_PX, TEXTURE_PX), dtype=np.float32)
    noise = gaussian_filter(white, sigma_px, mode="wrap")
    return (noise / noise.std()).astype(np.float32)


@lru_cache(maxsize=1)
def fibre_texture() -> Raster:
    """Collagen along x, `FIBRE_UM` per pixel: about 1 on average, 0 in clefts; seamless."""
    rng = np.random.default_rng(1)
    bundle = _wrapped(rng, (3.0 / FIBRE_UM, 22 / FIBRE_UM))
    strand = _wrapped(rng, (1.2 / FIBRE_UM, 11 / FIBRE_UM))
    thread = _wrapped(rng, (0.6 / FIBRE_UM, 6 / FIBRE_UM))
    collagen = 1 + 0.17 * bundle + 0.16 * strand + 0.12 * thread
    cleft = np.clip(2.2 + 1.7 * bundle + 0.7 * strand, 0, 1)
    return np.clip(collagen * cleft, 0, 2).astype(np.float32)


@lru_cache(maxsize=4)
def grain_texture(mpp: float) -> Raster:
    """Granular cytoplasm and sensor noise: zero mean, unit variance; seamless."""
    rng = np.random.default_rng(2)
    granules = _wrapped(rng, (0.9 / mpp, 0.9 / mpp))
    sensor = _wrapped(rng, (0.3 / mpp, 0.3 / mpp))
    return (0.8 * granules + 0.6 * sensor).astype(np.float32)
