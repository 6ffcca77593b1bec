import errno

import numpy as np
import pytest
import torch
from encode_fakes import (
    CONFIG,
    FakeEncoder,
    contents,
    lazy,
    one_slide_in_jpeg,
    only,
    two_slides,
)
from tiff_files import damage_tile, write_tiff

from preprocessing.encoders.lazy import LazyEncoder
from preprocessing.errors import EncoderUnavailable, ManifestError
from preprocessing.extraction.encode import encode_shard
from preprocessing.manifest import SlideRow
from preprocessing.slides import reader, slide
from preprocessing.stores.store import store_path


@pytest.fixture
def rows(tmp_path):
    return two_slides(tmp_path)


def test_one_failing_slide_does_not_stop_the_others(rows, tmp_path):
    (tmp_path / "text.tif").write_text("no slide")
    blank = np.full((512, 512, 3), 244, dtype=np.uint8)
    bad = {
        "absent": tmp_path / "absent.tif",
        "text": tmp_path / "text.tif",
        "blank": write_tiff(tmp_path / "blank.tif", blank),
        "unscaled": write_tiff(tmp_path / "unscaled.tif", blank, mpp=None),
        "coarse": write_tiff(tmp_path / "coarse.tif", blank, mpp=(4.0, 4.0)),
    }
    failing = [SlideRow(name, "p", path) for name, path in bad.items()]
    out = tmp_path / "out"
    statuses = encode_shard([rows[0], *failing, rows[1]], CONFIG, out, encoder=lazy())
    assert [s.status for s in statuses] == ["done", *["failed"] * 5, "done"]
    for status, words in zip(
        statuses[1:-1],
        ("no file at", "cannot open", "not one tile", "set column 'mpp'", "at most 1.1x"),
        strict=True,
    ):
        assert words in status.error
        assert repr(status.slide_id) in status.error
        assert "Traceback" in status.traceback
        assert status.tiles == 0
    assert sorted(p.name for p in out.iterdir()) == ["a.zarr", "b.zarr", "previews"]
    assert sorted(p.name for p in (out / "previews").iterdir()) == ["a.png", "b.png"]


def test_unreadable_tiles_are_marked_and_the_rest_is_as_ever(tmp_path):
    row = one_slide_in_jpeg(tmp_path)
    encode_shard([row], CONFIG, tmp_path / "whole", encoder=lazy())
    damage_tile(row.path, col=2, row=1)  # x 512..768, y 256..512: 16 tiles amid the tissue
    assert only(encode_shard([row], CONFIG, tmp_path / "damaged", encoder=lazy())).status == "done"
    whole, damaged = contents(tmp_path / "whole", "a"), contents(tmp_path / "damaged", "a")
    np.testing.assert_array_equal(damaged["coords"], whole["coords"])
    x, y = damaged["coords"].T
    np.testing.assert_array_equal(
        damaged["read_error"], (x >= 512) & (x < 768) & (y >= 256) & (y < 512)
    )
    assert damaged["read_error"].sum() == 16
    bad = damaged["read_error"]
    assert np.isnan(damaged["fake"][bad]).all()
    np.testing.assert_array_equal(damaged["fake"][~bad], whole["fake"][~bad])


def test_too_many_unreadable_tiles_fail_the_slide(tmp_path):
    row = one_slide_in_jpeg(tmp_path)
    damage_tile(row.path, col=2, row=1)
    strict = CONFIG.model_copy(update={"max_bad_tiles": 0.05})
    status = only(encode_shard([row], strict, tmp_path, encoder=lazy()))
    assert status.status == "failed"
    assert "max_bad_tiles = 0.05" in status.error
    assert not store_path(tmp_path, "a").exists()


def test_features_beyond_float16_fail_the_slide(rows, tmp_path):
    status = only(encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy(FakeEncoder(1e4))))
    assert status.status == "failed"
    assert "float16" in status.error


def test_encoder_that_cannot_be_had_stops_the_shard(rows, tmp_path):
    def refuse():
        raise EncoderUnavailable("encoder 'fake': gated")

    with pytest.raises(EncoderUnavailable, match="gated"):
        encode_shard(rows, CONFIG, tmp_path, encoder=LazyEncoder("fake", refuse))


def test_one_id_twice_in_a_shard(rows, tmp_path):
    with pytest.raises(ManifestError, match=r"slide_id\(s\) a appear more than once"):
        encode_shard([*rows, rows[0]], CONFIG, tmp_path, encoder=lazy())


