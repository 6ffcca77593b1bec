"""Trained models asked about a cohort: one or many together, labelled or not."""

import json
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_archive import study_of, write_archive, write_features

from mil.config import StudyConfig
from mil.ensemble import applied_dir, predict_cohort
from mil.evaluation.evaluate import evaluate_applied
from mil.experiment import run_member, split_task
from mil.predictions import read_predictions
from preprocessing.errors import CheckpointError, CohortError

TARGETS = {
    "tumour": {"name": "classification", "label": "y", "positive": "b"},
    "survival": {"name": "survival", "time": "t", "event": "e", "bins": 2},
}


def trained(folder: Path, task: str) -> StudyConfig:
    """Two folds of one method, trained on an archive in `folder`."""
    write_archive(folder, patients=24)
    aggregate = {"aggregate": "max"} if task == "tumour" else {"bag": "patient"}
    study = study_of(
        folder,
        tasks={task: {"target": TARGETS[task], "baselines": [], **aggregate}},
        methods={"abmil": {"name": "abmil", "hidden_dim": 8, "attention_dim": 4}},
    )
    split_task(study, task)
    for fold in range(2):
        run_member(study, task, "abmil", fold=fold, seed=0)
    return study


def asking(folder: Path, models: Path, **mil) -> StudyConfig:
    """A study of the archive in `folder` that only asks `models`."""
    given = {"labels": None, "tasks": {}, "methods": {}, "apply": {"mine": str(models)}}
    return study_of(folder, **(given | mil))


@pytest.fixture(scope="module", params=["tumour", "survival"])
def study(request, tmp_path_factory) -> StudyConfig:
    return trained(tmp_path_factory.mktemp(request.param), request.param)


def task_of(study: StudyConfig) -> str:
    return next(iter(study.mil.tasks))


def member(study: StudyConfig, fold: int) -> Path:
    return study.member_dir(task_of(study), "abmil", fold, 0)


def test_one_model_answers_as_it_did_in_its_fold(study):
    folder = study.preprocessing.manifest.parent
    other = asking(folder, member(study, 1) / "checkpoint.safetensors")
    table = predict_cohort(other, "mine").set_index(["level", "id"])
    before = read_predictions(member(study, 1) / "predictions.csv").set_index(["level", "id"])
    assert set(table.index) == set(before.index)
    before = before.loc[table.index]
    numeric = [c for c in table if c.startswith(("prob_", "risk", "survival_", "threshold"))]
    numeric = [c for c in numeric if c != "risk_group"]
    for column in numeric:
        assert table[column].to_numpy(float) == pytest.approx(
            before[column].to_numpy(float), rel=1e-5
        )
    for column in {"predicted", "conformal_set", "risk_group"} & set(table):
        assert (table[column] == before[column]).all()
    assert not {"y", "t", "e"} & set(table)  # no label was given, none is made up


def unseen(folder: Path) -> Path:
    """The same archive under other ids: patients and slide files that no model knows."""
    write_archive(folder, patients=24, prefix="q")
    return folder


def test_a_folder_answers_as_the_mean_of_its_models(study, tmp_path):
    unseen(tmp_path)
    table = predict_cohort(asking(tmp_path, member(study, 0).parents[1]), "mine")
    each = [
        predict_cohort(asking(tmp_path, member(study, k) / "checkpoint.safetensors"), "mine")
        for k in range(2)
    ]
    assert not table["seen"].any()
    column = "prob_b" if task_of(study) == "tumour" else "risk_sd"
    both = pd.concat(each).groupby(["level", "id"])[column]
    keys = pd.MultiIndex.from_frame(table[["level", "id"]])
    assert table[column].to_numpy(float) == pytest.approx(both.mean()[keys].to_numpy(), rel=1e-5)
    spread = "spread_b" if column == "prob_b" else "spread_risk_sd"
    assert table[spread].to_numpy(float) == pytest.approx(
        both.std(ddof=0)[keys].to_numpy(), rel=1e-4, abs=1e-9
    )
    predict_cohort(asking(tmp_path, member(study, 0).parents[1]), "mine")
    about = json.loads((tmp_path / "out/applied/mine/fitted.json").read_text())
    assert len(about["models"]) == 2
    if column == "risk_sd":
        survival = table[[c for c in table if c.startswith("survival_")]].to_numpy(float)
        assert survival.shape[1] == len(about["times"])
        assert set(about["horizons"]) <= set(about["times"])
        assert (np.diff(survival, axis=1) <= 1e-12).all()


