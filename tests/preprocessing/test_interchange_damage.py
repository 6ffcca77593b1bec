"""What is damaged, mixed up or of something else fails by name, and never the other slides."""

import json
import weakref
from dataclasses import replace

import h5py
import numpy as np
import pytest
import zarr
from interchange_fakes import CLAM_GIVEN, GIVEN, row, write_clam, write_slide, write_stamp

from preprocessing.errors import StoreError
from preprocessing.interchange import exports
from preprocessing.interchange.base import GivenFacts
from preprocessing.interchange.exports import export_features
from preprocessing.interchange.imports import import_features
from preprocessing.stores.store import FeatureStore, open_store, store_path

STAMP_GIVEN = GivenFacts(mpp=0.25)
GRID = "grids/mpp0.5_px224"


def error_of(name, source, out, *, given, encoder="uni", mpp=None):
    (status,) = import_features(name, source, [row(mpp=mpp)], out, encoder=encoder, given=given)
    assert status.status == "failed"
    assert status.error.startswith("slide 's1': ")
    assert status.error.count("slide 's1'") == 1
    return status.error


def flip_a_bit(chunk):
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(content)


# Chunks that a copy of a zarr store lost


@pytest.mark.parametrize("key", ["coords", "features/uni"])
def test_a_lost_chunk_of_raw2features_is_not_read_as_zeros(tmp_path, key):
    write_slide(tmp_path / "before")
    (path,) = export_features("raw2features", tmp_path / "before", ["s1"], "uni", tmp_path / "r")
    (path / GRID / key / "0.0").unlink()
    error = error_of("raw2features", tmp_path / "r", tmp_path / "out", given=GIVEN)
    assert f"array {key!r} lacks 1 of 1 chunks; copy the store again" in error


@pytest.mark.parametrize("key", ["X", "obs/tile_id"])
def test_a_lost_chunk_of_wsidata_is_not_read_as_zeros(tmp_path, key):
    pytest.importorskip("pyarrow", reason="the extra `interchange` is not installed")
    write_slide(tmp_path / "before")
    (path,) = export_features("wsidata", tmp_path / "before", ["s1"], "uni", tmp_path / "w")
    chunks = path / "tables" / "uni_tiles" / key / "c"
    next(file for file in chunks.rglob("*") if file.is_file()).unlink()
    error = error_of("wsidata", tmp_path / "w", tmp_path / "out", given=GIVEN)
    assert f"array {key!r} lacks 1 of 1 chunks" in error


def test_a_chunk_without_tissue_may_be_left_out(tmp_path):
    write_slide(tmp_path / "before")
    (path,) = export_features("raw2features", tmp_path / "before", ["s1"], "uni", tmp_path / "r")
    (path / GRID / "mask" / "0.0").unlink()
    (status,) = import_features(
        "raw2features", tmp_path / "r", [row()], tmp_path / "out", encoder="uni", given=GIVEN
    )
    assert status.status == "done", status.error


# Files that hold anything


@pytest.mark.parametrize(
    ("key", "values", "message"),
    [
        ("features", np.full((12, 16), b"x"), "features are |S1, expected numbers"),
        ("features", np.ones((12, 16), "c8"), "features are complex64, expected numbers"),
        ("coords", np.full((12, 2), b"x"), "has as many at other places"),
    ],
)
def test_arrays_of_something_else(tmp_path, key, values, message):
    write_clam(tmp_path, pt_files=True)
    with h5py.File(tmp_path / "h5_files" / "s1.h5", "r+") as file:
        del file[key]
        file[key] = values
    assert message in error_of("clam", tmp_path, tmp_path / "out", given=CLAM_GIVEN)


@pytest.mark.parametrize(
    ("name", "attributes"),
    [
        ("clam", {"downsample": "x"}),
        ("clam", {"downsample": float("nan")}),
        ("stamp", {"tile_size_px": float("nan")}),
        ("stamp", {"tile_size_px": "many"}),
        ("stamp", {"tile_size_um": "large"}),
        ("stamp", {"tile_size_um": [1.0, 2.0]}),
    ],
)
def test_attributes_of_something_else(tmp_path, name, attributes):
    if name == "clam":
        write_clam(tmp_path)
        with h5py.File(tmp_path / "patches" / "s1.h5", "r+") as file:
            file["coords"].attrs.update(attributes)
    else:
        write_stamp(tmp_path / "s1.h5", **attributes)
    given = {"clam": CLAM_GIVEN, "stamp": STAMP_GIVEN}[name]
    assert "s1.h5: cannot be read as" in error_of(name, tmp_path, tmp_path / "out", given=given)


@pytest.mark.parametrize(
    ("section", "key", "value"),
    [
        ("source", None, [1]),
        ("source", "level_dimensions", [[]]),
        ("patching", "level0_patch", "wide"),
        ("patching", "patch_px", 224.5),
        ("patching", "read_level", "x"),
        ("models", None, [1]),
    ],
)
def test_a_header_of_something_else(tmp_path, section, key, value):
    write_slide(tmp_path / "before")
    (path,) = export_features("raw2features", tmp_path / "before", ["s1"], "uni", tmp_path / "r")
    file = path / GRID / ".zattrs"
    content = json.loads(file.read_text())
    header = content["raw2features"]
    header[section] = value if key is None else {**header[section], key: value}
    file.write_text(json.dumps(content))
    error = error_of("raw2features", tmp_path / "r", tmp_path / "out", given=GIVEN)
    assert "s1.embeddings.zarr: " in error


