import json

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from shapely.geometry import Polygon, box

from preprocessing.errors import StoreError
from preprocessing.outlines import read_outlines, share_inside, write_outlines

coordinates = st.floats(0, 4000, allow_nan=False)
TILE = (448.0, 358.4)


@given(
    st.tuples(coordinates, coordinates),
    st.lists(st.floats(100, 1500), min_size=5, max_size=12),
    st.lists(st.tuples(coordinates, coordinates), min_size=1, max_size=20),
)
def test_share_is_shapelys_area(centre, radii, corners):
    angles = np.linspace(0, 2 * np.pi, len(radii), endpoint=False)
    shell = np.array(centre) + np.array(radii)[:, None] * np.c_[np.cos(angles), np.sin(angles)]
    share = share_inside([[shell]], np.array(corners), TILE)
    area = TILE[0] * TILE[1]
    exact = [
        Polygon(shell).intersection(box(x, y, x + TILE[0], y + TILE[1])).area / area
        for x, y in corners
    ]
    np.testing.assert_allclose(share, exact, atol=0.05)


def test_holes_are_outside_and_overlaps_count_once():
    shell = np.array([[0, 0], [1000, 0], [1000, 1000], [0, 1000]], dtype=float)
    hole = shell / 2
    tiles = np.array([[0, 0], [500, 500]])
    np.testing.assert_allclose(share_inside([[shell, hole]], tiles, (500, 500)), [0, 1], atol=1e-9)
    np.testing.assert_allclose(share_inside([[shell], [shell]], tiles, (500, 500)), [1, 1])


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
