"""Exported files hold exactly what the other tools' own readers look for; theirs are read too."""

import h5py
import numpy as np
import pytest
import torch
from interchange_fakes import (
    CLAM_GIVEN,
    DIM,
    GIVEN,
    row,
    write_clam,
    write_slide,
    write_stamp,
)

from preprocessing.interchange.base import GivenFacts
from preprocessing.interchange.exports import export_features
from preprocessing.interchange.imports import import_features
from preprocessing.stores.store import open_store, store_path


def exported(name, folder, **changes):
    """The store, its readable tiles as float32, and the paths of the files."""
    store = write_slide(folder / "before", **changes)
    (encoder,) = store.encoders
    paths = export_features(name, folder / "before", ["s1"], encoder, folder / "out")
    features = store.features(encoder)[store.usable].astype(np.float32)
    return store, features, [path.relative_to(folder / "out") for path in paths]


def imported(name, source, out, *, given=GIVEN, encoder="uni"):
    (status,) = import_features(name, source, [row()], out, encoder=encoder, given=given)
    assert status.status == "done", status.error
    return open_store(store_path(out, "s1"))


# CLAM


def test_clam_finds_its_tiles_and_features(tmp_path):
    store, features, paths = exported("clam", tmp_path)
    assert list(map(str, paths)) == ["patches/s1.h5", "h5_files/s1.h5", "pt_files/s1.pt"]
    coords = store.coords_px0[store.usable]
    with h5py.File(tmp_path / "out/patches/s1.h5") as file:
        assert list(file) == ["coords"]
        data = file["coords"]
        assert (data.dtype, data.maxshape, data.chunks) == (np.int64, (None, 2), (1, 2))
        np.testing.assert_array_equal(data[...], coords)
        assert set(data.attrs) == {
            *("patch_size", "patch_level", "downsample", "downsampled_level_dim"),
            *("level_dim", "name", "save_path"),
        }
        # As CLAM's dataset does: one read_region of this size, at this level, a tile.
        assert (data.attrs["patch_size"], data.attrs["patch_level"]) == (448, 0)
        assert data.attrs["level_dim"].tolist() == [5000, 4000]
        assert data.attrs["downsample"].tolist() == [1, 1]
        assert data.attrs["name"] == "s1"
    with h5py.File(tmp_path / "out/h5_files/s1.h5") as file:
        assert set(file) == {"features", "coords"}
        assert (file["features"].dtype, file["coords"].dtype) == (np.float32, np.int32)
        assert file["features"].maxshape == (None, DIM)
        assert (file["features"].chunks, file["coords"].chunks) == ((32, DIM), (32, 2))
        assert not [*file.attrs, *file["features"].attrs, *file["coords"].attrs]
        np.testing.assert_array_equal(file["features"][...], features)
        np.testing.assert_array_equal(file["coords"][...], coords)
    tensor = torch.load(tmp_path / "out/pt_files/s1.pt", weights_only=True)
    assert tensor.dtype == torch.float32
    assert torch.equal(tensor, torch.from_numpy(features))


@pytest.mark.parametrize("left_out", ["h5_files", "pt_files"])
def test_features_of_clam_with_tiles_of_level_1(tmp_path, left_out):
    coords, features = write_clam(tmp_path / "clam", **{left_out: True})
    store = imported("clam", tmp_path / "clam", tmp_path / "out", given=CLAM_GIVEN)
    np.testing.assert_array_equal(store.coords_px0, coords)
    np.testing.assert_array_equal(store.features("uni"), features.astype(np.float16))
    made = store.provenance
    assert (made.tile_px0_x, made.stride_px0_y, made.read_level) == (512, 512, 1)
    assert (made.level0_width, made.level0_height) == (5000, 4000)
    assert (made.tile_px, made.requested_mpp, made.effective_mpp_x) == (256, 0.5, 0.5)


