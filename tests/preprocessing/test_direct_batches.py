"""Batches of tiles from slides whose stored tiles are decoded directly."""

from contextlib import ExitStack

import numpy as np
import openslide
import pytest
import simplejpeg
import tifffile
from tiff_files import YCBCR, damage_tile, texture

from preprocessing.bench.reader_slides import Storage, write_svs
from preprocessing.config import ReadingConfig
from preprocessing.geometry import Size, plan_tiles
from preprocessing.manifest import SlideRow
from preprocessing.slides import direct
from preprocessing.slides.reader import read_batches, read_tile
from preprocessing.slides.slide import Slide


def open_tiff(path) -> Slide:
    return Slide(SlideRow("s", "p", path))


@pytest.fixture(scope="module")
def path(tmp_path_factory):
    path = tmp_path_factory.mktemp("stored") / "s.svs"
    write_svs(path, texture(1900, 700), mpp=0.5, storage=YCBCR, factors=(1,))
    return path


@pytest.fixture
def decoded(monkeypatch):
    streams = []

    def counted(stream, **kwargs):
        streams.append(stream)
        return simplejpeg.decode_jpeg(stream, **kwargs)

    monkeypatch.setattr(direct, "decode_jpeg", counted)
    return streams


def read(path, *, mpp, threads=1, shuffled=False, decoded=None):
    """The batches, and the coordinates of a grid of tiles."""
    with ExitStack() as stack:
        slide = stack.enter_context(open_tiff(path))
        assert slide.reader.startswith("direct")
        if decoded is not None:
            decoded.clear()  # of what was compared with openslide
        geometry = plan_tiles(slide.pyramid, mpp=mpp, tile_px=56)
        side = int(geometry.tile_px0_x)
        xs, ys = (np.arange(0, n - side, side) for n in (1900, 700))
        coords = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2).astype(np.int32)
        if shuffled:
            coords = np.random.default_rng(0).permutation(coords)
        more = range(threads - 1)
        handles = [slide, *(stack.enter_context(slide.another()) for _ in more)]
        return coords, list(read_batches(handles, coords, geometry, batch_size=16))


@pytest.mark.parametrize("mpp", [0.5, 0.7, 1.0])
@pytest.mark.parametrize("threads", [1, 4])
def test_every_row_once_and_each_stored_tile_about_once(path, decoded, mpp, threads):
    coords, batches = read(path, mpp=mpp, threads=threads, shuffled=True, decoded=decoded)
    rows = np.concatenate([batch.rows for batch in batches])
    assert rows.dtype == np.int64
    by_row = np.lexsort((coords[:, 0], coords[:, 1]))
    np.testing.assert_array_equal(rows, by_row)
    assert len(decoded) <= 30 * 11


@pytest.mark.parametrize("mpp", [0.5, 0.7, 1.0])
def test_order_and_pixels_do_not_depend_on_threads(path, mpp):
    _, alone = read(path, mpp=mpp, shuffled=True)
    _, together = read(path, mpp=mpp, threads=3, shuffled=True)
    for one, other in zip(alone, together, strict=True):
        np.testing.assert_array_equal(one.rows, other.rows)
        np.testing.assert_array_equal(one.tiles, other.tiles)


@pytest.mark.parametrize("shuffled", [False, True])
def test_tiles_are_those_of_their_rows(path, shuffled):
    coords, batches = read(path, mpp=0.5, shuffled=shuffled)
    with openslide.OpenSlide(path) as reference:
        for batch in batches:
            for row, tile in zip(batch.rows.tolist(), batch.tiles, strict=True):
                corner = tuple(coords[row].tolist())
                shown = reference.read_region(corner, 0, (56, 56)).convert("RGB")
                np.testing.assert_array_equal(tile, np.asarray(shown))


@pytest.mark.parametrize("mpp", [0.5, 0.6, 0.9])
def test_resampled_tiles_equal_those_cut_from_openslides_pixels(path, mpp):
    geometry = None
    tiles = []
    for reading in (ReadingConfig(), ReadingConfig(direct=False)):
        with Slide(SlideRow("s", "p", path), reading=reading) as slide:
            geometry = geometry or plan_tiles(slide.pyramid, mpp=mpp, tile_px=56)
            tiles.append(read_tile(slide, geometry, x_px0=501, y_px0=333))
    np.testing.assert_array_equal(*tiles)


