"""Several labels and a value through the whole chain: split, train, evaluate, compare, paint and
report, and trained models asked about another archive.
"""

import html
import json
import re
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_archive import DIM, study_of, write_features
from target_fakes import LABELS, TARGETS, targets_study, write_targets

from mil.checkpoint import load_checkpoint
from mil.config import StudyConfig
from mil.data import data_digest, splits_path, task_cohort
from mil.ensemble import applied_dir, predict_cohort
from mil.evaluation.compare import compare_answerers
from mil.evaluation.evaluate import evaluate_answerer, evaluate_applied
from mil.evaluation.held_out import evaluation_dir
from mil.experiment import run_member, split_task
from mil.folds.splits import Splits, load_splits, refuse_unlike_classes, save_splits
from mil.paint import heatmap_dir, paint_method
from mil.predictions import read_predictions
from mil.report import write_report
from mil.tasks.strata import classes_held
from preprocessing.errors import CohortError

PATIENTS = 16
ANSWERS = {"mutations": ["prob_EGFR", "prob_KRAS"], "score": ["value"]}


def ran(folder: Path, task: str, **mil) -> StudyConfig:
    write_targets(folder, patients=PATIENTS)
    study = targets_study(folder, task, **mil)
    split_task(study, task)
    for answerer in study.answerers(task):
        for fold in range(2):
            run_member(study, task, answerer, fold=fold, seed=0)
    return study


@pytest.fixture(scope="module", params=list(TARGETS))
def study(request, tmp_path_factory) -> StudyConfig:
    return ran(tmp_path_factory.mktemp(request.param), request.param)


def task_of(study: StudyConfig) -> str:
    return next(iter(study.mil.tasks))


def checkpoint(study: StudyConfig, fold: int) -> Path:
    return study.member_dir(task_of(study), "abmil", fold, 0) / "checkpoint.safetensors"


def test_from_sealed_predictions_to_the_report(study):
    task = task_of(study)
    metrics = {a: evaluate_answerer(study, task, a) for a in study.answerers(task)}
    for table in metrics.values():
        rows = table[(table["fold"] == "all") & (table["level"] == "patient")].set_index("metric")
        assert (rows["patients"] <= PATIENTS).all()
        assert (rows["low"] <= rows["high"]).all()
    figures = {p.stem for p in evaluation_dir(study, task, "abmil").glob("*.png")}
    pairs = compare_answerers(study, task)
    paint_method(study, task, "abmil")
    page = write_report(study).read_text()
    text = html.unescape(" ".join(re.sub(r"<[^>]*>", " ", page).split()))
    painted = pd.read_csv(heatmap_dir(study, task, "abmil") / "predictions.csv")
    assert set(painted["slide_id"]) == set(task_cohort(study, task).slides.index)
    assert set(ANSWERS[task]) < set(painted.columns)
    if task == "mutations":
        assert figures == {"roc", "precision_recall", "calibration"}
        of_labels = {f"auroc_{name}" for name in LABELS}
        assert set(pairs["metric"]) == {"auroc", "auprc", "brier"} | of_labels
        assert "Several labels, each yes or no: EGFR , KRAS ; heatmaps show EGFR" in text
        assert "AUROC, KRAS" in text
        assert "Temperature and threshold of each label" in text
        rows = metrics["abmil"].query("fold == 'all' and level == 'patient'").set_index("metric")
        assert rows.loc["auroc_EGFR", "value"] > 0.6
        assert rows.loc["auroc_KRAS", "n"] == 14  # p3 and p10 are not known
    else:
        assert figures == {"predicted_observed"}
        assert "Regression of hrd in points." in text
        assert "Observed against predicted values" in text
        assert {"r2", "mae", "spearman"} <= set(metrics["abmil"]["metric"])
    assert "conformal" not in text.lower()


def test_predictions_hold_every_slide_and_patient_with_what_is_called(study):
    task = task_of(study)
    for answerer in study.answerers(task):
        table = read_predictions(study.member_dir(task, answerer, 0, 0) / "predictions.csv")
        assert table["level"].value_counts().to_dict() == {"slide": 24, "patient": PATIENTS}
        answers = table[ANSWERS[task]].to_numpy()
        assert np.isfinite(answers).all()
        patient = table[table["level"] == "patient"].set_index("id")[ANSWERS[task]]
        slides = table[table["level"] == "slide"].groupby("patient_id")[ANSWERS[task]].mean()
        assert patient.to_numpy() == pytest.approx(slides.loc[patient.index].to_numpy())
        if task == "score":
            continue
        assert ((answers > 0) & (answers < 1)).all()
        for name in LABELS:
            cut = table[f"threshold_{name}"].fillna(0.5)
            assert ((table[f"predicted_{name}"] == "1") == (table[f"prob_{name}"] >= cut)).all()


