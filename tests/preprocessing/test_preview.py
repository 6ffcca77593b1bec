import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from tiff_files import write_tiff

from preprocessing.config import GridConfig, PreprocessingConfig, QualityConfig, TissueConfig
from preprocessing.extraction.prepare import prepare_slide, tile_geometry
from preprocessing.extraction.preview import draw_preview, renew_previews, write_preview
from preprocessing.manifest import SlideRow
from preprocessing.slides.slide import open_slide
from preprocessing.stores.provenance import EncoderRecord
from preprocessing.stores.store import Provenance, SlideFeatures, store_path, write_store

SCALE = 0.2  # of a slide of 6000 x 4000 px, on 1200 px
TILE_PX0, TILES = 500, [(500, 500), (1000, 500), (1500, 500), (3000, 2500)]
PINK, GLASS = (230, 150, 190), (244, 242, 245)
GREEN, GREY, RED, ORANGE = (0, 130, 60), (70, 80, 110), (200, 0, 30), (230, 120, 0)
LIMITS = QualityConfig(min_sharpness=0.5, max_ink=0.2)


def contents(**provenance) -> SlideFeatures:
    """Tissue at x 450..2100, y 400..1100 px0, and a tile apart; the third tile is blurred, the
    second inked, the last unreadable.
    """
    values = {
        "slide_id": "s1",
        "patient_id": "p",
        "slide_fingerprint": "ab",
        "vendor": "aperio",
        "level0_width": 6000,
        "level0_height": 4000,
        "bounds_px0": None,
        "mpp_x": 0.25,
        "mpp_y": 0.25,
        "mpp_source": "openslide.mpp-x",
        "objective_power": 40.0,
        "tile_px": 250,
        **dict.fromkeys(("tile_px0_x", "tile_px0_y"), float(TILE_PX0)),
        **dict.fromkeys(("stride_px0_x", "stride_px0_y"), float(TILE_PX0)),
        **dict.fromkeys(("requested_mpp", "effective_mpp_x", "effective_mpp_y"), 0.5),
        "read_level": 0,
        "tissue": {},
        "grid": {"mpp": 0.5},
        **dict.fromkeys(("thumbnail_px0_per_px_x", "thumbnail_px0_per_px_y"), 10.0),
        **dict.fromkeys(("mask_px0_per_px_x", "mask_px0_per_px_y"), 50.0),
        "versions": {},
        "created": "",
        "encoders": {},
    }
    mask = np.zeros((80, 120), dtype=bool)
    mask[8:22, 9:42] = True
    thumbnail = np.full((400, 600, 3), GLASS, dtype=np.uint8)
    thumbnail[40:110, 45:210] = PINK
    quality = np.array([[0.9, 0, 0], [0.9, 0.3, 0], [0.3, 0, 0], [np.nan] * 3], dtype=np.float32)
    return SlideFeatures(
        provenance=Provenance.model_validate(values | provenance),
        coords_px0=np.array(TILES, dtype=np.int32),
        tissue_fraction=np.ones(4, dtype=np.float32),
        read_error=np.array([False, False, False, True]),
        quality=quality,
        features={},
        thumbnail=thumbnail,
        tissue_mask=mask,
    )


def with_features(slide: SlideFeatures) -> SlideFeatures:
    record = EncoderRecord(dim=1, weight_digest="", transform="", precision="", licence="")
    features = np.where(slide.read_error, np.nan, 1).astype(np.float16)[:, None]
    provenance = slide.provenance.model_copy(update={"encoders": {"fake": record}})
    return replace(slide, provenance=provenance, features={"fake": features})


def picture_of(page: Image.Image) -> np.ndarray:
    """The slide within the page: what its thin frame encloses."""
    rgb = np.asarray(page)
    frame = (rgb == 190).all(axis=2)
    rows, cols = np.flatnonzero(frame.sum(axis=1) > 250), np.flatnonzero(frame.sum(axis=0) > 200)
    return rgb[rows[0] + 1 : rows[-1], cols[0] + 1 : cols[-1]]


def where(rgb, colour):
    return (rgb == colour).all(axis=2)


