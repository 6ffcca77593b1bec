"""Annotated outlines: GeoJSON as QuPath exports it, and the share of each tile that they cover."""

import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from skimage.draw import polygon2mask

from preprocessing.artefacts import whole_file
from preprocessing.errors import StoreError

Ring = NDArray[np.float64]
Outline = list[Ring]
"""A polygon in level-0 px: its shell (M, 2) of (x, y), then its holes."""

_CELLS_PER_TILE = 16  # raster cells along a tile's side: shares are good to about two percent


def write_outlines(outlines: list[Outline], path: Path, *, name: str) -> None:
    """A FeatureCollection of annotations of class `name`; rings are closed where they are not."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": [_closed(ring) for ring in outline]},
            "properties": {"objectType": "annotation", "classification": {"name": name}},
        }
        for outline in outlines
    ]
    with whole_file(path) as partial:
        partial.write_text(json.dumps({"type": "FeatureCollection", "features": features}))


def _closed(ring: Ring) -> list[list[float]]:
    points = np.round(ring, 1).tolist()
    return points if points[0] == points[-1] else [*points, points[0]]


def read_outlines(path: Path) -> list[Outline]:
    """Polygons and multi-polygons of a GeoJSON, in level-0 px; other geometries are refused."""
    try:
        features: list[Any] = json.loads(path.read_text())["features"]
        polygons = [polygon for feature in features for polygon in _polygons(feature["geometry"])]
        return [[np.asarray(ring, dtype=np.float64) for ring in polygon] for polygon in polygons]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise StoreError(
            f"{path}: expected a GeoJSON FeatureCollection of polygons in level-0 pixels, got "
            f"{error!r}; export the annotations again"
        ) from error


def _polygons(geometry: dict[str, Any]) -> list[Any]:
    match geometry["type"]:
        case "Polygon":
            return [geometry["coordinates"]]
        case "MultiPolygon":
            return geometry["coordinates"]
        case other:
            raise ValueError(f"geometry {other!r}")


def share_inside(
    outlines: list[Outline], coords_px0: NDArray[Any], tile_px0: tuple[float, float]
) -> NDArray[np.float64]:
    """(N,) the share of each tile's area inside the outlines; `coords_px0` (N, 2) top-left."""
    share = np.zeros(len(coords_px0))
    for outline in outlines:
        share += _share_inside_one(outline, coords_px0, tile_px0)
    return np.clip(share, 0, 1)


def _share_inside_one(
    outline: Outline, coords_px0: NDArray[Any], tile_px0: tuple[float, float]
) -> NDArray[np.float64]:
    """The outline is drawn in its own window; a tile is then a difference of four sums."""
    cell_px0 = np.asarray(tile_px0, dtype=np.float64) / _CELLS_PER_TILE
    rings = [ring / cell_px0 for ring in outline]
    origin = np.floor(rings[0].min(axis=0))
    columns, rows = np.ceil(rings[0].max(axis=0) - origin).astype(int) + 1
    filled = [polygon2mask((rows, columns), (ring - origin - 0.5)[:, ::-1]) for ring in rings]
    inside = filled[0]
    for hole in filled[1:]:
        inside &= ~hole
    integral = np.zeros((rows + 1, columns + 1), dtype=np.int64)
    integral[1:, 1:] = inside.cumsum(axis=0, dtype=np.int64).cumsum(axis=1)
    first = np.asarray(coords_px0, dtype=np.float64).reshape(-1, 2) / cell_px0 - origin
    last = first + _CELLS_PER_TILE
    area = _area_to(integral, last[:, 0], last[:, 1]) + _area_to(integral, first[:, 0], first[:, 1])
    area -= _area_to(integral, last[:, 0], first[:, 1])
    area -= _area_to(integral, first[:, 0], last[:, 1])
    return area / _CELLS_PER_TILE**2


def _area_to(
    integral: NDArray[np.int64], x: NDArray[np.float64], y: NDArray[np.float64]
) -> NDArray[np.float64]:
    """The integral image at fractional corners: bilinear is exact, a cell being all or nothing."""
    rows, columns = integral.shape
    x, y = np.clip(x, 0, columns - 1), np.clip(y, 0, rows - 1)
    column, row = np.minimum(x.astype(int), columns - 2), np.minimum(y.astype(int), rows - 2)
    u, v = x - column, y - row
    above = (1 - u) * integral[row, column] + u * integral[row, column + 1]
    below = (1 - u) * integral[row + 1, column] + u * integral[row + 1, column + 1]
    return (1 - v) * above + v * below
