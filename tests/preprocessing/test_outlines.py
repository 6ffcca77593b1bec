import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.errors import StoreError
from preprocessing.outlines import (
    coverage,
    read_annotations,
    read_outlines,
    share_inside,
    write_outlines,
)

corner = st.tuples(st.integers(0, 2000), st.integers(0, 2000))


@given(corner, st.integers(1, 900), st.integers(1, 900), st.lists(corner, min_size=1, max_size=9))
def test_share_of_a_rectangle_is_known(first, width, height, corners):
    x, y = first
    shell = np.array([[x, y], [x + width, y], [x + width, y + height], [x, y + height]])
    tile = (448.0, 358.4)
    overlap = np.maximum(
        np.minimum(np.array(corners) + tile, [x + width, y + height]) - np.maximum(corners, first),
        0,
    )
    share = share_inside([[shell]], np.array(corners), tile)
    np.testing.assert_allclose(share, overlap.prod(axis=1) / (448 * 358.4), atol=1e-9)


@given(st.lists(st.floats(100, 1500), min_size=3, max_size=12))
def test_tiles_add_up_to_the_polygons_area(radii):
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    shell = 1600 + np.array(radii)[:, None] * np.c_[np.cos(angles), np.sin(angles)]
    columns, rows = np.meshgrid(np.arange(0, 3200, 160), np.arange(0, 3200, 100))
    share = share_inside([[shell]], np.c_[columns.ravel(), rows.ravel()], (160, 100))
    shoelace = np.linalg.det(np.stack([shell, np.roll(shell, -1, axis=0)], axis=1) - 1600).sum() / 2
    assert share.sum() * 160 * 100 == pytest.approx(abs(shoelace), rel=1e-6)


def test_holes_are_outside_and_overlaps_count_once():
    shell = np.array([[0, 0], [1000, 0], [1000, 1000], [0, 1000]], dtype=float)
    tiles = np.array([[0, 0], [500, 500]])
    np.testing.assert_allclose(share_inside([[shell, shell / 2]], tiles, (500, 500)), [0, 1])
    square = shell / 10
    tiles = np.array([[0, 0], [50, 0], [100, 0]])
    share = share_inside([[square], [square + 10]], tiles, (100, 100))
    np.testing.assert_allclose(share, [1.0, 0.5 + 0.09, 0.09])
    assert not share_inside([], tiles, (100, 100)).any()


def test_written_outlines_come_back(tmp_path):
    shell = np.array([[10.5, 0], [300, 0], [300, 200.3]])
    path = tmp_path / "s.geojson"
    write_outlines([[shell]], path, name="Tumour")
    (back,) = read_outlines(path)
    np.testing.assert_array_equal(back[0], [*shell.tolist(), shell[0].tolist()])
    write_outlines([], path, name="Tumour")
    assert read_outlines(path) == []


def test_multipolygons_are_read_and_points_refused(tmp_path):
    path = tmp_path / "s.geojson"
    ring = [[0, 0], [9, 0], [9, 9], [0, 0]]
    geometry = {"type": "MultiPolygon", "coordinates": [[ring], [ring, ring]]}
    path.write_text(json.dumps({"features": [{"geometry": geometry}]}))
    assert [len(outline) for outline in read_outlines(path)] == [1, 2]
    geometry = {"type": "Point", "coordinates": [1, 2]}
    path.write_text(json.dumps({"features": [{"geometry": geometry}]}))
    with pytest.raises(StoreError, match=r"s\.geojson: expected .* polygons .*'Point'"):
        read_outlines(path)
    with pytest.raises(StoreError, match=r"absent\.geojson"):
        read_outlines(tmp_path / "absent.geojson")


def star(centre, radii):
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    return centre + np.array(radii)[:, None] * np.c_[np.cos(angles), np.sin(angles)]


stars = st.tuples(
    st.tuples(st.floats(-200, 1400), st.floats(-200, 1200)),
    st.lists(st.floats(50, 600), min_size=3, max_size=30),
    st.booleans(),
)


@given(st.lists(stars, max_size=3), st.floats(20, 60), st.floats(20, 60))
def test_coverage_is_the_exact_share_of_every_pixel(drawn, across, down):
    """Exact along rows, 8 lines down a pixel: an edge that is nearly horizontal is off by 1/8."""
    outlines = [
        [star(centre, radii), *([star(centre, np.array(radii) / 3)] if holed else [])]
        for centre, radii, holed in drawn
    ]
    height, width = round(1000 / down), round(1200 / across)
    covered = coverage(outlines, (height, width), (across, down))
    assert covered.shape == (height, width)
    corners = np.stack(np.meshgrid(np.arange(width) * across, np.arange(height) * down), axis=-1)
    exact = share_inside(outlines, corners.reshape(-1, 2), (across, down))
    difference = covered.ravel() - exact
    assert np.abs(difference).max() < 0.25  # two edges in one pixel
    assert abs(difference.mean()) < 0.003


