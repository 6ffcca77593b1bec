"""QuPath objects, checked with shapely: in the slide, valid, counter-clockwise, in their place."""

import json
import uuid
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from heatmap_fakes import make_layout, make_scores
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays
from shapely import LinearRing, Polygon, box, unary_union
from shapely.geometry import shape

from mil.heatmaps.export import MAX_REGIONS, write_qupath_geojson
from mil.heatmaps.regions import connected_regions, outlines


def export(path: Path, *args: Any, **kwargs: Any) -> tuple[list[dict], list[dict]]:
    """The tiles and the annotations of a file."""
    write_qupath_geojson(*args, path, **kwargs)
    collection = json.loads(path.read_text())
    assert collection["type"] == "FeatureCollection"
    features = collection["features"]
    kinds = [feature["properties"]["objectType"] for feature in features]
    assert set(kinds) <= {"tile", "annotation"}
    return (
        [f for f, kind in zip(features, kinds, strict=True) if kind == "tile"],
        [f for f, kind in zip(features, kinds, strict=True) if kind == "annotation"],
    )


@given(st.floats(30, 300), st.floats(0.4, 1), st.floats(0, 50), st.integers(1, 6))
@settings(max_examples=40)
def test_tiles_are_valid_boxes_inside_the_slide(
    tmp_path_factory: pytest.TempPathFactory, tile: float, stride: float, first: float, count: int
) -> None:
    # The slide ends where the last tile of the exact lattice does, at the last whole pixel.
    slide_px0 = int(np.ceil(first + (count - 1) * tile * stride + tile))
    cells = [(i, j) for j in range(count) for i in range(count)]
    scores = make_scores(
        cells,
        tile_px0=(tile, tile),
        stride_px0=(tile * stride, tile * stride),
        origin_px0=(first, first),
        evidence=np.ones(len(cells)),
    )
    path = tmp_path_factory.mktemp("qupath") / "s1.geojson"
    tiles, regions = export(path, scores)
    slide = box(0, 0, slide_px0, slide_px0)
    for feature, corner in zip(tiles, scores.coords_px0, strict=True):
        polygon = shape(feature["geometry"])
        assert polygon.is_valid
        assert polygon.exterior.is_ccw
        assert slide.covers(polygon)
        x0, y0, x1, y1 = polygon.bounds
        assert (x0, y0) == tuple(corner)
        assert (x1 - x0, y1 - y0) == pytest.approx((tile, tile), abs=1)
    assert len(regions) == 1
    assert slide.covers(shape(regions[0]["geometry"]))


def test_tile_properties(tmp_path: Path) -> None:
    scores = make_scores([(0, 0), (3, 1)], evidence=[1.25, -3], attention=[0.25, 0.75])
    tiles, _ = export(tmp_path / "a.geojson", scores)
    assert tiles[1]["properties"] == {
        "objectType": "tile",
        "isLocked": True,
        "measurements": {
            "attention": 0.75,
            "log2 relative attention": pytest.approx(np.log2(1.5)),
            "evidence": -3.0,
        },
    }
    ring = tiles[1]["geometry"]["coordinates"][0]
    assert ring == [[300, 100], [400, 100], [400, 200], [300, 200], [300, 100]]


def test_ids_are_uuids_that_depend_on_the_place_alone(tmp_path: Path) -> None:
    cells = [(0, 0), (1, 0), (5, 3)]
    first, _ = export(tmp_path / "a.geojson", make_scores(cells))
    again, _ = export(tmp_path / "b.geojson", make_scores(cells[::-1], evidence=[1, 2, 3]))
    other, _ = export(tmp_path / "c.geojson", make_scores(cells, slide_id="s2"))
    ids = [feature["id"] for feature in first]
    assert ids == [feature["id"] for feature in again][::-1]
    assert not set(ids) & {feature["id"] for feature in other}
    assert all(uuid.UUID(name).version == 5 for name in ids)
    assert len(set(ids)) == 3


