"""Tile scores as objects that QuPath opens by drag and drop: tiles to colour, regions to visit.

QuPath's measurement maps colour objects of type `tile`; the few merged regions are annotations.
"""

from __future__ import annotations

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np

from mil.heatmaps.regions import Region, Ring, connected_regions
from mil.heatmaps.scores import TileScores
from preprocessing.artefacts import whole_file

_NAMESPACE = uuid.uuid5(uuid.NAMESPACE_URL, "https://histomil/qupath-objects")
_REGION_COLOUR = [0, 192, 48]
MAX_REGIONS = 25
"""Thousands of annotations slow QuPath down; a reviewer visits the strongest few."""


def write_qupath_geojson(
    scores: TileScores,
    path: Path,
    *,
    origin_px0: tuple[int, int] = (0, 0),
    region_threshold: float | None = 0.0,
) -> None:
    """Writes every tile with its scores, and the regions of evidence above `region_threshold`.

    Coordinates are level-0 pixels less `origin_px0`. QuPath crops slides to their bounds: give the
    bounds' (x, y) for those, (0, 0) for slides without. `region_threshold` None leaves regions out.
    """
    features = _tiles(scores, origin_px0)
    if region_threshold is not None:
        features += _regions(scores, region_threshold, origin_px0)
    collection = {
        "type": "FeatureCollection",
        "histomil": {
            "slide_id": scores.slide_id,
            "model": scores.model,
            "evidence": scores.evidence_name,
            "origin_px0": list(origin_px0),
            "prediction": scores.prediction,
        },
        "features": features,
    }
    with whole_file(path) as partial:
        text = json.dumps(collection, separators=(",", ":"), allow_nan=False)
        partial.write_text(text + "\n", encoding="utf-8")


def _tiles(scores: TileScores, origin_px0: tuple[int, int]) -> list[dict[str, Any]]:
    # Corners are rounded to whole pixels; rounding the far ones down keeps a tile in the slide.
    far = np.floor(scores.coords_px0 + np.array(scores.tile_px0) + 1e-6).astype(int)
    columns = {
        "attention": scores.attention,
        "log2 relative attention": scores.log2_attention,
        "evidence": scores.evidence,
    }
    features = []
    for i, ((x, y), (right, bottom)) in enumerate(
        zip(scores.coords_px0.tolist(), far.tolist(), strict=True)
    ):
        properties = {
            "objectType": "tile",
            "isLocked": True,
            "measurements": {name: _short(values[i]) for name, values in columns.items()},
        }
        ring = [(x, y), (right, y), (right, bottom), (x, bottom), (x, y)]
        features.append(_feature(f"{scores.slide_id}:tile:{x}:{y}", [ring], origin_px0, properties))
    return features


def _regions(
    scores: TileScores, threshold: float, origin_px0: tuple[int, int]
) -> list[dict[str, Any]]:
    """The regions with most evidence above the threshold, the strongest first."""

    def strength(region: Region) -> float:
        return float((scores.evidence[region.tiles] - threshold).sum())

    regions = connected_regions(scores, scores.evidence > threshold)
    strongest = sorted(regions, key=strength, reverse=True)[:MAX_REGIONS]
    mm2_per_px0 = scores.mpp[0] * scores.mpp[1] / 1e6
    features = []
    for rank, region in enumerate(strongest, start=1):
        evidence = scores.evidence[region.tiles]
        x, y = region.rings[0][0]
        properties = {
            "objectType": "annotation",
            "name": f"evidence above {threshold:g}, region {rank} of {len(regions)}",
            "color": _REGION_COLOUR,
            "isLocked": True,
            "measurements": {
                "tiles": len(region.tiles),
                "area mm2": _short(region.area_px0 * mm2_per_px0),
                "mean evidence": _short(evidence.mean()),
                "greatest evidence": _short(evidence.max()),
                "share of attention": _short(scores.attention[region.tiles].sum()),
            },
        }
        identity = f"{scores.slide_id}:region:{threshold!r}:{x}:{y}"
        features.append(_feature(identity, region.rings, origin_px0, properties))
    return features


def _feature(
    identity: str, rings: list[Ring], origin_px0: tuple[int, int], properties: dict[str, Any]
) -> dict[str, Any]:
    moved = [[[x - origin_px0[0], y - origin_px0[1]] for x, y in ring] for ring in rings]
    return {
        "type": "Feature",
        "id": str(uuid.uuid5(_NAMESPACE, identity)),
        "geometry": {"type": "Polygon", "coordinates": moved},
        "properties": properties,
    }


def _short(value: float | np.floating) -> float:
    """Seven digits: what a float32 holds, without the tail that a double of it would print."""
    return float(f"{value:.7g}")
