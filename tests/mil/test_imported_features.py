"""Features of another tool are trained on and painted as if they had been extracted here."""

import shutil
from pathlib import Path

import h5py
import numpy as np
import pandas as pd
import pytest
import torch
from fake_archive import study_of, write_archive
from heatmap_fakes import FirstFeatureModel, MarginTask
from safetensors.torch import load_file

from mil.bags import load_features
from mil.checkpoint import load_checkpoint, refuse_other_origin
from mil.config import StudyConfig
from mil.experiment import run_member, split_task
from mil.heatmaps.export import write_qupath_geojson
from mil.heatmaps.lattice import tile_raster
from mil.heatmaps.regions import connected_regions
from mil.heatmaps.render import Backdrop, render_heatmap
from mil.heatmaps.scores import CohortScale, TileLayout, score_slide
from mil.paint import heatmap_dir, paint_method
from preprocessing.errors import CheckpointError
from preprocessing.interchange.base import GivenFacts
from preprocessing.interchange.exports import export_features
from preprocessing.interchange.imports import import_features
from preprocessing.manifest import SlideRow, read_manifest
from preprocessing.process_list import write_process_list
from preprocessing.stores.store import open_store, store_path

ABMIL = {"abmil": {"name": "abmil", "hidden_dim": 8, "attention_dim": 4}}
FAST = {"methods": ABMIL, "train": {"epochs": 2, "device": "cpu"}}
GIVEN = GivenFacts(mpp=0.5, tile_px=100, tile_mpp=0.5, level0_size=(400, 300))


@pytest.fixture
def archive(tmp_path) -> Path:
    write_archive(tmp_path, patients=8)
    return tmp_path


def trained(study: StudyConfig) -> dict:
    split_task(study, "tumour")
    for fold in range(2):
        run_member(study, "tumour", "abmil", fold=fold, seed=0)
    return load_file(study.member_dir("tumour", "abmil", 0, 0) / "checkpoint.safetensors")


@pytest.mark.parametrize("name", ["trident", "stamp"])
def test_imported_features_train_and_paint(archive, name):
    """By way of the other tool's files and back: the same tiles, weights and maps."""
    study = study_of(archive, **FAST)
    rows = read_manifest(study.preprocessing.manifest)
    ids = [row.slide_id for row in rows]
    native = load_features(study.features_dir, ids, "lite0")
    weights = trained(study)
    export_features(name, study.features_dir, ids, "lite0", archive / name)
    shutil.rmtree(study.output)
    statuses = import_features(
        name, archive / name, rows, study.features_dir, encoder="lite0", given=GIVEN
    )
    write_process_list(statuses, study.features_dir)
    assert {status.status for status in statuses} == {"done"}
    loaded = load_features(study.features_dir, ids, "lite0")
    for slide_id in ids:
        assert (loaded.stored([slide_id]) == native.stored([slide_id])).all()
    again = trained(study)
    assert again.keys() == weights.keys()
    assert all((again[key] == weights[key]).all() for key in weights)
    paint_method(study, "tumour", "abmil")
    folder = heatmap_dir(study, "tumour", "abmil")
    for slide_id in ids:
        tiles = pd.read_csv(folder / f"{slide_id}.csv")
        store = open_store(store_path(study.features_dir, slide_id))
        np.testing.assert_array_equal(tiles[["x_px0", "y_px0"]], store.coords_px0)
        assert (folder / f"{slide_id}.png").stat().st_size > 10_000
        assert (folder / f"{slide_id}.geojson").is_file()


def test_a_model_of_native_features_refuses_imported_ones(archive):
    """Their weights may be others, though the encoder's name is the same."""
    study = study_of(archive, **FAST)
    ids = [row.slide_id for row in read_manifest(study.preprocessing.manifest)]
    trained(study)
    export_features("stamp", study.features_dir, ids, "lite0", archive / "stamp")
    rows = read_manifest(study.preprocessing.manifest)
    import_features("stamp", archive / "stamp", rows, archive / "b", encoder="lite0", given=GIVEN)
    path = study.member_dir("tumour", "abmil", 0, 0) / "checkpoint.safetensors"
    model = load_checkpoint(path)
    imported = load_features(archive / "b", ids, "lite0")
    with pytest.raises(CheckpointError, match="lite0 of STAMP"):
        refuse_other_origin(model, imported.origin, path)


def test_pieces_of_tissue_off_one_lattice_are_painted(tmp_path):
    """As CLAM and LazySlide tile: each piece from its own corner on."""
    steps = np.array([[0, 0], [100, 0], [0, 100], [100, 100]])
    coords = np.concatenate([steps, np.add(steps, (233, 117))])
    (tmp_path / "stamp").mkdir()
    with h5py.File(tmp_path / "stamp" / "s1.h5", "w") as file:
        file["coords"], file["feats"] = coords / 2, np.ones((8, 2), np.float16)
        file.attrs.update({"unit": "um", "tile_size_um": 50.0, "tile_size_px": 100})
    row = SlideRow("s1", "p1", tmp_path / "none.svs", 0.5)
    (status,) = import_features("stamp", tmp_path / "stamp", [row], tmp_path, encoder="uni")
    assert status.status == "done", status.error
    store = open_store(store_path(tmp_path, "s1"))
    layout = TileLayout.of_store(store)
    assert layout.stride_px0 == (100, 100)
    model, task = FirstFeatureModel(), MarginTask()
    features = torch.from_numpy(store.features("uni"))
    scores = score_slide(model, task, features, layout=layout, label="m")
    covered = np.isfinite(tile_raster(scores.evidence, scores, shape=(35, 45), px0_per_px=(10, 10)))
    assert covered[:20, :20].all()
    assert covered[12:31, 24:43].all()
    assert covered.sum() == pytest.approx(800, abs=40)
    scale = CohortScale.fit([scores.evidence], scores.evidence_name)
    render_heatmap(scores, scale, Backdrop.of_store(store), tmp_path / "s1.png")
    write_qupath_geojson(scores, tmp_path / "s1.geojson")
    regions = connected_regions(scores, np.ones(8, dtype=bool))
    assert [sorted(region.tiles.tolist()) for region in regions] == [[0, 1, 2, 3], [4, 5, 6, 7]]
    assert (tmp_path / "s1.png").stat().st_size > 10_000
