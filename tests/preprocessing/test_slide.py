from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from tiff_files import TILE_PX, block_mean, damage_tile, noise, write_tiff

from preprocessing.errors import MppError, UnreadableSlide
from preprocessing.geometry import Size
from preprocessing.manifest import SlideRow
from preprocessing.slides.mpp import find_mpp
from preprocessing.slides.slide import Thumbnail, _on_white, open_slide


def row_of(path: Path, mpp: float | None = None, **extra: str) -> SlideRow:
    return SlideRow(path.stem, "patient", path, mpp, extra)


ROW = row_of(Path("s1.svs"))
VENDOR = {
    "openslide.vendor": "hamamatsu",
    "openslide.mpp-x": "0.25",
    "openslide.mpp-y": "0.25",
}


class TestMpp:
    def test_vendor_value_on_both_axes(self):
        found = find_mpp(ROW, VENDOR | {"openslide.mpp-y": "0.26"})
        assert (found.x, found.y, found.source) == (0.25, 0.26, "openslide.mpp-x")

    @pytest.mark.parametrize(("unit", "per_unit"), [("centimeter", 20_000), ("inch", 50_800)])
    def test_tiff_tags_count_in_their_unit(self, unit, per_unit):
        tags = {"tiff.ResolutionUnit": unit}
        tags |= {f"tiff.{axis}Resolution": str(per_unit) for axis in "XY"}
        found = find_mpp(ROW, tags)
        assert (found.x, found.y) == pytest.approx((0.5, 0.5))
        assert found.source == "tiff.XResolution"

    @pytest.mark.parametrize(
        "properties",
        [
            {},
            {"openslide.mpp-x": "0.25"},
            {"openslide.mpp-x": "nan", "openslide.mpp-y": "nan"},
            {"openslide.mpp-x": "0", "openslide.mpp-y": "0"},
            {
                "tiff.XResolution": "10",
                "tiff.YResolution": "10",
                "tiff.ResolutionUnit": "none",
            },
        ],
    )
    def test_missing_is_refused(self, properties):
        with pytest.raises(MppError, match=r"slide 's1'.*set column 'mpp' in the manifest"):
            find_mpp(ROW, properties)

    @pytest.mark.parametrize("value", ["0.01", "352.8"])
    def test_implausible_is_refused(self, value):
        stated = VENDOR | {"openslide.mpp-x": value, "openslide.mpp-y": value}
        with pytest.raises(MppError, match=f"{value}.*outside the plausible 0.05 to 50"):
            find_mpp(ROW, stated)
        assert find_mpp(replace(ROW, mpp=0.5), stated).source == "manifest"

    def test_vendor_against_tags(self):
        tags = {"tiff.ResolutionUnit": "centimeter"}
        tags |= {f"tiff.{axis}Resolution": "20000" for axis in "XY"}
        with pytest.raises(MppError, match=r"0\.25 x 0\.25.*contradicts tiff.XResolution = 0\.5"):
            find_mpp(ROW, VENDOR | tags)
        assert find_mpp(replace(ROW, mpp=0.25), VENDOR | tags).x == 0.25

    def test_print_resolution_in_the_tags_is_no_contradiction(self):
        tags = {"tiff.ResolutionUnit": "inch", "tiff.XResolution": "72", "tiff.YResolution": "72"}
        assert find_mpp(ROW, VENDOR | tags).x == 0.25

    def test_override(self):
        assert find_mpp(replace(ROW, mpp=0.26), VENDOR).x == 0.26
        wrong = replace(ROW, mpp=0.5)
        with pytest.raises(MppError, match=r"manifest = 0\.5 .*contradicts.*0\.25.*mpp_force"):
            find_mpp(wrong, VENDOR)
        assert find_mpp(replace(wrong, extra={"mpp_force": "1"}), VENDOR).x == 0.5
        with pytest.raises(MppError, match="mpp_force must be 1, 0 or empty, got 'yes'"):
            find_mpp(replace(wrong, extra={"mpp_force": "yes"}), VENDOR)
        with pytest.raises(MppError, match=r"manifest = 100 .*outside"):
            find_mpp(replace(ROW, mpp=100.0), VENDOR)

    @given(st.floats(0.06, 40), st.floats(0.5, 2))
    def test_override_may_differ_by_a_tenth(self, vendor_mpp, ratio):
        stated = VENDOR | {f"openslide.mpp-{axis}": repr(vendor_mpp) for axis in "xy"}
        row = replace(ROW, mpp=vendor_mpp * ratio)
        if max(ratio, 1 / ratio) > 1.1001:
            with pytest.raises(MppError):
                find_mpp(row, stated)
        elif max(ratio, 1 / ratio) < 1.0999:
            assert find_mpp(row, stated).x == row.mpp


