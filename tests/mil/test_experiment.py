"""From feature stores to report, on random features; above all: what test patients cannot touch."""

import json
from dataclasses import replace
from pathlib import Path

import fake_archive
import numpy as np
import pandas as pd
import pytest
import torch
from fake_archive import study_of, write_archive, write_features
from safetensors.torch import load_file

from mil.checkpoint import load_checkpoint
from mil.config import StudyConfig
from mil.data import data_digest, splits_path, task_cohort
from mil.evaluation.compare import compare_answerers
from mil.evaluation.evaluate import evaluate_answerer
from mil.evaluation.held_out import evaluation_dir
from mil.experiment import run_member, split_task
from mil.folds.splits import load_splits, save_splits
from mil.heatmaps.tables import read_tile_table
from mil.paint import heatmap_dir, paint_method, paint_with
from mil.predictions import read_predictions
from mil.report import write_report
from preprocessing.errors import CheckpointError, CohortError, ConfigError, TrainingError

TASKS = ["tumour", "survival"]


@pytest.fixture
def archive(tmp_path) -> Path:
    write_archive(tmp_path)
    return tmp_path


def weights(study: StudyConfig, task: str, method: str = "mhim") -> dict[str, torch.Tensor]:
    return load_file(study.member_dir(task, method, 0, 0) / "checkpoint.safetensors")


def same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in one)


@pytest.mark.parametrize("task", TASKS)
def test_test_patients_touch_nothing_that_is_fitted(archive, task):
    """Other labels and features of the test patients: the same weights, bins, classes, scale."""
    study = study_of(archive)
    split_task(study, task)
    run_member(study, task, "mhim", fold=0, seed=0)
    splits = load_splits(splits_path(study, task))
    before, fitted = weights(study, task), load_checkpoint(checkpoint(study, task))
    predictions = read_predictions(study.member_dir(task, "mhim", 0, 0) / "predictions.csv")

    labels = pd.read_csv(archive / "labels.csv")
    tested = labels["slide_id"].str.split("-").str[0].isin(splits.folds[0].test)
    labels.loc[tested, "y"] = labels.loc[tested, "y"].map({"a": "b", "b": "a"})
    labels.loc[tested, ["t", "e"]] = [[77.0, 1]] * tested.sum()
    labels.to_csv(archive / "labels.csv", index=False)
    for slide_id in labels.loc[tested, "slide_id"]:
        strange = np.random.default_rng(9).normal(5, 3, size=(9, fake_archive.DIM))
        write_features(study.features_dir, slide_id, slide_id.split("-")[0], strange)
    keep_folds(study, task)
    break_seal(study, task)
    run_member(study, task, "mhim", fold=0, seed=0)

    assert same(before, weights(study, task))
    again = load_checkpoint(checkpoint(study, task))
    assert again.task.state() == fitted.task.state()
    assert again.scale == fitted.scale
    other = read_predictions(study.member_dir(task, "mhim", 0, 0) / "predictions.csv")
    answers = [c for c in other if c.startswith(("prob_", "risk", "survival_"))]
    in_test = (predictions["part"] == "test").to_numpy()
    pd.testing.assert_frame_equal(other.loc[~in_test, answers], predictions.loc[~in_test, answers])
    assert not other.loc[in_test, answers].equals(predictions.loc[in_test, answers])


def checkpoint(study: StudyConfig, task: str) -> Path:
    return study.member_dir(task, "mhim", 0, 0) / "checkpoint.safetensors"


def keep_folds(study: StudyConfig, task: str) -> None:
    """The folds as they are, for the data as they are now."""
    path = splits_path(study, task)
    now = data_digest(study, task, task_cohort(study, task))
    save_splits(replace(load_splits(path), data=now), path)


def break_seal(study: StudyConfig, task: str) -> None:
    """As if the member had never been trained."""
    (study.member_dir(task, "mhim", 0, 0) / "seal.json").unlink()


def test_training_patients_do_touch_it(archive):
    study = study_of(archive)
    split_task(study, "tumour")
    run_member(study, "tumour", "mhim", fold=0, seed=0)
    before = weights(study, "tumour")
    patient = load_splits(splits_path(study, "tumour")).folds[0].train[0]
    strange = np.random.default_rng(9).normal(5, 3, size=(9, fake_archive.DIM))
    write_features(study.features_dir, f"{patient}-1", patient, strange)
    keep_folds(study, "tumour")
    break_seal(study, "tumour")
    run_member(study, "tumour", "mhim", fold=0, seed=0)
    assert not same(before, weights(study, "tumour"))


