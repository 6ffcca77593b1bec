"""Normal tissue: stroma, vessels, glands, fat, and the lymphoid aggregates that both classes have.

Aggregates, glands and solid epithelium are the distractors: dark and purple without being tumour.
"""

import numpy as np
from numpy.typing import NDArray
from scipy.spatial import KDTree

from preprocessing.synthetic.anatomy import Anatomy
from preprocessing.synthetic.fields import (
    MACRO_UM,
    MacroGrid,
    Raster,
    jittered_points,
    smooth_noise,
)


def tissue_depth(rng: np.random.Generator, grid: MacroGrid) -> Raster:
    """One to three pieces with irregular outlines: about the distance to the outline in um."""
    x_um, y_um = grid.axes_um()
    pieces = int(rng.choice([1, 2, 3], p=[0.35, 0.4, 0.25]))
    column_um = grid.width_um / pieces
    depth = np.full(grid.shape, -np.inf, dtype=np.float32)
    for piece in range(pieces):
        half_x_um = 0.5 * column_um * rng.uniform(0.74, 0.92)
        half_y_um = 0.5 * grid.height_um * rng.uniform(0.66, 0.88)
        centre_x_um = column_um * (piece + 0.5 + rng.uniform(-0.03, 0.03))
        centre_y_um = grid.height_um * (0.5 + rng.uniform(-0.06, 0.06))
        power = rng.uniform(2.0, 3.0)  # 2: an ellipse; 3: the blunter shape of a biopsy block
        radius = (
            np.abs((x_um - centre_x_um) / half_x_um) ** power
            + np.abs((y_um - centre_y_um) / half_y_um) ** power
        ) ** (1 / power)
        depth = np.maximum(depth, (1 - radius) * min(half_x_um, half_y_um))
    scale_um = min(grid.width_um, grid.height_um)
    depth += 0.055 * scale_um * smooth_noise(rng, grid, 0.22 * scale_um)
    depth += 7 * smooth_noise(rng, grid, 45) + 2.5 * smooth_noise(rng, grid, 12)
    border_um = np.minimum(
        np.minimum(x_um, grid.width_um - x_um), np.minimum(y_um, grid.height_um - y_um)
    )
    # A strip of glass along the slide's border, its edge as ragged as the rest.
    ragged = np.clip(smooth_noise(rng, grid, 35), -1.5, 1.5)
    return np.minimum(depth, 0.7 * border_um - 16 + 6 * ragged)


def grow_stroma(rng: np.random.Generator, grid: MacroGrid, solid_um: Raster) -> Anatomy:
    """Collagen alone: its course, its density and its clefts."""
    x_um, y_um = grid.axes_um()
    course = rng.uniform(0, np.pi)
    bend = 55 * smooth_noise(rng, grid, 260) + 9 * smooth_noise(rng, grid, 90)
    bend += 2.2 * smooth_noise(rng, grid, 22)  # the crimp of single bundles
    density = 1 + 0.16 * smooth_noise(rng, grid, 170)
    loose = np.clip(0.5 + 0.6 * smooth_noise(rng, grid, 240), 0, 1)
    return Anatomy(
        grid=grid,
        solid_um=solid_um.copy(),
        eosin=((0.02 + 0.16 * (1 - loose)) * density).astype(np.float32),
        fibre=((0.30 + 0.16 * loose) * density).astype(np.float32),
        haematoxylin=np.full(grid.shape, rng.uniform(0.02, 0.06), dtype=np.float32),
        along_um=x_um * np.cos(course) + y_um * np.sin(course) + 0.5 * bend[::-1, ::-1],
        across_um=y_um * np.cos(course) - x_um * np.sin(course) + bend,
        taken=solid_um < 0,
    )


