import hashlib
import json
import logging

import numpy as np
import pytest
from pydantic import ValidationError

from preprocessing.config import RegionsConfig, TissueConfig
from preprocessing.errors import NoTissue, SlideError
from preprocessing.manifest import SlideRow
from preprocessing.outlines import share_inside
from preprocessing.tissue.regions import (
    Regions,
    read_regions,
    region_files,
    tissue_digest,
    within_regions,
)
from preprocessing.tissue.segmentation import TissueMask

BOUNDS = (1000, 500, 4000, 3000)


def row(folder) -> SlideRow:
    return SlideRow("s", "p", folder / "s.svs")


def settings(folder, **regions) -> TissueConfig:
    return TissueConfig(regions=RegionsConfig(folder=folder, **{"frame": "level0"} | regions))


def square(x, y, side=100):
    return [[x, y], [x + side, y], [x + side, y + side], [x, y + side], [x, y]]


def draw(folder, *areas) -> None:
    """Areas are (class, ring, ...) annotations of slide s."""
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Polygon", "coordinates": rings},
            "properties": {"objectType": "annotation", "classification": {"name": name}}
            if name
            else {"objectType": "annotation"},
        }
        for name, *rings in areas
    ]
    (folder / "s.geojson").write_text(json.dumps(features))


def corners(outlines):
    return [tuple(outline[0][0].tolist()) for outline in outlines]


CLASSES = ("Tumor", "Stroma", "Artefact", "Ignore*", "")


@pytest.fixture
def five(tmp_path):
    """One area of each class, the number of the class at its corner."""
    draw(tmp_path, *((name, square(n, 0)) for n, name in enumerate(CLASSES)))
    return tmp_path


@pytest.mark.parametrize(
    ("choice", "included", "excluded"),
    [
        ({}, [0, 1, 2, 4], []),
        ({"include": ["Tumor"]}, [0], []),
        ({"include": ["Ignore*", "Stroma"]}, [1, 3], []),
        ({"exclude": ["Artefact"]}, [0, 1, 4], [2]),
        ({"include": ["Tumor"], "exclude": ["Artefact", "Ignore*"]}, [0], [2, 3]),
    ],
)
def test_classes_are_included_and_excluded_by_name(five, choice, included, excluded):
    regions = read_regions(row(five), settings(five, **choice), None)
    assert corners(regions.included) == [(n, 0) for n in included]
    assert corners(regions.excluded) == [(n, 0) for n in excluded]


@pytest.mark.parametrize(
    ("frame", "bounds", "corner"),
    [
        ("qupath", BOUNDS, (1010, 520)),
        ("qupath", None, (10, 20)),
        ("level0", BOUNDS, (10, 20)),
    ],
)
def test_qupaths_origin_is_the_corner_of_the_scanned_area(tmp_path, frame, bounds, corner):
    draw(tmp_path, ("Tumor", square(10, 20)), ("Artefact", square(10, 20)))
    choice = {"frame": frame, "exclude": ["Artefact"]}
    regions = read_regions(row(tmp_path), settings(tmp_path, **choice), bounds)
    assert corners(regions.included) == corners(regions.excluded) == [corner]


def test_a_class_that_nobody_drew_is_refused_with_the_classes_there_are(five):
    with pytest.raises(
        NoTissue,
        match=r"slide 's': .*s\.geojson: no area of 'tumor'; classes there: '' \(1\), "
        r"'Artefact' \(1\), 'Ignore\*' \(1\), 'Stroma' \(1\), 'Tumor' \(1\); correct "
        r"tissue\.regions\.include",
    ):
        read_regions(row(five), settings(five, include=["tumor"]), None)
    draw(five)
    with pytest.raises(NoTissue, match="any class that is not excluded; classes there: none"):
        read_regions(row(five), settings(five), None)


def test_slides_without_regions_fail_or_are_whole(tmp_path, caplog):
    with pytest.raises(SlideError, match=r"slide 's': no regions at .*s\.geojson; export"):
        read_regions(row(tmp_path), settings(tmp_path), None)
    free = settings(tmp_path, required=False, exclude=["Artefact"])
    whole = read_regions(row(tmp_path), free, None)
    assert (whole.included, whole.excluded) == ([], [])
    draw(tmp_path, ("Artefact", square(0, 0)))
    with caplog.at_level(logging.WARNING):
        rest = read_regions(row(tmp_path), free, None)
    assert corners(rest.excluded) == [(0, 0)]
    assert "classes there: 'Artefact' (1); tiled whole" in caplog.text