def test_changed_labels_tiles_or_task_ask_for_new_splits(archive):
    study = study_of(archive)
    split_task(study, "tumour")
    run_member(study, "tumour", "acmil", fold=0, seed=0)
    labels = (archive / "labels.csv").read_text()
    (archive / "labels.csv").write_text(labels.replace("p3-1,a", "p3-1,b"))
    with pytest.raises(CohortError, match=r"have changed since .*tumour\.json was made"):
        run_member(study, "tumour", "acmil", fold=0, seed=0)
    (archive / "labels.csv").write_text(labels)
    run_member(study, "tumour", "acmil", fold=0, seed=0)
    write_features(study.features_dir, "p3-1", "p3", np.zeros((4, fake_archive.DIM)))
    with pytest.raises(CohortError, match="have changed since"):
        run_member(study, "tumour", "acmil", fold=0, seed=0)


def test_a_state_file_of_other_settings_is_not_resumed(archive):
    study = study_of(archive)
    split_task(study, "survival")
    run_member(study, "survival", "acmil", fold=0, seed=0)
    expected = weights(study, "survival", "acmil")
    other = study.model_dump(mode="json")
    other["mil"]["tasks"]["survival"]["target"]["alpha"] = 0.5
    changed = type(study).model_validate(other)
    split_task(changed, "survival")

    kept = study.member_dir("survival", "acmil", 0, 0) / "main.state.pt"
    original = Path.unlink
    Path.unlink = lambda *_, **__: None  # as if killed before the clean-up
    try:
        run_member(changed, "survival", "acmil", fold=0, seed=0)
    finally:
        Path.unlink = original
    assert kept.exists()
    split_task(study, "survival")
    run_member(study, "survival", "acmil", fold=0, seed=0)
    assert same(expected, weights(study, "survival", "acmil"))
    assert not kept.exists()


def test_diverged_training_is_an_error_and_leaves_no_checkpoint(archive):
    study = study_of(archive, train={"epochs": 4, "learning_rate": 1e30, "device": "cpu"})
    split_task(study, "tumour")
    with pytest.raises(
        TrainingError, match=r"epoch 0: the loss is no longer a number .*learning_rate"
    ):
        run_member(study, "tumour", "acmil", fold=0, seed=0)
    assert not (study.member_dir("tumour", "acmil", 0, 0) / "checkpoint.safetensors").exists()


def test_maximum_over_slides_of_three_classes_is_refused_before_folds_are_made(tmp_path):
    archive = tmp_path
    write_archive(archive, patients=30)
    labels = pd.read_csv(archive / "labels.csv")
    labels.loc[labels.index % 3 == 0, "y"] = "c"
    labels.to_csv(archive / "labels.csv", index=False)
    study = study_of(archive)
    with pytest.raises(CohortError, match=r"joins slides of two classes, but column 'y' has\s+3"):
        split_task(study, "tumour")
    assert not splits_path(study, "tumour").exists()


def test_training_before_splitting_says_so(archive):
    with pytest.raises(CohortError, match=r"no splits at .* run split first"):
        run_member(study_of(archive), "tumour", "acmil", fold=0, seed=0)


def test_from_stores_to_report(archive):
    truth = archive / "truth"
    truth.mkdir()
    square = [[[0, 0], [100, 0], [100, 100], [0, 100], [0, 0]]]
    feature = {"type": "Feature", "geometry": {"type": "Polygon", "coordinates": square}}
    labels = pd.read_csv(archive / "labels.csv")
    for slide_id, label in zip(labels["slide_id"], labels["y"], strict=True):
        found = [feature] if label == "b" else []
        collection = {"type": "FeatureCollection", "features": found}
        (truth / f"{slide_id}.geojson").write_text(json.dumps(collection))
    plain = study_of(archive).model_dump(mode="json")["mil"]
    plain["tasks"]["tumour"]["truth"] = {"folder": str(truth)}
    plain["train"]["epochs"] = 60
    plain["methods"].pop("mhim")
    study = study_of(archive, **{k: plain[k] for k in ("tasks", "train", "methods")})
    for task in TASKS:
        split_task(study, task)
        for answerer in study.answerers(task):
            for fold in range(2):
                run_member(study, task, answerer, fold=fold, seed=0)
            evaluate_answerer(study, task, answerer)
        compare_answerers(study, task)
        paint_method(study, task, "acmil")
    folder = heatmap_dir(study, "tumour", "acmil")
    assert {p.stem for p in folder.glob("*.png")} == set(labels["slide_id"])
    tiles = pd.read_csv(folder / "tile_metrics.csv").set_index("slide_id")
    assert tiles.loc["(all tiles)", "positive_tiles"] == (labels["y"] == "b").sum()
    assert tiles.loc["(all tiles)", "auroc_evidence"] > 0.9  # the shifted first tile is found
    metrics = pd.read_csv(evaluation_dir(study, "tumour", "acmil") / "metrics.csv")
    assert metrics.query("fold == 'all' and level == 'slide'")["n"].unique() == [len(labels)]

    page = write_report(study).read_text()
    assert page.count('class="maps"') == 2
    (folder / ".p0-1.partial-99.png").write_text("killed in the middle")
    (folder / "gone.png").write_text("a slide of last week")
    assert "gone" not in write_report(study).read_text()
    paint_method(study, "tumour", "acmil")
    assert not (folder / "gone.png").exists()
    assert not (folder / ".p0-1.partial-99.png").exists()


