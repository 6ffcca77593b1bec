import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from openslide import OpenSlide
from PIL import Image
from tiff_files import damage_tile, write_tiff

from preprocessing.config import EncoderConfig, GridConfig, PreprocessingConfig, TissueConfig
from preprocessing.encode import encode_shard
from preprocessing.encoders.base import EncoderSpec
from preprocessing.encoders.lazy import LazyEncoder
from preprocessing.encoders.registry import load_encoder
from preprocessing.errors import ConfigError, EncoderUnavailable, ManifestError, StoreError
from preprocessing.manifest import SlideRow
from preprocessing.reader import read_batches
from preprocessing.status import SlideStatus, read_status, write_status
from preprocessing.store import EncoderRecord, open_store, partial_stores, store_path

TILE_PX = 64


class FakeEncoder:
    """Mean red, green and blue of a tile, times a number that stands for the weights."""

    precision = "float32"
    transform = "means"
    dim = 3

    def __init__(self, weight: float = 1.0, *, tile_px: int = TILE_PX) -> None:
        self.weight = weight
        self.weight_digest = f"digest-{weight}"
        self.spec = EncoderSpec(
            "fake", "here", "package", dim=3, licence="none", gated=False, tile_px=tile_px
        )
        self.batches: list[int] = []

    def encode(self, tiles):
        self.batches.append(len(tiles))
        return (tiles.mean(axis=(1, 2)) * self.weight).astype(np.float32)


class CountingLoad:
    def __init__(self, encoder: FakeEncoder) -> None:
        self.encoder = encoder
        self.calls = 0

    def __call__(self) -> FakeEncoder:
        self.calls += 1
        return self.encoder


def lazy(encoder: FakeEncoder | None = None, name: str = "fake") -> LazyEncoder:
    """Its record is known without loading, as that of the embedded default is."""
    encoder = encoder or FakeEncoder()
    record = EncoderRecord(
        dim=3,
        weight_digest=encoder.weight_digest,
        transform="means",
        precision="float32",
        licence="none",
    )
    return LazyEncoder(name, CountingLoad(encoder), known=record)