def test_points_and_detections_are_passed_over_with_a_warning(tmp_path, caplog):
    draw(tmp_path, ("Tumor", square(0, 0)))
    path = tmp_path / "s.geojson"
    features = json.loads(path.read_text())
    features += [{"geometry": {"type": "Point", "coordinates": [1, 1]}, "properties": None}] * 3
    features.append({**features[0], "properties": {"objectType": "detection"}})
    path.write_text(json.dumps(features))
    with caplog.at_level(logging.WARNING):
        assert len(read_regions(row(tmp_path), settings(tmp_path), None).included) == 1
    assert "slide 's'" in caplog.text
    assert "not areas to tile: 3 Point, 1 detection" in caplog.text


def test_a_broken_file_fails_its_slide_alone(tmp_path):
    (tmp_path / "s.geojson").write_text("{")
    with pytest.raises(SlideError, match=r"slide 's': .*s\.geojson: expected annotations"):
        read_regions(row(tmp_path), settings(tmp_path), None)


def test_a_class_on_both_sides_is_refused(tmp_path):
    with pytest.raises(ValidationError, match="include and exclude both name Stroma"):
        settings(tmp_path, include=["Tumor", "Stroma"], exclude=["Stroma"])


def rings(*drawn):
    return [[np.array(ring, dtype=float) for ring in outline] for outline in drawn]


def test_masks_are_limited_or_replaced_and_exclusion_wins():
    tissue = TissueMask(np.tri(100, dtype=bool), 10.0, 10.0)
    hole = [square(0, 0, 400), square(100, 100, 100)]
    regions = Regions(rings(hole, [square(300, 300, 400)]), rings([square(0, 0, 50)]))
    inside = np.zeros((100, 100), dtype=bool)
    inside[:40, :40] = True
    inside[10:20, 10:20] = False
    inside[30:70, 30:70] = True
    inside[:5, :5] = False
    limited = within_regions(tissue, regions, replace_tissue=False)
    np.testing.assert_array_equal(limited.mask, inside & tissue.mask)
    replaced = within_regions(tissue, regions, replace_tissue=True)
    np.testing.assert_array_equal(replaced.mask, inside)
    assert (replaced.px0_per_px_x, replaced.px0_per_px_y) == (10, 10)


@pytest.mark.parametrize("replace_tissue", [False, True])
def test_without_an_included_region_only_the_excluded_are_taken_away(replace_tissue):
    tissue = TissueMask(np.tri(10, dtype=bool), 10.0, 10.0)
    regions = Regions([], rings([square(0, 0, 50)]))
    expected = tissue.mask.copy()
    expected[:5, :5] = False
    left = within_regions(tissue, regions, replace_tissue=replace_tissue)
    np.testing.assert_array_equal(left.mask, expected)


def test_a_tiles_share_is_right_to_half_a_per_cent():
    """Mask pixels of 8 um, tiles of 112 um, at 0.25 um per pixel; a blob of 1.5 mm."""
    angles = np.linspace(0, 2 * np.pi, 300, endpoint=False)
    radii = 3000 + 700 * np.sin(5 * angles) + 100 * np.sin(31 * angles)
    blob = 5000 + radii[:, None] * np.c_[np.cos(angles), np.sin(angles)]
    tissue = TissueMask(np.ones((320, 320), dtype=bool), 32.0, 32.0)
    mask = within_regions(tissue, Regions([[blob]], []), replace_tissue=False)
    x, y = np.meshgrid(np.arange(0, 9600, 448), np.arange(0, 9600, 448))
    corners_px0 = np.c_[x.ravel(), y.ravel()]
    exact = share_inside([[blob]], corners_px0, (448, 448))
    found = mask.fraction_of(np.c_[corners_px0, np.full_like(corners_px0, 448)])
    assert np.abs(found - exact).max() < 0.02
    assert np.sqrt(np.mean((found - exact)[(exact > 0) & (exact < 1)] ** 2)) < 0.006
    assert found.sum() == pytest.approx(exact.sum(), rel=2e-4)


def test_the_digest_follows_the_bytes_of_the_slides_own_files(tmp_path):
    both = settings(tmp_path).model_copy(update={"masks": tmp_path})
    assert region_files(row(tmp_path), both) == [tmp_path / "s.png", tmp_path / "s.geojson"]
    assert region_files(row(tmp_path), TissueConfig()) == []
    assert tissue_digest(row(tmp_path), TissueConfig()) == ""
    seen = [tissue_digest(row(tmp_path), both)]
    for name, content in (("s.png", b"a"), ("s.geojson", b"b"), ("s.geojson", b"c")):
        (tmp_path / name).write_bytes(content)
        seen.append(tissue_digest(row(tmp_path), both))
    (tmp_path / "other.png").write_bytes(b"d")
    assert tissue_digest(row(tmp_path), both) == seen[-1]
    (tmp_path / "s.png").write_bytes(b"c")
    (tmp_path / "s.geojson").write_bytes(b"a")  # the same two contents, exchanged
    seen.append(tissue_digest(row(tmp_path), both))
    assert len(set(seen)) == len(seen)
    assert all(len(digest) == len(hashlib.sha256().hexdigest()) for digest in seen)