def test_coverage_of_whole_pixels_is_exact_and_stops_at_the_raster():
    square = np.array([[20, 30], [500, 30], [500, 500], [20, 500]], dtype=float)
    covered = coverage([[square]], (10, 12), (10, 10))
    expected = np.zeros((10, 12))
    expected[3:, 2:] = 1
    np.testing.assert_array_equal(covered, expected)
    np.testing.assert_array_equal(coverage([], (2, 3), (10, 10)), np.zeros((2, 3)))


RING = [[0, 0], [9, 0], [9, 9], [0, 9], [0, 0]]
POLYGON = {"type": "Polygon", "coordinates": [RING]}


def feature(geometry=POLYGON, id_="6f9d6c0e-0000-0000-0000-000000000000", **properties):
    return {"type": "Feature", "id": id_, "geometry": geometry, "properties": properties}


def annotations_of(tmp_path, content):
    path = tmp_path / "s.geojson"
    path.write_text(json.dumps(content), encoding="utf-8")
    return read_annotations(path)


@pytest.mark.parametrize(
    ("classification", "name"),
    [
        ({"name": "Tumor", "color": [200, 0, 0]}, "Tumor"),
        ({"names": ["Tumor", "Positive"], "color": [250, 62, 62]}, "Tumor: Positive"),
        ({"name": "Tumor", "colorRGB": -3670016}, "Tumor"),
        ("Geweberand ü", "Geweberand ü"),
        (None, ""),
    ],
)
def test_classes_are_called_as_qupath_shows_them(tmp_path, classification, name):
    drawn = feature(objectType="annotation", classification=classification)
    for content in ({"type": "FeatureCollection", "features": [drawn]}, [drawn], drawn):
        (annotation,), others = annotations_of(tmp_path, content)
        assert annotation.name == name
        np.testing.assert_array_equal(annotation.outline[0], RING)
        assert not others


def test_areas_of_every_form_are_read_and_what_else_there_is_is_counted(tmp_path):
    line = {"type": "LineString", "coordinates": [[0, 0], [5, 5]]}
    several = {"type": "MultiPolygon", "coordinates": [[RING], [RING, [[2, 2], [4, 2], [4, 4]]]]}
    content = [
        feature(several),
        feature({"type": "GeometryCollection", "geometries": [POLYGON, line]}),
        feature({"type": "Point", "coordinates": [1, 2]}),
        feature({"type": "MultiPoint", "coordinates": [[1, 2]]}),
        feature({"type": "Polygon", "coordinates": [[[0, 0], [5, 5], [0, 0]]]}),
        feature({"type": "Polygon", "coordinates": []}),
        feature({"type": "Polygon", "coordinates": [RING, [[1, 1], [1, 1], [1, 1]]]}),
        feature(objectType="detection"),
        feature(objectType="tmaCore"),
        feature(id_="PathCellObject"),
    ]
    annotations, others = annotations_of(tmp_path, content)
    assert [len(annotation.outline) for annotation in annotations] == [1, 2, 1, 1]
    assert others == {
        **dict.fromkeys(("LineString", "Point", "MultiPoint"), 1),
        **dict.fromkeys(("detection", "tmaCore", "cell"), 1),
        "empty Polygon": 2,
    }


@pytest.mark.parametrize(
    "content",
    [
        "",
        "[",
        '{"type": "FeatureCollection"}',
        "[3]",
        '[{"type": "Feature", "geometry": null}]',
        '[{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[[0, "NaN"], '
        "[1, 1], [2, 0]]]}}]",
        '[{"type": "Feature", "geometry": {"type": "Polygon", "coordinates": [[]]}}]',
        "[" * 100_000,
        *(
            json.dumps({"type": "Feature", "geometry": {"type": "Polygon", "coordinates": rings}})
            for rings in (
                [[[0], [1], [2]]],
                [[[[0, 0], [1, 0], [1, 1]]]],
                [[[10**400, 0], [1, 0], [1, 1]]],
                [[[-1e308, 0], [1e308, 0], [1e308, 1e308]]],
            )
        ),
        *(
            json.dumps(feature(classification=name))
            for name in (5, ["Tumor"], {"name": 5}, {"name": ["Tumor"]})
        ),
    ],
)
def test_what_is_no_geojson_of_qupath_is_refused_with_its_path(tmp_path, content):
    path = tmp_path / "s.geojson"
    path.write_text(content)
    with pytest.raises(StoreError, match=r"s\.geojson: expected annotations as QuPath exports"):
        read_annotations(path)


@pytest.mark.parametrize("read", [read_annotations, read_outlines])
def test_a_file_of_another_encoding_is_not_repeated_in_the_message(tmp_path, read):
    path = tmp_path / "s.geojson"
    path.write_bytes("Läsion".encode("latin-1") * 10_000)
    with pytest.raises(StoreError, match="can't decode byte 0xe4 in position 1") as caught:
        read(path)
    assert len(str(caught.value)) < 1000