def test_clam_patches_that_lie_elsewhere_or_nowhere(tmp_path):
    coords, _ = write_clam(tmp_path / "features", patches=True)
    write_clam(tmp_path / "results", h5_files=True, pt_files=True)
    given = GivenFacts(mpp=0.25, tile_mpp=0.5, tile_px=256)
    (status,) = import_features(
        "clam", tmp_path / "features", [row()], tmp_path / "a", encoder="uni", given=CLAM_GIVEN
    )
    assert status.status == "done"  # tile_px and tile_mpp say how large a tile is
    store = open_store(store_path(tmp_path / "a", "s1"))
    assert store.provenance.tile_px0_x == 512
    assert store.provenance.level0_width == 100 + 4 * 512  # of the tiles alone
    (tmp_path / "features" / "h5_files" / "s1.h5").unlink()
    (status,) = import_features(
        "clam", tmp_path / "features", [row()], tmp_path / "b", encoder="uni", given=given
    )
    assert "s1.pt: holds no coordinates, and there is no" in status.error
    given = GivenFacts(
        mpp=0.25, tile_mpp=0.5, tile_px=256, coords_dir=tmp_path / "results" / "patches"
    )
    store = imported("clam", tmp_path / "features", tmp_path / "b", given=given)
    np.testing.assert_array_equal(store.coords_px0, coords)


def test_clam_files_of_different_runs_are_refused(tmp_path):
    write_clam(tmp_path, tiles=12)
    write_clam(tmp_path, tiles=8, patches=True, pt_files=True)
    (status,) = import_features(
        "clam", tmp_path, [row()], tmp_path / "out", encoder="uni", given=CLAM_GIVEN
    )
    assert "features of 8 tiles" in status.error
    assert "has 12; they are of different runs" in status.error


def test_the_stride_of_clams_contours_is_what_neighbours_are_apart(tmp_path):
    """Each contour has a lattice of its own, so that the tiles are on none together."""
    write_clam(tmp_path / "clam", contours=2)
    store = imported("clam", tmp_path / "clam", tmp_path / "out", given=CLAM_GIVEN)
    assert (store.provenance.stride_px0_x, store.provenance.stride_px0_y) == (512, 512)


@pytest.mark.parametrize("content", [b"", b"cut", b"PK\x03\x04 no archive"])
def test_a_pt_file_that_is_none(tmp_path, content):
    write_clam(tmp_path, h5_files=True)
    (tmp_path / "pt_files" / "s1.pt").write_bytes(content)
    (status,) = import_features(
        "clam", tmp_path, [row()], tmp_path / "out", encoder="uni", given=CLAM_GIVEN
    )
    assert status.status == "failed"
    assert "s1.pt: " in status.error


# TRIDENT


TRIDENT_ATTRIBUTES = {
    *("patch_size", "patch_size_level0", "level0_magnification", "target_magnification"),
    *("overlap", "name", "savetodir", "level0_width", "level0_height"),
}


@pytest.mark.parametrize(
    ("mpp", "power", "level0", "target", "side"),
    [(0.25, None, 40, 20, 448), (0.2525, 40.0, 40, 20, 444), (0.5, None, 20, 20, 224)],
)
def test_trident_finds_its_tiles_and_features(tmp_path, mpp, power, level0, target, side):
    store, features, paths = exported(
        "trident", tmp_path, mpp=(mpp, mpp), overlap_px=56, objective_power=power
    )
    folder = f"{target}x_224px_56px_overlap"
    assert list(map(str, paths)) == [
        f"{folder}/patches/s1_patches.h5",
        f"{folder}/features_uni/s1.h5",
    ]
    coords = store.coords_px0[store.usable]
    expected = {
        "patch_size": 224,
        "patch_size_level0": side,
        "level0_magnification": level0,
        "target_magnification": target,
        "overlap": 56,
        "name": "s1",
        "level0_width": 5000,
        "level0_height": 4000,
    }
    for path in paths:
        with h5py.File(tmp_path / "out" / path) as file:
            data = file["coords"]
            assert (data.dtype, data.maxshape, data.chunks) == (np.int64, (None, 2), (1, 2))
            np.testing.assert_array_equal(data[...], coords)
            assert set(data.attrs) == TRIDENT_ATTRIBUTES
            assert {name: data.attrs[name] for name in expected} == expected
    with h5py.File(tmp_path / "out" / paths[1]) as file:
        assert set(file) == {"features", "coords"}
        assert (file["features"].dtype, file["features"].chunks) == (np.float32, (1, DIM))
        assert set(file["features"].attrs) == {"name", "savetodir", "encoder"}
        assert file["features"].attrs["encoder"] == "uni"
        np.testing.assert_array_equal(file["features"][...], features)


