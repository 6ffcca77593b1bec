"""Stores of raw2features and wsidata, read by their own rules; theirs are read too."""

import json
import sys

import numpy as np
import pandas as pd
import pytest
import shapely
import zarr
from interchange_fakes import DIM, GIVEN, row, there_and_back, write_slide

from preprocessing.errors import ConfigError
from preprocessing.interchange import wsidata
from preprocessing.interchange.base import GivenFacts
from preprocessing.interchange.exports import export_features
from preprocessing.interchange.imports import import_features
from preprocessing.stores.store import open_store, store_path


def imported(name, source, out, *, given=GIVEN, encoder="uni"):
    (status,) = import_features(name, source, [row()], out, encoder=encoder, given=given)
    assert status.status == "done", status.error
    return open_store(store_path(out, "s1"))


# raw2features


REQUIRED = {
    "source": {
        *("uri", "slide_id", "mpp_level0", "ngff_version", "reader"),
        *("level_dimensions", "level_downsamples"),
    },
    "patching": {
        *("target_mpp", "achieved_mpp", "patch_px", "level0_patch", "level0_step", "read_level"),
        *("step_out_px", "n_patches", "grid_shape", "coords_convention"),
    },
    "provenance": {
        *("raw2features_version", "created_utc", "cli", "git_sha", "host", "arch", "platform"),
        "python",
    },
}
OF_A_MODEL = {
    *("source", "embedding_dim", "input_size", "pooling", "mean", "std", "interpolation"),
    *("transform_source_url", "license", "gated", "weights_sha256", "weights_revision", "doi"),
}


def test_raw2features_finds_its_grid(tmp_path):
    store = write_slide(tmp_path / "before", overlap_px=56, encoders=("uni", "unheard-of"))
    (path,) = export_features("raw2features", tmp_path / "before", ["s1"], "uni", tmp_path)
    assert path.name == "s1.embeddings.zarr"
    assert (path / ".zmetadata").is_file()
    root = zarr.open_group(path, mode="r")
    assert root.metadata.zarr_format == 2
    index = root.attrs["raw2features"]
    assert index["schema_version"] == "0.1"
    assert list(index["grids"]) == sorted(root["grids"].keys()) == ["mpp0.5_px224"]
    grid = root["grids/mpp0.5_px224"]
    header = grid.attrs["raw2features"]
    assert {"schema_version", "source", "patching", "models", "grid_hash", "provenance"} <= set(
        header
    )
    for section, keys in REQUIRED.items():
        assert keys <= set(header[section])
    assert set(header["models"]) == {"uni"}
    assert set(header["models"]["uni"]) >= OF_A_MODEL
    assert header["models"]["uni"]["embedding_dim"] == DIM
    assert header["models"]["uni"]["gated"] is True
    assert header["models"]["uni"]["mean"] == [0.485, 0.456, 0.406]
    assert header["source"]["scale_um"] == {"x": 0.25, "y": 0.25}
    patching = header["patching"]
    assert (patching["level0_patch"], patching["level0_step"], patching["step_out_px"]) == (
        *(448, 336),
        168,
    )
    assert all(isinstance(patching[k], int) for k in ("patch_px", "level0_patch", "level0_step"))
    coords, index = grid["coords"], grid["grid_index"]
    assert dict(coords.attrs) == {"role": "coords", "units": "level0_px"}
    assert (coords.dtype, index.dtype) == (np.int32, np.int32)
    np.testing.assert_array_equal(coords[...], store.coords_px0[store.usable])
    # By its rules a patch stands in the cell of its (row, column), tissue is a 255th of the mask.
    np.testing.assert_array_equal(index[...][:, ::-1] * 336 + [100, 200], coords[...])
    mask = grid["mask"][...]
    assert list(mask.shape) == patching["grid_shape"]
    share = mask[index[:, 0], index[:, 1]] / 255
    np.testing.assert_allclose(share, store.tissue_fraction[store.usable], atol=0.5 / 255 + 1e-6)
    features = grid["features/uni"]
    assert dict(features.attrs) == {"role": "features", "model": "uni"}
    assert (features.dtype, features.shape) == (np.float16, (patching["n_patches"], DIM))
    np.testing.assert_array_equal(features[...], store.features("uni")[store.usable])


def test_tissue_and_weights_come_back_from_raw2features(tmp_path):
    before, after = there_and_back("raw2features", tmp_path)
    np.testing.assert_allclose(
        after.tissue_fraction, before.tissue_fraction[before.usable], atol=0.5 / 255 + 1e-6
    )
    assert after.encoder_record("uni").weight_digest == "w" * 64
    assert after.encoder_record("uni").licence == "CC"