def test_a_png_is_written_whole_into_the_folder_of_previews(tmp_path):
    path = write_preview(tmp_path, contents(), LIMITS)
    assert path == tmp_path / "previews" / "s1.png"
    assert list(path.parent.iterdir()) == [path]
    with Image.open(path) as image:
        assert image.mode == "RGB"
        assert 1000 <= max(image.size) <= 1500
        expected = np.asarray(draw_preview(contents(), LIMITS))
        np.testing.assert_array_equal(np.asarray(image), expected)
    assert write_preview(tmp_path, contents(vendor="other"), LIMITS) == path


def test_every_mark_is_at_its_place():
    rgb = picture_of(draw_preview(contents(), LIMITS))
    assert rgb.shape == (800, 1200, 3)
    side = round(TILE_PX0 * SCALE)
    left, top = (round(c * SCALE) for c in TILES[0])
    assert where(rgb, GREY)[top, left + 5 : left + side].all()
    assert where(rgb, GREY)[top + 5 : top + side, left].all()
    centres = [(round(y * SCALE) + side // 2, round(x * SCALE) + side // 2) for x, y in TILES]
    colours = [PINK, ORANGE, ORANGE, RED]
    assert [tuple(rgb[at].tolist()) for at in centres] == colours
    # one diagonal where a limit is broken, two where nothing could be read
    quarter = side // 4
    rising = [tuple(rgb[row + quarter, col - quarter].tolist()) for row, col in centres]
    falling = [tuple(rgb[row + quarter, col + quarter].tolist()) for row, col in centres]
    assert rising == colours
    assert falling == [PINK, PINK, PINK, RED]


def test_tissue_is_outlined_where_the_mask_ends():
    rgb = picture_of(draw_preview(contents(), LIMITS))
    rows, cols = np.nonzero(where(rgb, GREEN))
    edges = {"left": 450, "right": 2100, "top": 400, "bottom": 1100}
    ends = {"left": cols.min(), "right": cols.max(), "top": rows.min(), "bottom": rows.max()}
    for edge, px0 in edges.items():
        assert abs(ends[edge] - px0 * SCALE) <= 2, edge
    inside = np.zeros(rgb.shape[:2], dtype=bool)
    inside[84:216, 94:416] = True
    assert not where(rgb, GREEN)[inside].any()


def test_only_what_a_tile_covers_has_its_full_colour():
    rgb = picture_of(draw_preview(contents(), LIMITS))
    faded = np.array(GLASS) + 0.55 * (255 - np.array(GLASS))
    np.testing.assert_allclose(rgb[600, 200], faded, atol=1)
    pale = np.array(PINK) + 0.55 * (255 - np.array(PINK))
    np.testing.assert_allclose(rgb[90, 300], pale, atol=1)
    np.testing.assert_array_equal(rgb[120, 120], PINK)


def test_tiles_too_small_for_lines_are_tinted():
    small = {"level0_width": 240_000, "level0_height": 160_000}
    scales = {f"thumbnail_px0_per_px_{axis}": 400.0 for axis in "xy"}
    scales |= {f"mask_px0_per_px_{axis}": 2000.0 for axis in "xy"}
    made = contents(**small, **scales)
    coords = np.array(
        [(x, y) for y in range(24_000, 40_000, 500) for x in range(20_000, 80_000, 500)]
    )
    blurred = np.where(coords[:, 0] < 50_000, 0.9, 0.1)
    quality = np.stack([blurred, 0 * blurred, 0 * blurred], axis=1).astype(np.float32)
    many = replace(
        made,
        coords_px0=coords.astype(np.int32),
        quality=quality,
        read_error=np.zeros(len(coords), dtype=bool),
    )
    rgb = picture_of(draw_preview(many, LIMITS))
    np.testing.assert_array_equal(rgb[160, 150], PINK)
    tinted = np.array(PINK) / 2 + np.array(ORANGE) / 2
    np.testing.assert_allclose(rgb[160, 300], tinted, atol=1.5)
    assert not where(rgb, GREY).any()


@pytest.mark.parametrize(("mpp", "bar_mm"), [(0.25, 0.2), (0.5, 0.5), (2.2, 2.0)])
def test_the_scale_bar_is_as_long_as_it_says(mpp, bar_mm):
    """A quarter of 6000 px or less: 1, 2 or 5 times a power of ten."""
    page = np.asarray(draw_preview(contents(mpp_x=mpp, mpp_y=mpp), LIMITS))
    dark = where(page, (25, 25, 30))[:, 20:]
    bar = max(int(np.flatnonzero(~row)[0]) for row in dark[900:] if row[0])
    assert bar - 1 == pytest.approx(bar_mm * 1000 / mpp * SCALE, abs=1)


def test_unknown_quality_breaks_no_limit_and_portraits_fit():
    made = contents(level0_width=1000, level0_height=4000)
    unknown = replace(made, quality=np.full((4, 3), np.nan, dtype=np.float32))
    page = draw_preview(unknown, LIMITS)
    assert picture_of(page).shape == (1200, 300, 3)
    assert not where(picture_of(page), ORANGE).any()
    assert page.width >= 900


def test_what_stands_at_a_place_of_the_slide_stands_there_in_the_picture(tmp_path):
    """Through openslide, levels and means: a slide of odd size, one dark square, few tiles."""
    image = np.full((1531, 2043, 3), GLASS, dtype=np.uint8)
    image[203:1203, 307:1607] = PINK
    image[903:963, 1207:1267] = (60, 20, 90)
    path = write_tiff(tmp_path / "s.tif", image, mpp=(1, 1), factors=(1, 4))
    row = SlideRow("s", "p", path, None)
    config = PreprocessingConfig(
        manifest=Path("slides.csv"),
        grid=GridConfig(mpp=1.0, tile_px=100),
        tissue=TissueConfig(mask_mpp=8.0),
    )
    with open_slide(row) as slide:
        made = prepare_slide(row, slide, tile_geometry(slide, config.grid), config)
    rgb = picture_of(draw_preview(made, QualityConfig()))
    scale = 1200 / 2043
    rows, cols = np.nonzero((rgb.max(axis=2) < 120) & ~where(rgb, GREY))
    for found, px0 in ((cols, (1207, 1267)), (rows, (903, 963))):
        assert found.min() == pytest.approx(px0[0] * scale, abs=2)
        assert found.max() + 1 == pytest.approx(px0[1] * scale, abs=2)
    rows, cols = np.nonzero(where(rgb, GREEN))
    for found, px0 in ((cols, (307, 1607)), (rows, (203, 1203))):
        assert found.min() == pytest.approx(px0[0] * scale, abs=8 * scale + 2)
        assert found.max() + 1 == pytest.approx(px0[1] * scale, abs=8 * scale + 2)
    for x, y in made.coords_px0[::7]:
        at = round(y * scale) + 3, round(x * scale)
        assert where(rgb, GREY)[at] or where(rgb, GREEN)[at]


def test_previews_follow_the_limits(tmp_path, caplog):
    """Only those that show others; neither one that is absent nor one of a damaged store."""
    for slide_id in ("s1", "s2", "none", "lost"):
        made = with_features(contents(slide_id=slide_id))
        write_store(tmp_path, made)
        write_preview(tmp_path, made, LIMITS if slide_id == "s2" else QualityConfig())
    (tmp_path / "previews" / "none.png").unlink()
    shutil.rmtree(store_path(tmp_path, "lost"))
    before = (tmp_path / "previews" / "s2.png").stat().st_mtime_ns
    slides = ["s1", "s2", "none", "lost"]
    assert renew_previews(tmp_path, slides, LIMITS) == 1
    with Image.open(tmp_path / "previews" / "s1.png") as page:
        wanted = draw_preview(contents(slide_id="s1"), LIMITS)
        np.testing.assert_array_equal(np.asarray(page), np.asarray(wanted))
    assert (tmp_path / "previews" / "s2.png").stat().st_mtime_ns == before
    assert not (tmp_path / "previews" / "none.png").exists()
    assert "lost.zarr: no such feature store" in caplog.text
    assert renew_previews(tmp_path, slides[:3], LIMITS) == 0
    page = tmp_path / "previews" / "s1.png"
    for damaged in (b"cut", page.read_bytes()[:50]):
        page.write_bytes(damaged)
        assert renew_previews(tmp_path, ["s1"], LIMITS) == 1