def grow_normal(rng: np.random.Generator, anatomy: Anatomy) -> None:
    """All that normal tissue has beside collagen, where nothing else has grown yet."""
    grow_fat(rng, anatomy)
    grow_vessels(rng, anatomy)
    grow_aggregates(rng, anatomy)
    grow_epithelium(rng, anatomy)
    grow_glands(rng, anatomy)
    seed_stroma(rng, anatomy)


def grow_vessels(rng: np.random.Generator, anatomy: Anatomy) -> None:
    for _ in range(rng.poisson(5)):
        radius_um = rng.uniform(12, 38)
        wall_um = rng.uniform(4, 6 + 0.2 * radius_um)
        place = _place(rng, anatomy, radius_um + 10)
        if place is None:
            continue
        window, depth = _ring(rng, anatomy.grid, place, radius_um=radius_um, stretch=1.5)
        wall = np.clip(depth / 3 + 0.5, 0, 1)
        anatomy.blend(wall, eosin=0.38, fibre=0.14, haematoxylin=0.05, at=window)
        anatomy.solid_um[window] = np.minimum(anatomy.solid_um[window], wall_um - depth)
        anatomy.taken[window] |= depth > -8
        inside = jittered_points(rng, anatomy.grid, spacing_um=7.0, jitter=0.4)
        inside = inside[np.hypot(*(inside - place).T) < radius_um + 20]
        lumen = np.full(anatomy.grid.shape, -1.0, dtype=np.float32)
        lumen[window] = depth - wall_um
        keep = (anatomy.grid.at(lumen, inside) > 2.5) & (
            rng.random(len(inside)) < rng.uniform(0, 0.9)
        )
        anatomy.red_cells_um.append(inside[keep])
        _seed_ring(rng, anatomy, place, depth=(window, depth), at_um=wall_um - 1.5, spacing_um=14)


def grow_aggregates(rng: np.random.Generator, anatomy: Anatomy) -> None:
    """Crowds of small, dark, round nuclei, whatever the slide's class."""
    for _ in range(rng.poisson(2.2)):
        radius_um = rng.uniform(35, 105)
        place = _place(rng, anatomy, 0.6 * radius_um)
        if place is None:
            continue
        window, depth = _ring(rng, anatomy.grid, place, radius_um=radius_um, stretch=1.5)
        free = ~anatomy.taken[window]
        crowd = np.clip(depth / 18 + 0.5, 0, 1) * free
        anatomy.blend(crowd, eosin=0.14, fibre=0.06, haematoxylin=0.16, at=window)
        weight = np.zeros(anatomy.grid.shape, dtype=np.float32)
        weight[window] = 0.93 * crowd
        points = jittered_points(rng, anatomy.grid, spacing_um=6.9, jitter=0.3)
        points = points[rng.random(len(points)) < anatomy.grid.at(weight, points)]
        anatomy.seed("lymphocyte", points, rng.uniform(0, np.pi, len(points)))
        anatomy.taken[window] |= depth > 0


def grow_epithelium(rng: np.random.Generator, anatomy: Anatomy) -> None:
    """Solid benign epithelium: of the tumour's colour, but its nuclei are small, even and apart."""
    eosin, haematoxylin = rng.uniform(0.28, 0.42), rng.uniform(0.08, 0.20)
    spacing_um = rng.uniform(7.6, 9.4)
    for _ in range(rng.poisson(2.0)):
        radius_um = rng.uniform(45, 125)
        place = _place(rng, anatomy, 0.8 * radius_um)
        if place is None:
            continue
        window, depth = _ring(rng, anatomy.grid, place, radius_um=radius_um, stretch=1.8)
        sheet = np.clip(depth / 4 + 0.5, 0, 1) * ~anatomy.taken[window]
        anatomy.blend(sheet, eosin=eosin, fibre=0.03, haematoxylin=haematoxylin, at=window)
        weight = np.zeros(anatomy.grid.shape, dtype=np.float32)
        weight[window] = 0.97 * sheet
        points = jittered_points(rng, anatomy.grid, spacing_um=spacing_um, jitter=0.18)
        points = points[rng.random(len(points)) < anatomy.grid.at(weight, points)]
        anatomy.seed("epithelial", points, rng.uniform(0, np.pi, len(points)))
        anatomy.taken[window] |= depth > -6


