"""The composed cohort against its sources: geometry, leaks, outlines, pixels."""

import json
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
import shapely
import shapely.geometry
from colour_baseline import tile_colours
from compose_cohort import SUBTYPES, compose_cohort, plan_cohort, read_index
from PIL import Image
from shapely.geometry.base import BaseGeometry
from tile_mosaic import PLACE_PX, orient

from mil.config import load_study


@pytest.fixture(scope="module")
def patches(shared: Path) -> Path:
    return shared / "patches" / "lc25000_lung_224"


@pytest.fixture(scope="module")
def cohort(patches: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("real_tissue")
    compose_cohort(patches, out, seed=3, patients=1, places=(7, 8))
    return out


@pytest.fixture(scope="module")
def labels(cohort: Path) -> pd.DataFrame:
    return pd.read_csv(cohort / "labels.csv", keep_default_na=False).set_index("slide_id")


def outline(cohort: Path, slide_id: str) -> BaseGeometry:
    document = json.loads((cohort / "truth" / f"{slide_id}.geojson").read_text())
    return shapely.union_all([shapely.geometry.shape(f["geometry"]) for f in document["features"]])


def test_slides_open_with_mpp_and_pyramid(cohort: Path, labels: pd.DataFrame) -> None:
    for slide_id in labels.index:
        with openslide.OpenSlide(cohort / "slides" / f"{slide_id}.svs") as slide:
            assert slide.level_count >= 3
            assert float(slide.properties["openslide.mpp-x"]) == 0.5
            assert float(slide.properties["openslide.mpp-y"]) == 0.5
            assert slide.properties["openslide.vendor"] == "aperio"


def test_lattice_never_coincides_with_a_tiling(cohort: Path) -> None:
    places = pd.read_csv(cohort / "places.csv")
    shift = places[["x_px0", "y_px0"]] % PLACE_PX
    assert shift.min().min() >= 60
    assert shift.max().max() <= 110
    assert places.groupby("slide_id")[["x_px0", "y_px0"]].min().nunique().min() > 1


def test_no_source_group_in_two_patients(patches: Path) -> None:
    plans = plan_cohort(read_index(patches), patients=18, seed=0)
    owners: dict[str, set[str]] = {}
    for plan in plans:
        for tile in (*plan.normal, *plan.tumour):
            owners.setdefault(tile.source_group, set()).add(plan.patient_id)
    assert {len(patients) for patients in owners.values()} == {1}
    assert len(plans) == 59
    assert len({plan.patient_id for plan in plans}) == 48
    subtypes = pd.DataFrame([(p.patient_id, p.subtype) for p in plans if p.subtype])
    assert subtypes.groupby(0)[1].nunique().max() == 1


def test_written_places_keep_groups_apart(cohort: Path, labels: pd.DataFrame) -> None:
    places = pd.read_csv(cohort / "places.csv").join(labels["patient_id"], on="slide_id")
    assert places.groupby("source_group")["patient_id"].nunique().max() == 1
    assert not places.duplicated(["path", "orientation"]).any()
    assert places["path"].value_counts().max() <= 8


def test_outlines_lie_in_the_slide_and_hold_the_tumour_alone(
    cohort: Path, labels: pd.DataFrame
) -> None:
    places = pd.read_csv(cohort / "places.csv")
    for slide_id, label in labels.iterrows():
        region = outline(cohort, str(slide_id))
        mine = places[places["slide_id"] == slide_id]
        tumour = mine["label"] != "lung_n"
        assert tumour.any() == (label["tumour"] == "tumour")
        assert region.area == tumour.sum() * PLACE_PX**2
        x, y = mine[["x_px0", "y_px0"]].to_numpy().T
        boxes = shapely.box(x, y, x + PLACE_PX, y + PLACE_PX)
        covered = shapely.area(shapely.intersection(boxes, region)) / PLACE_PX**2
        np.testing.assert_array_equal(covered, tumour.astype(float))
        if label["tumour"] == "tumour":
            assert set(mine.loc[tumour, "label"]) == {SUBTYPES[label["subtype"]]}
            assert 0.02 < tumour.mean() < 0.35
            assert region.geom_type == "Polygon"  # connected
            with openslide.OpenSlide(cohort / "slides" / f"{slide_id}.svs") as slide:
                assert shapely.box(0, 0, *slide.dimensions).contains(region)


def test_tumour_pixels_are_those_of_tumour_tiles(
    cohort: Path, patches: Path, labels: pd.DataFrame
) -> None:
    label_of = {tile.path: tile.label for tile in read_index(patches)}
    places = pd.read_csv(cohort / "places.csv")
    compared = 0
    for slide_id in labels.index[labels["tumour"] == "tumour"]:
        region = outline(cohort, slide_id)
        mine = places[places["slide_id"] == slide_id]
        with openslide.OpenSlide(cohort / "slides" / f"{slide_id}.svs") as slide:
            for place in mine.itertuples():
                x, y = int(str(place.x_px0)), int(str(place.y_px0))
                if not region.contains(shapely.Point(x + PLACE_PX / 2, y + PLACE_PX / 2)):
                    continue
                found = slide.read_region((x, y), 0, (PLACE_PX, PLACE_PX)).convert("RGB")
                with Image.open(patches.parent / str(place.path)) as image:
                    source = np.asarray(image.convert("RGB"))
                assert label_of[str(place.path)] in SUBTYPES.values()
                errors = [
                    np.abs(np.asarray(found, dtype=float) - orient(source, turn)).mean()
                    for turn in range(8)
                ]
                assert int(np.argmin(errors)) == place.orientation
                assert min(errors) < 6  # grey levels: what JPEG at quality 90 leaves
                compared += 1
    assert compared >= 6


def test_study_beside_the_slides_is_valid(cohort: Path) -> None:
    study = load_study(cohort / "study.yaml")
    assert study.preprocessing.manifest == cohort / "slides.csv"
    assert set(study.mil.methods) == {"acmil", "mhim", "abmil"}


def test_same_seed_makes_the_same_bytes(cohort: Path, patches: Path, tmp_path: Path) -> None:
    compose_cohort(patches, tmp_path, seed=3, patients=1, places=(7, 8))
    for path in [*cohort.glob("slides/*"), *cohort.glob("truth/*"), *cohort.glob("*.csv")]:
        assert (tmp_path / path.relative_to(cohort)).read_bytes() == path.read_bytes(), path


def test_too_many_patients_for_the_groups_is_refused(patches: Path) -> None:
    with pytest.raises(ValueError, match=r"source groups of lung_n for .* slides"):
        plan_cohort(read_index(patches), patients=30, seed=0)


def test_tile_colours_against_numpy() -> None:
    rng = np.random.default_rng(0)
    thumbnail = rng.integers(0, 256, (40, 60, 3), dtype=np.uint8)
    coords_px0 = np.array([[0, 0], [80, 40]], dtype=np.int32)  # 4 level-0 px a thumbnail pixel
    colours = tile_colours(thumbnail, coords_px0, tile_px0=(40.0, 40.0), px0_per_px=(4.0, 4.0))
    window = thumbnail[10:20, 20:30].astype(float)
    expected = [*window.mean(axis=(0, 1)), *window.std(axis=(0, 1))]
    np.testing.assert_allclose(colours[1], expected, rtol=1e-12)
