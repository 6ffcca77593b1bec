from pathlib import Path

import numpy as np
import openslide
import pandas as pd
import pytest
import tifffile
from lifelines import CoxPHFitter
from lifelines.utils import concordance_index
from PIL import Image
from shapely.geometry import Polygon
from shapely.ops import unary_union

from preprocessing.config import SyntheticConfig
from preprocessing.errors import ConfigError
from preprocessing.manifest import read_manifest
from preprocessing.outlines import read_outlines, share_inside
from preprocessing.synthetic import normal
from preprocessing.synthetic.cohort import make_cohort
from preprocessing.synthetic.fields import MACRO_UM, MacroGrid
from preprocessing.synthetic.painting import paint
from preprocessing.synthetic.plan import COARSE_MPP, FINE_MPP, draw_survival, plan_cohort
from preprocessing.synthetic.tumour import grow_tumour, invade

TINY = SyntheticConfig(patients=6, width_px=1024, height_px=768)


@pytest.fixture(scope="module")
def cohort(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("cohort")
    assert make_cohort(TINY, folder) == folder / "slides.csv"
    return folder


@pytest.fixture(scope="module")
def labels(cohort) -> pd.DataFrame:
    return pd.read_csv(cohort / "labels.csv").set_index("slide_id")


def open_all(cohort: Path) -> dict[str, openslide.OpenSlide]:
    return {
        row.slide_id: openslide.OpenSlide(row.path) for row in read_manifest(cohort / "slides.csv")
    }


def test_openslide_sees_a_pyramid_with_its_mpp(cohort):
    mpps = set()
    for slide in open_all(cohort).values():
        mpp = float(slide.properties["openslide.mpp-x"])
        mpps.add(round(mpp, 6))
        assert float(slide.properties["openslide.mpp-y"]) == mpp
        assert slide.properties["openslide.vendor"] == "generic-tiff"
        width, height = slide.dimensions
        assert (width * mpp, height * mpp) == pytest.approx((512, 384), abs=mpp)
        assert slide.level_downsamples == pytest.approx([2**i for i in range(slide.level_count)])
        assert slide.level_count >= 2
        assert max(slide.level_dimensions[-1]) <= 512
    assert mpps == {COARSE_MPP, FINE_MPP}


def test_pages_are_jpeg_tiles_and_marked_as_reduced_images(cohort):
    for path in (cohort / "slides").iterdir():
        with tifffile.TiffFile(path) as tiff:
            assert [page.subfiletype for page in tiff.pages] == [0] + [1] * (len(tiff.pages) - 1)
            for page in tiff.pages:
                assert page.compression == tifffile.COMPRESSION.JPEG
                assert page.photometric == tifffile.PHOTOMETRIC.YCBCR
                assert (page.tilewidth, page.tilelength) == (256, 256)


def test_levels_are_area_averages_and_colours_are_those_of_a_stain(cohort):
    for slide in open_all(cohort).values():
        full = slide.read_region((0, 0), 0, slide.dimensions).convert("RGB")
        half = slide.read_region((0, 0), 1, slide.level_dimensions[1]).convert("RGB")
        grey = np.asarray(half.convert("L"), dtype=float)
        averaged = np.asarray(full.reduce(2).convert("L"), dtype=float)
        sharp = np.asarray(full.convert("L"), dtype=float)
        decimated = [sharp[y::2, x::2] for y in (0, 1) for x in (0, 1)]
        # JPEG noise is in all; a level decimated in any phase would be nearer to that phase.
        nearest = min(np.abs(grey - phase).mean() for phase in decimated)
        assert np.abs(grey - averaged).mean() < 0.8 * nearest
        assert abs((grey - averaged).mean()) < 0.5
        red, green, blue = np.asarray(half, dtype=float).reshape(-1, 3).T
        assert np.quantile(np.minimum(green, red), 0.95) > 220  # glass
        stained = green < 170
        assert 0.1 < stained.mean() < 0.8
        pink_or_purple = (green < red) & (green < blue)
        assert pink_or_purple[stained].mean() > 0.8  # the rest is pen


def test_tissue_and_stain_differ_between_slides(cohort):
    stains, shapes = [], []
    for slide in open_all(cohort).values():
        small = np.asarray(slide.get_thumbnail((64, 48)).resize((64, 48)), dtype=float)
        tissue = small[..., 1] < 190
        stains.append(np.median(small[tissue], axis=0))
        shapes.append(tissue)
    assert (np.std(stains, axis=0) > 3).all()
    for index, shape in enumerate(shapes):
        assert all((shape != other).mean() > 0.05 for other in shapes[:index])


def test_manifest_labels_and_outlines_agree(cohort, labels):
    rows = read_manifest(cohort / "slides.csv")
    assert [row.slide_id for row in rows] == list(labels.index)
    assert [row.patient_id for row in rows] == list(labels.patient_id)
    assert set(labels.tumour) == {"normal", "tumour"}
    assert (labels.time > 0).all()
    assert set(labels.event) <= {0, 1}
    clinic = ["time", "event", "age", "stage"]
    assert (labels.groupby("patient_id")[clinic].nunique() == 1).all(axis=None)
    assert set(labels.stage) <= {1, 2, 3, 4}
    assert labels.age.between(25, 95).all()
    for slide_id, slide in open_all(cohort).items():
        polygons = [o[0] for o in read_outlines(cohort / "truth" / f"{slide_id}.geojson")]
        assert bool(polygons) == (labels.tumour[slide_id] == "tumour")
        for polygon in polygons:
            assert (polygon >= 0).all()
            assert (polygon <= slide.dimensions).all()
            assert Polygon(polygon).is_valid
            np.testing.assert_array_equal(polygon[0], polygon[-1])


def test_tumour_is_more_crowded_than_the_rest_of_the_tissue(cohort, labels):
    slides = open_all(cohort)
    for slide_id in labels.index[labels.tumour == "tumour"]:
        slide = slides[slide_id]
        red = np.asarray(slide.read_region((0, 0), 0, slide.dimensions).convert("RGB"))[..., 0]
        red = red[: red.shape[0] // 64 * 64, : red.shape[1] // 64 * 64]
        rows, columns = np.mgrid[0 : red.shape[0] : 64, 0 : red.shape[1] : 64]
        coords = np.stack([columns.ravel(), rows.ravel()], axis=1)
        outlines = read_outlines(cohort / "truth" / f"{slide_id}.geojson")
        inside = share_inside(outlines, coords, (64, 64))
        nuclear = (red < 130).reshape(red.shape[0] // 64, 64, -1, 64).mean((1, 3)).ravel()
        assert nuclear[inside > 0.5].mean() > 1.5 * nuclear[inside == 0].mean()


def test_another_run_gives_the_same_bytes_in_any_order(cohort, labels, tmp_path):
    make_cohort(TINY, tmp_path)
    for name in ["slides.csv", "labels.csv", *(f"slides/{i}.tiff" for i in labels.index)]:
        assert (tmp_path / name).read_bytes() == (cohort / name).read_bytes(), name
    last = labels.index[-1]
    (tmp_path / f"slides/{last}.tiff").unlink()
    make_cohort(TINY, tmp_path)  # the last slide first: its stream does not depend on the others
    assert (tmp_path / f"slides/{last}.tiff").read_bytes() == (
        cohort / f"slides/{last}.tiff"
    ).read_bytes()


def test_a_killed_run_is_resumed(cohort, labels):
    victim = cohort / f"slides/{labels.index[1]}.tiff"
    whole = victim.read_bytes()
    others = {path: path.stat().st_mtime_ns for path in victim.parent.iterdir() if path != victim}
    partial = victim.with_name(f".{victim.stem}.partial-1{victim.suffix}")
    partial.write_bytes(whole[:1000])
    victim.unlink()
    make_cohort(TINY, cohort)
    assert victim.read_bytes() == whole
    assert not partial.exists()
    assert {path: path.stat().st_mtime_ns for path in others} == others


def test_slides_of_other_settings_are_refused(cohort, tmp_path):
    with pytest.raises(ConfigError, match=r"cohort\.json.*'seed': 0.*'seed': 7.*another folder"):
        make_cohort(TINY.model_copy(update={"seed": 7}), cohort)
    (tmp_path / "slides").mkdir()
    (tmp_path / "slides" / "a.tiff").write_bytes(b"")
    with pytest.raises(ConfigError, match="never overwrite others"):
        make_cohort(TINY, tmp_path)


def test_seeds_give_other_cohorts():
    first, second = (plan_cohort(SyntheticConfig(seed=seed)) for seed in (0, 1))
    assert [patient.time for patient in first] != [patient.time for patient in second]


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_default_cohort_has_both_classes_in_every_corner(seed):
    patients = plan_cohort(SyntheticConfig(seed=seed))
    slides = [slide for patient in patients for slide in patient.slides]
    assert [slide.index for slide in slides] == list(range(len(slides)))
    assert sum(patient.burden > 0 for patient in patients) == len(patients) // 2
    for patient in patients:
        assert 1 <= len(patient.slides) <= 3
        assert any(slide.fraction > 0 for slide in patient.slides) == (patient.burden > 0)
    for has in ("pen", "defocus"):
        assert {slide.fraction > 0 for slide in slides if getattr(slide, has)} == {True, False}
    for mpp in (COARSE_MPP, FINE_MPP):
        assert {slide.fraction > 0 for slide in slides if slide.mpp == mpp} == {True, False}
    fractions = [slide.fraction for slide in slides if slide.fraction > 0]
    assert 0.02 <= min(fractions) < 0.05
    assert 0.2 < max(fractions) <= 0.4
    assert any(
        patient.burden > 0 and any(slide.fraction == 0 for slide in patient.slides)
        for patient in patients
    )
    censored = 1 - np.mean([patient.event for patient in patients])
    assert 0.2 <= censored <= 0.5
    risk = concordance_index(
        [patient.time for patient in patients],
        [-patient.burden for patient in patients],
        [patient.event for patient in patients],
    )
    assert 0.6 < risk < 0.95  # tied to the burden, and noisy


def test_log_hazard_is_linear_in_the_burden():
    rng = np.random.default_rng(0)
    burden = np.where(rng.random(3000) < 0.5, rng.random(3000), 0.0)
    time, event = draw_survival(rng, burden)
    table = pd.DataFrame({"burden": burden, "square": burden**2, "time": time, "event": event})
    linear = CoxPHFitter().fit(table.drop(columns="square"), "time", "event")
    assert linear.params_["burden"] == pytest.approx(4.5, abs=0.35)
    both = CoxPHFitter().fit(table, "time", "event")
    assert abs(both.summary.z["square"]) < 3
    assert 0.28 < 1 - event.mean() < 0.42


@pytest.mark.parametrize("fraction", [0.02, 0.1, 0.4])
@pytest.mark.parametrize("seed", [0, 1])
def test_tumour_covers_the_wanted_share_of_tissue(fraction, seed):
    rng = np.random.default_rng(seed)
    grid = MacroGrid(1536, 1152)
    tissue_um = normal.tissue_depth(rng, grid)
    tumour = grow_tumour(rng, grid, tissue_um, fraction=fraction)
    found_um2 = unary_union([Polygon(polygon) for polygon in tumour.polygons_um]).area
    assert found_um2 == pytest.approx(fraction * (tissue_um > 0).sum() * MACRO_UM**2, rel=0.15)


def test_one_tissue_scanned_twice_looks_the_same():
    grid = MacroGrid(512, 384)
    rng = np.random.default_rng(5)
    tissue_um = normal.tissue_depth(rng, grid)
    anatomy = normal.grow_stroma(rng, grid, tissue_um)
    invade(rng, anatomy, grow_tumour(rng, grid, tissue_um, fraction=0.3))
    normal.grow_normal(rng, anatomy)
    scans = [
        Image.fromarray(paint(np.random.default_rng(6), anatomy, mpp=mpp))
        for mpp in (COARSE_MPP, FINE_MPP)
    ]
    assert [scan.size for scan in scans] == [(1024, 768), (1280, 960)]
    small = [
        np.asarray(scan.resize((128, 96), Image.Resampling.BOX), dtype=float) for scan in scans
    ]
    assert np.corrcoef(small[0].ravel(), small[1].ravel())[0, 1] > 0.97
    np.testing.assert_allclose(small[0].mean((0, 1)), small[1].mean((0, 1)), atol=2)
