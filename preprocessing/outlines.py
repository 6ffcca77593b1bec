"""Annotated outlines: GeoJSON as QuPath exports it, the share of tiles or pixels they cover."""

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
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
_FARTHEST_PX0 = 2.0**31  # no slide ends beyond
# What reading a document of any other form may raise.
_NOT_ANNOTATIONS = (
    *(OSError, ValueError, LookupError, TypeError, AttributeError),
    *(OverflowError, RecursionError),
)
_LINES = 8  # down a pixel: the least share of it that a horizontal edge is off by


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
            f"{type(error).__name__}: {error}; export the annotations again"
        ) from error


def _polygons(geometry: dict[str, Any]) -> list[Any]:
    match geometry["type"]:
        case "Polygon":
            return [geometry["coordinates"]]
        case "MultiPolygon":
            return geometry["coordinates"]
        case other:
            raise ValueError(f"geometry {other!r}")


@dataclass(frozen=True, eq=False)
class Annotation:
    """One area and its class, "" where it has none; in the pixels of the file it comes from."""

    name: str
    outline: Outline


def read_annotations(path: Path) -> tuple[list[Annotation], Counter[str]]:
    """Areas of the annotations that QuPath exported, and how much of what else there is.

    A FeatureCollection, a list of features or one alone. A derived class is called as QuPath
    shows it, "Tumor: Positive". What has no area (points, lines) and what is no annotation
    (detections, cells, tiles, cores) is counted by its kind and left out. Raises `StoreError`.
    """
    annotations: list[Annotation] = []
    others: Counter[str] = Counter()
    try:
        for feature in _features(json.loads(path.read_text(encoding="utf-8"))):
            kind = _kind(feature)
            if kind != "annotation":
                others[kind] += 1
                continue
            name = _class_name(feature)
            for area in _areas(feature["geometry"]):
                if isinstance(area, str):
                    others[area] += 1
                else:
                    annotations.append(Annotation(name, area))
    except _NOT_ANNOTATIONS as error:
        raise StoreError(
            f"{path}: expected annotations as QuPath exports them to GeoJSON, got "
            f"{type(error).__name__}: {error}; export them again"
        ) from error
    return annotations, others


def _features(content: Any) -> list[Any]:
    if isinstance(content, list):
        return content
    return content["features"] if content["type"] == "FeatureCollection" else [content]


def _kind(feature: dict[str, Any]) -> str:
    """Since QuPath 0.3 a property; before, the id named a class of its program."""
    properties = feature.get("properties") or {}
    before = {"PathDetectionObject": "detection", "PathCellObject": "cell"}
    before |= {"PathTileObject": "tile", "TMACoreObject": "tmaCore", "PathRootObject": "root"}
    return properties.get("objectType") or before.get(feature.get("id", ""), "annotation")


def _class_name(feature: dict[str, Any]) -> str:
    classification = (feature.get("properties") or {}).get("classification") or ""
    if isinstance(classification, dict):
        classification = classification.get("name") or ": ".join(classification["names"])
    if not isinstance(classification, str):
        raise TypeError(f"a class called {classification!r}")
    return classification


def _areas(geometry: dict[str, Any]) -> Iterator[Outline | str]:
    """The areas of a geometry; in place of what has none, its type."""
    kind = geometry["type"]
    if kind == "GeometryCollection":
        for part in geometry["geometries"]:
            yield from _areas(part)
    elif kind in ("Polygon", "MultiPolygon"):
        for rings in _polygons(geometry):
            outline = [_ring(points) for points in rings]
            if outline and _has_area(outline[0]):
                yield [outline[0], *(hole for hole in outline[1:] if _has_area(hole))]
            else:
                yield f"empty {kind}"
    else:
        yield str(kind)


def _ring(points: Any) -> Ring:
    ring = np.asarray(points, dtype=np.float64)[:, :2]
    if ring.ndim != 2 or ring.shape[1] != 2:
        raise ValueError(f"a ring of shape {ring.shape} where points (x, y) are expected")
    if not (np.abs(ring) < _FARTHEST_PX0).all():
        raise ValueError("a coordinate that is no number of pixels")
    return ring