def grow_glands(rng: np.random.Generator, anatomy: Anatomy) -> None:
    """Lobules of benign glands: one row of basal nuclei around a lumen."""
    grid = anatomy.grid
    lobule = smooth_noise(rng, grid, 260) - rng.uniform(-0.5, 1.2)
    tint = rng.uniform(0.10, 0.24)
    for place in jittered_points(rng, grid, spacing_um=rng.uniform(88, 120), jitter=0.22):
        radius_um = rng.uniform(26, 48)
        height_um = rng.uniform(12, 18)
        if grid.at(lobule, place[None])[0] < 0 or not _free(anatomy, place, radius_um):
            continue
        window, depth = _ring(rng, grid, place, radius_um=radius_um, stretch=1.35)
        epithelium = np.clip(depth / 2 + 0.5, 0, 1)
        anatomy.blend(epithelium, eosin=0.34, fibre=0.0, haematoxylin=tint, at=window)
        anatomy.solid_um[window] = np.minimum(anatomy.solid_um[window], height_um - depth)
        anatomy.taken[window] |= depth > -3
        _seed_ring(rng, anatomy, place, depth=(window, depth), at_um=5.0, spacing_um=6.4)


def grow_fat(rng: np.random.Generator, anatomy: Anatomy) -> None:
    """Lobules of fat cells: empty holes between thin membranes."""
    grid = anatomy.grid
    lobule = smooth_noise(rng, grid, 230) - rng.uniform(1.0, 2.4)
    lobule = np.where(anatomy.taken, -1.0, lobule)
    rows, columns = np.nonzero((lobule > 0) & (anatomy.solid_um > 6))
    if not len(rows):
        return
    centres = jittered_points(rng, grid, spacing_um=rng.uniform(34, 48), jitter=0.22)
    pixels_um = np.stack([columns + 0.5, rows + 0.5], axis=1) * MACRO_UM
    nearest, _ = KDTree(centres).query(pixels_um, k=2)
    membrane_um = 1.7 - (nearest[:, 1] - nearest[:, 0]) / 2
    # The cells at the lobule's edge end in stroma, not in a cut
    membrane_um = np.maximum(membrane_um, 2 - 80 * lobule[rows, columns])
    at = (rows, columns)
    anatomy.solid_um[at] = np.minimum(anatomy.solid_um[at], membrane_um)
    anatomy.blend(np.ones(len(rows)), eosin=0.30, fibre=0.05, haematoxylin=0.03, at=at)
    anatomy.taken[at] = True


def seed_stroma(rng: np.random.Generator, anatomy: Anatomy) -> None:
    """Fibroblasts along the fibres, and lymphocytes where the stroma is inflamed."""
    grid = anatomy.grid
    collagen = np.clip(anatomy.fibre / 0.3, 0, 1)
    cellularity = np.clip(0.45 + 0.22 * smooth_noise(rng, grid, 130), 0.1, 0.95) * collagen
    points = jittered_points(rng, grid, spacing_um=15.0, jitter=0.45)
    points = points[rng.random(len(points)) < grid.at(cellularity, points)]
    angles = anatomy.fibre_angles(points) + rng.normal(0, 0.15, len(points))
    anatomy.seed("spindle", points, angles)
    level = rng.uniform(-0.1, 0.12)
    inflamed = np.clip(level + 0.22 * smooth_noise(rng, grid, 110), 0.015, 0.8) * collagen
    points = jittered_points(rng, grid, spacing_um=10.0, jitter=0.45)
    points = points[rng.random(len(points)) < grid.at(inflamed, points)]
    anatomy.seed("lymphocyte", points, rng.uniform(0, np.pi, len(points)))


