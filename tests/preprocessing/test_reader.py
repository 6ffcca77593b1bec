import threading
import time
from contextlib import ExitStack

import numpy as np
import openslide
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tiff_files import TILE_PX, block_mean, damage_tile, noise, write_tiff

from preprocessing.bench.reader_slides import Storage, write_svs
from preprocessing.errors import UnreadableSlide
from preprocessing.geometry import TileGeometry, plan_tiles
from preprocessing.manifest import SlideRow
from preprocessing.slides import reader
from preprocessing.slides.reader import read_batches, read_tile
from preprocessing.slides.slide import Slide

# Grey levels: Pillow rounds its intermediate image (half a level, spread by negative lobes) and
# its result (another half).
ROUNDING = 1.3


def open_tiff(path) -> Slide:
    return Slide(SlideRow("s", "p", path))


@pytest.fixture(scope="module", params=["openslide", "direct"])
def smooth(request, tmp_path_factory):
    """Red rises with x, green with y, by one grey level per eight pixels."""
    y, x = np.mgrid[0:1024, 0:1536]
    image = np.stack([x // 8, y // 8, np.zeros_like(x)], axis=2).astype(np.uint8)
    path = tmp_path_factory.mktemp("smooth") / "s.tif"
    if request.param == "openslide":
        write_tiff(path, image)
    else:
        exact = Storage(tile_px=240, quality=100, rgb=True)
        write_svs(path, image, mpp=0.5, storage=exact, factors=(1,))
    with open_tiff(path) as slide:
        assert slide.reader.startswith(request.param)
        yield slide


def mid_grey_noise(width, height):
    """Pillow clips between its two passes, the formula does not: here neither has to."""
    return noise(width, height) // 2 + 64


def cubic(distance):
    """Keys' kernel with a = -0.5."""
    t = np.abs(distance)
    near = 1.5 * t**3 - 2.5 * t**2 + 1
    far = -0.5 * t**3 + 2.5 * t**2 - 4 * t + 2
    return np.where(t < 1, near, np.where(t < 2, far, 0.0))


def bicubic(image, *, left, top, side_px, out_px):
    """Antialiased resampling of a fractional box, as weighted sums over the whole image."""

    def weights(start, length):
        scale = side_px / out_px
        centres = start + (np.arange(out_px) + 0.5) * scale - 0.5
        table = cubic((np.arange(length) - centres[:, None]) / max(scale, 1))
        return table / table.sum(axis=1, keepdims=True)

    rows, cols = weights(top, image.shape[0]), weights(left, image.shape[1])
    squeezed = np.tensordot(rows, image.astype(float), axes=(1, 0))
    return np.tensordot(squeezed, cols, axes=(1, 1)).swapaxes(1, 2).clip(0, 255)


def test_native_tile_is_the_files_pixels(tmp_path):
    image = noise(700, 600)
    path = write_tiff(tmp_path / "s.tif", image)
    with open_tiff(path) as slide:
        geometry = plan_tiles(slide.pyramid, mpp=0.5, tile_px=224)
        tile = read_tile(slide, geometry, x_px0=333, y_px0=111)
    np.testing.assert_array_equal(tile, image[111:335, 333:557])


def test_native_tile_equals_openslide_on_a_real_slide(shared):
    path = shared / "slides" / "CMU-1-Small-Region.svs"
    reference = openslide.OpenSlide(path)
    with open_tiff(path) as slide:
        geometry = plan_tiles(slide.pyramid, mpp=0.499, tile_px=224)
        coords = np.array([[0, 0], [1001, 777], [1996, 2743]], dtype=np.int32)
        (batch,) = read_batches([slide], coords, geometry, batch_size=8)
    for corner, tile in zip(coords.tolist(), batch.tiles, strict=True):
        expected = reference.read_region(tuple(corner), 0, (224, 224)).convert("RGB")
        np.testing.assert_array_equal(tile, np.asarray(expected))
    reference.close()
    assert batch.readable.all()


@pytest.mark.parametrize("corner", [(300, 200), (0, 0), (700, 500)])
@pytest.mark.parametrize("mpp", [0.48, 0.71, 1.3])
def test_resampled_tile_equals_the_formula(tmp_path, mpp, corner):
    image = mid_grey_noise(1000, 800)
    path = write_tiff(tmp_path / "s.tif", image)
    with open_tiff(path) as slide:
        geometry = plan_tiles(slide.pyramid, mpp=mpp, tile_px=96, max_upsampling=1.1)
        tile = read_tile(slide, geometry, x_px0=corner[0], y_px0=corner[1])
    expected = bicubic(image, left=corner[0], top=corner[1], side_px=96 * mpp / 0.5, out_px=96)
    assert np.abs(tile - expected).max() <= ROUNDING


def test_coarse_level_is_read_and_resampled_in_its_own_pixels(tmp_path):
    image = mid_grey_noise(1600, 1200)
    path = write_tiff(tmp_path / "s.tif", image, factors=(1, 4))
    with open_tiff(path) as slide:
        geometry = plan_tiles(slide.pyramid, mpp=2.4, tile_px=64)
        tile = read_tile(slide, geometry, x_px0=402, y_px0=210)
    assert geometry.level == 1
    expected = bicubic(
        block_mean(image, 4), left=402 / 4, top=210 / 4, side_px=64 * 2.4 / 2, out_px=64
    )
    assert np.abs(tile - expected).max() <= ROUNDING


def test_level_whose_pixels_do_not_start_at_whole_level_0_pixels(tmp_path):
    """1601 px become 400: 4.00625 px each. A soft edge must cross mid-grey at its place.

    Around x = 350 such a start is half a level-0 pixel off, a tenth of a tile pixel.
    """
    edge_px0 = 501.5
    ramp = np.rint(np.clip(127.5 + 4 * (np.arange(1601) - edge_px0), 0, 255))
    image = np.broadcast_to(ramp[None, :, None], (1203, 1601, 3)).astype(np.uint8)
    path = write_tiff(tmp_path / "s.tif", image, factors=(1, 4))
    misses = []
    with open_tiff(path) as slide:
        geometry = plan_tiles(slide.pyramid, mpp=2.4, tile_px=64)
        downsample = slide.pyramid.levels[1].downsample
        for x_px0 in range(301, 401, 7):
            line = read_tile(slide, geometry, x_px0=x_px0, y_px0=400)[32, :, 0].astype(float)
            expected = ((edge_px0 + 0.5) / 4 - x_px0 / downsample) * 64 / geometry.read_px_x - 0.5
            before = np.flatnonzero(line < 127.5)[-1]
            step = line[before + 1] - line[before]
            misses.append(before + (127.5 - line[before]) / step - expected)
    assert geometry.level == 1
    assert downsample == pytest.approx(4.00625)
    assert np.abs(misses).max() < 0.08  # 8-bit levels blur it by about 0.06


@settings(max_examples=40)
@given(
    mpp=st.floats(0.46, 1.4),
    x_px0=st.integers(16, 1536 - 16 - 180),
    y_px0=st.integers(16, 1024 - 16 - 180),
)
def test_every_tile_pixel_shows_its_place_on_the_slide(smooth, mpp, x_px0, y_px0):
    geometry = plan_tiles(smooth.pyramid, mpp=mpp, tile_px=64, max_upsampling=1.1)
    tile = read_tile(smooth, geometry, x_px0=x_px0, y_px0=y_px0)
    along = (np.arange(64) + 0.5) * geometry.tile_px0_x / 64 - 0.5
    # The painted staircase lies 7/16 of a step below the straight line, on average.
    expected_x, expected_y = (x_px0 + along) / 8 - 7 / 16, (y_px0 + along) / 8 - 7 / 16
    assert np.abs(tile[..., 0] - expected_x[None, :]).max() < 1.2
    assert np.abs(tile[..., 1] - expected_y[:, None]).max() < 1.2
    assert abs((tile[..., 0] - expected_x[None, :]).mean()) < 0.2
    assert abs((tile[..., 1] - expected_y[:, None]).mean()) < 0.2


@given(
    starts=st.lists(
        st.one_of(st.integers(0, 900), st.floats(0, 900), st.floats(-1e-7, 1e-7)), max_size=20
    ),
    read_px=st.one_of(st.just(100.0), st.floats(40, 300)),
)
def test_many_tiles_are_planned_as_each_is_read(starts, read_px):
    many = reader._spans(np.array(starts, dtype=float), read_px, 100, 1000)
    for n, start in enumerate(starts):
        one = reader._span(float(start), read_px, 100, 1000)
        assert (many.first[n], many.stop[n], many.whole[n]) == (one.first, one.stop, one.whole)


def test_last_tile_ends_at_the_slides_corner(tmp_path):
    image = mid_grey_noise(500, 400)
    path = write_tiff(tmp_path / "s.tif", image)
    with open_tiff(path) as slide:
        geometry = plan_tiles(slide.pyramid, mpp=0.7, tile_px=100)  # 140 level-0 pixels
        tile = read_tile(slide, geometry, x_px0=360, y_px0=260)
    expected = bicubic(image, left=360, top=260, side_px=140, out_px=100)
    assert np.abs(tile - expected).max() <= ROUNDING


@pytest.mark.parametrize("threads", [1, 3])
@pytest.mark.parametrize("mpp", [0.5, 0.6])
def test_only_tiles_on_a_damaged_spot_are_unreadable(tmp_path, mpp, threads):
    """Whatever reads: after an error only the handle that met it is opened again."""
    image = np.repeat(np.repeat(noise(64, 64), 16, axis=0), 16, axis=1)
    whole = write_tiff(tmp_path / "whole.tif", image, compression="jpeg")
    broken = tmp_path / "broken.tif"
    broken.write_bytes(whole.read_bytes())
    damage_tile(broken, col=1, row=2)
    coords = np.array([[x, y] for y in range(0, 896, 128) for x in range(0, 896, 128)], np.int32)
    batches = {}
    for path in (whole, broken):
        with ExitStack() as stack:
            slide = stack.enter_context(open_tiff(path))
            more = range(threads - 1)
            handles = [slide, *(stack.enter_context(slide.another()) for _ in more)]
            geometry = plan_tiles(slide.pyramid, mpp=mpp, tile_px=96)
            parts = list(read_batches(handles, coords, geometry, batch_size=10))
        assert [len(part.readable) for part in parts] == [10, 10, 10, 10, 9]
        order = np.argsort(np.concatenate([part.rows for part in parts]))
        batches[path] = (
            np.concatenate([part.tiles for part in parts])[order],
            np.concatenate([part.readable for part in parts])[order],
        )
    tiles, readable = batches[broken]
    side, reach = 96 * mpp / 0.5, 0 if mpp == 0.5 else 3  # the filter sees a little further
    x, y = coords.T
    left, top = TILE_PX, 2 * TILE_PX
    outside = (
        (x + side + reach <= left)
        | (x - reach >= left + TILE_PX)
        | (y + side + reach <= top)
        | (y - reach >= top + TILE_PX)
    )
    np.testing.assert_array_equal(readable, outside)
    assert 0 < readable.sum() < len(coords)
    np.testing.assert_array_equal(tiles[readable], batches[whole][0][readable])
    assert not tiles[~readable].any()


class TestThreads:
    """Batches of one 64 px tile at (64 * number, 0), whose red is its number."""

    geometry = TileGeometry(0, 64, 64, 64, 64, 64, 64, 64, 0.5, 0.5)
    coords = np.stack([np.arange(12) * 64, np.zeros(12)], axis=1).astype(np.int32)

    @pytest.fixture
    def handles(self, tmp_path):
        image = np.zeros((256, 12 * 64, 3), dtype=np.uint8)
        image[..., 0] = np.arange(12 * 64) // 64
        path = write_tiff(tmp_path / "s.tif", image)
        with open_tiff(path) as one, open_tiff(path) as two, open_tiff(path) as three:
            yield [one, two, three]

    def read(self, handles):
        return read_batches(handles, self.coords, self.geometry, batch_size=1)

    @pytest.mark.parametrize("count", [1, 2, 3])
    def test_order_is_that_of_the_tiles_however_long_each_takes(self, handles, monkeypatch, count):
        def slowly(slide, geometry, *, x_px0, y_px0, out):
            time.sleep(0.005 * (x_px0 // 64 % 3 == 0))
            return read_tile(slide, geometry, x_px0=x_px0, y_px0=y_px0, out=out)

        monkeypatch.setattr(reader, "read_tile", slowly)
        found = [batch.tiles[0, 0, 0, 0] for batch in self.read(handles[:count])]
        assert found == list(range(12))

    def test_no_handle_is_used_by_two_threads_at_once(self, handles, monkeypatch):
        busy, shared = set(), []

        def watched(slide, geometry, **where):
            shared.append(slide in busy)
            busy.add(slide)
            time.sleep(0.002)
            busy.remove(slide)

        monkeypatch.setattr(reader, "read_tile", watched)
        assert len(list(self.read(handles))) == len(shared) == 12
        assert not any(shared)

    def test_an_error_arrives_in_its_place_and_names_the_file(self, handles, monkeypatch):
        def failing(slide, geometry, *, x_px0, y_px0, out):
            if x_px0 == 128:
                raise OSError("disk is gone")
            return read_tile(slide, geometry, x_px0=x_px0, y_px0=y_px0, out=out)

        monkeypatch.setattr(reader, "read_tile", failing)
        batches = self.read(handles)
        assert [next(batches).readable.tolist() for _ in range(2)] == [[True], [True]]
        with pytest.raises(UnreadableSlide, match=r"'s': .*s\.tif: reading failed: disk is gone"):
            next(batches)

    def test_reads_ahead_but_not_far_and_stops_when_closed(self, handles, monkeypatch):
        made = []

        def watched(slide, geometry, *, x_px0, y_px0, out):
            made.append(x_px0)

        monkeypatch.setattr(reader, "read_tile", watched)
        batches = self.read(handles[:2])
        next(batches)
        time.sleep(0.05)
        assert len(made) == 4  # one given out, one waiting for each handle and one more
        batches.close()
        assert not any(thread.name.startswith("reader") for thread in threading.enumerate())