def test_tiles_on_no_lattice_have_no_cells(tmp_path):
    before = write_slide(tmp_path / "before")
    array = zarr.open_group(before.path, mode="r+")["coords"]
    array[0, 0] = array[0, 0] + 60
    (path,) = export_features("raw2features", tmp_path / "before", ["s1"], "uni", tmp_path)
    grid = zarr.open_group(path, mode="r")["grids/mpp0.5_px224"]
    assert sorted(grid.keys()) == ["coords", "features"]
    assert grid.attrs["raw2features"]["patching"]["grid_shape"] == [0, 0]
    store = imported("raw2features", tmp_path, tmp_path / "after")
    assert store.coords_px0[0].tolist() == [160, 200]


def test_one_of_several_grids_must_be_named(tmp_path):
    write_slide(tmp_path / "before")
    (path,) = export_features("raw2features", tmp_path / "before", ["s1"], "uni", tmp_path)
    grids = path / "grids"
    (grids / "mpp0.5_px224").rename(grids / "a")
    for file in (grids / "a").rglob("*"):
        other = grids / "b" / file.relative_to(grids / "a")
        other.parent.mkdir(parents=True, exist_ok=True)
        if file.is_file():
            other.write_bytes(file.read_bytes())
    (status,) = import_features(
        "raw2features", tmp_path, [row()], tmp_path / "out", encoder="uni", given=GIVEN
    )
    assert "features of 'uni' in grid(s) a, b; name one of them (grid)" in status.error
    given = GivenFacts(grid="b")
    imported("raw2features", tmp_path, tmp_path / "out", given=given)
    (status,) = import_features(
        "raw2features", tmp_path, [row()], tmp_path / "out", encoder="conch", given=given
    )
    assert "features of 'conch' in grid(s) none, b was given" in status.error


def test_a_raw2features_store_without_a_header_is_named(tmp_path):
    group = zarr.open_group(tmp_path / "s1.embeddings.zarr", mode="w", zarr_format=2)
    group.create_array("grids/a/features/uni", data=np.zeros((3, 4), np.float16))
    (status,) = import_features(
        "raw2features", tmp_path, [row()], tmp_path / "out", encoder="uni", given=GIVEN
    )
    assert "s1.embeddings.zarr: cannot be read as raw2features writes it: KeyError" in status.error


# wsidata


@pytest.fixture
def parquet():
    return pytest.importorskip("pyarrow.parquet", reason="the extra `interchange` is not installed")


def read_element(element):
    """AnnData's rules: what an element is stands in its attributes."""
    kind = (element.attrs["encoding-type"], element.attrs["encoding-version"])
    if kind in (("array", "0.2.0"), ("string-array", "0.2.0")):
        return element[...]
    if kind == ("string", "0.2.0"):
        assert element.shape == ()
        return str(element[()])
    if kind == ("dict", "0.1.0"):
        return {key: read_element(element[key]) for key in element}
    if kind == ("categorical", "0.2.0"):
        assert element.attrs["ordered"] is False
        codes, categories = (read_element(element[key]) for key in ("codes", "categories"))
        return pd.Categorical.from_codes(codes, [str(name) for name in categories])
    assert kind == ("dataframe", "0.2.0")
    columns = {key: read_element(element[key]) for key in element.attrs["column-order"]}
    index = read_element(element[element.attrs["_index"]])
    return pd.DataFrame(columns, index=[str(name) for name in index])


def test_wsidata_finds_its_table(tmp_path, parquet):
    store = write_slide(tmp_path / "before", encoders=("hf:owner/model",))
    (path,) = export_features(
        "wsidata", tmp_path / "before", ["s1"], "hf:owner/model", tmp_path / "out"
    )
    root = zarr.open_group(path, mode="r")
    assert root.metadata.zarr_format == 3
    assert set(root.attrs) == {"spatialdata_attrs", "slide_properties", "tile_spec"}
    table = root["tables/hf_owner_model_tiles"]
    about = dict(table.attrs)
    assert (about["encoding-type"], about["encoding-version"]) == ("anndata", "0.1.0")
    keys = {"region": "tiles", "region_key": "library_id", "instance_key": "tile_id"}
    assert about["spatialdata-encoding-type"] == "ngff:regions_table"
    assert {key: about[key] for key in keys} == keys
    assert about["version"] == "0.2"
    slots = ["layers", "obsm", "obsp", "varm", "varp"]
    assert sorted(table.keys()) == sorted(["X", "obs", "var", "uns", *slots])
    assert all(read_element(table[slot]) == {} for slot in slots)
    assert read_element(table["uns"]) == {"spatialdata_attrs": keys}
    expected = store.features("hf:owner/model")[store.usable].astype(np.float32)
    assert table["X"].dtype == np.float32
    assert "zstd" in str(table["X"].metadata.codecs).lower()
    np.testing.assert_array_equal(read_element(table["X"]), expected)
    obs, var = read_element(table["obs"]), read_element(table["var"])
    assert list(obs.columns) == ["tile_id", "library_id"]
    assert list(obs.index) == [str(i) for i in range(len(expected))]
    assert obs["tile_id"].tolist() == list(range(len(expected)))
    assert (obs["library_id"] == "tiles").all()
    assert list(var.index) == [str(i) for i in range(DIM)]


