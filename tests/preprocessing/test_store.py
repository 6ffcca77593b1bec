import hashlib
import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
import zarr

from preprocessing.artefacts import whole_folder
from preprocessing.config import QualityConfig
from preprocessing.errors import NoTissue, StoreError
from preprocessing.stores import store as stores
from preprocessing.stores.store import (
    SCHEMA_VERSION,
    EncoderRecord,
    Provenance,
    SlideFeatures,
    open_store,
    store_path,
    write_store,
)

HUB_NAME = "hf:owner/model"


def provenance(dims):
    values = {
        "slide_id": "s1",
        "patient_id": "P 1",
        "slide_fingerprint": "ab12",
        "vendor": "aperio",
        "level0_width": 4000,
        "level0_height": 3000,
        "bounds_px0": (5, 6, 3900, 2900),
        "mpp_x": 0.25,
        "mpp_y": 0.2501,
        "mpp_source": "openslide.mpp-x",
        "tile_px": 224,
        **dict.fromkeys(("tile_px0_x", "stride_px0_x"), 448.0),
        **dict.fromkeys(("tile_px0_y", "stride_px0_y"), 224 * 0.5 / 0.2501),
        "requested_mpp": 0.5,
        **dict.fromkeys(("effective_mpp_x", "effective_mpp_y"), 0.5),
        "read_level": 0,
        "tissue": {},
        "grid": {"mpp": 0.5},
        **dict.fromkeys(("thumbnail_px0_per_px_x", "thumbnail_px0_per_px_y"), 40.0),
        **dict.fromkeys(("mask_px0_per_px_x", "mask_px0_per_px_y"), 32.0),
        "versions": {"histomil": "0.1.0"},
        "created": "2025-01-01T00:00:00+00:00",
        "encoders": {
            name: EncoderRecord(
                dim=dim, weight_digest="d", transform="t", precision="float32", licence="MIT"
            )
            for name, dim in dims.items()
        },
    }
    return Provenance.model_validate(values)


def contents(tiles=7, *, dims=None, unreadable=(2,), seed=0):
    dims = {"lite0": 12} if dims is None else dims
    rng = np.random.default_rng(seed)
    read_error = np.zeros(tiles, dtype=bool)
    read_error[list(unreadable)] = True
    features = {}
    for name, dim in dims.items():
        features[name] = rng.normal(size=(tiles, dim)).astype(np.float16)
        features[name][read_error] = np.nan
    return SlideFeatures(
        provenance=provenance(dims),
        coords_px0=rng.integers(0, 3000, (tiles, 2), dtype=np.int32),
        tissue_fraction=rng.random(tiles, dtype=np.float32),
        read_error=read_error,
        quality=rng.random((tiles, 3), dtype=np.float32),
        features=features,
        thumbnail=rng.integers(0, 256, (30, 40, 3), dtype=np.uint8),
        tissue_mask=rng.random((94, 125)) < 0.5,
    )


@pytest.mark.parametrize("tiles", [1, 7, 4096, 4097])
def test_round_trip(tmp_path, tiles):
    """4097 rows take two chunks, the last of which is padded."""
    written = contents(tiles, dims={"lite0": 300, HUB_NAME: 4}, unreadable=range(0, tiles, 3))
    path = write_store(tmp_path / "features", written)
    assert path == tmp_path / "features" / "s1.zarr" == store_path(tmp_path / "features", "s1")
    store = open_store(path)
    assert store.provenance == written.provenance
    assert len(store) == tiles
    assert store.encoders == ("lite0", HUB_NAME)
    for name in ("coords_px0", "tissue_fraction", "read_error", "thumbnail", "tissue_mask"):
        got, want = getattr(store, name), getattr(written, name)
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)
    for name, values in written.features.items():
        assert store.features(name).dtype == np.float16
        np.testing.assert_array_equal(store.features(name), values)
    np.testing.assert_array_equal(store.usable, ~written.read_error)


def test_rows_of_unreadable_tiles_are_nan(tmp_path):
    store = open_store(write_store(tmp_path, contents(9, unreadable=(0, 4))))
    absent = np.isnan(store.features("lite0")).all(axis=1)
    np.testing.assert_array_equal(np.flatnonzero(absent), [0, 4])
    assert np.isfinite(store.features("lite0")[store.usable]).all()


def test_arrays_of_zeros_are_whole(tmp_path):
    """zarr by itself leaves out chunks of nothing but the fill value."""
    written = contents(3, unreadable=())
    names = ("coords_px0", "tissue_fraction", "thumbnail", "tissue_mask")
    zeros = {name: np.zeros_like(getattr(written, name)) for name in names}
    features = {"lite0": np.zeros((3, 12), dtype=np.float16)}
    store = open_store(write_store(tmp_path, replace(written, features=features, **zeros)))
    assert not store.features("lite0").any()
    assert store.usable.all()


