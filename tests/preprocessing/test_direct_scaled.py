"""Levels decoded at a half, a quarter or an eighth: where their pixels lie, and what they show."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiff_files import RGB, YCBCR, block_mean, damage_tile, texture

from preprocessing.bench.reader_slides import painted_tissue, write_svs
from preprocessing.config import ReadingConfig
from preprocessing.geometry import Level, Pyramid, Size, plan_tiles
from preprocessing.manifest import SlideRow
from preprocessing.slides.direct import block_means
from preprocessing.slides.reader import decoded_scale, read_batches, read_tile
from preprocessing.slides.slide import Slide

STORAGES = [pytest.param(YCBCR, id="ycbcr"), pytest.param(RGB, id="rgb")]
SCALES = (2, 4, 8)
WHOLE_ONLY = ReadingConfig(scaled_decoding=False)
NOT_DIRECT = ReadingConfig(direct=False)


def opened(path: Path, reading: ReadingConfig | None = None) -> Slide:
    return Slide(SlideRow("s", "patient", path), reading=reading or ReadingConfig())


def make_svs(folder: Path, image, storage=YCBCR, *, factors=(1,)) -> Path:
    path = folder / "s.svs"
    write_svs(path, image, mpp=0.5, storage=storage, factors=factors)
    return path


@pytest.fixture(scope="module")
def tissue():
    return painted_tissue(2903, 1171, mpp=0.5)


def raster(slide: Slide, scale: int):
    whole = slide.pyramid.size_px0
    size = Size(-(-whole.width // scale), -(-whole.height // scale))
    return slide.read_direct(0, 0, 0, size, scale=scale)


def psnr(one, other) -> float:
    return 10 * np.log10(255**2 / max(np.mean((one.astype(float) - other) ** 2), 1e-6))


def waves(x, y):
    """Every channel a wave of some 60 pixels' length in x and one in y."""
    return np.stack([128 + 55 * (np.sin(x / 9 + n) + np.sin(y / 11 - n)) for n in range(3)], axis=2)


def misplaced(found, expected, slope_x, slope_y):
    """(x, y): the shift that explains the most of the difference, as in optical flow."""
    slopes = np.stack([slope_x.ravel(), slope_y.ravel()], axis=1)
    shift, *_ = np.linalg.lstsq(slopes, (found.astype(float) - expected).ravel(), rcond=None)
    return shift


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("scale", SCALES)
def test_a_pixel_covers_exactly_its_pixels_of_the_level(tmp_path, storage, scale):
    image = np.rint(waves(*np.meshgrid(np.arange(960), np.arange(768)))).astype(np.uint8)
    with opened(make_svs(tmp_path, image, storage)) as slide:
        shown = raster(slide, scale)
    means = block_mean(image, scale).astype(float)
    slope_y, slope_x = np.gradient(means, axis=(0, 1))
    inner = (slice(4, -4), slice(4, -4))
    shift = misplaced(shown[inner], means[inner], slope_x[inner], slope_y[inner])
    assert np.abs(shift).max() < 0.02


@pytest.mark.parametrize(("storage", "least_db"), [(YCBCR, 40), (RGB, 45)])
@pytest.mark.parametrize("scale", SCALES)
def test_tissue_looks_as_its_block_means(tmp_path, tissue, storage, least_db, scale):
    path = make_svs(tmp_path, tissue[:768, :960], storage)
    with opened(path) as slide:
        whole = slide.read_direct(0, 0, 0, Size(960, 768))
        assert psnr(raster(slide, scale), block_mean(whole, scale)) > least_db


