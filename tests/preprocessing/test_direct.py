"""JPEG tiles read past openslide show what openslide shows, or are left to it."""

import threading
from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st
from tiff_files import RGB, YCBCR, texture, write_tiff

from preprocessing.bench.reader_slides import write_svs
from preprocessing.config import ReadingConfig
from preprocessing.geometry import Level, Size
from preprocessing.manifest import SlideRow
from preprocessing.slides import direct, direct_slide
from preprocessing.slides.direct import DirectLevel
from preprocessing.slides.direct_check import difference
from preprocessing.slides.slide import Slide, open_slide
from preprocessing.slides.tiff_file import StoredFile
from preprocessing.slides.tiff_index import index_levels
from preprocessing.slides.tile_cache import TileCache

WIDTH, HEIGHT = 500, 396  # no multiple of a tile's side, nor of 8
STORAGES = [pytest.param(YCBCR, id="ycbcr"), pytest.param(RGB, id="rgb")]
NOT_DIRECT = ReadingConfig(direct=False)


def row_of(path: Path, mpp: float | None = None) -> SlideRow:
    return SlideRow(path.stem, "patient", path, mpp)


def make_svs(folder: Path, storage, *, factors=(1, 4), size=(WIDTH, HEIGHT)) -> Path:
    path = folder / "s.svs"
    write_svs(path, texture(*size), mpp=0.5, storage=storage, factors=factors)
    return path


def shown_by_openslide(path: Path, level: int, corner=(0, 0), size=None):
    with openslide.OpenSlide(path) as slide:
        size = size or slide.level_dimensions[level]
        return np.asarray(slide.read_region(corner, level, size).convert("RGB"))


def whole_level(slide: Slide, level: int = 0):
    return slide.read_direct(level, 0, 0, slide.pyramid.levels[level].size)


@pytest.fixture(scope="module", params=STORAGES)
def both(request, tmp_path_factory):
    """A slide, and all of its level 0 as openslide shows it."""
    path = make_svs(tmp_path_factory.mktemp("direct"), request.param, factors=(1, 3))
    with open_slide(row_of(path)) as slide:
        yield slide, shown_by_openslide(path, 0)


class TestSamePixels:
    @settings(max_examples=60)
    @given(data=st.data())
    def test_any_region_of_level_0(self, both, data):
        slide, shown = both
        x, y = data.draw(st.integers(0, WIDTH - 1)), data.draw(st.integers(0, HEIGHT - 1))
        width, height = (
            data.draw(st.integers(1, WIDTH - x)),
            data.draw(st.integers(1, HEIGHT - y)),
        )
        region = slide.read_direct(0, x, y, Size(width, height))
        np.testing.assert_array_equal(region, shown[y : y + height, x : x + width])
        np.testing.assert_array_equal(region, slide.read_region(0, x, y, Size(width, height)))

    @settings(max_examples=40)
    @given(x_px0=st.integers(0, 300), y_px0=st.integers(0, 200))
    def test_regions_between_the_pixels_of_a_coarse_level(self, both, x_px0, y_px0):
        """There openslide interpolates, and a region is still what openslide shows."""
        slide, _ = both
        assert slide.stored_tile(1) is not None
        region = slide.read_region(1, x_px0, y_px0, Size(40, 30))
        shown = slide._draw(1, x_px0, y_px0, Size(40, 30))
        np.testing.assert_array_equal(region, shown)

    @pytest.mark.parametrize("storage", STORAGES)
    @pytest.mark.parametrize("size", [(480, 384), (WIDTH, HEIGHT), (501, 397)])
    def test_whole_levels(self, tmp_path, storage, size):
        """From the corner openslide shows every level's own pixels, whatever its downsample."""
        path = make_svs(tmp_path, storage, factors=(1, 2, 4), size=size)
        with open_slide(row_of(path)) as slide:
            assert slide.reader.startswith("direct (simplejpeg ")
            assert "openslide" not in slide.reader
            for level in range(3):
                shown = shown_by_openslide(path, level)
                np.testing.assert_array_equal(whole_level(slide, level), shown)

    def test_tiles_in_complete_jpegs(self, tmp_path):
        """As other programs write them: every tile with tables and a JFIF or Adobe marker."""
        path = write_tiff(tmp_path / "s.tif", texture(600, 500), compression="jpeg")
        with open_slide(row_of(path)) as slide:
            assert slide.reader.startswith("direct")
            np.testing.assert_array_equal(whole_level(slide), shown_by_openslide(path, 0))

    def test_real_slide(self, shared):
        path = shared / "slides" / "CMU-1-Small-Region.svs"
        with open_slide(row_of(path)) as slide:
            assert slide.reader.startswith("direct")
            np.testing.assert_array_equal(whole_level(slide), shown_by_openslide(path, 0))

    def test_threads_share_tiles_and_get_the_same(self, tmp_path, monkeypatch):
        path = make_svs(tmp_path, YCBCR, size=(1024, 1024), factors=(1,))
        shown = shown_by_openslide(path, 0)
        with ExitStack() as stack:
            first = stack.enter_context(open_slide(row_of(path)))
            assert first.reader.startswith("direct")
            decoded = count_decoding(monkeypatch)
            handles = [first, *(stack.enter_context(first.another()) for _ in range(5))]
            wrong = []

            def read(handle, seed):
                rng = np.random.default_rng(seed)
                for x, y in rng.integers(0, 900, (40, 2)).tolist():
                    region = handle.read_region(0, x, y, Size(120, 120))
                    wrong.append((region != shown[y : y + 120, x : x + 120]).any())

            threads = [
                threading.Thread(target=read, args=(handle, n)) for n, handle in enumerate(handles)
            ]
            for thread in threads:
                thread.start()
            for thread in threads:
                thread.join()
        assert len(wrong) == 240
        assert not any(wrong)
        assert len(decoded) <= 16 * 16

    def test_another_handle_outlives_the_first(self, tmp_path):
        path = make_svs(tmp_path, YCBCR)
        first = Slide(row_of(path))
        expected = whole_level(first)
        other = first.another()
        first.close()
        with other:
            np.testing.assert_array_equal(whole_level(other), expected)
            assert (other.slide_id, other.fingerprint) == (first.slide_id, first.fingerprint)
            np.testing.assert_array_equal(other._draw(0, 0, 0, Size(9, 9)), expected[:9, :9])