def test_held_out_patients_are_painted_by_the_fold_that_tests_them(archive):
    study = study_of(archive)
    split_task(study, "tumour")
    for fold in range(2):
        run_member(study, "tumour", "acmil", fold=fold, seed=0)
    paint_method(study, "tumour", "acmil")
    painted = pd.read_csv(heatmap_dir(study, "tumour", "acmil") / "predictions.csv")
    splits = load_splits(splits_path(study, "tumour"))
    for slide_id, model in zip(painted["slide_id"], painted["model"], strict=True):
        fold = splits.fold_testing(slide_id.split("-")[0])
        assert model == f"tumour, acmil, fold {fold}, seed 0"
        table = read_predictions(study.member_dir("tumour", "acmil", fold, 0) / "predictions.csv")
        row = table[(table["id"] == slide_id) & (table["level"] == "slide")].iloc[0]
        assert row["part"] == "test"
        mine = painted.loc[painted["slide_id"] == slide_id, "prob_b"].iloc[0]
        assert mine == pytest.approx(row["prob_b"], rel=1e-5)


def test_slides_of_a_patients_bag_are_painted_with_the_answer_to_the_patient(archive):
    study = study_of(archive)
    split_task(study, "survival")
    for fold in range(2):
        run_member(study, "survival", "acmil", fold=fold, seed=0)
    paint_method(study, "survival", "acmil")
    folder = heatmap_dir(study, "survival", "acmil")
    painted = pd.read_csv(folder / "predictions.csv").set_index("slide_id")
    splits = load_splits(splits_path(study, "survival"))
    for patient, slides in (("p0", ["p0-1", "p0-2"]), ("p1", ["p1-1"])):
        fold = splits.fold_testing(patient)
        member = study.member_dir("survival", "acmil", fold, 0)
        table = read_predictions(member / "predictions.csv").set_index("id")
        for slide in slides:
            assert painted.loc[slide, "risk"] == pytest.approx(table.loc[patient, "risk"], rel=1e-5)
        shares = [read_tile_table(folder / f"{slide}.csv").attention.sum() for slide in slides]
        assert sum(shares) == pytest.approx(1, abs=1e-5)
        assert max(shares) < 1 or len(slides) == 1


def test_models_of_other_labels_are_not_painted_with(archive):
    study = study_of(archive)
    split_task(study, "tumour")
    labels = (archive / "labels.csv").read_text()
    (archive / "labels.csv").write_text(labels.replace("p3-1,a", "p3-1,b"))
    with pytest.raises(CohortError, match="features or splits of task 'tumour' have changed"):
        paint_method(study, "tumour", "acmil")


def test_a_model_refuses_features_of_another_encoder_and_paints_with_its_own_scale(archive):
    study = study_of(archive)
    split_task(study, "tumour")
    run_member(study, "tumour", "mhim", fold=0, seed=0)
    path = checkpoint(study, "tumour")
    other = study_of(archive, tasks={}, methods={}, apply={"mine": str(path)})
    paint_with(other, "mine")
    scale = json.loads((study.output / "applied/mine/heatmaps/scale.json").read_text())
    assert scale["evidence_limit"] == load_checkpoint(path).scale.evidence_limit
    write_features(study.features_dir, "p1-1", "p1", np.ones((9, fake_archive.DIM)), digest="new")
    with pytest.raises(CheckpointError, match="trained on 'w', given 'new'"):
        paint_with(other, "mine")


def test_a_missing_folder_of_outlines_is_refused_by_name(archive):
    tasks = study_of(archive).model_dump(mode="json")["mil"]["tasks"]
    tasks["tumour"]["truth"] = {"folder": "nowhere"}
    study = study_of(archive, tasks=tasks)
    split_task(study, "tumour")
    for fold in range(2):
        run_member(study, "tumour", "acmil", fold=fold, seed=0)
    with pytest.raises(ConfigError, match=r"truth\.folder: no folder nowhere"):
        paint_method(study, "tumour", "acmil")