@pytest.mark.parametrize("storage", STORAGES)
@pytest.mark.parametrize("scale", SCALES)
@pytest.mark.parametrize("size", [(451, 389), (456, 392), (448, 397)])
def test_tiles_over_the_edge_are_means_of_what_lies_within(tmp_path, storage, scale, size):
    path = make_svs(tmp_path, texture(*size), storage)
    with opened(path) as slide:
        shown = raster(slide, scale)
        means = block_means(slide.read_direct(0, 0, 0, Size(*size)), scale)
    assert shown.shape == means.shape == (-(-size[1] // scale), -(-size[0] // scale), 3)
    side = storage.tile_px // scale
    for n, over in ((1, shown.shape[1]), (0, shown.shape[0])):
        first = size[1 - n] // storage.tile_px * side
        if size[1 - n] % storage.tile_px:
            np.testing.assert_array_equal(
                np.take(shown, range(first, over), axis=n),
                np.take(means, range(first, over), axis=n),
            )
    assert psnr(shown, means) > 25  # the noise beyond the raster's resolution is cut, not folded


@given(st.integers(1, 20), st.integers(1, 20), st.sampled_from(SCALES))
def test_block_means_at_the_far_edge_are_means_of_what_is_left(width, height, scale):
    image = texture(width, height)
    means = block_means(image, scale)
    for row in range(means.shape[0]):
        for col in range(means.shape[1]):
            block = image[row * scale : (row + 1) * scale, col * scale : (col + 1) * scale]
            expected = block.reshape(-1, 3).mean(axis=0)
            off = np.abs(means[row, col] - expected).max()
            assert off <= 0.5 if block.shape[:2] == (scale, scale) else off < 1


class TestTiles:
    @pytest.mark.parametrize(
        ("mpp", "scale"),
        [
            (0.5, 1),
            (0.94, 1),
            (0.96, 2),
            (1.0, 2),
            (2.0, 2),
            (3.9, 2),
            (4.0, 4),
            (8.0, 8),
            (40, 8),
        ],
    )
    def test_scale_follows_the_coarser_tile(self, tmp_path, mpp, scale):
        with opened(make_svs(tmp_path, texture(960, 768))) as slide:
            assert decoded_scale(slide, plan_tiles(slide.pyramid, mpp=mpp, tile_px=32)) == scale

    def test_scale_is_one_that_both_axes_allow(self, tmp_path):
        with opened(make_svs(tmp_path, texture(960, 768))) as slide:
            square = slide.pyramid
            slide.pyramid = Pyramid(square.levels, 0.25, 0.5)
            assert decoded_scale(slide, plan_tiles(slide.pyramid, mpp=1.0, tile_px=32)) == 2

    @pytest.mark.parametrize("reading", [NOT_DIRECT, WHOLE_ONLY], ids=["openslide", "whole"])
    def test_scale_is_one_where_that_is_off(self, tmp_path, reading):
        with opened(make_svs(tmp_path, texture(960, 768)), reading) as slide:
            assert decoded_scale(slide, plan_tiles(slide.pyramid, mpp=2.0, tile_px=32)) == 1

    @pytest.mark.parametrize("storage", STORAGES)
    @pytest.mark.parametrize("mpp", [0.96, 0.99, 1.0, 1.3, 2.0, 4.4])
    def test_tiles_look_as_if_resampled_from_whole_pixels(self, tmp_path, tissue, storage, mpp):
        """Also the last of a row and column, which end at the slide's edge."""
        path = make_svs(tmp_path, tissue[:771, :903], storage)
        tiles = {}
        for reading in (ReadingConfig(), NOT_DIRECT):
            with opened(path, reading) as slide:
                geometry = plan_tiles(slide.pyramid, mpp=mpp, tile_px=48)
                coords = corners(slide, geometry)
                tiles[reading.direct] = tiles_at(slide, coords, geometry)
        # As far apart as bicubic resampling and means over boxes are on so sharp a picture.
        assert psnr(tiles[True], tiles[False]) > 33
        bias = (tiles[True].astype(float) - tiles[False]).mean(axis=(0, 1, 2))
        assert np.abs(bias).max() < 0.3

    @settings(max_examples=40)
    @given(
        mpp=st.floats(0.96, 4.5),
        ratio=st.sampled_from([1.0, 1.25]),
        x_px0=st.integers(24, 500),
        y_px0=st.integers(24, 300),
    )
    def test_every_tile_pixel_shows_its_place_on_the_slide(self, wavy, mpp, ratio, x_px0, y_px0):
        whole = (Level(0, wavy.pyramid.size_px0, 1.0),)
        geometry = plan_tiles(Pyramid(whole, 0.5, 0.5 * ratio), mpp=mpp * ratio, tile_px=32)
        tile = read_tile(wavy, geometry, x_px0=x_px0, y_px0=y_px0)
        assert decoded_scale(wavy, geometry) > 1
        centre = np.arange(32) + 0.5
        x, y = np.meshgrid(
            x_px0 + centre * geometry.tile_px0_x / 32 - 0.5,
            y_px0 + centre * geometry.tile_px0_y / 32 - 0.5,
        )
        step = 1e-3
        slope_x = (waves(x + step, y) - waves(x, y)) / step
        slope_y = (waves(x, y + step) - waves(x, y)) / step
        shift_px0 = misplaced(tile, waves(x, y), slope_x, slope_y)
        assert np.abs(shift_px0).max() < 0.05 * geometry.tile_px0_x / 32

    def test_a_damaged_tile_is_unreadable_at_every_scale(self, tmp_path):
        path = make_svs(tmp_path, texture(768, 768))
        with opened(path) as slide:
            geometry = plan_tiles(slide.pyramid, mpp=1.0, tile_px=32)  # tiles of 64 px, as stored
            coords = corners(slide, geometry)
            whole = tiles_at(slide, coords, geometry)
        damage_tile(path, col=5, row=7)
        with opened(path) as slide:
            (batch,) = read_batches([slide], coords, geometry, batch_size=200)
        lost = (coords[batch.rows] == (5 * 64, 7 * 64)).all(axis=1)
        np.testing.assert_array_equal(batch.readable, ~lost)
        assert lost.sum() == 1
        np.testing.assert_array_equal(batch.tiles[~lost], whole[batch.rows][~lost])
        assert not batch.tiles[lost].any()


@pytest.fixture(scope="module")
def wavy(tmp_path_factory):
    image = np.rint(waves(*np.meshgrid(np.arange(960), np.arange(768)))).astype(np.uint8)
    with opened(make_svs(tmp_path_factory.mktemp("wavy"), image)) as slide:
        yield slide


def corners(slide: Slide, geometry):
    size = slide.pyramid.size_px0
    xs = np.arange(0, size.width - geometry.tile_px0_x + 1e-6, geometry.stride_px0_x)
    ys = np.arange(0, size.height - geometry.tile_px0_y + 1e-6, geometry.stride_px0_y)
    last = (size.width - geometry.tile_px0_x, size.height - geometry.tile_px0_y)
    grid = np.stack(np.meshgrid([*xs, last[0]], [*ys, last[1]]), axis=-1)
    return np.floor(grid.reshape(-1, 2)).astype(np.int32)


def tiles_at(slide: Slide, coords, geometry):
    """In the order of the coordinates."""
    tiles = np.empty((len(coords), geometry.tile_px, geometry.tile_px, 3), dtype=np.uint8)
    for batch in read_batches([slide], coords, geometry, batch_size=7):
        assert batch.readable.all()
        tiles[batch.rows] = batch.tiles
    return tiles


@pytest.fixture(scope="module", params=STORAGES)
def tissue_slide(request, tissue, tmp_path_factory):
    return make_svs(tmp_path_factory.mktemp("tissue"), tissue, request.param)


class TestOverviews:
    @pytest.mark.parametrize("mpp", [1.0, 1.5, 2.0, 2.5, 3.0, 4.0, 5.6, 8.0, 11.0])
    def test_close_to_block_means_whatever_the_factor(self, tissue_slide, mpp):
        with opened(tissue_slide) as slide:
            view, shown = slide.overviews(mpp=mpp, longest_px=512)
        with opened(tissue_slide, NOT_DIRECT) as slide:
            expected, expected_shown = slide.overviews(mpp=mpp, longest_px=512)
        for found, wanted in ((view, expected), (shown, expected_shown)):
            assert found.rgb.shape == wanted.rgb.shape
            assert found.px0_per_px_x == wanted.px0_per_px_x
            assert not found.unreadable.any()
            assert psnr(found.rgb, wanted.rgb) > 40
            last = psnr(found.rgb[-1], wanted.rgb[-1]), psnr(found.rgb[:, -1], wanted.rgb[:, -1])
            assert min(last) > 32

    def test_whole_pixels_give_openslides_overview(self, tmp_path):
        path = make_svs(tmp_path, texture(2903, 1171))
        made = []
        for reading in (WHOLE_ONLY, NOT_DIRECT):
            with opened(path, reading) as slide:
                made.append(slide.overviews(mpp=4.0, longest_px=512))
        for found, wanted in zip(*made, strict=True):
            np.testing.assert_array_equal(found.rgb, wanted.rgb)

    def test_no_openslide_after_the_check(self, tmp_path, monkeypatch):
        path = make_svs(tmp_path, texture(2903, 1171), factors=(1, 4))
        with opened(path) as slide:
            assert "openslide" not in slide.reader
            monkeypatch.setattr(Slide, "_draw", None)
            first = slide.overviews(mpp=1.5, longest_px=512)
            again = slide.overviews(mpp=1.5, longest_px=512)
        for one, two in zip(first, again, strict=True):
            np.testing.assert_array_equal(one.rgb, two.rgb)

    def test_a_damaged_tile_is_marked(self, tmp_path):
        path = make_svs(tmp_path, texture(768, 768))
        damage_tile(path, col=5, row=7)
        with opened(path) as slide:
            view, _ = slide.overviews(mpp=4.0, longest_px=96)
        expected = np.zeros((96, 96), dtype=bool)
        expected[7 * 8 : 8 * 8, 5 * 8 : 6 * 8] = True
        # Blocks are quartered down to some tiles, all of which then count as lost.
        assert view.unreadable[expected].all()
        assert view.unreadable.sum() <= 32 * 32
