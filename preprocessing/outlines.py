"""Annotated outlines: GeoJSON as QuPath exports it, and the share of each tile that they cover."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import shapely
from numpy.typing import NDArray
from shapely import Polygon

from preprocessing.artefacts import whole_file
from preprocessing.errors import StoreError

Ring = NDArray[np.float64]
Outline = list[Ring]
"""A polygon in level-0 px: its shell (M, 2) of (x, y), then its holes."""


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
    """(N,) the share of each tile's area inside the outlines; `coords_px0` (N, 2) top-left.

    Where outlines overlap they count once; what a ring that crosses itself encloses is inside.
    """
    polygons = [Polygon(outline[0], outline[1:]) for outline in outlines]
    # "structure" keeps holes holes where they touch their shell
    valid = [shapely.make_valid(p, method="structure", keep_collapsed=False) for p in polygons]
    union = shapely.union_all(valid)
    shapely.prepare(union)
    x, y = np.asarray(coords_px0, dtype=np.float64).T
    tiles = shapely.box(x, y, x + tile_px0[0], y + tile_px0[1])
    share = shapely.contains(union, tiles).astype(np.float64)
    # Only tiles on an edge need an intersection, which costs far more than the two tests.
    edge = shapely.intersects(union, tiles) & (share == 0)
    area = shapely.area(shapely.intersection(union, tiles[edge]))
    share[edge] = area / (tile_px0[0] * tile_px0[1])
    return share
