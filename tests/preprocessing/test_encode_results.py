"""What a run adds to stores and statuses, however its threads took turns."""

import time

import numpy as np
import pytest
from encode_fakes import (
    CONFIG,
    FakeEncoder,
    assert_same,
    contents,
    lazy,
    one_slide_in_jpeg,
    only,
    two_slides,
)
from tiff_files import damage_tile

from preprocessing.extraction import extract
from preprocessing.extraction.encode import encode_shard
from preprocessing.slides.reader import read_batches
from preprocessing.slides.slide import Slide
from preprocessing.stores.store import open_store, store_path

BATCHES = 6  # of a slide: 96 tiles by 16


@pytest.fixture
def rows(tmp_path):
    return two_slides(tmp_path)


def encode(rows, out, encoder=None):
    return encode_shard(rows, CONFIG, out, encoder=lazy(encoder))


def test_batches_in_another_order_give_the_same_store(rows, tmp_path, monkeypatch):
    encode(rows[:1], tmp_path / "one")

    def backwards(*args, **kwargs):
        yield from list(read_batches(*args, **kwargs))[::-1]

    monkeypatch.setattr(extract, "read_batches", backwards)
    encode(rows[:1], tmp_path / "two")
    assert_same(contents(tmp_path / "one", "a"), contents(tmp_path / "two", "a"))
    one, two = (open_store(store_path(tmp_path / n, "a")) for n in ("one", "two"))
    np.testing.assert_array_equal(one.quality, two.quality)


def test_quality_is_that_of_every_readable_tile(tmp_path, monkeypatch):
    row = one_slide_in_jpeg(tmp_path)
    damage_tile(row.path, col=2, row=1)
    asked = []

    def quality(pixels, mpp):
        asked.append(mpp)
        return pixels.mean(dim=(2, 3))

    monkeypatch.setattr(extract, "tile_quality", quality)
    status = only(encode([row], tmp_path / "out"))
    store = open_store(store_path(tmp_path / "out", "a"))
    lost = store.read_error
    assert (lost.sum(), status.tiles_unreadable) == (16, 16)
    assert np.isnan(store.quality[lost]).all()
    expected = store.features("fake")[~lost].astype(np.float32)
    np.testing.assert_allclose(store.quality[~lost], expected, rtol=1e-3)
    assert set(asked) == {0.5}


def test_provenance_tells_how_the_tiles_were_read(rows, tmp_path):
    encode(rows[:1], tmp_path)
    found = open_store(store_path(tmp_path, "a")).provenance
    with Slide(rows[0]) as slide:
        assert found.reader == slide.reader
    assert found.decoded_scale == 1
    assert "simplejpeg" in found.versions


def test_share_of_waiting_names_the_bottleneck(rows, tmp_path, monkeypatch):
    class Slow(FakeEncoder):
        def features(self, pixels):
            time.sleep(0.1)
            return super().features(pixels)

    busy = only(encode(rows[:1], tmp_path / "busy", encoder=Slow()))
    assert busy.seconds > 0.1 * BATCHES
    assert 0 <= busy.waited_for_reading < 0.5

    def slow(*args, **kwargs):
        for batch in read_batches(*args, **kwargs):
            time.sleep(0.1)
            yield batch

    monkeypatch.setattr(extract, "read_batches", slow)
    idle = only(encode(rows[:1], tmp_path / "idle"))
    assert 0.5 < idle.waited_for_reading <= 1
