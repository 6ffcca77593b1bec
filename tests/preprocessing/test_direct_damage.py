"""Missing, damaged and odd tiles: openslide's answer or error decides, never a guess."""

import os
from pathlib import Path

import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from tiff_files import RGB, YCBCR, damage_tile, replace_tile, stored_tile, texture

from preprocessing.bench.reader_slides import Storage, split_tables, write_svs
from preprocessing.errors import UnreadableSlide
from preprocessing.geometry import Size
from preprocessing.manifest import SlideRow
from preprocessing.slides.slide import Slide
from preprocessing.slides.tiff_file import StoredFile

STORAGES = [pytest.param(YCBCR, id="ycbcr"), pytest.param(RGB, id="rgb")]
SIDE = 384  # whole tiles of 64 and of 48 pixels
COL, ROW = 2, 1  # of the tile that something happens to
SMALL = Size(20, 20)


def make_svs(folder: Path, storage: Storage, *, factors=(1,)) -> Path:
    path = folder / "s.svs"
    write_svs(path, texture(SIDE, SIDE), mpp=0.5, storage=storage, factors=factors)
    return path


def opened(path: Path) -> Slide:
    return Slide(SlideRow("s", "patient", path))


def shown_by_openslide(path: Path, level: int, corner, size: Size):
    with openslide.OpenSlide(path) as slide:
        image = slide.read_region(corner, level, (size.width, size.height))
        return np.asarray(image.convert("RGB"))


def jpeg(side: int, *, quality: int, subsampling: str) -> bytes:
    return simplejpeg.encode_jpeg(
        texture(side, side, seed=7), quality=quality, colorsubsampling=subsampling
    )


def assert_as_openslide(slide: Slide, corner, size: Size = SMALL):
    """The same pixels, or an error where openslide has one."""
    try:
        shown = shown_by_openslide(slide.path, 0, corner, size)
    except openslide.OpenSlideError:
        with pytest.raises(UnreadableSlide, match=rf"at \({corner[0]}, {corner[1]}\) cannot be"):
            slide.read_region(0, *corner, size)
    else:
        np.testing.assert_array_equal(slide.read_region(0, *corner, size), shown)


@pytest.mark.parametrize("storage", STORAGES)
def test_a_tile_of_zeros_is_unreadable_and_its_neighbours_are_not(tmp_path, storage):
    side, path = storage.tile_px, make_svs(tmp_path, storage)
    shown = shown_by_openslide(path, 0, (0, 0), Size(SIDE, SIDE))
    damage_tile(path, col=COL, row=ROW)
    with opened(path) as slide:
        assert slide.reader.startswith("direct")
        for dx, dy in ((0, 0), (side - 1, 0), (-19, -19), (side - 20, side - 1)):
            x, y = COL * side + dx, ROW * side + dy
            assert slide.read_direct(0, x, y, SMALL) is None
            with pytest.raises(UnreadableSlide, match=rf"level 0, 20 x 20 px at \({x}, {y}\)"):
                slide.read_region(0, x, y, SMALL)
        for dx, dy in ((-20, 0), (side, 0), (0, -20), (0, side)):
            x, y = COL * side + dx, ROW * side + dy
            np.testing.assert_array_equal(
                slide.read_direct(0, x, y, SMALL), shown[y : y + 20, x : x + 20]
            )


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("kept", [0.02, 0.1, 0.5, 0.95])
def test_what_openslide_makes_of_a_broken_stream_stands(tmp_path, storage, kept):
    path = make_svs(tmp_path, storage)
    damage_tile(path, col=COL, row=ROW, kept=kept)
    x, y = COL * storage.tile_px, ROW * storage.tile_px
    with opened(path) as slide:
        for _ in range(2):
            assert_as_openslide(slide, (x - 5, y + 7))
            assert_as_openslide(slide, (x + 3, y), Size(storage.tile_px - 3, storage.tile_px))


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("scale", [1, 2, 4, 8])
def test_a_stream_broken_in_its_middle_is_never_decoded(tmp_path, storage, scale):
    path = make_svs(tmp_path, storage)
    damage_tile(path, col=COL, row=ROW, kept=0.5)
    at = storage.tile_px // scale
    with opened(path) as slide:
        assert slide.read_direct(0, COL * at, ROW * at, Size(2, 2), scale=scale) is None
        assert slide.read_direct(0, COL * at - 2, ROW * at, Size(2, 2), scale=scale) is not None


