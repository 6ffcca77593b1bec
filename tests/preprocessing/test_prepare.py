from pathlib import Path

import numpy as np
import pytest
import tifffile
from PIL import Image
from tiff_files import damage_tile, noise, write_tiff

from preprocessing.config import (
    GridConfig,
    PreprocessingConfig,
    ReadingConfig,
    RegionsConfig,
    TissueConfig,
)
from preprocessing.errors import NoTissue, SlideError
from preprocessing.extraction.prepare import prepare_slide, tile_geometry
from preprocessing.manifest import SlideRow
from preprocessing.outlines import write_outlines
from preprocessing.slides.slide import Slide, open_slide
from preprocessing.stores.store import SlideFeatures
from preprocessing.tissue.masks import read_mask
from preprocessing.tissue.regions import tissue_digest

SIDE_PX, TILE_PX = 2048, 64
TISSUE_PX0 = (1536, 256, 256, 192)  # x, y, width, height
GRID = GridConfig(mpp=2.0, tile_px=TILE_PX)
CONFIG = PreprocessingConfig(manifest=Path("slides.csv"), grid=GRID)


def slide_file(path, *, factors=(1, 2, 4)):
    """Glass at 2 um/px with one block of tissue; the 4x level is four TIFF tiles."""
    image = np.full((SIDE_PX, SIDE_PX, 3), (244, 242, 245), dtype=np.uint8)
    x, y, width, height = TISSUE_PX0
    image[y : y + height, x : x + width] = (226, 150, 190)
    return write_tiff(path, image, mpp=(2, 2), factors=factors, compression="jpeg")


def damage(path, *, level, parts=None):
    """Overwrite the stored bytes of some or all TIFF tiles of a level with zeros."""
    with tifffile.TiffFile(path) as file:
        page = file.pages[level]
        chosen = range(len(page.dataoffsets)) if parts is None else parts
        places = [(page.dataoffsets[n], page.databytecounts[n]) for n in chosen]
    with path.open("r+b") as stream:
        for offset, length in places:
            stream.seek(offset)
            stream.write(bytes(length))


def row_of(path) -> SlideRow:
    return SlideRow("s", "p", path, None)


def prepare(path, **settings) -> SlideFeatures:
    config = CONFIG.model_copy(update=settings)
    with open_slide(row_of(path), reading=config.reading) as slide:
        return prepare_slide(row_of(path), slide, tile_geometry(slide, config.grid), config)


@pytest.fixture(scope="module")
def intact(tmp_path_factory):
    path = slide_file(tmp_path_factory.mktemp("slide") / "s.tif")
    return path.read_bytes(), prepare(path)


def test_tiles_cover_the_tissue(intact):
    _, made = intact
    x, y, width, height = TISSUE_PX0
    rows, cols = range(y, y + height, TILE_PX), range(x, x + width, TILE_PX)
    assert made.coords_px0.tolist() == [[col, row] for row in rows for col in cols]
    assert made.tissue_fraction.min() > 0.8
    assert made.thumbnail.shape == (1024, 1024, 3)


def test_the_provenance_says_what_read_the_slide(tmp_path):
    path = slide_file(tmp_path / "s.tif")
    found = prepare(path).provenance
    assert found.reader.startswith("direct (simplejpeg ")
    assert (found.decoded_scale, found.objective_power, found.tissue_digest) == (1, None, "")
    assert found.properties["openslide.level-count"] == "3"
    assert found.properties["tiff.ResolutionUnit"] == "centimeter"
    coarse = GridConfig(mpp=4.0, tile_px=32)
    assert (
        prepare(slide_file(tmp_path / "t.tif", factors=(1,)), grid=coarse).provenance.decoded_scale
        == 2
    )
    reading = ReadingConfig(direct=False)
    by_openslide = prepare(path, reading=reading, grid=coarse).provenance
    assert by_openslide.reader.startswith("openslide: ")
    assert (by_openslide.decoded_scale, by_openslide.reading) == (1, reading)


def corners(made: SlideFeatures) -> set[tuple[int, int]]:
    return {(x, y) for x, y in made.coords_px0.tolist()}


def lattice(x, y, width, height) -> set[tuple[int, int]]:
    """Corners of the tiles that a box of whole tiles holds."""
    return {(c, r) for c in range(x, x + width, TILE_PX) for r in range(y, y + height, TILE_PX)}