def count_decoding(monkeypatch) -> list[bytes]:
    decoded = []

    def counted(stream, **kwargs):
        decoded.append(stream)
        return simplejpeg.decode_jpeg(stream, **kwargs)

    monkeypatch.setattr(direct, "decode_jpeg", counted)
    return decoded


class TestLeftToOpenslide:
    @pytest.mark.parametrize(
        ("name", "reason"),
        [
            ("TCGA-CR-7395-01A-01-TS1.svs", "openslide: compression APERIO_JP2000_RGB"),
            ("fluor-DAPI-387.ndpi", "openslide: format hamamatsu"),
        ],
    )
    def test_other_formats_say_why(self, shared, name, reason):
        path = shared / "slides" / name
        with open_slide(row_of(path, 0.25)) as slide:
            assert slide.reader == reason
            assert slide.stored_tile(0) is None
            region = slide.read_region(0, 300, 200, Size(64, 48))
        np.testing.assert_array_equal(region, shown_by_openslide(path, 0, (300, 200), (64, 48)))

    def test_other_compressions_say_why(self, tmp_path):
        path = write_tiff(tmp_path / "s.tif", texture(300, 300))
        with open_slide(row_of(path)) as slide:
            assert slide.reader == "openslide: compression DEFLATE"

    def test_switched_off(self, tmp_path):
        with open_slide(row_of(make_svs(tmp_path, YCBCR)), reading=NOT_DIRECT) as slide:
            assert slide.reader == "openslide: reading.direct is off"
            assert slide.read_direct(0, 0, 0, Size(8, 8)) is None

    def test_scaled_decoding_switched_off(self, tmp_path):
        whole_only = ReadingConfig(scaled_decoding=False)
        with open_slide(row_of(make_svs(tmp_path, YCBCR)), reading=whole_only) as slide:
            assert slide.read_direct(0, 0, 0, Size(8, 8), scale=2) is None
            assert slide.read_direct(0, 0, 0, Size(8, 8)) is not None

    def test_two_directories_of_one_size(self, tmp_path):
        path = write_tiff(tmp_path / "s.tif", texture(300, 300), factors=(1, 1), compression="jpeg")
        with open_slide(row_of(path)) as slide:
            assert slide.reader == "openslide: 2 tiled directories of 300 x 300 px"

    @pytest.mark.parametrize("box", [(-1, 0), (0, -1), (WIDTH - 7, 0), (0, HEIGHT - 7)])
    @pytest.mark.parametrize("scale", [1, 2])
    def test_boxes_beyond_the_raster(self, tmp_path, box, scale):
        with open_slide(row_of(make_svs(tmp_path, YCBCR))) as slide:
            x, y = (n // scale for n in box)
            assert slide.read_direct(0, x, y, Size(8, 8), scale=scale) is None

    def test_wrong_colours_are_noticed(self, tmp_path, monkeypatch):
        """Without the spliced marker libjpeg takes RGB for YCbCr."""
        path = make_svs(tmp_path, RGB)
        monkeypatch.setattr("preprocessing.slides.tiff_jpeg._ADOBE_SEGMENT", b"")
        monkeypatch.setattr("preprocessing.slides.tiff_jpeg._transform", lambda *, rgb: b"")
        with open_slide(row_of(path)) as slide:
            assert "level 0: openslide: pixels differ from openslide's by up to" in slide.reader

    def test_one_grey_level_off_is_noticed(self, tmp_path, monkeypatch):
        monkeypatch.setattr(
            direct,
            "decode_jpeg",
            lambda stream, **kwargs: simplejpeg.decode_jpeg(stream, **kwargs) ^ 1,
        )
        with open_slide(row_of(make_svs(tmp_path, YCBCR))) as slide:
            assert "pixels differ from openslide's by up to 1 grey levels" in slide.reader

    @pytest.mark.parametrize("factors", [(1, 2), (1, 3)])
    @pytest.mark.parametrize("size", [(WIDTH, HEIGHT), (1201, 997)])
    def test_exchanged_tiles_of_a_coarse_level_are_noticed(
        self, tmp_path, monkeypatch, factors, size
    ):
        """Also where openslide interpolates all of it but the corner."""
        path = make_svs(tmp_path, YCBCR, factors=factors, size=size)
        with open_slide(row_of(path)) as slide:
            assert "openslide" not in slide.reader

        def exchanged(*args):
            first, second = index_levels(*args)
            offsets, counts = (
                [numbers[0], *numbers[:0:-1]] for numbers in (second.offsets, second.byte_counts)
            )
            return [first, replace(second, offsets=offsets, byte_counts=counts)]

        monkeypatch.setattr(direct_slide, "index_levels", exchanged)
        with open_slide(row_of(path)) as slide:
            assert "; level 1: openslide: pixels differ" in slide.reader
            assert slide.stored_tile(0) == Size(64, 64)
            assert slide.stored_tile(1) is None


class TestComparison:
    """With openslide's drawing of a level whose pixels lie between those of level 0."""

    DOWNSAMPLE = 2.3713

    def compared(self, folder, *, moved=0.0, added=0):
        path = make_svs(folder, YCBCR, factors=(1,))
        (index,) = index_levels(path, "aperio", [Size(WIDTH, HEIGHT)])
        shown = shown_by_openslide(path, 0).astype(float)

        def draw(level, x_px0, y_px0, size):
            drawn = shown
            for axis, start, length in ((0, y_px0, size.height), (1, x_px0, size.width)):
                at = start / self.DOWNSAMPLE + moved * (start > 0)
                first, share = int(at), at - int(at)
                before = np.take(drawn, range(first, first + length), axis)
                after = np.take(drawn, range(first + 1, first + 1 + length), axis, mode="clip")
                drawn = before * (1 - share) + after * share
            wrong = added * (x_px0 > 0 < y_px0)
            return np.clip(np.rint(drawn) + wrong, 0, 255).astype(np.uint8)

        level = DirectLevel(0, index, TileCache(0))
        file = StoredFile(path)
        found = difference(level, file, Level(0, Size(WIDTH, HEIGHT), self.DOWNSAMPLE), draw)
        file.close()
        assert len(level.frames) == 1
        return found

    def test_the_same_interpolated(self, tmp_path):
        assert self.compared(tmp_path) == ""

    @pytest.mark.parametrize("moved", [-1, 0.25, 1])
    def test_moved(self, tmp_path, moved):
        assert self.compared(tmp_path, moved=moved).startswith("pixels differ")

    def test_of_other_colours(self, tmp_path):
        assert self.compared(tmp_path, added=6).startswith("pixels differ")
