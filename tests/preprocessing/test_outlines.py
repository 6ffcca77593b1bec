import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.errors import StoreError
from preprocessing.outlines import read_outlines, share_inside, write_outlines

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