def test_a_patient_is_answered_by_models_that_did_not_see_it(study):
    """Their own archive: every patient by the fold that tests it, as in cross-validation."""
    folder = study.preprocessing.manifest.parent
    table = predict_cohort(asking(folder, member(study, 0).parents[1]), "mine")
    assert not table["seen"].any()
    column = "prob_b" if task_of(study) == "tumour" else "risk_sd"
    each = pd.concat(read_predictions(member(study, k) / "predictions.csv") for k in range(2))
    tested = each[each["part"] == "test"].set_index(["level", "id"])[column]
    mine = table.set_index(["level", "id"])[column]
    assert mine.to_numpy(float) == pytest.approx(tested[mine.index].to_numpy(), rel=1e-5)


def test_who_was_seen_by_every_model_is_marked_and_named(study):
    folder = study.preprocessing.manifest.parent
    other = asking(folder, member(study, 1) / "checkpoint.safetensors")
    table = predict_cohort(other, "mine")
    before = read_predictions(member(study, 1) / "predictions.csv")
    known = set(before.loc[before["part"] != "test", "patient_id"])
    assert set(table.loc[table["seen"], "patient_id"]) == known
    back = read_predictions(applied_dir(other, "mine") / "predictions.csv")
    assert (back["seen"] == table["seen"]).all()
    (note,) = json.loads((applied_dir(other, "mine") / "fitted.json").read_text())["notes"]
    assert f"{len(known)} of 24 patients were seen in training or validation" in note
    header = (member(study, 1) / "checkpoint.safetensors").read_bytes()[:200_000]
    assert not [p for p in known if f'"{p}\\\\"'.encode() in header]


def test_a_known_slide_file_under_a_new_name_is_seen(study, tmp_path):
    unseen(tmp_path)
    before = read_predictions(member(study, 1) / "predictions.csv")
    known = before.loc[(before["part"] == "train") & (before["level"] == "slide"), "id"].iloc[0]
    record = tmp_path / "out/features/q2-1.zarr/zarr.json"
    record.write_text(record.read_text().replace("file of q2-1", f"file of {known}"))
    table = predict_cohort(asking(tmp_path, member(study, 1) / "checkpoint.safetensors"), "mine")
    assert set(table.loc[table["seen"], "id"]) == {"q2", "q2-1", "q2-2"}


def test_a_labelled_cohort_is_evaluated_and_its_unlabelled_part_is_not(study):
    folder = study.preprocessing.manifest.parent
    labels = pd.read_csv(folder / "labels.csv", dtype=str)
    kept = labels[~labels["slide_id"].str.startswith("p0-")]
    kept.to_csv(folder / "some.csv", index=False)
    other = asking(folder, member(study, 0).parents[1], labels=str(folder / "some.csv"))
    table = predict_cohort(other, "mine")
    assert (table["level"] == "patient").sum() == 24
    metrics = evaluate_applied(other, "mine")
    chosen = metrics[(metrics["level"] == "patient") & (metrics["fold"] == "all")]
    assert set(chosen["n"]) == {23}
    main = "auroc" if task_of(study) == "tumour" else "c_index"
    assert 0 <= chosen.set_index("metric").loc[main, "value"] <= 1
    assert (applied_dir(study, "mine") / "metrics.csv").is_file()