def test_layout_is_plain_zarr_v3_that_needs_no_histomil(tmp_path):
    written = contents(5000, dims={"lite0": 300})
    path = write_store(tmp_path, written)
    root = json.loads((path / "zarr.json").read_text())
    assert (root["zarr_format"], root["node_type"]) == (3, "group")
    assert root["attributes"]["histomil"]["schema_version"] == SCHEMA_VERSION == 2
    chunks = [path / "features" / "lite0" / "c" / row / "0" for row in ("0", "1")]
    assert [chunk.stat().st_size for chunk in chunks] == [2500 * 300 * 2] * 2  # at most 4096 rows
    raw = np.concatenate([np.fromfile(chunk, dtype="<f2") for chunk in chunks])
    np.testing.assert_array_equal(raw.reshape(5000, 300), written.features["lite0"])
    group = zarr.open_group(path, mode="r")
    np.testing.assert_array_equal(group["coords"][...], written.coords_px0)
    for key in ARRAYS:
        digest = hashlib.sha256(group[key][...].tobytes()).hexdigest()
        assert group[key].attrs["sha256"] == digest


def test_an_existing_store_is_replaced_whole(tmp_path):
    write_store(tmp_path, contents(7, dims={"lite0": 12, "old": 3}))
    newer = contents(3, seed=1)
    store = open_store(write_store(tmp_path, newer))
    assert store.encoders == ("lite0",)
    np.testing.assert_array_equal(store.coords_px0, newer.coords_px0)
    assert not (store.path / "features" / "old").exists()
    assert [entry.name for entry in tmp_path.iterdir()] == ["s1.zarr"]


def test_a_killed_writer_leaves_the_old_store_and_a_partial_name(tmp_path):
    path = write_store(tmp_path, contents())
    script = (
        "import os, sys, pathlib, preprocessing.artefacts as artefacts\n"
        "with artefacts.whole_folder(pathlib.Path(sys.argv[1])) as partial:\n"
        "    partial.mkdir(); os.kill(os.getpid(), 9)\n"
    )
    result = subprocess.run([sys.executable, "-c", script, str(path)], check=False)
    assert result.returncode == -signal.SIGKILL
    assert len(open_store(path)) == 7
    (partial,) = tmp_path.glob("s1.zarr.partial-*")
    with pytest.raises(StoreError, match="its name says that it was never finished"):
        open_store(partial)


def test_a_failing_writer_leaves_no_trace(tmp_path):
    path = write_store(tmp_path, contents())

    def fill_the_disk():
        with whole_folder(path) as partial:
            partial.mkdir()
            (partial / "zarr.json").write_text("{}")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space"):
        fill_the_disk()
    assert [entry.name for entry in tmp_path.iterdir()] == ["s1.zarr"]
    assert len(open_store(path)) == 7


ARRAYS = (
    *("coords", "tissue_fraction", "read_error", "quality"),
    *("features/lite0", "thumbnail", "tissue_mask"),
)


@pytest.mark.parametrize("key", ARRAYS)
@pytest.mark.parametrize("loss", ["chunk", "metadata", "folder"])
def test_a_store_that_lost_a_file_is_refused(tmp_path, key, loss):
    path = write_store(tmp_path, contents())
    chunk = next(file for file in (path / key / "c").rglob("*") if file.is_file())
    victim = {"chunk": chunk, "metadata": path / key / "zarr.json", "folder": path / key}[loss]
    victim.rename(tmp_path / "elsewhere")
    with pytest.raises(StoreError, match=rf"{key}.*incomplete or damaged store.*extract again"):
        open_store(path)


@pytest.mark.parametrize("key", ARRAYS)
@pytest.mark.parametrize("share", [0.0, 0.5])
def test_a_truncated_chunk_is_refused(tmp_path, key, share):
    path = write_store(tmp_path, contents())
    chunk = next(file for file in (path / key / "c").rglob("*") if file.is_file())
    chunk.write_bytes(chunk.read_bytes()[: int(chunk.stat().st_size * share)])
    with pytest.raises(StoreError, match=rf"{key}.*incomplete or damaged store"):
        open_store(path).verify()


def test_truncated_features_are_refused_when_opened(tmp_path):
    path = write_store(tmp_path, contents())
    (path / "features" / "lite0" / "c" / "0" / "0").write_bytes(bytes(167))
    with pytest.raises(StoreError, match="expected 168 bytes, got 167"):  # 7 x 12 x 2
        open_store(path)