def test_wsidata_finds_its_tiles(tmp_path, parquet):
    store = write_slide(tmp_path / "before", overlap_px=56, objective_power=40.0)
    (path,) = export_features("wsidata", tmp_path / "before", ["s1"], "uni", tmp_path / "out")
    root = zarr.open_group(path, mode="r")
    properties = root.attrs["slide_properties"]
    assert set(properties) == {
        *("shape", "n_level", "level_shape", "level_downsample", "mpp", "magnification"),
        *("bounds", "scene", "n_scenes", "scene_names", "raw"),
    }
    assert (properties["shape"], properties["bounds"]) == ([4000, 5000], [100, 200, 4800, 3700])
    assert (properties["mpp"], properties["magnification"]) == (0.25, 40)
    assert json.loads(properties["raw"]) == {"openslide.vendor": "aperio"}
    spec = root.attrs["tile_spec"]["tiles"]
    assert set(spec) == {
        *("height", "width", "stride_height", "stride_width", "mpp", "ops_level"),
        *("ops_downsample", "base_level", "base_downsample", "tissue_name"),
    }
    # As its TileSpec derives them.
    assert int(spec["width"] * spec["base_downsample"]) == 448
    assert int(spec["stride_width"] * spec["base_downsample"]) == 336
    shapes = root["shapes/tiles"]
    assert sorted(shapes.attrs) == sorted(
        ["encoding-type", "axes", "coordinateTransformations", "spatialdata_attrs"]
    )
    assert shapes.attrs["encoding-type"] == "ngff:shapes"
    assert shapes.attrs["spatialdata_attrs"] == {"version": "0.3"}
    (transform,) = shapes.attrs["coordinateTransformations"]
    assert (transform["type"], transform["output"]["name"]) == ("identity", "global")
    table = parquet.read_table(path / "shapes/tiles/shapes.parquet")
    assert table.column_names == ["tile_id", "tissue_id", "geometry"]
    geo = json.loads(table.schema.metadata[b"geo"])
    assert geo["primary_column"] == "geometry"
    assert geo["columns"]["geometry"]["encoding"] == "WKB"
    boxes = shapely.from_wkb(table["geometry"].to_numpy())
    corners = store.coords_px0[store.usable]
    np.testing.assert_array_equal(shapely.bounds(boxes), np.hstack([corners, corners + 448]))
    assert (shapely.area(boxes) == 448 * 448).all()


def test_bounds_and_properties_come_back_from_wsidata(tmp_path, parquet):
    _, after = there_and_back("wsidata", tmp_path)
    assert after.provenance.bounds_px0 == (100, 200, 4800, 3700)


def test_rows_of_wsidata_are_matched_by_tile_id(tmp_path, parquet):
    """Shapes in another order than the table, and one more of them, as after a selection."""
    before = write_slide(tmp_path / "before")
    (path,) = export_features("wsidata", tmp_path / "before", ["s1"], "uni", tmp_path)
    file = path / "shapes/tiles/shapes.parquet"
    table = parquet.read_table(file)
    parquet.write_table(table.take(list(range(len(table)))[::-1]), file)
    store = imported("wsidata", tmp_path, tmp_path / "out")
    np.testing.assert_array_equal(store.coords_px0, before.coords_px0[before.usable])
    np.testing.assert_array_equal(store.features("uni"), before.features("uni")[before.usable])
    parquet.write_table(table.slice(1), file)
    (status,) = import_features(
        "wsidata", tmp_path, [row()], tmp_path / "none", encoder="uni", given=GIVEN
    )
    assert "no box of 1 of 23 tiles with features, the first is tile_id 0" in status.error


def test_a_wsidata_store_without_the_model_names_those_there(tmp_path, parquet):
    write_slide(tmp_path / "before")
    export_features("wsidata", tmp_path / "before", ["s1"], "uni", tmp_path)
    (status,) = import_features(
        "wsidata", tmp_path, [row()], tmp_path / "out", encoder="conch", given=GIVEN
    )
    assert "no group 'tables/conch_tiles'" in status.error
    assert "s1.zarr" in status.error


def test_without_pyarrow_the_remedy_is_told(tmp_path, monkeypatch):
    """It is the same for every slide: no status, but the end of it."""
    write_slide(tmp_path / "before")
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(ConfigError, match=r"pip install 'histomil\[interchange\]'"):
        export_features("wsidata", tmp_path / "before", ["s1"], "uni", tmp_path / "out")
    assert not (tmp_path / "out").exists()
    with pytest.raises(ConfigError, match="needs pyarrow"):
        wsidata._boxes(tmp_path, np.zeros(1, np.int64))