def tissue_image(seed: int = 0) -> np.ndarray:
    """White glass, one block of purple tissue at x 256..1024, y 128..640, every spot different."""
    rng = np.random.default_rng(seed)
    image = np.full((768, 1280, 3), 244, dtype=np.uint8)
    colours = np.array([150, 70, 150]) + rng.integers(-25, 26, (512 // 32, 768 // 32, 3))
    image[128:640, 256:1024] = np.repeat(np.repeat(colours, 32, axis=0), 32, axis=1)
    return image


def config_of(**grid) -> PreprocessingConfig:
    return PreprocessingConfig(
        manifest=Path("slides.csv"),
        grid=GridConfig(**{"mpp": 0.5, "tile_px": TILE_PX} | grid),
        tissue=TissueConfig(mask_mpp=4.0, min_area_um2=1000, max_hole_um2=1000),
        encoder=EncoderConfig(batch_size=16),
        max_bad_tiles=0.5,
    )


CONFIG = config_of()


@pytest.fixture
def rows(tmp_path):
    return [
        SlideRow(name, f"patient-{name}", write_tiff(tmp_path / f"{name}.tif", tissue_image(seed)))
        for seed, name in enumerate(("a", "b"))
    ]


def only(statuses: list[SlideStatus]) -> SlideStatus:
    (status,) = statuses
    return status


def contents(folder: Path, slide_id: str) -> dict[str, np.ndarray]:
    store = open_store(store_path(folder, slide_id))
    return {name: store.features(name) for name in store.encoders} | {
        "coords": store.coords_px0,
        "read_error": store.read_error,
    }


def assert_same(one: dict[str, np.ndarray], two: dict[str, np.ndarray]) -> None:
    assert one.keys() == two.keys()
    for key, values in one.items():
        np.testing.assert_array_equal(values, two[key])


def test_features_stand_where_the_slide_has_them(rows, tmp_path):
    statuses = encode_shard(rows, CONFIG, tmp_path / "out", encoder=lazy())
    assert [s.status for s in statuses] == ["done", "done"]
    for seed, row in enumerate(rows):
        image = tissue_image(seed)
        store = open_store(store_path(tmp_path / "out", row.slide_id))
        expected = [
            image[y : y + TILE_PX, x : x + TILE_PX].mean(axis=(0, 1)) for x, y in store.coords_px0
        ]
        np.testing.assert_allclose(store.features("fake"), expected, rtol=1e-3)
        assert len(store) == statuses[seed].tiles >= 96  # the block holds 12 x 8 tiles
        assert store.usable.all()


def test_provenance_and_pictures(rows, tmp_path):
    config = config_of(mpp=0.7)
    encode_shard(rows[:1], config, tmp_path, encoder=lazy())
    store = open_store(store_path(tmp_path, "a"))
    found = store.provenance
    assert (found.patient_id, found.vendor) == ("patient-a", "generic-tiff")
    assert (found.level0_width, found.level0_height) == (1280, 768)
    assert found.tile_px0_x == pytest.approx(64 * 0.7 / 0.5)
    assert found.effective_mpp_x == pytest.approx(0.7)
    assert found.mpp_source == "tiff.XResolution"
    assert found.grid == config.grid
    assert found.encoders["fake"].weight_digest == "digest-1.0"
    assert {"openslide", "zarr", "torch", "histomil"} <= found.versions.keys()
    assert found.created.endswith("+00:00")
    height, width = store.thumbnail.shape[:2]
    assert max(height, width) <= 1024
    assert width * found.thumbnail_px0_per_px_x == pytest.approx(1280, abs=2)
    assert height * found.thumbnail_px0_per_px_y == pytest.approx(768, abs=2)
    rows_px, cols_px = np.nonzero(store.tissue_mask)
    scale = found.mask_px0_per_px_x
    assert (cols_px.min() * scale, (cols_px.max() + 1) * scale) == pytest.approx(
        (256, 1024), abs=33
    )
    assert (rows_px.min() * scale, (rows_px.max() + 1) * scale) == pytest.approx((128, 640), abs=33)


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
        {"encoder": FakeEncoder(2.0)},
        {"patient_id": "other"},
        {"mpp": 0.49},
        {"pixels": 5},
    ],
    ids=lambda change: next(iter(change)),
)
def test_whatever_changes_the_result_makes_it_again(rows, tmp_path, change):
    row = rows[0]
    encode_shard([row], CONFIG, tmp_path / "out", encoder=lazy())
    if "pixels" in change:
        write_tiff(row.path, tissue_image(change["pixels"]))
    patient, mpp = change.get("patient_id", row.patient_id), change.get("mpp")
    row = SlideRow(row.slide_id, patient, row.path, mpp)
    config, encoder = change.get("config", CONFIG), change.get("encoder")
    assert (
        only(encode_shard([row], config, tmp_path / "out", encoder=lazy(encoder))).status == "done"
    )
    encode_shard([row], config, tmp_path / "fresh", encoder=lazy(encoder))
    assert_same(contents(tmp_path / "out", "a"), contents(tmp_path / "fresh", "a"))


def test_settings_that_change_no_result_do_not(rows, tmp_path):
    encode_shard(rows[:1], CONFIG, tmp_path, encoder=lazy())
    other = CONFIG.model_copy(update={"encoder": EncoderConfig(batch_size=7), "shard_size": 3})
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

    monkeypatch.setattr("preprocessing.encode.read_batches", first_tile_fails)
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
import os, signal, sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import test_encode as t
from preprocessing.encode import encode_shard
from preprocessing.manifest import SlideRow

class Killed(t.FakeEncoder):
    def encode(self, tiles):
        if len(self.batches) == {batches}:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().encode(tiles)

if {while_writing}:  # everything is on the disk, only the final name is missing
    Path.replace = Path.rename = os.replace = os.rename = lambda *_: os.kill(
        os.getpid(), signal.SIGKILL
    )
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
    assert bool(partial_stores(out, "a")) == while_writing
    statuses = encode_shard(rows, CONFIG, out, encoder=lazy())
    assert [s.status for s in statuses] == ["done" if while_writing else "skipped", "done"]
    encode_shard(rows, CONFIG, tmp_path / "fresh", encoder=lazy())
    assert sorted(p.name for p in out.iterdir()) == ["a.zarr", "b.zarr"]
    for row in rows:
        assert_same(contents(out, row.slide_id), contents(tmp_path / "fresh", row.slide_id))