def test_a_file_that_ends_early(tmp_path):
    """A copy that broke off: what was copied is read."""
    path = make_svs(tmp_path, YCBCR, factors=(1, 4))
    moved = jpeg(YCBCR.tile_px, quality=90, subsampling="420")
    replace_tile(path, moved, col=COL, row=ROW)
    with tifffile.TiffFile(path) as file:
        last = file.pages[0].dataoffsets[ROW * 6 + COL] + len(moved)
    os.truncate(path, last - len(moved) // 2)
    x, y = COL * YCBCR.tile_px, ROW * YCBCR.tile_px
    with opened(path) as slide:
        assert slide.reader.startswith("direct")
        assert slide.read_direct(0, x - 20, y, SMALL) is not None
        assert slide.read_direct(0, x, y, SMALL) is None
        with pytest.raises(UnreadableSlide, match="cannot be read"):
            slide.read_region(0, x, y, SMALL)


@pytest.mark.parametrize("tag", ["TileOffsets", "TileByteCounts"])
def test_numbers_that_lead_out_of_the_file(tmp_path, tag):
    path = make_svs(tmp_path, YCBCR, factors=(1, 4))
    with stored_tile(path, col=COL, row=ROW) as (page, number):
        values = list(page.tags[tag].value)
        values[number] = 2**32 - 1
        page.tags[tag].overwrite(values, dtype="I")
    with opened(path) as slide:
        assert slide.reader.startswith("direct")
        corner = (COL * YCBCR.tile_px, ROW * YCBCR.tile_px)
        assert slide.read_direct(0, *corner, SMALL) is None
        assert_as_openslide(slide, corner)


def test_a_missing_tile_shows_what_openslide_shows(tmp_path):
    """Aperio's lack some: openslide leaves them transparent, and glass is white."""
    path = make_svs(tmp_path, YCBCR)
    replace_tile(path, b"", col=COL, row=ROW)
    x, y = COL * YCBCR.tile_px, ROW * YCBCR.tile_px
    with opened(path) as slide:
        assert slide.reader.startswith("direct")
        assert slide.read_direct(0, x, y, SMALL) is None
        region = slide.read_region(0, x - 10, y - 10, SMALL)
        assert (region[10:, 10:] == 255).all()
        whole = shown_by_openslide(path, 0, (x - 10, y - 10), SMALL)
        np.testing.assert_array_equal(region[:10], whole[:10])


def test_coarser_levels_of_a_missing_tile_are_left_to_openslide(tmp_path):
    """It draws their part of it anew from the finer level, although they hold pixels."""
    path = make_svs(tmp_path, YCBCR, factors=(1, 2))
    replace_tile(path, b"", col=COL, row=ROW)
    with opened(path) as slide:
        assert slide.reader.endswith(
            "level 1: openslide: a finer level lacks tiles, or is not understood"
        )
        region = slide.read_region(1, COL * 64, ROW * 64, SMALL)
    assert (region[:8, :8] == 255).all()


@pytest.mark.parametrize(("side", "subsampling"), [(128, "444"), (128, "422"), (256, "420")])
def test_a_tile_coded_otherwise_than_those_compared_is_left_to_openslide(
    tmp_path, side, subsampling
):
    """4:4:4 among 4:2:0 would be read alike, but nobody has shown it; a larger one is an error."""
    path = make_svs(tmp_path, Storage(tile_px=128, quality=85, rgb=False))
    # In so few bytes that it is not the tile with the most detail, which is compared.
    replace_tile(path, jpeg(side, quality=5, subsampling=subsampling), col=1, row=1)
    with opened(path) as slide:
        assert slide.reader.startswith("direct")
        assert slide.read_direct(0, 133, 133, SMALL) is None
        assert_as_openslide(slide, (133, 133))


def test_a_tile_with_tables_of_its_own_is_read_with_them(tmp_path):
    path = make_svs(tmp_path, YCBCR)
    own = jpeg(YCBCR.tile_px, quality=40, subsampling="420")
    tables, rest = split_tables(own)
    replace_tile(path, tables[:-2] + rest[2:], col=COL, row=ROW)
    x, y = COL * YCBCR.tile_px, ROW * YCBCR.tile_px
    with opened(path) as slide:
        region = slide.read_direct(0, x, y, SMALL)
    np.testing.assert_array_equal(region, shown_by_openslide(path, 0, (x, y), SMALL))


def test_a_tile_that_names_another_colour_space_is_left_to_openslide(tmp_path):
    """libjpeg believes a JFIF marker, openslide the tag: these components are red, green, blue."""
    path = make_svs(tmp_path, RGB)
    planes = [np.ascontiguousarray(texture(48, 48)[..., n]) for n in range(3)]
    with_jfif = simplejpeg.encode_jpeg_yuv_planes(*planes, quality=90)
    assert with_jfif[6:10] == b"JFIF"
    replace_tile(path, with_jfif, col=COL, row=ROW)
    x, y = COL * RGB.tile_px, ROW * RGB.tile_px
    with opened(path) as slide:
        assert slide.reader.startswith("direct")
        assert slide.read_direct(0, x, y, SMALL) is None
        region = slide.read_region(0, x, y, SMALL)
    assert np.abs(region.astype(int) - texture(48, 48)[:20, :20]).mean() < 5


def test_a_slide_of_which_nothing_can_be_read(tmp_path):
    path = make_svs(tmp_path, YCBCR)
    for number in range(36):
        damage_tile(path, col=number % 6, row=number // 6)
    with opened(path) as slide:
        assert slide.reader == "openslide: no part of it could be compared with openslide"
        with pytest.raises(UnreadableSlide, match="no region of level 0 can be read"):
            slide.overviews(mpp=8.0, longest_px=64)


def test_a_file_whose_directories_are_damaged(tmp_path, monkeypatch):
    def refused(path):
        raise tifffile.TiffFileError("no end of directories")

    monkeypatch.setattr("tifffile.TiffFile", refused)
    with opened(make_svs(tmp_path, YCBCR)) as slide:
        assert slide.reader == (
            "openslide: its TIFF directories cannot be read: no end of directories"
        )


@pytest.mark.parametrize("tag", ["JPEGTables", "TileByteCounts", "TileOffsets"])
def test_tags_of_another_type_leave_the_slide_to_openslide(tmp_path, tag):
    """Short numbers or text where bytes or long numbers belong."""
    path = make_svs(tmp_path, YCBCR, factors=(1, 2))
    with stored_tile(path, col=0, row=0) as (page, _):
        offset = page.tags[tag].offset
    with path.open("r+b") as file:
        file.seek(offset + 2)
        file.write(bytes([3 if tag == "JPEGTables" else 1, 0]))
    with opened(path) as slide:
        assert "openslide: its TIFF directories cannot be read: " in slide.reader


def test_numbers_below_zero_lead_nowhere(tmp_path):
    path = make_svs(tmp_path, YCBCR)
    file = StoredFile(path)
    assert file.stream(-4, 20, b"") is None
    assert file.stream(8, -4, b"") is None
    file.close()


def test_what_stands_beside_a_damaged_tile_was_not_compared(tmp_path):
    """4:4:4 among 4:2:0, in the first corner, which could not be read as a whole."""
    path = make_svs(tmp_path, YCBCR)
    damage_tile(path, col=0, row=0)
    replace_tile(path, jpeg(64, quality=5, subsampling="444"), col=1, row=0)
    with opened(path) as slide:
        assert slide.reader.startswith("direct")
        assert slide.read_direct(0, 64, 0, SMALL) is None
        assert_as_openslide(slide, (64, 0))