def trident_file(path, **attributes):
    """As TRIDENT's save_h5 leaves it; half precision, as some of its encoders return."""
    coords = np.stack([np.arange(12) % 4, np.arange(12) // 4], axis=1) * 512
    features = np.random.default_rng(0).normal(size=(12, DIM)).astype(np.float16)
    defaults = {
        "patch_size": 256,
        "patch_size_level0": 512,
        "level0_magnification": 40,
        "target_magnification": 20,
        "overlap": 0,
        "name": "s1",
        "savetodir": "job",
        "level0_width": 5000,
        "level0_height": 4000,
    }
    path.parent.mkdir(parents=True, exist_ok=True)
    with h5py.File(path, "w") as file:
        file.create_dataset("features", data=features, maxshape=(None, DIM), chunks=(1, DIM))
        data = file.create_dataset("coords", data=coords, maxshape=(None, 2), chunks=(1, 2))
        for name, value in (defaults | attributes).items():
            if value is not None:
                data.attrs[name] = value
    return coords, features


def test_a_job_of_trident(tmp_path):
    job = tmp_path / "job"
    coords, features = trident_file(job / "20x_256px_0px_overlap/features_uni_v1/s1.h5")
    given = GivenFacts(mpp=0.25, tile_mpp=0.5, their_encoder="uni_v1")
    for number, source in enumerate((job, job / "20x_256px_0px_overlap")):
        store = imported("trident", source, tmp_path / str(number), given=given)
        np.testing.assert_array_equal(store.coords_px0, coords)
        np.testing.assert_array_equal(store.features("uni"), features)
        assert (store.provenance.tile_px, store.provenance.tile_px0_x) == (256, 512)
    trident_file(job / "10x_256px_0px_overlap/features_uni_v1/s1.h5")
    (status,) = import_features("trident", job, [row()], tmp_path / "b", encoder="uni", given=given)
    assert "name the folder of one magnification and tile size" in status.error


def test_an_overlapping_job_of_trident_without_the_side_on_level_0(tmp_path):
    attributes = {"patch_size": 512, "overlap": 256, "patch_size_level0": None}
    trident_file(tmp_path / "features_uni/s1.h5", **attributes)
    given = GivenFacts(mpp=0.25, tile_mpp=0.5)
    store = imported("trident", tmp_path, tmp_path / "out", given=given)
    assert (store.provenance.tile_px0_x, store.provenance.stride_px0_x) == (1024, 512)
    assert store.provenance.grid.overlap_px == 256


@pytest.mark.parametrize("attribute", ["patch_size", "level0_width"])
def test_a_trident_file_that_lacks_an_attribute_is_named(tmp_path, attribute):
    trident_file(tmp_path / "features_uni/s1.h5", **{attribute: None})
    (status,) = import_features(
        "trident", tmp_path, [row()], tmp_path / "out", encoder="uni", given=GIVEN
    )
    assert f"s1.h5: /coords has no attribute '{attribute}', present: " in status.error


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"patch_size": 0}, "says that tile_px is 0; make the file anew"),
        ({"overlap": 256}, "says that stride_px0 is (0.0, 0.0)"),
        ({"patch_size_level0": float("nan")}, "says that tile_px0 is (nan, nan)"),
        (
            {"patch_size": 8, "patch_size_level0": 16},
            "tiles that histomil cannot have: 1 validation",
        ),
    ],
)
def test_facts_that_cannot_be_are_refused(tmp_path, attributes, message):
    trident_file(tmp_path / "features_uni/s1.h5", **attributes)
    (status,) = import_features(
        "trident",
        tmp_path,
        [row()],
        tmp_path / "out",
        encoder="uni",
        given=GivenFacts(mpp=0.25, tile_mpp=0.5),
    )
    assert message in status.error


def test_a_file_of_another_tool_is_told_by_its_datasets(tmp_path):
    write_stamp(tmp_path / "features_uni" / "s1.h5")
    (status,) = import_features(
        "trident", tmp_path, [row()], tmp_path / "out", encoder="uni", given=GIVEN
    )
    assert "no dataset 'features', present: coords, feats; name the format" in status.error


# STAMP


def stamp_reader(path):
    """As STAMP's get_coords: coordinates, the tile's sides in um and px."""
    with h5py.File(path) as file:
        assert "stamp_version" not in file.attrs  # or a newer one than installed is refused
        side_um = file.attrs.get("tile_size_um")
        assert side_um
        return file["coords"][:], float(side_um), int(file.attrs["tile_size_px"]), file["feats"][:]