@pytest.mark.parametrize("codec", ["zstd", "big-endian", "columns"])
def test_features_that_another_program_wrote_in_its_own_way(tmp_path, codec):
    """By the metadata: only what lies there row by row is read without zarr."""
    written = contents(50)
    path = write_store(tmp_path, written)
    group = zarr.open_group(path, mode="r+")
    digest = group["features/lite0"].attrs["sha256"]
    del group["features/lite0"]
    how = {
        "zstd": {"chunks": (20, 12)},
        "big-endian": {"serializer": zarr.codecs.BytesCodec(endian="big"), "compressors": None},
        "columns": {"chunks": (20, 5), "compressors": None},
    }[codec]
    values = written.features["lite0"]
    group.create_array("features/lite0", data=values, attributes={"sha256": digest}, **how)
    store = open_store(path)
    np.testing.assert_array_equal(store.features("lite0"), values)
    store.verify()


@pytest.mark.parametrize("key", ARRAYS)
def test_a_changed_value_is_found_where_it_is_looked_for(tmp_path, key):
    """A bit that flips in a file keeps every length as it was."""
    path = write_store(tmp_path, contents())
    open_store(path).verify()
    array = zarr.open_group(path, mode="r+")[key]
    first = (0,) * array.ndim
    array[first] = ~array[first] if array.dtype == bool else array[first] + 1
    store = open_store(path)
    with pytest.raises(StoreError, match=rf"{key}: .*its values are not those written.*SHA-256"):
        store.verify()
    if key.startswith("features/"):
        with pytest.raises(StoreError, match="its values are not those written"):
            store.verified_features("lite0")
        assert store.features("lite0")[0, 0] == array[first]


def test_an_array_without_a_checksum_is_refused(tmp_path):
    path = write_store(tmp_path, contents())
    del zarr.open_group(path, mode="r+")["quality"].attrs["sha256"]
    with pytest.raises(StoreError, match=r"quality: .*has no attribute 'sha256'; delete it and"):
        open_store(path)


def test_the_content_follows_features_places_and_what_is_used(tmp_path):
    def content(folder, slide, limits=QualityConfig()):  # noqa: B008 - it is frozen
        return open_store(write_store(tmp_path / folder, slide), limits).content("lite0")

    same = contents()
    first = content("a", same)
    assert content("b", same) == first
    elsewhere = replace(same, coords_px0=same.coords_px0 + 1)
    other = replace(same, features={"lite0": same.features["lite0"] + np.float16(1)})
    renamed = replace(same, provenance=same.provenance.model_copy(update={"patient_id": "other"}))
    assert content("c", renamed) == first
    assert len({first, content("d", elsewhere), content("e", other)}) == 3


def test_limits_leave_out_readable_tiles(tmp_path):
    """The tile that cannot be read has no quality, and is not asked for one."""
    slide = contents(5, unreadable=(2,))
    slide.quality[:] = [[9, 0, 0], [1, 0, 0], [np.nan] * 3, [9, 0.6, 0], [9, 0, 0.9]]
    path = write_store(tmp_path, slide)
    assert open_store(path).usable.tolist() == [True, True, False, True, True]
    limits = QualityConfig(min_sharpness=2, max_ink=0.5)
    assert open_store(path, limits).usable.tolist() == [True, False, False, False, True]
    blank = QualityConfig(max_blank=0.5)
    assert open_store(path, blank).usable.tolist() == [True, True, False, True, False]
    assert open_store(path, limits).content("lite0") != open_store(path).content("lite0")
    lax = QualityConfig(max_blank=1)
    assert open_store(path, lax).content("lite0") == open_store(path).content("lite0")


def test_a_limit_on_what_a_store_does_not_know_is_refused(tmp_path):
    slide = contents(3, unreadable=())
    slide.quality[1, 2] = np.nan
    path = write_store(tmp_path, slide)
    assert open_store(path, QualityConfig(max_ink=1)).usable.all()
    with pytest.raises(StoreError, match=r"s1\.zarr.*blank"):
        _ = open_store(path, QualityConfig(max_blank=0.5)).usable


def test_opening_reads_metadata_alone(tmp_path, monkeypatch):
    """Of a cohort that is streamed, thousands of stores are open at a time."""
    path = write_store(tmp_path, contents())
    monkeypatch.setattr(stores, "read_array", None)
    store = open_store(path)
    assert (len(store), store.encoders) == (7, ("lite0",))