def test_without_labels_there_are_no_metrics(study):
    folder = study.preprocessing.manifest.parent
    other = asking(folder, member(study, 0).parents[1])
    predict_cohort(other, "mine")
    assert evaluate_applied(other, "mine") is None


def test_an_empty_folder_and_features_of_another_encoder_are_refused(tmp_path):
    study = trained(tmp_path, "tumour")
    with pytest.raises(CheckpointError, match=r"holds no fold<k>/seed<s>/checkpoint\.safetensors"):
        predict_cohort(asking(tmp_path, tmp_path / "out" / "features"), "mine")
    write_features(study.features_dir, "p1-1", "p1", np.ones((9, 6)), digest="new")
    with pytest.raises(CheckpointError, match="trained on 'w', given 'new'"):
        predict_cohort(asking(tmp_path, member(study, 0).parents[1]), "mine")


def test_models_of_two_questions_are_no_ensemble(tmp_path):
    study = trained(tmp_path, "tumour")
    other = study.model_dump(mode="json")
    other["mil"]["tasks"]["tumour"]["target"]["coverage"] = 0.8
    changed = StudyConfig.model_validate(other)
    split_task(changed, "tumour")
    run_member(changed, "tumour", "abmil", fold=1, seed=0)
    with pytest.raises(CheckpointError, match="answers another question than"):
        predict_cohort(asking(tmp_path, member(study, 0).parents[1]), "mine")


def test_a_model_left_over_from_other_settings_or_folds_is_refused_by_name(tmp_path):
    study = trained(tmp_path, "tumour")
    folder = member(study, 0).parents[1]
    values = study.model_dump(mode="json")
    values["mil"]["train"]["epochs"] = 2
    run_member(StudyConfig.model_validate(values), "tumour", "abmil", fold=1, seed=0)
    with pytest.raises(CheckpointError, match=r"fold1/seed0/.*other settings than .*fold0.*remove"):
        predict_cohort(asking(tmp_path, folder), "mine")
    run_member(study, "tumour", "abmil", fold=1, seed=0)
    values = study.model_dump(mode="json")
    values["mil"]["split"]["seed"] = 7
    other = StudyConfig.model_validate(values)
    split_task(other, "tumour")
    run_member(other, "tumour", "abmil", fold=0, seed=0)
    with pytest.raises(CheckpointError, match="other splits than"):
        predict_cohort(asking(tmp_path, folder), "mine")


def test_labels_of_another_question_are_no_obstacle(study, tmp_path):
    unseen(tmp_path)
    labels = pd.read_csv(tmp_path / "labels.csv", dtype=str)
    models = member(study, 0).parents[1]
    columns = ["y"] if task_of(study) == "tumour" else ["t", "e"]
    for table, told in (
        (labels.drop(columns=columns), f"has no column {', '.join(columns)}"),
        (labels.assign(**dict.fromkeys(columns, "")), "is empty in every row of"),
    ):
        table.to_csv(tmp_path / "labels.csv", index=False)
        other = asking(tmp_path, models, labels=str(tmp_path / "labels.csv"))
        predict_cohort(other, "mine")
        about = json.loads((applied_dir(other, "mine") / "fitted.json").read_text())
        assert told in about["notes"][0]
        assert evaluate_applied(other, "mine") is None


@pytest.mark.parametrize("study", ["survival"], indirect=True)
def test_bad_follow_up_of_another_cohort_is_named_by_id(study, tmp_path):
    unseen(tmp_path)
    labels = pd.read_csv(tmp_path / "labels.csv", dtype=str)
    labels.loc[labels["slide_id"].str.startswith("q4-"), "e"] = "2"
    labels.to_csv(tmp_path / "labels.csv", index=False)
    other = asking(tmp_path, member(study, 0).parents[1], labels=str(tmp_path / "labels.csv"))
    with pytest.raises(CohortError, match=r"q4"):
        predict_cohort(other, "mine")