def test_leftovers_of_other_slides_are_not_touched(rows, tmp_path):
    for name in ("a.zarr.partial-1", "a2.zarr.partial-2", "other.zarr.partial-3"):
        (tmp_path / "out" / name).mkdir(parents=True)
    encode_shard(rows[:1], CONFIG, tmp_path / "out", encoder=lazy())
    names = {p.name for p in (tmp_path / "out").iterdir()}
    assert names == {"a.zarr", "a2.zarr.partial-2", "other.zarr.partial-3"}


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
    assert sorted(p.name for p in out.iterdir()) == ["a.zarr", "b.zarr"]


def test_unreadable_tiles_are_marked_and_the_rest_is_as_ever(tmp_path):
    path = write_tiff(tmp_path / "a.tif", tissue_image(), compression="jpeg")
    row = SlideRow("a", "p", path)
    encode_shard([row], CONFIG, tmp_path / "whole", encoder=lazy())
    damage_tile(path, col=2, row=1)  # x 512..768, y 256..512: 16 tiles amid the tissue
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
    path = write_tiff(tmp_path / "a.tif", tissue_image(), compression="jpeg")
    damage_tile(path, col=2, row=1)
    strict = CONFIG.model_copy(update={"max_bad_tiles": 0.05})
    status = only(encode_shard([SlideRow("a", "p", path)], strict, tmp_path, encoder=lazy()))
    assert status.status == "failed"
    assert "16 of" in status.error
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


def test_tile_size_the_encoder_does_not_take(rows, tmp_path):
    with pytest.raises(ConfigError, match=r"takes tiles of 224 px, grid\.tile_px is 64"):
        encode_shard(rows, CONFIG, tmp_path, encoder=lazy(FakeEncoder(tile_px=224)))


def test_one_id_twice_in_a_shard(rows, tmp_path):
    with pytest.raises(ManifestError, match=r"slide_id\(s\) a appear more than once"):
        encode_shard([*rows, rows[0]], CONFIG, tmp_path, encoder=lazy())


def test_the_embedded_encoder_end_to_end_on_a_real_slide(shared, tmp_path):
    path = shared / "slides" / "CMU-1-Small-Region.svs"
    config = PreprocessingConfig(
        manifest=Path("slides.csv"),
        grid=GridConfig(mpp=2.0, tile_px=128),
        encoder=EncoderConfig(device="cpu", batch_size=8),
    )
    status = only(encode_shard([SlideRow("cmu", "p", path)], config, tmp_path))
    assert (status.status, status.error) == ("done", "")
    store = open_store(store_path(tmp_path, "cmu"))
    features = store.features("lite0").astype(np.float32)
    assert features.shape == (status.tiles, 1280)
    # The same tile cut by hand, 513.03 level-0 pixels wide; only the rim is filtered differently.
    x, y = store.coords_px0[0].tolist()
    with OpenSlide(path) as slide:
        side = 128 * 2.0 / 0.499
        region = slide.read_region((x, y), 0, (514, 514)).convert("RGB")
        tile = region.resize((128, 128), Image.Resampling.BICUBIC, box=(0, 0, side, side))
    expected = load_encoder(config.encoder).encode(np.asarray(tile)[None])[0]
    cosine = features[0] @ expected / np.linalg.norm(features[0]) / np.linalg.norm(expected)
    assert cosine > 0.999


class TestStatus:
    statuses = (
        SlideStatus("a", "done", 12, 1.5),
        SlideStatus("b", "failed", 0, 0.1, "slide 'b': gone", "Traceback ..."),
    )

    def test_round_trip_leaves_one_file(self, tmp_path):
        path = tmp_path / "done" / "shard.json"
        write_status(path, self.statuses)
        assert read_status(path) == list(self.statuses)
        assert [p.name for p in path.parent.iterdir()] == ["shard.json"]

    def test_one_slide_twice(self, tmp_path):
        with pytest.raises(ManifestError, match="a appear more than once"):
            write_status(tmp_path / "s.json", [self.statuses[0], self.statuses[0]])
        assert not list(tmp_path.iterdir())

    @pytest.mark.parametrize("text", ["", '{"slides": [{"slide_id": "a"}]}', '{"slides": 1}'])
    def test_damaged_file(self, tmp_path, text):
        path = tmp_path / "s.json"
        path.write_text(text)
        with pytest.raises(StoreError, match=r"s\.json.*expected"):
            read_status(path)

    def test_absent_file(self, tmp_path):
        with pytest.raises(StoreError, match="no such status file"):
            read_status(tmp_path / "s.json")