def test_cells_outside_of_the_mask(tmp_path):
    write_slide(tmp_path / "before")
    (path,) = export_features("raw2features", tmp_path / "before", ["s1"], "uni", tmp_path / "r")
    grid = zarr.open_group(path, mode="r+", use_consolidated=False)[GRID]
    mask = grid["mask"][...][:2]
    del grid["mask"]
    grid.create_array("mask", data=mask)
    error = error_of("raw2features", tmp_path / "r", tmp_path / "out", given=GIVEN)
    assert "cannot be read as raw2features writes it: IndexError" in error


# Files that belong to something else


def test_clam_patches_of_as_many_other_tiles_are_refused(tmp_path):
    """Or the tiles of one run would have the size of another's."""
    write_clam(tmp_path)
    with h5py.File(tmp_path / "patches" / "s1.h5", "r+") as file:
        file["coords"][...] = file["coords"][...] + 7
    error = error_of("clam", tmp_path, tmp_path / "out", given=CLAM_GIVEN)
    assert "features of 12 tiles, " in error
    assert "has as many at other places; they are of different runs" in error


@pytest.mark.parametrize("place", ["s1.h5", "virchow/s1.h5"])
def test_stamp_features_of_another_encoder_are_refused(tmp_path, place):
    write_stamp(tmp_path / place, extractor="uni")
    error = error_of("stamp", tmp_path, tmp_path / "out", given=STAMP_GIVEN, encoder="virchow")
    assert "features of encoder 'uni' by the file, 'virchow' was asked for" in error
    given = replace(STAMP_GIVEN, their_encoder="uni")
    (status,) = import_features(
        "stamp", (tmp_path / place).parent, [row()], tmp_path / "b", encoder="virchow", given=given
    )
    assert status.status == "done", status.error


def test_a_longer_name_of_an_encoder_is_not_a_shorter_one_with_a_hash(tmp_path):
    write_stamp(tmp_path / "virchow-full" / "s1.h5", extractor="virchow-full")
    error = error_of("stamp", tmp_path, tmp_path / "out", given=STAMP_GIVEN, encoder="virchow")
    assert "virchow/s1.h5: no such file" in error


def test_altered_copies_of_tiles_are_refused(tmp_path):
    """As STAMP's predecessor wrote them, behind the tiles and at the same places."""
    write_stamp(tmp_path / "s1.h5")
    with h5py.File(tmp_path / "s1.h5", "r+") as file:
        file["augmented"] = np.arange(12) > 8
    error = error_of("stamp", tmp_path, tmp_path / "out", given=STAMP_GIVEN)
    assert "s1.h5: holds altered copies of tiles" in error


# Stores that are there already


def test_a_damaged_store_gets_no_second_encoder(tmp_path):
    """Its damage would be written again, under checksums that fit."""
    write_clam(tmp_path / "clam")
    import_features(
        "clam", tmp_path / "clam", [row()], tmp_path / "out", encoder="uni", given=CLAM_GIVEN
    )
    flip_a_bit(store_path(tmp_path / "out", "s1") / "features" / "uni" / "c" / "0" / "0")
    error = error_of("clam", tmp_path / "clam", tmp_path / "out", given=CLAM_GIVEN, encoder="conch")
    assert "s1.zarr/features/uni: incomplete or damaged store, its values are not those" in error
    assert open_store(store_path(tmp_path / "out", "s1")).encoders == ("uni",)


def test_other_weights_of_equal_features_are_not_passed_over(tmp_path):
    write_clam(tmp_path)
    out = tmp_path / "out"
    import_features("clam", tmp_path, [row()], out, encoder="uni", given=CLAM_GIVEN)
    error = error_of("clam", tmp_path, out, given=replace(CLAM_GIVEN, weight_digest="abc"))
    assert "are of weights 'uni of CLAM', to be imported are those of 'abc'; delete it" in error


# Exports


def test_tiles_that_are_oblong_in_micrometres_are_not_exported_to_stamp(tmp_path):
    """Imported tiles are square in level-0 pixels, which may be oblong themselves."""
    write_clam(tmp_path / "clam")
    (status,) = import_features(
        *("clam", tmp_path / "clam", [row(mpp=(0.25, 0.27))], tmp_path / "a"),
        encoder="uni",
        given=CLAM_GIVEN,
    )
    assert status.status == "done", status.error
    with pytest.raises(StoreError, match=r"tiles of 128 x 138\.24 um; other tools know square"):
        export_features("stamp", tmp_path / "a", ["s1"], "uni", tmp_path / "stamp")
    assert not list((tmp_path / "stamp").rglob("*.h5"))


def test_an_export_holds_one_slide_at_a_time(tmp_path, monkeypatch):
    ids = [f"s{i}" for i in range(6)]
    for slide_id in ids:
        write_slide(tmp_path / "before", slide_id)
    opened: weakref.WeakSet[FeatureStore] = weakref.WeakSet()
    counts = []

    def counted(*arguments):
        store = open_store(*arguments)
        opened.add(store)
        counts.append(len(opened))
        return store

    monkeypatch.setattr(exports, "open_store", counted)
    export_features("stamp", tmp_path / "before", ids, "uni", tmp_path / "out")
    assert max(counts) <= 2