class TestRealFiles:
    def test_aperio(self, shared):
        path = shared / "slides" / "CMU-1-Small-Region.svs"
        with open_slide(row_of(path)) as slide:
            assert slide.pyramid.size_px0 == Size(2220, 2967)
            assert (slide.pyramid.mpp_x, slide.mpp_source) == (0.499, "openslide.mpp-x")
            assert slide.vendor == "aperio"
            assert slide.bounds_px0 is None
            region = slide.read_region(0, 100, 200, Size(300, 150))
        reference = openslide.OpenSlide(path)
        expected = np.asarray(reference.read_region((100, 200), 0, (300, 150)).convert("RGB"))
        reference.close()
        np.testing.assert_array_equal(region, expected)

    def test_what_the_file_says_of_itself(self, shared):
        path = shared / "slides" / "CMU-1-Small-Region.svs"
        with open_slide(row_of(path)) as slide, slide.another() as other:
            for each in (slide, other):
                assert each.objective_power == 20
                assert each.properties["aperio.MPP"] == "0.4990"
                assert not any("aperio.User" in key or "Date" in key for key in each.properties)

    def test_without_mpp(self, shared):
        path = shared / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"
        with (
            pytest.raises(MppError, match=r"TCGA-CR-7395.*set column 'mpp'"),
            open_slide(row_of(path)),
        ):
            pass
        with open_slide(row_of(path, 0.25)) as slide:
            assert slide.mpp_source == "manifest"
            assert slide.pyramid.mpp_at(1)[0] == pytest.approx(0.5, rel=1e-3)

    def test_fluorescence_opens_with_its_pyramid(self, shared):
        with open_slide(row_of(shared / "slides" / "fluor-DAPI-387.ndpi")) as slide:
            assert slide.vendor == "hamamatsu"
            assert len(slide.pyramid.levels) == 7

    @pytest.mark.parametrize(
        "name",
        [
            "kather_muscle_224.tif",
            "broken/histolab_broken.svs",
            "broken/pathml_small_dicom.dcm",
            "absent.svs",
        ],
    )
    def test_what_is_no_slide_is_refused_by_name(self, shared, name):
        path = shared / "slides" / name
        with pytest.raises(UnreadableSlide, match=path.stem) as caught, open_slide(row_of(path)):
            pass
        assert str(path) in str(caught.value)

    def test_absurd_mpp(self, shared):
        path = shared / "slides" / "broken" / "boxes.tiff"
        with pytest.raises(MppError, match=r"boxes.*352\.778"), open_slide(row_of(path)):
            pass
        with open_slide(row_of(path, 2.0)) as slide:
            assert slide.pyramid.mpp_y == 2.0

    def test_opens_but_cannot_be_read(self, shared):
        path = shared / "slides" / "broken" / "openslide-python_unreadable.svs"
        with open_slide(row_of(path)) as slide:
            for _ in range(2):
                with pytest.raises(UnreadableSlide, match=r"level 0, 16 x 16 px.*cannot be read"):
                    slide.read_region(0, 0, 0, Size(16, 16))
            with pytest.raises(UnreadableSlide, match="no region of level 0 can be read"):
                slide.overviews(mpp=8.0, longest_px=1024)