def test_a_mask_takes_the_place_of_the_tissue_found(intact, tmp_path):
    path = tmp_path / "s.tif"
    path.write_bytes(intact[0])
    tissue = TissueConfig(masks=tmp_path)
    with pytest.raises(SlideError, match=r"slide 's': no mask at .*s\.png"):
        prepare(path, tissue=tissue)
    white = np.zeros((256, 256), dtype=np.uint8)
    white[16:32, 8:24] = 255  # 8 px each
    Image.fromarray(white).save(tmp_path / "s.png")
    made = prepare(path, tissue=tissue)
    assert corners(made) == lattice(64, 128, 128, 128)
    np.testing.assert_array_equal(made.tissue_fraction, 1)
    assert made.provenance.tissue_digest == tissue_digest(row_of(path), tissue) != ""
    assert made.provenance.mask_px0_per_px_x == 8


def test_regions_limit_the_tissue_or_take_its_place(intact, tmp_path):
    path = tmp_path / "s.tif"
    path.write_bytes(intact[0])
    box = np.array([[1408, 320], [1664, 320], [1664, 448], [1408, 448]], dtype=float)
    write_outlines([[box]], tmp_path / "s.geojson", name="Tumour")
    regions = RegionsConfig(folder=tmp_path, frame="level0", include=("Tumour",))
    limited = prepare(path, tissue=TissueConfig(regions=regions))
    assert corners(limited) == lattice(1536, 320, 128, 128)
    replaced = regions.model_copy(update={"replace_tissue": True})
    made = prepare(path, tissue=TissueConfig(regions=replaced))
    assert corners(made) == lattice(1408, 320, 256, 128)
    nowhere = regions.model_copy(update={"frame": "level0", "exclude": ("Tumour",), "include": ()})
    with pytest.raises(NoTissue, match="classes there: 'Tumour'"):
        prepare(path, tissue=TissueConfig(regions=nowhere))
    write_outlines([[box - [1400, 0]]], tmp_path / "s.geojson", name="Tumour")
    with pytest.raises(NoTissue, match=r"tissue covers 0\.00% .* by .*s\.geojson"):
        prepare(path, tissue=TissueConfig(regions=regions))


@pytest.mark.parametrize("parts", [[0], [1], None])
def test_a_damaged_overview_level_puts_no_glass_into_the_bag(intact, tmp_path, parts):
    content, expected = intact
    path = tmp_path / "s.tif"
    path.write_bytes(content)
    damage(path, level=2, parts=parts)
    made = prepare(path)
    np.testing.assert_array_equal(made.coords_px0, expected.coords_px0)
    np.testing.assert_allclose(made.tissue_fraction, expected.tissue_fraction, atol=0.05)
    assert np.abs(made.thumbnail.astype(int) - expected.thumbnail).max() <= 8


def test_what_level_0_has_lost_too_is_tried_as_tissue(tmp_path):
    """Its tiles are then recorded as unreadable instead of being taken for glass."""
    path = slide_file(tmp_path / "s.tif", factors=(1,))
    whole = {tuple(c) for c in prepare(path).coords_px0.tolist()}
    damage_tile(path, col=3, row=5)  # 256 px of glass
    lost = {(x, y) for x in range(768, 1024, TILE_PX) for y in range(1280, 1536, TILE_PX)}
    made = prepare(path)
    assert {tuple(c) for c in made.coords_px0.tolist()} == whole | lost


def test_a_slide_without_one_tile_says_how_much_tissue_it_has(tmp_path):
    blank = np.full((512, 512, 3), 244, dtype=np.uint8)
    with pytest.raises(NoTissue, match=r"slide 's'.*tissue covers 0\.00% of 512 x 512 px"):
        prepare(write_tiff(tmp_path / "s.tif", blank, mpp=(2, 2)))


@pytest.mark.parametrize("lost_levels", [(2,), (1, 2)])
def test_a_lost_overview_level_is_made_from_the_next_that_stands(tmp_path, lost_levels):
    path = write_tiff(tmp_path / "s.tif", noise(2048, 1536), mpp=(1, 1), factors=(1, 4, 8))
    with open_slide(row_of(path)) as slide:
        intact = slide.overviews(mpp=8.0, longest_px=128)
    for level in lost_levels:
        damage(path, level=level)
    with open_slide(row_of(path)) as slide:
        made = slide.overviews(mpp=8.0, longest_px=128)
    for found, expected in zip(made, intact, strict=True):
        assert found.rgb.shape == expected.rgb.shape
        assert not found.unreadable.any()
        assert np.abs(found.rgb.astype(int) - expected.rgb).max() <= 2  # rounded more often