def _has_area(ring: Ring) -> bool:
    return len(np.unique(ring, axis=0)) > 2


def share_inside(
    outlines: list[Outline], coords_px0: NDArray[Any], tile_px0: tuple[float, float]
) -> NDArray[np.float64]:
    """(N,) the share of each tile's area inside the outlines; `coords_px0` (N, 2) top-left.

    Where outlines overlap they count once; what a ring that crosses itself encloses is inside.
    """
    union = _union(outlines)
    shapely.prepare(union)
    x, y = np.asarray(coords_px0, dtype=np.float64).T
    tiles = shapely.box(x, y, x + tile_px0[0], y + tile_px0[1])
    share = shapely.contains(union, tiles).astype(np.float64)
    # Only tiles on an edge need an intersection, which costs far more than the two tests.
    edge = shapely.intersects(union, tiles) & (share == 0)
    area = shapely.area(shapely.intersection(union, tiles[edge]))
    share[edge] = area / (tile_px0[0] * tile_px0[1])
    return share


def coverage(
    outlines: list[Outline], shape: tuple[int, int], px0_per_px: tuple[float, float]
) -> NDArray[np.float32]:
    """(h, w) the share of each pixel of a raster over the slide that the outlines cover.

    A pixel is `px0_per_px` (x, y) level-0 pixels. Exact along rows, a mean over `_LINES` lines
    down a pixel. Overlaps count once, as in `share_inside`.
    """
    height, width = shape
    scale = np.array([1 / px0_per_px[0], _LINES / px0_per_px[1]])
    # One column more for what lies right of the raster.
    change = np.zeros(height * (width + 1))
    for polygon in shapely.get_parts(shapely.orient_polygons(_union(outlines))):
        rings = [polygon.exterior, *polygon.interiors]
        for ring in (shapely.get_coordinates(ring) * scale for ring in rings):
            row, x, turn = _crossings(ring, height * _LINES)
            x = np.clip(x, 0, width)
            column = np.floor(x).astype(np.intp)
            # What lies right of a crossing changes by `turn`: a part of its pixel, all the next.
            at = row // _LINES * (width + 1) + column
            inside = turn * (1 - (x - column))
            change += np.bincount(at, inside, minlength=change.size)
            further = column < width
            change += np.bincount(at[further] + 1, (turn - inside)[further], minlength=change.size)
    covered = change.reshape(height, width + 1).cumsum(axis=1)[:, :width] / _LINES
    return np.clip(covered, 0, 1).astype(np.float32)


def _union(outlines: list[Outline]) -> shapely.Geometry:
    polygons = [Polygon(outline[0], outline[1:]) for outline in outlines]
    # "structure" keeps holes holes where they touch their shell
    valid = [shapely.make_valid(p, method="structure", keep_collapsed=False) for p in polygons]
    return shapely.union_all(valid)


def _crossings(
    ring: Ring, lines: int
) -> tuple[NDArray[np.intp], NDArray[np.float64], NDArray[np.float64]]:
    """Where a closed ring crosses the middles of unit rows: row, x, and +1 upwards or -1 down."""
    start, end = ring[:-1], ring[1:]
    low, high = np.minimum(start[:, 1], end[:, 1]), np.maximum(start[:, 1], end[:, 1])
    first = np.clip(np.ceil(low - 0.5), 0, lines).astype(np.intp)
    count = np.clip(np.ceil(high - 0.5), 0, lines).astype(np.intp) - first
    edge = np.repeat(np.arange(len(start)), count)
    row = np.arange(len(edge)) - np.repeat(count.cumsum() - count, count) + first[edge]
    run, rise = (end - start).T
    x = start[edge, 0] + (row + 0.5 - start[edge, 1]) * run[edge] / rise[edge]
    return row, x, -np.sign(rise[edge])