def test_a_cropped_slide_begins_at_its_bounds(tmp_path: Path) -> None:
    scores = make_scores([(0, 0), (1, 0)], origin_px0=(1000, 500), evidence=[1, 1])
    tiles, regions = export(tmp_path / "a.geojson", scores, origin_px0=(990, 470))
    assert shape(tiles[0]["geometry"]).bounds == (10, 30, 110, 130)
    assert shape(regions[0]["geometry"]).bounds == (10, 30, 210, 130)
    assert json.loads((tmp_path / "a.geojson").read_text())["histomil"]["origin_px0"] == [990, 470]


def test_regions_join_tiles_across_edges_and_come_strongest_first(tmp_path: Path) -> None:
    cells = [(0, 0), (1, 1), (2, 1), (5, 5), (6, 5)]
    scores = make_scores(cells, evidence=[1, 3, 5, 0, -1], mpp=(0.5, 1.0))
    _, regions = export(tmp_path / "a.geojson", scores)
    assert [shape(region["geometry"]).bounds for region in regions] == [
        (100, 100, 300, 200),
        (0, 0, 100, 100),
    ]
    assert regions[0]["properties"]["measurements"] == {
        "tiles": 2,
        "area mm2": pytest.approx(2 * 0.05 * 0.1),
        "mean evidence": 4.0,
        "greatest evidence": 5.0,
        "share of attention": pytest.approx(0.4),
    }
    _, stronger = export(tmp_path / "b.geojson", scores, region_threshold=4.0)
    assert [shape(region["geometry"]).bounds for region in stronger] == [(200, 100, 300, 200)]
    _, none = export(tmp_path / "c.geojson", scores, region_threshold=None)
    assert none == []


def test_no_evidence_no_region(tmp_path: Path) -> None:
    tiles, regions = export(tmp_path / "a.geojson", make_scores([(0, 0)], evidence=[-1]))
    assert (len(tiles), len(regions)) == (1, 0)


def test_only_the_strongest_regions_are_written(tmp_path: Path) -> None:
    cells = [(2 * i, 0) for i in range(MAX_REGIONS + 5)]
    _, regions = export(tmp_path / "a.geojson", make_scores(cells, evidence=np.arange(len(cells))))
    strengths = [region["properties"]["measurements"]["mean evidence"] for region in regions]
    assert strengths == list(range(len(cells) - 1, 4, -1))


@settings(max_examples=100)
@given(
    arrays(bool, st.tuples(st.integers(1, 8), st.integers(1, 8))), st.sampled_from([1.0, 1.5, 2])
)
def test_region_outlines_are_the_union_of_their_tiles(chosen: np.ndarray, overlap: float) -> None:
    cells = np.argwhere(np.ones_like(chosen))[:, ::-1]
    side = 60 * overlap
    layout = make_layout(cells, tile_px0=(side, side), stride_px0=(60, 60))
    regions = connected_regions(layout, chosen.ravel())
    polygons = [Polygon(region.rings[0], region.rings[1:]) for region in regions]
    for region, polygon in zip(regions, polygons, strict=True):
        assert polygon.is_valid
        assert LinearRing(region.rings[0]).is_ccw
        assert not any(LinearRing(hole).is_ccw for hole in region.rings[1:])
        tiles = [box(x, y, x + side, y + side) for x, y in layout.coords_px0[region.tiles]]
        assert polygon.symmetric_difference(unary_union(tiles)).area == 0
        assert polygon.area == region.area_px0
    assert sum(len(region.tiles) for region in regions) == chosen.sum()
    # Regions that share an edge would be one; a touch at a corner leaves them two.
    for i, polygon in enumerate(polygons):
        assert all(polygon.intersection(other).length == 0 for other in polygons[i + 1 :])


def test_a_hole_that_touches_the_shell_at_a_corner_keeps_the_outline_valid() -> None:
    cells = np.array([[0, 1, 1], [1, 0, 1], [1, 1, 1]], dtype=bool)
    shell, hole = outlines(cells)
    polygon = Polygon(shell, [hole])
    assert polygon.is_valid
    assert polygon.area == cells.sum()