@pytest.mark.parametrize(("width", "height"), [(2045, 1531), (2051, 517)])
def test_levels_of_rounded_sizes_stand_in_for_each_other(tmp_path, width, height):
    """A level is up to half a pixel askew; the wave moves 24 grey values per pixel of it."""
    y, x = np.mgrid[:height, :width] * (2 * np.pi / 200)
    wave = (128 + 100 * np.stack([np.sin(x), np.sin(y), np.sin(x + y)], axis=2)).astype(np.uint8)
    path = write_tiff(tmp_path / "s.tif", wave, mpp=(1, 1), factors=(1, 4, 8))
    with open_slide(row_of(path)) as slide:
        intact, _ = slide.overviews(mpp=8.1, longest_px=256)
        assert intact.px0_per_px_x > 8
    damage(path, level=2)
    damage(path, level=1)
    with open_slide(row_of(path)) as slide:
        view, _ = slide.overviews(mpp=8.1, longest_px=256)
    assert not view.unreadable.any()
    assert np.abs(view.rgb.astype(int) - intact.rgb).max() <= 24


def test_only_what_no_level_has_is_unreadable(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(2048, 2048), mpp=(1, 1), factors=(1, 4, 8))
    damage(path, level=2)
    damage_tile(path, col=4, row=6)
    with open_slide(row_of(path)) as slide:
        assert not slide.overviews(mpp=8.0, longest_px=256)[0].unreadable.any()
    damage(path, level=1)
    with open_slide(row_of(path)) as slide:
        view, _ = slide.overviews(mpp=8.0, longest_px=256)
    tile = 256 // 8
    expected = np.zeros((8 * tile, 8 * tile), dtype=bool)
    expected[6 * tile : 7 * tile, 4 * tile : 5 * tile] = True
    np.testing.assert_array_equal(view.unreadable, expected)
    assert (view.rgb[expected] == 255).all()


class CountingSlide(Slide):
    """Counts the pixels read from each level."""

    def __init__(self, row: SlideRow) -> None:
        super().__init__(row)
        self.pixels_read = [0] * len(self.pyramid.levels)

    def read_region(self, level, x_px0, y_px0, size_px):
        self.pixels_read[level] += size_px.width * size_px.height
        return super().read_region(level, x_px0, y_px0, size_px)


@pytest.mark.parametrize(("mpp", "longest_px"), [(2.0, 100), (2.0, 333), (20.0, 512)])
def test_a_level_that_serves_both_overviews_is_read_once(tmp_path, mpp, longest_px):
    image = noise(2500, 1100)
    with CountingSlide(row_of(write_tiff(tmp_path / "s.tif", image))) as slide:
        view, shown = slide.overviews(mpp=mpp, longest_px=longest_px)
        assert slide.pixels_read == [2500 * 1100]
    assert view.mpp <= mpp
    assert longest_px / 2 <= max(shown.rgb.shape) <= longest_px
    for picture in (view, shown):
        height, width = picture.unreadable.shape
        assert 2500 <= width * picture.px0_per_px_x < 2500 + view.px0_per_px_x
        assert 1100 <= height * picture.px0_per_px_y < 1100 + view.px0_per_px_y


def test_a_mask_that_changes_while_it_is_used_is_used_again_by_the_next_run(tmp_path, monkeypatch):
    path, config = slide_file(tmp_path / "s.tif"), TissueConfig(masks=tmp_path)
    mask, changed = tmp_path / "s.png", tmp_path / "changed.png"
    white = Image.new("L", (SIDE_PX // 8, SIDE_PX // 8), 255)
    white.save(mask)
    white.rotate(45).save(changed)

    def used(*args, **kwargs):
        tissue = read_mask(*args, **kwargs)
        changed.replace(mask)
        return tissue

    monkeypatch.setattr("preprocessing.extraction.prepare.read_mask", used)
    made = prepare(path, tissue=config)
    assert made.tissue_mask.all()
    assert made.provenance.tissue_digest != tissue_digest(row_of(path), config)