def _free(anatomy: Anatomy, place: NDArray, radius_um: float) -> bool:
    """Whether a disc lies in tissue that nothing else has taken (looked up on two circles)."""
    angle = np.linspace(0, 2 * np.pi, 12, endpoint=False)
    circle = np.stack([np.cos(angle), np.sin(angle)], axis=1)
    points = np.concatenate([place + radius_um * circle, place + 0.5 * radius_um * circle])
    return not anatomy.grid.at(anatomy.taken, points).any()


def _place(rng: np.random.Generator, anatomy: Anatomy, radius_um: float) -> NDArray | None:
    """The centre of a free disc, or None when 30 throws find none."""
    grid = anatomy.grid
    for place in rng.uniform((0, 0), (grid.width_um, grid.height_um), (30, 2)):
        if _free(anatomy, place, radius_um):
            return place
    return None


def _ring(
    rng: np.random.Generator, grid: MacroGrid, place: NDArray, *, radius_um: float, stretch: float
) -> tuple[tuple[slice, slice], Raster]:
    """A wavy ellipse around `place`: the window it touches, the depth in um there (> 0 inside)."""
    x_um, y_um = grid.axes_um()
    reach_um = 1.5 * radius_um * np.sqrt(stretch) + 25
    first = np.maximum((place - reach_um) / MACRO_UM, 0).astype(int)
    last = ((place + reach_um) / MACRO_UM).astype(int)
    window = slice(first[1], last[1]), slice(first[0], last[0])
    dx, dy = x_um[:, window[1]] - place[0], y_um[window[0]] - place[1]
    turn, ratio = rng.uniform(0, np.pi), np.sqrt(rng.uniform(1, stretch))
    along = (dx * np.cos(turn) + dy * np.sin(turn)) / ratio
    across = (dy * np.cos(turn) - dx * np.sin(turn)) * ratio
    theta = np.arctan2(across, along)
    outline = np.ones_like(theta)
    for order in range(2, 7):
        amplitude, phase = rng.normal(0, 0.12 / order), rng.uniform(0, 2 * np.pi)
        outline += amplitude * np.cos(order * theta + phase)
    return window, (radius_um * outline - np.hypot(along, across)).astype(np.float32)


def _seed_ring(
    rng: np.random.Generator,
    anatomy: Anatomy,
    place: NDArray,
    *,
    depth: tuple[tuple[slice, slice], Raster],
    at_um: float,
    spacing_um: float,
) -> None:
    """Nuclei in single file `at_um` below the outline: epithelium and endothelium."""
    window, depth_um = depth
    rows, columns = np.nonzero(np.abs(depth_um - at_um) < 0.8 * MACRO_UM)
    if not len(rows):
        return
    y_um = (rows + window[0].start + 0.5) * MACRO_UM
    x_um = (columns + window[1].start + 0.5) * MACRO_UM
    theta = np.arctan2(y_um - place[1], x_um - place[0])
    radius_um = np.hypot(y_um - place[1], x_um - place[0])
    count = max(int(2 * np.pi * radius_um.mean() / spacing_um), 3)
    targets = (np.arange(count) + rng.uniform(-0.2, 0.2, count)) * 2 * np.pi / count - np.pi
    order = np.argsort(theta)
    picked = order[np.searchsorted(theta[order], targets).clip(0, len(order) - 1)]
    outward = theta[picked]
    radius_um = radius_um[picked] + rng.normal(0, 0.9, count)
    points = place + radius_um[:, None] * np.stack([np.cos(outward), np.sin(outward)], axis=1)
    if spacing_um > 10:  # endothelium is flat and lies along the wall, epithelium stands on it
        anatomy.seed("spindle", points, outward + np.pi / 2)
    else:
        anatomy.seed("epithelial", points, outward + rng.normal(0, 0.2, count))