def edit_root(path, change):
    root = json.loads((path / "zarr.json").read_text())
    change(root["attributes"])
    (path / "zarr.json").write_text(json.dumps(root))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda a: a["histomil"].update(schema_version=1),
            "version 1, this histomil reads 2",
        ),
        (lambda a: a["histomil"].pop("schema_version"), "schema version None"),
        (lambda a: a.pop("histomil"), "not a histomil store or unfinished"),
        (lambda a: a["histomil"].pop("mpp_x"), "is not a provenance(.|\n)*mpp_x"),
        (lambda a: a["histomil"].update(surprise=1), "is not a provenance(.|\n)*surprise"),
        (
            lambda a: a["histomil"]["encoders"]["lite0"].update(dim=13),
            r"features/lite0: expected float16 \(7, 13\), got float16 \(7, 12\)",
        ),
        (
            lambda a: a["histomil"]["encoders"].update(uni=a["histomil"]["encoders"]["lite0"]),
            "features/uni: incomplete or damaged",
        ),
    ],
)
def test_a_store_that_contradicts_its_schema_is_refused(tmp_path, change, message):
    path = write_store(tmp_path, contents())
    edit_root(path, change)
    with pytest.raises(StoreError, match=message):
        open_store(path)


def test_foreign_and_absent_folders_are_refused(tmp_path):
    with pytest.raises(StoreError, match=r"none\.zarr: no such feature store"):
        open_store(tmp_path / "none.zarr")
    (tmp_path / "empty.zarr").mkdir()
    with pytest.raises(StoreError, match="expected a zarr v3 group"):
        open_store(tmp_path / "empty.zarr")
    zarr.create_group(tmp_path / "other.zarr", zarr_format=3)
    with pytest.raises(StoreError, match="no attribute 'histomil'"):
        open_store(tmp_path / "other.zarr")
    path = write_store(tmp_path, contents())
    foreign = '{"zarr_format": 3, "node_type": "group", "attributes": [1]}'
    for text in ("{", "[]", "{}", '{"zarr_format": 2, "node_type": "group"}', foreign):
        (path / "zarr.json").write_text(text)
        with pytest.raises(StoreError, match="expected a zarr v3 group"):
            open_store(path)


def test_a_missing_encoder_lists_those_present(tmp_path):
    store = open_store(write_store(tmp_path, contents(dims={"lite0": 4, HUB_NAME: 5})))
    with pytest.raises(StoreError, match="no features of encoder 'uni', present: lite0, hf:owner/"):
        store.features("uni")


def half_absent():
    """One number of the unreadable tile is there."""
    features = contents().features["lite0"]
    features[2, 5] = 65504
    return features


def broken(**changes):
    return replace(contents(), **changes)


@pytest.mark.parametrize(
    ("slide", "message"),
    [
        (broken(coords_px0=np.zeros((7, 2))), r"coords: expected int32 \(7, 2\), got float64"),
        (broken(read_error=np.zeros(6, dtype=bool)), r"read_error: expected bool \(7\), got bool"),
        (
            broken(features={"lite0": np.zeros((7, 11), dtype=np.float16)}),
            r"features/lite0: expected float16 \(7, 12\), got float16 \(7, 11\)",
        ),
        (broken(features={}), r"recorded encoders \['lite0'\], got \[\]"),
        (
            broken(features={"lite0": np.zeros((7, 12), dtype=np.float16)}),
            "'lite0': expected finite rows.*1 of 7 rows differ, first row 2",
        ),
        (
            broken(features={"lite0": np.full((7, 12), np.inf, dtype=np.float16)}),
            "7 of 7 rows differ, first row 0 .float16 ends at 65504",
        ),
        (
            broken(features={"lite0": np.full((7, 12), -np.inf, dtype=np.float16)}),
            "7 of 7 rows differ",
        ),
        (broken(features={"lite0": half_absent()}), "1 of 7 rows differ, first row 2"),
    ],
)
def test_contents_that_break_the_schema_are_not_written(tmp_path, slide, message):
    with pytest.raises(StoreError, match=f"slide 's1': .*{message}"):
        write_store(tmp_path, slide)
    assert list(tmp_path.iterdir()) == []


def test_a_slide_without_tiles_is_not_stored(tmp_path):
    with pytest.raises(NoTissue, match="slide 's1': no tile to store"):
        write_store(tmp_path, contents(0, unreadable=()))
    assert list(tmp_path.iterdir()) == []


def test_a_file_in_the_way_is_named(tmp_path):
    (tmp_path / "s1.zarr").write_text("precious")
    with pytest.raises(StoreError, match="expected a folder or nothing, found a file"):
        write_store(tmp_path, contents())
    assert (tmp_path / "s1.zarr").read_text() == "precious"
