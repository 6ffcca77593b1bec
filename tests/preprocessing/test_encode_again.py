import json
import logging
import os
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from encode_fakes import (
    CONFIG,
    CountingLoad,
    FakeEncoder,
    assert_same,
    config_of,
    contents,
    lazy,
    one_slide_in_jpeg,
    only,
    tissue_image,
    two_slides,
)
from tiff_files import damage_tile, write_tiff

from preprocessing.config import EncoderConfig, ReadingConfig, TissueConfig
from preprocessing.encoders.lazy import LazyEncoder
from preprocessing.errors import StoreError
from preprocessing.extraction.encode import encode_shard
from preprocessing.slides.reader import read_batches
from preprocessing.stores.store import open_store, store_path


@pytest.fixture
def rows(tmp_path):
    return two_slides(tmp_path)


def test_finished_slides_are_skipped_and_nothing_is_loaded(rows, tmp_path):
    first, second = lazy(), lazy()
    done = encode_shard(rows, CONFIG, tmp_path / "out", encoder=first)
    again = encode_shard(rows, CONFIG, tmp_path / "out", encoder=second)
    assert first._load.calls == 1
    assert second._load.calls == 0
    assert [s.status for s in again] == ["skipped", "skipped"]
    assert [s.tiles for s in again] == [s.tiles for s in done]


def test_unknown_digest_needs_the_weights_to_skip(rows, tmp_path):
    load = CountingLoad(FakeEncoder())
    encode_shard(rows[:1], CONFIG, tmp_path, encoder=LazyEncoder("fake", load))
    status = only(encode_shard(rows[:1], CONFIG, tmp_path, encoder=LazyEncoder("fake", load)))
    assert (status.status, load.calls) == ("skipped", 2)


@pytest.mark.parametrize(
    "change",
    [
        {"config": config_of(overlap_px=8)},
        {"config": CONFIG.model_copy(update={"tissue": TissueConfig(mask_mpp=8.0)})},
        {"config": CONFIG.model_copy(update={"reading": ReadingConfig(scaled_decoding=False)})},
        {"config": CONFIG.model_copy(update={"reading": ReadingConfig(direct=False)})},
        {"encoder": FakeEncoder(2.0)},
        {"encoder": FakeEncoder(transform="stain normalised, then means")},
        {"digest": "other regions"},
        {"mpp": 0.49},
        {"pixels": 5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_result_makes_it_again(rows, tmp_path, monkeypatch, change):
    row = rows[0]
    encode_shard([row], CONFIG, tmp_path / "out", encoder=lazy())
    if "digest" in change:
        for module in ("jobs", "prepare"):
            name = f"preprocessing.extraction.{module}.tissue_digest"
            monkeypatch.setattr(name, lambda *_: change["digest"], raising=False)
    if "pixels" in change:
        write_tiff(row.path, tissue_image(change["pixels"]))
    row = replace(row, mpp=change.get("mpp"))
    config, encoder = change.get("config", CONFIG), change.get("encoder")
    assert (
        only(encode_shard([row], config, tmp_path / "out", encoder=lazy(encoder))).status == "done"
    )
    encode_shard([row], config, tmp_path / "fresh", encoder=lazy(encoder))
    assert_same(contents(tmp_path / "out", "a"), contents(tmp_path / "fresh", "a"))


def test_settings_that_change_no_result_do_not(rows, tmp_path):
    encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())
    other = CONFIG.model_copy(
        update={
            "encoder": EncoderConfig(batch_size=7, compile=True),
            "reading": ReadingConfig(cache_mb=16),
            "shard_size": 3,
            "readers": 1,
        }
    )
    assert only(encode_shard(rows[:1], other, tmp_path, encoder=lazy())).status == "skipped"


def test_added_encoder_keeps_tiles_and_features_of_the_first(rows, tmp_path):
    encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())
    before = contents(tmp_path, "a")
    status = only(
        encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy(FakeEncoder(3.0), "triple"))
    )
    assert status.status == "done"
    after = contents(tmp_path, "a")
    assert_same({key: after[key] for key in before}, before)
    expected = before["fake"].astype(float) * 3
    np.testing.assert_allclose(after["triple"].astype(float), expected, rtol=2e-3)
    assert only(encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())).status == "skipped"