def test_test_patients_touch_nothing_that_is_fitted(tmp_path, study):
    """Other labels and features of the test patients: the same weights, scale and decisions."""
    task = task_of(study)
    write_targets(tmp_path, patients=PATIENTS)
    other = targets_study(tmp_path, task)
    splits = load_splits(splits_path(study, task))
    tested = splits.folds[0].test
    labels = pd.read_csv(tmp_path / "labels.csv", dtype=str)
    mine = labels["slide_id"].str.split("-").str[0].isin(tested)
    labels.loc[mine, "hrd"] = (labels.loc[mine, "hrd"].astype(float) * 9 + 1).astype(str)
    for name in LABELS:
        labels.loc[mine, name] = labels.loc[mine, name].map({"0": "1", "1": "0"})
    labels.to_csv(tmp_path / "labels.csv", index=False)
    for slide_id in labels.loc[mine, "slide_id"]:
        strange = np.random.default_rng(9).normal(5, 3, size=(9, DIM))
        write_features(other.features_dir, slide_id, slide_id.split("-")[0], strange)
    same_folds(study, other, task)
    for answerer in ("abmil", "mean_features", "clinical"):
        run_member(other, task, answerer, fold=0, seed=0)
        folders = [s.member_dir(task, answerer, 0, 0) for s in (study, other)]
        one, two = (json.loads((f / "fitted.json").read_text()) for f in folders)
        assert one == two
        before, after = (read_predictions(f / "predictions.csv") for f in folders)
        in_test = (before["part"] == "test").to_numpy()
        answers = ANSWERS[task]
        pd.testing.assert_frame_equal(
            after.loc[~in_test, answers], before.loc[~in_test, answers], rtol=1e-6
        )
        if answerer == "abmil":  # covariates stayed, and few patients may make a baseline constant
            assert not after.loc[in_test, answers].equals(before.loc[in_test, answers])
    assert (
        load_checkpoint(checkpoint(other, 0)).scale == load_checkpoint(checkpoint(study, 0)).scale
    )


def same_folds(study: StudyConfig, other: StudyConfig, task: str) -> None:
    """The folds of `study`, as if they had been dealt to the data of `other`."""
    splits = load_splits(splits_path(study, task))
    digest = data_digest(other, task, task_cohort(other, task))
    save_splits(Splits(splits.folds, digest), splits_path(other, task))


def test_trained_models_answer_another_archive_with_and_without_labels(study, tmp_path):
    task = task_of(study)
    write_targets(tmp_path, patients=16, prefix="q")
    asked = {"tasks": {}, "methods": {}, "apply": {"mine": str(checkpoint(study, 0).parents[2])}}
    without = study_of(tmp_path, labels=None, **asked)
    table = predict_cohort(without, "mine")
    assert not table["seen"].any()
    each = {f"spread_{name}" for name in (LABELS if task == "mutations" else ["value"])}
    assert each <= set(table)
    assert evaluate_applied(without, "mine") is None
    labelled = study_of(tmp_path, **asked)
    answers = predict_cohort(labelled, "mine")
    pd.testing.assert_frame_equal(answers[ANSWERS[task]], table[ANSWERS[task]])
    metrics = evaluate_applied(labelled, "mine")
    rows = metrics.query("fold == 'all' and level == 'patient'").set_index("metric")
    assert rows.loc["auroc" if task == "mutations" else "r2", "n"] == 16
    if task == "mutations":
        assert rows.loc["auroc_KRAS", "n"] == 14  # q3 and q10 are not known
    assert "mine" in write_report(labelled).read_text()