def test_reading_stops_once_too_many_tiles_have_failed(tmp_path, monkeypatch):
    """Every one of them opens the file again."""
    row, tried = one_slide_in_jpeg(tmp_path), []
    for col in range(1, 4):
        for at in range(3):
            damage_tile(row.path, col=col, row=at)
    read_tile = reader.read_tile

    def counted(*args, **kwargs):
        tried.append(kwargs)
        return read_tile(*args, **kwargs)

    monkeypatch.setattr(reader, "read_tile", counted)
    strict = CONFIG.model_copy(update={"max_bad_tiles": 0.01, "readers": 1})
    status = only(encode_shard([row], strict, tmp_path, encoder=lazy()))
    assert "of the first 16 tiles" in status.error
    assert len(tried) <= 4 * 16  # of 192: the batch, and those that were on their way


def input_output_error(*_, **__):
    raise OSError(errno.EIO, "Input/output error")


@pytest.mark.parametrize(
    ("module", "name"),
    [(slide, "_fingerprint"), (reader, "read_tile"), (slide.Slide, "read_region")],
)
def test_slide_that_the_system_cannot_read_fails_alone(rows, tmp_path, monkeypatch, module, name):
    with monkeypatch.context() as patch:
        patch.setattr(module, name, input_output_error)
        status = only(encode_shard(rows[:1], CONFIG, tmp_path / "out", encoder=lazy()))
    assert status.status == "failed"
    assert status.error == (
        f"slide 'a': {rows[0].path}: reading failed: [Errno 5] Input/output error"
    )
    again = encode_shard(rows, CONFIG, tmp_path / "out", encoder=lazy())
    assert [s.status for s in again] == ["done", "done"]


@pytest.mark.parametrize(
    "name",
    ["extraction.encode.write_store", "extraction.jobs.open_store", "artefacts.shutil.rmtree"],
)
def test_output_that_the_system_refuses_stops_the_shard(rows, tmp_path, monkeypatch, name):
    out = tmp_path / "out"
    encode_shard(rows[:1], CONFIG, out, encoder=lazy())
    (out / "a.zarr.partial-1").mkdir()
    monkeypatch.setattr(f"preprocessing.{name}", input_output_error)
    with pytest.raises(OSError, match="Input/output error") as caught:
        encode_shard(rows, CONFIG, out, encoder=lazy(FakeEncoder(2.0)))
    assert caught.value.__notes__ == ["slide 'a'"]


def test_a_batch_too_large_for_the_device_says_what_to_lower(rows, tmp_path):
    class OutOfMemory(FakeEncoder):
        def features(self, pixels):
            raise torch.OutOfMemoryError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        encode_shard(rows, CONFIG, tmp_path, encoder=lazy(OutOfMemory()))
    assert caught.value.__notes__ == [
        "16 tiles at once: lower encoder.batch_size",
        "slide 'a'",
    ]


def test_failing_encoder_stops_the_shard_and_names_the_slide(rows, tmp_path):
    class OutOfMemory(FakeEncoder):
        def features(self, pixels):
            raise RuntimeError("CUDA out of memory")

    with pytest.raises(RuntimeError, match="out of memory") as caught:
        encode_shard(rows, CONFIG, tmp_path, encoder=lazy(OutOfMemory()))
    assert caught.value.__notes__ == ["slide 'a'"]


def test_a_slide_whose_preview_failed_has_one_after_the_next_run(rows, tmp_path, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr("preprocessing.extraction.encode.write_preview", input_output_error)
        with pytest.raises(OSError, match="Input/output error"):
            encode_shard(rows, CONFIG, tmp_path, encoder=lazy())
    encode_shard(rows, CONFIG, tmp_path, encoder=lazy())
    assert sorted(p.name for p in (tmp_path / "previews").iterdir()) == ["a.png", "b.png"]


def test_a_path_that_the_system_refuses_fails_alone(rows, tmp_path):
    """As one in a folder without permission would."""
    bad = SlideRow("far", "p", tmp_path / ("n" * 300 + ".tif"))
    statuses = encode_shard([bad, rows[0]], CONFIG, tmp_path / "out", encoder=lazy())
    assert [status.status for status in statuses] == ["failed", "done"]
    assert "slide 'far'" in statuses[0].error