def test_tile_lost_in_a_later_pass_is_lost_for_every_encoder(rows, tmp_path, monkeypatch):
    encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())
    whole = contents(tmp_path, "a")

    def first_tile_fails(*args, **kwargs):
        for number, batch in enumerate(read_batches(*args, **kwargs)):
            batch.readable[0] = number > 0
            yield batch

    monkeypatch.setattr("preprocessing.extraction.extract.read_batches", first_tile_fails)
    encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy(name="second"))
    after = contents(tmp_path, "a")
    assert after["read_error"].tolist() == [True] + [False] * (len(whole["coords"]) - 1)
    for name in ("fake", "second"):
        assert np.isnan(after[name][0]).all()
        np.testing.assert_array_equal(after[name][1:], whole["fake"][1:])


def test_broken_store_is_made_again(rows, tmp_path):
    encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())
    whole = contents(tmp_path, "a")
    chunk = next((store_path(tmp_path, "a") / "features" / "fake" / "c").rglob("*0"))
    next(p for p in [chunk, *chunk.rglob("*")] if p.is_file()).unlink()
    with pytest.raises(StoreError):
        open_store(store_path(tmp_path, "a"))
    assert only(encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())).status == "done"
    assert_same(contents(tmp_path, "a"), whole)


KILLED = """
import os, signal, sys, time
from pathlib import Path
sys.path.insert(0, {tests!r})
import encode_fakes as t
from preprocessing.extraction.encode import encode_shard
from preprocessing.manifest import SlideRow

class Killed(t.FakeEncoder):
    def features(self, pixels):
        if len(self.batches) == {batches}:
            ends = time.monotonic() + 30  # written beside this
            while not (folder / "out" / "a.zarr").exists() and time.monotonic() < ends:
                time.sleep(0.01)
            os.kill(os.getpid(), signal.SIGKILL)
        return super().features(pixels)

replace = Path.replace

def killed(path, target):
    if target.suffix == ".zarr":  # everything is on the disk, only the final name is missing
        os.kill(os.getpid(), signal.SIGKILL)
    return replace(path, target)

if {while_writing}:
    Path.replace = killed
folder = Path({folder!r})
rows = [SlideRow(n, "patient-" + n, folder / (n + ".tif")) for n in "ab"]
encode_shard(rows, t.CONFIG, folder / "out", encoder=t.lazy(Killed()))
"""


@pytest.mark.parametrize("while_writing", [False, True])
def test_killed_run_goes_on_to_the_same_result(rows, tmp_path, while_writing):
    # Killed in the second slide's second batch, or while the first store is being written.
    code = KILLED.format(
        tests=str(Path(__file__).parent),
        batches=999 if while_writing else 9,
        while_writing=while_writing,
        folder=str(tmp_path),
    )
    root = Path(__file__).parents[2]
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=root, env={**os.environ}, capture_output=True, check=False
    )
    assert ended.returncode == -signal.SIGKILL, ended.stderr.decode()
    out = tmp_path / "out"
    assert store_path(out, "a").exists() != while_writing
    assert not store_path(out, "b").exists()
    assert any(out.glob("a.zarr.partial-*")) == while_writing
    statuses = encode_shard(rows, CONFIG, out, encoder=lazy())
    assert [s.status for s in statuses] == ["done" if while_writing else "skipped", "done"]
    encode_shard(rows, CONFIG, tmp_path / "fresh", encoder=lazy())
    assert sorted(p.name for p in out.iterdir()) == ["a.zarr", "b.zarr", "previews"]
    for row in rows:
        assert_same(contents(out, row.slide_id), contents(tmp_path / "fresh", row.slide_id))