@pytest.mark.parametrize("study", ["mutations"], indirect=True)
def test_labels_of_which_nobody_is_known_are_no_obstacle(study, tmp_path):
    write_targets(tmp_path, patients=16, prefix="q")
    labels = pd.read_csv(tmp_path / "labels.csv", dtype=str)
    labels.assign(KRAS="").to_csv(tmp_path / "labels.csv", index=False)
    models = str(checkpoint(study, 0).parents[2])
    other = study_of(tmp_path, tasks={}, methods={}, apply={"mine": models})
    predict_cohort(other, "mine")
    metrics = evaluate_applied(other, "mine").query("fold == 'all'").set_index("metric")
    assert metrics.loc["auroc_KRAS", "value"].isna().all()
    assert metrics.loc["auroc", "value"].notna().all()


@pytest.mark.parametrize("study", ["mutations"], indirect=True)
def test_what_another_archive_does_not_tell_of_one_label_leaves_the_others(study, tmp_path):
    write_targets(tmp_path, patients=16, prefix="q")
    labels = pd.read_csv(tmp_path / "labels.csv", dtype=str)
    models = str(checkpoint(study, 0).parents[2])
    other = study_of(tmp_path, tasks={}, methods={}, apply={"mine": models})

    def told(table: pd.DataFrame) -> list[str]:
        table.to_csv(tmp_path / "labels.csv", index=False)
        predict_cohort(other, "mine")
        return json.loads((applied_dir(other, "mine") / "fitted.json").read_text())["notes"]

    (note,) = told(labels.drop(columns="KRAS"))
    assert note.startswith("KRAS: unknown of everyone, ")
    assert "has no such column; if it has one under another name, rename that" in note
    metrics = evaluate_applied(other, "mine").query("fold == 'all' and level == 'patient'")
    values = metrics.set_index("metric")["value"]
    assert np.isnan(values["auroc_KRAS"])
    assert values["auroc"] == values["auroc_EGFR"] > 0

    differing = labels.copy()
    for slide_id, name in (("q0-1", "EGFR"), ("q1-1", "KRAS"), ("q2-1", "KRAS")):
        mine = differing["slide_id"] == slide_id
        differing.loc[mine, name] = differing.loc[mine, name].map({"0": "1", "1": "0"})
    slides = differing.groupby(differing["slide_id"].str.split("-").str[0])[list(LABELS)].nunique()
    torn = {name: slides.index[slides[name] > 1].tolist() for name in LABELS}
    assert all(torn.values())
    notes = told(differing)
    assert notes == [
        f"{len(ids)} patients are left without {name}, since their slides disagree on it: "
        f"{', '.join(ids)}"
        for name, ids in torn.items()
    ]
    (note,) = told(labels.drop(columns=list(LABELS)))
    assert note.startswith("no metrics: ")
    assert "has no column EGFR, KRAS" in note
    assert evaluate_applied(other, "mine") is None


@pytest.mark.parametrize("task", list(TARGETS))
@pytest.mark.parametrize("settings", [{"bag": "patient"}, {"aggregate": "none"}])
def test_bags_of_patients_and_slides_that_stand_alone(tmp_path, task, settings):
    section = {"target": TARGETS[task], "baselines": ["mean_features"], **settings}
    study = ran(tmp_path, task, tasks={task: section})
    metrics = evaluate_answerer(study, task, "abmil")
    levels = {"slide", "patient"} if "bag" in settings else {"slide"}
    assert set(metrics["level"]) == levels
    table = read_predictions(study.member_dir(task, "abmil", 0, 0) / "predictions.csv")
    assert set(table["level"]) == levels
    assert list(evaluation_dir(study, task, "abmil").glob("*.png"))


def test_a_label_that_no_training_patient_has_is_refused_when_folds_are_made(tmp_path):
    """Supplied folds may be anything: what dealing balances, they need not."""
    write_targets(tmp_path, patients=PATIENTS)
    study = targets_study(tmp_path, "mutations")
    split_task(study, "mutations")
    splits = load_splits(splits_path(study, "mutations"))
    bags = task_cohort(study, "mutations").bags("slide")
    lone = bags["patient_id"].isin(splits.folds[0].test)
    bags = bags.assign(EGFR=np.where(lone, "1", "0"))
    held = classes_held(study.mil.tasks["mutations"].target, bags)
    classes = held.groupby(bags["patient_id"]).agg(lambda sets: set().union(*sets))
    with pytest.raises(CohortError, match=r"fold 0: class\(es\) EGFR = 1 stand in its test part"):
        refuse_unlike_classes(splits, classes)