@pytest.mark.parametrize("mpp", [(0.25, 0.25), (0.2525, 0.2525), (0.25, 0.2501)])
def test_stamp_finds_its_tiles_and_features(tmp_path, mpp):
    store, features, paths = exported("stamp", tmp_path, mpp=mpp)
    assert list(map(str, paths)) == ["uni/s1.h5"]
    coords, side_um, side_px, feats = stamp_reader(tmp_path / "out" / paths[0])
    np.testing.assert_allclose(coords, store.coords_px0[store.usable] * mpp, rtol=1e-6)
    assert (side_um, side_px) == (112, 224)
    assert side_um / side_px == 0.5
    assert (feats.dtype, coords.dtype) == (np.float16, np.float32)
    np.testing.assert_array_equal(feats, features)
    with h5py.File(tmp_path / "out" / paths[0]) as file:
        assert set(file) == {"coords", "feats"}
        assert set(file.attrs) == {
            *("extractor", "unit", "tile_size_um", "tile_size_px", "code_hash", "feat_type")
        }
        assert (file.attrs["unit"], file.attrs["feat_type"]) == ("um", "tile")
        assert file.attrs["extractor"] == "uni"


@pytest.mark.parametrize("place", ["s1.h5", "uni/s1.h5", "uni-1a2b3c4d/s1.h5"])
@pytest.mark.parametrize(
    "attributes", [{}, {"tile_size_um": None, "tile_size": 256.0, "stamp_version": "2.0.0"}]
)
def test_features_of_stamp(tmp_path, place, attributes):
    coords, features = write_stamp(tmp_path / "stamp" / place, **attributes)
    given = GivenFacts(mpp=0.25)
    store = imported("stamp", tmp_path / "stamp", tmp_path / "out", given=given)
    np.testing.assert_array_equal(store.coords_px0, coords * 4)
    np.testing.assert_array_equal(store.features("uni"), features)
    made = store.provenance
    assert (made.tile_px, made.tile_px0_x, made.stride_px0_x) == (224, 1024, 1024)
    assert made.requested_mpp == pytest.approx(256 / 224, abs=1e-6)
    assert made.effective_mpp_x == pytest.approx(256 / 224)


def test_features_of_stamp_before_its_second_version(tmp_path):
    """Coordinates in pixels of tiles of 224, each 256 um wide, and not a word about it."""
    silent = dict.fromkeys(("unit", "tile_size_um", "tile_size_px", "stamp_version", "feat_type"))
    write_stamp(tmp_path / "stamp" / "s1.h5", stride=224, **silent)
    given = GivenFacts(mpp=0.5)
    (status,) = import_features(
        "stamp", tmp_path / "stamp", [row()], tmp_path / "out", encoder="uni", given=given
    )
    assert "does not say how large a tile is; give tile_px0, or tile_px and" in status.error
    given = GivenFacts(mpp=0.5, coords_unit="stamp-v1", tile_mpp=round(256 / 224, 6))
    store = imported("stamp", tmp_path / "stamp", tmp_path / "out", given=given)
    assert store.coords_px0.max(axis=0).tolist() == [3 * 512, 2 * 512]
    assert (store.provenance.tile_px, store.provenance.tile_px0_x) == (224, 512)


@pytest.mark.parametrize(
    ("attributes", "message"),
    [
        ({"feat_type": "slide"}, "features of a whole slide; import those of its tiles"),
        ({"unit": "px"}, "coordinates in 'px', expected 'um'"),
    ],
)
def test_other_features_of_stamp_are_refused(tmp_path, attributes, message):
    write_stamp(tmp_path / "s1.h5", **attributes)
    (status,) = import_features(
        "stamp", tmp_path, [row()], tmp_path / "out", encoder="uni", given=GivenFacts(mpp=0.25)
    )
    assert message in status.error


def test_one_of_several_folders_of_stamp_must_be_named(tmp_path):
    for folder in ("uni-1a2b3c4d", "uni-5e6f7a8b"):
        write_stamp(tmp_path / folder / "s1.h5")
    (status,) = import_features(
        "stamp", tmp_path, [row()], tmp_path / "out", encoder="uni", given=GivenFacts(mpp=0.25)
    )
    assert "name the folder of one of them" in status.error
    assert "uni-5e6f7a8b" in status.error