def test_leftovers_of_other_slides_are_not_touched(rows, tmp_path):
    for name in ("a.zarr.partial-1", "a2.zarr.partial-2", "other.zarr.partial-3"):
        (tmp_path / "out" / name).mkdir(parents=True)
    encode_shard(rows[:1], CONFIG, tmp_path / "out", encoder=lazy())
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"a.zarr", "a2.zarr.partial-2", "other.zarr.partial-3", "previews"}


def test_corrected_patient_is_written_without_the_weights(rows, tmp_path):
    encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())
    encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy(FakeEncoder(3.0), "triple"))
    before = contents(tmp_path, "a")
    corrected, encoder = [replace(rows[0], patient_id="other")], lazy()
    status = only(encode_shard(corrected, CONFIG, tmp_path, encoder=encoder))
    assert (status.status, encoder._load.calls) == ("done", 0)
    assert open_store(store_path(tmp_path, "a")).provenance.patient_id == "other"
    assert_same(contents(tmp_path, "a"), before)
    assert only(encode_shard(corrected, CONFIG, tmp_path, encoder=lazy())).status == "skipped"


@pytest.mark.parametrize("made_by", [None, 0, 999])
def test_store_of_other_extraction_code_is_made_again(rows, tmp_path, monkeypatch, made_by):
    """Stores from before the version was recorded count as 0."""
    encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())
    path = store_path(tmp_path, "a") / "zarr.json"
    root = json.loads(path.read_text())
    root["attributes"]["histomil"].pop("extraction_version")
    if made_by is not None:
        root["attributes"]["histomil"]["extraction_version"] = made_by
    path.write_text(json.dumps(root))
    assert only(encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())).status == "done"
    assert only(encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())).status == "skipped"


class TestDamagedSlide:
    """16 of its tiles cannot be read; the mended file has the damaged one's fingerprint."""

    @pytest.fixture
    def row(self, tmp_path, monkeypatch):
        monkeypatch.setattr("preprocessing.slides.slide._fingerprint", lambda *_: "same")
        row = one_slide_in_jpeg(tmp_path)
        encode_shard([row], CONFIG, tmp_path / "whole", encoder=lazy())
        (tmp_path / "copy.tif").write_bytes(row.path.read_bytes())
        damage_tile(row.path, col=2, row=1)
        return row

    @pytest.fixture
    def encode(self, row, tmp_path):
        def encode(name="fake", config=CONFIG):
            return only(encode_shard([row], config, tmp_path / "out", encoder=lazy(name=name)))

        return encode

    def test_is_made_again_when_it_was_mended(self, row, encode, tmp_path):
        assert encode().status == "done"
        assert contents(tmp_path / "out", "a")["read_error"].sum() == 16
        (tmp_path / "copy.tif").replace(row.path)
        assert encode().status == "done"
        assert_same(contents(tmp_path / "out", "a"), contents(tmp_path / "whole", "a"))
        assert encode().status == "skipped"

    def test_keeps_other_encoders_while_it_stays_as_it_is(self, encode, tmp_path):
        encode()
        encode("second")
        both = contents(tmp_path / "out", "a")
        np.testing.assert_array_equal(both["fake"], both["second"])
        assert both["read_error"].sum() == 16
        assert encode().status == "done"
        assert_same(contents(tmp_path / "out", "a"), both)

    def test_loses_other_encoders_when_it_was_mended(self, row, encode, tmp_path, caplog):
        encode()
        encode("second")
        (tmp_path / "copy.tif").replace(row.path)
        with caplog.at_level(logging.WARNING, "preprocessing.extraction.jobs"):
            encode()
        assert "'a'" in caplog.text
        assert "extract it again with second" in caplog.text
        assert_same(contents(tmp_path / "out", "a"), contents(tmp_path / "whole", "a"))
        encode("second")
        assert not contents(tmp_path / "out", "a")["read_error"].any()

    def test_fails_once_fewer_bad_tiles_are_allowed(self, encode):
        assert encode().status == "done"
        status = encode(config=CONFIG.model_copy(update={"max_bad_tiles": 0.05}))
        assert status.status == "failed"
        assert "max_bad_tiles = 0.05" in status.error