def test_plain_tiff_resolution_is_named_as_such(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(512, 256), mpp=(0.5, 0.4))
    with open_slide(row_of(path)) as slide:
        assert (slide.pyramid.mpp_x, slide.pyramid.mpp_y) == pytest.approx((0.5, 0.4), rel=1e-6)
        assert slide.mpp_source == "tiff.XResolution"


def test_painted_square_lies_where_it_was_painted(tmp_path):
    image = np.full((768, 1024, 3), 240, dtype=np.uint8)
    image[384:448, 640:768] = (10, 200, 30)  # x 640..768, y 384..448
    path = write_tiff(tmp_path / "s.tif", image, factors=(1, 4))
    with open_slide(row_of(path)) as slide:
        exact = slide.read_region(0, 640, 384, Size(128, 64))
        coarse = slide.read_region(1, 640, 384, Size(32, 16))
        view, _ = slide.overviews(mpp=8.0, longest_px=1024)
    assert (exact == (10, 200, 30)).all()
    assert (coarse == (10, 200, 30)).all()
    rows, cols = np.nonzero((view.rgb == (10, 200, 30)).all(axis=2))
    assert (view.px0_per_px_x, view.px0_per_px_y, view.mpp) == pytest.approx((16, 16, 8))
    assert (cols.min() * 16, (cols.max() + 1) * 16) == (640, 768)
    assert (rows.min() * 16, (rows.max() + 1) * 16) == (384, 448)


@pytest.mark.parametrize(("width", "height"), [(2500, 300), (700, 2100)])
def test_thumbnail_is_the_block_mean_across_read_blocks(tmp_path, width, height):
    image = noise(width, height)
    with open_slide(row_of(write_tiff(tmp_path / "s.tif", image))) as slide:
        view, _ = slide.overviews(mpp=2.5, longest_px=16)
    assert view.rgb.shape[:2] == (-(-height // 5), -(-width // 5))
    whole = block_mean(image, 5)
    part = view.rgb[: whole.shape[0], : whole.shape[1]]
    assert np.abs(part.astype(int) - whole.astype(int)).max() <= 1
    assert not view.unreadable.any()


def test_the_picture_to_look_at_is_as_large_as_fits(tmp_path):
    path = write_tiff(tmp_path / "s.tif", noise(2050, 600), factors=(1, 2))
    with open_slide(row_of(path)) as slide:
        _, shown = slide.overviews(mpp=0.5, longest_px=1024)
        assert shown.rgb.shape[:2] == (150, 513)  # 1025 px of level 1 do not fit, half of them do
        assert shown.px0_per_px_x == pytest.approx(4, rel=1e-3)
        _, shown = slide.overviews(mpp=8.0, longest_px=4096)
        assert shown.rgb.shape[:2] == (600, 2050)


def test_overview_is_coarser_than_asked_only_if_the_slide_is(tmp_path):
    with open_slide(row_of(write_tiff(tmp_path / "s.tif", noise(300, 300), mpp=(9, 9)))) as slide:
        view, _ = slide.overviews(mpp=8.0, longest_px=1024)
        assert view.mpp == pytest.approx(9)


@pytest.mark.parametrize("mpp", [(1.0, 2.0), (2.0, 1.0)])
def test_areas_on_an_overview_are_those_of_the_slide_where_pixels_are_not_square(tmp_path, mpp):
    path = write_tiff(tmp_path / "s.tif", noise(300, 200), mpp=mpp)
    with open_slide(row_of(path)) as slide:
        view, shown = slide.overviews(mpp=4.0, longest_px=100)
    for picture in (view, shown):
        pixels = picture.rgb.shape[0] * picture.rgb.shape[1]
        assert pixels * picture.mpp**2 == pytest.approx(300 * 200 * 2, rel=1e-3)


@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 50))
def test_a_smaller_thumbnail_covers_the_same_slide(width, height, longest_px):
    rgb = noise(width, height)
    lost = rgb[..., 0] > 250
    small = Thumbnail(rgb, lost, 3.0, 3.0, 1.5).within(longest_px)
    rows, cols = small.unreadable.shape
    assert max(rows, cols) == min(longest_px, max(width, height))
    covered_px0 = (cols * small.px0_per_px_x, rows * small.px0_per_px_y)
    assert covered_px0 == pytest.approx((width * 3, height * 3))
    assert small.mpp == pytest.approx((small.px0_per_px_x * small.px0_per_px_y) ** 0.5 / 2)
    assert small.unreadable.any() == lost.any()


