"""Tumour: a region of known outline, and what it is made of."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from skimage.measure import find_contours

from preprocessing.synthetic.anatomy import Anatomy
from preprocessing.synthetic.fields import (
    MACRO_UM,
    MacroGrid,
    Raster,
    jittered_points,
    smooth_noise,
)

_LEAST_POLYGON_UM2 = 400.0  # slivers below this are no region; the largest polygon always stays


@dataclass(frozen=True)
class Tumour:
    """`depth_um`: signed, positive inside; polygons (N, 2) of (x, y) in um, last point = first."""

    depth_um: Raster
    polygons_um: list[NDArray[np.float64]]


def grow_tumour(
    rng: np.random.Generator, grid: MacroGrid, tissue_um: Raster, *, fraction: float
) -> Tumour:
    """Tumour over `fraction` of the tissue's area: one focus, or two when it is large."""
    x_um, y_um = grid.axes_um()
    tissue = tissue_um > 0
    area_um2 = float(tissue.sum()) * MACRO_UM**2
    radius_um = np.sqrt(fraction * area_um2 / np.pi)
    reachable = np.quantile(tissue_um[tissue], 0.6)
    candidates = np.argwhere(tissue_um > min(reachable, max(radius_um, 30.0)))
    foci = 2 if fraction > 0.1 and rng.random() < 0.5 else 1
    depth = np.full(grid.shape, -np.inf, dtype=np.float32)
    for row, column in candidates[rng.integers(0, len(candidates), foci)] * MACRO_UM:
        stretch = rng.uniform(0.75, 1.33)
        distance = np.hypot((x_um - column) * stretch, (y_um - row) / stretch)
        depth = np.maximum(depth, -distance)
    depth += 0.16 * radius_um * smooth_noise(rng, grid, max(0.8 * radius_um, 30.0))
    depth += 3 * smooth_noise(rng, grid, 25)
    depth -= np.quantile(depth[tissue], 1 - fraction)
    return Tumour(depth, _polygons(np.minimum(depth, tissue_um)))


def _polygons(depth_um: Raster) -> list[NDArray[np.float64]]:
    """Outer outlines of the positive region, the largest first."""
    padded = np.pad(depth_um, 1, constant_values=min(float(depth_um.min()), -1.0))
    found = []
    for contour in find_contours(padded, 0.0):
        points_um = (contour[:, ::-1] - 0.5) * MACRO_UM  # -1 for the padding, +0.5 to pixel centres
        x, y = points_um[:, 0], points_um[:, 1]
        # find_contours keeps the higher values on one side, so holes come out with the other sign.
        signed_um2 = 0.5 * float(np.sum(x[:-1] * y[1:] - x[1:] * y[:-1]))
        found.append((signed_um2, points_um))
    found.sort(key=lambda pair: -pair[0])
    return [points for area, points in found if area >= min(_LEAST_POLYGON_UM2, found[0][0])]


def invade(rng: np.random.Generator, anatomy: Anatomy, tumour: Tumour) -> None:
    """Fills the region with nests of crowded, large, irregular nuclei between thin septa."""
    grid = anatomy.grid
    nest_um = rng.uniform(45, 80)
    ridge = np.abs(smooth_noise(rng, grid, nest_um) + 0.3 * smooth_noise(rng, grid, 18))
    septum = rng.uniform(0.10, 0.30)
    within = np.clip(tumour.depth_um / 4 + 0.5, 0, 1)
    nest = within * np.clip((ridge - septum) / 0.12, 0, 1)
    eosin, haematoxylin = rng.uniform(0.28, 0.42), rng.uniform(0.08, 0.20)
    anatomy.blend(nest, eosin=eosin, fibre=0.04, haematoxylin=haematoxylin)
    lumen = smooth_noise(rng, grid, rng.uniform(16, 28)) - rng.uniform(1.7, 2.6)
    lumen_um = np.where(tumour.depth_um > 12, lumen, -1.0) * 8
    anatomy.solid_um = np.minimum(anatomy.solid_um, -lumen_um)
    spacing_um = rng.uniform(9.6, 12.0)
    points = jittered_points(rng, grid, spacing_um=spacing_um, jitter=0.33)
    crowding = 0.72 + 0.25 * np.clip(0.5 + 0.5 * smooth_noise(rng, grid, 60), 0, 1)
    points = points[rng.random(len(points)) < grid.at(nest * crowding, points)]
    swirl = grid.at(smooth_noise(rng, grid, 70), points)
    anatomy.seed("tumour", points, swirl * 2 + rng.normal(0, 0.5, len(points)))
    anatomy.taken |= tumour.depth_um > -6