def test_no_tiles(path):
    with open_tiff(path) as slide:
        geometry = plan_tiles(slide.pyramid, mpp=0.5, tile_px=56)
        assert list(read_batches([slide], np.zeros((0, 2), np.int32), geometry, batch_size=4)) == []


@pytest.mark.parametrize("scale", [1, 2])
def test_tiles_that_coincide_with_stored_ones_are_decoded_into_the_batch(path, decoded, scale):
    side = YCBCR.tile_px // scale
    with open_tiff(path) as slide:
        geometry = plan_tiles(slide.pyramid, mpp=0.5 * scale, tile_px=side)
        xs, ys = (np.arange(0, n - 63, 64) for n in (1900, 700))
        coords = np.stack(np.meshgrid(xs, ys), axis=-1).reshape(-1, 2).astype(np.int32)
        expected = [
            slide.read_direct(0, x // scale, y // scale, Size(side, side), scale=scale)
            for x, y in coords.tolist()
        ]
    with open_tiff(path) as slide:
        assert slide.stored_tile(0) is not None
        decoded.clear()
        batches = list(read_batches([slide], coords, geometry, batch_size=16))
        assert slide._direct._cache._held_bytes == 0
    assert len(decoded) == len(coords)
    for batch in batches:
        for row, tile in zip(batch.rows.tolist(), batch.tiles, strict=True):
            np.testing.assert_array_equal(tile, expected[row])


def test_a_tile_that_coincides_with_one_cut_by_the_edge(tmp_path):
    """At a half, 127 of its 128 columns fill the whole of the scaled tile."""
    path = tmp_path / "s.svs"
    storage = Storage(tile_px=128, quality=85, rgb=False)
    write_svs(path, texture(255, 255), mpp=0.5, storage=storage, factors=(1,))
    coords = np.array([[128, 128]], dtype=np.int32)
    with open_tiff(path) as slide:
        geometry = plan_tiles(slide.pyramid, mpp=1.0, tile_px=64)
        (batch,) = read_batches([slide], coords, geometry, batch_size=8)
        expected = slide.read_direct(0, 64, 64, Size(64, 64), scale=2)
    np.testing.assert_array_equal(batch.tiles[0], expected)


def test_a_damaged_tile_that_coincides_with_a_stored_one(path, tmp_path):
    broken = tmp_path / "s.svs"
    broken.write_bytes(path.read_bytes())
    damage_tile(broken, col=3, row=2, kept=0.4)
    coords = np.array([[128, 128], [192, 128], [256, 128]], dtype=np.int32)
    with open_tiff(broken) as slide:
        geometry = plan_tiles(slide.pyramid, mpp=0.5, tile_px=64)
        (batch,) = read_batches([slide], coords, geometry, batch_size=8)
    np.testing.assert_array_equal(batch.rows, [0, 1, 2])
    np.testing.assert_array_equal(batch.readable, [True, False, True])
    assert not batch.tiles[1].any()
    assert batch.tiles[[0, 2]].any(axis=(1, 2, 3)).all()


def test_a_tile_that_ends_beyond_a_level_of_rounded_size(tmp_path):
    """A downsample is the mean of both axes': of 1616 px there are then 402 at a level of 400."""
    path = tmp_path / "s.svs"
    with tifffile.TiffWriter(path) as tiff:
        for size in ((1600, 1616), (400, 400)):
            about = "Aperio Image Library\r\n|AppMag = 20|MPP = 0.5"
            how = {"tile": (16, 16), "compression": "jpeg", "description": about, "metadata": None}
            tiff.write(texture(*size), photometric="rgb", **how)
    coords = np.array([[201, 1407], [201, 201]], dtype=np.int32)
    tiles = []
    for reading in (ReadingConfig(), ReadingConfig(direct=False)):
        with Slide(SlideRow("s", "p", path), reading=reading) as slide:
            geometry = plan_tiles(slide.pyramid, mpp=0.5 * 4.02, tile_px=51)
            assert (geometry.level, geometry.read_px_y) == (1, pytest.approx(51))
            assert coords.max() + geometry.tile_px0_y < slide.pyramid.size_px0.height
            (batch,) = read_batches([slide], coords, geometry, batch_size=2)
            assert batch.readable.all()
            tiles.append(batch.tiles[np.argsort(batch.rows)])
    np.testing.assert_array_equal(tiles[0][1], tiles[1][1])
    assert np.abs(tiles[0][0].astype(int) - tiles[1][0]).mean() < 4  # openslide's start is rounded