def test_a_smaller_thumbnail_is_a_block_mean():
    rgb = noise(120, 90)
    lost = np.zeros((90, 120), dtype=bool)
    lost[31, 119] = True
    small = Thumbnail(rgb, lost, 3.0, 3.0, 1.5).within(40)
    assert np.abs(small.rgb.astype(int) - block_mean(rgb, 3)).max() <= 1
    assert np.argwhere(small.unreadable).tolist() == [[10, 39]]


def test_damaged_tile_is_marked_and_the_rest_of_the_overview_stands(tmp_path):
    image = np.full((4 * TILE_PX, 4 * TILE_PX, 3), 180, dtype=np.uint8)
    path = write_tiff(tmp_path / "s.tif", image, compression="jpeg")
    damage_tile(path, col=2, row=1)
    with open_slide(row_of(path)) as slide:
        view, _ = slide.overviews(mpp=8.0, longest_px=64)
    tile = TILE_PX // 16
    expected = np.zeros((4 * tile, 4 * tile), dtype=bool)
    expected[tile : 2 * tile, 2 * tile : 3 * tile] = True
    np.testing.assert_array_equal(view.unreadable, expected)
    assert np.abs(view.rgb[~expected].astype(int) - 180).max() <= 2


@pytest.mark.parametrize("corner", [(-1, 0), (0, -1), (300, 0), (0, 200)])
def test_region_beyond_the_edge_is_a_programming_error(tmp_path, corner):
    path = write_tiff(tmp_path / "s.tif", noise(512, 384))
    with open_slide(row_of(path)) as slide, pytest.raises(ValueError, match="leaves level 0"):
        slide.read_region(0, *corner, Size(256, 256))


def test_fingerprint_follows_content_not_name(tmp_path):
    first = write_tiff(tmp_path / "a.tif", noise(512, 512))
    renamed = tmp_path / "b.tif"
    renamed.write_bytes(first.read_bytes())
    other = write_tiff(tmp_path / "c.tif", noise(512, 512, seed=1))
    found = []
    for path in (first, renamed, other):
        with open_slide(row_of(path)) as slide:
            found.append(slide.fingerprint)
    assert found[0] == found[1] != found[2]


@pytest.mark.parametrize("share", [0.013, 0.3, 0.5, 0.77])
def test_fingerprint_sees_damage_in_the_middle(tmp_path, share):
    path = write_tiff(tmp_path / "s.tif", noise(2900, 2900))  # 25 MB, hardly compressible
    with open_slide(row_of(path)) as slide:
        before = slide.fingerprint
    length = path.stat().st_size
    with path.open("r+b") as file:
        file.seek(max(int(share * length), (1 << 20) + 1))
        file.write(bytes(length // 63))
    with open_slide(row_of(path)) as slide:
        assert slide.fingerprint != before


def test_transparent_pixels_become_white_glass():
    pixels = np.array([[[200, 0, 0, 0], [200, 0, 0, 255], [200, 0, 0, 51]]], dtype=np.uint8)
    blended = _on_white(Image.fromarray(pixels))
    np.testing.assert_array_equal(blended[0, :2], [[255, 255, 255], [200, 0, 0]])
    np.testing.assert_allclose(blended[0, 2], [244, 204, 204], atol=1)  # 0.2 x colour + 0.8 x 255
