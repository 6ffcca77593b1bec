"""What was left by other settings, by a kill or by a deletion is refused or made anew by name."""

import json
from pathlib import Path

import fake_archive
import numpy as np
import pandas as pd
import pytest
from fake_archive import study_of, write_archive, write_features
from safetensors.torch import load_file

from mil.config import StudyConfig
from mil.data import cohort_path, splits_path, task_cohort
from mil.evaluation.evaluate import evaluate_answerer
from mil.experiment import member_runs, run_member, split_task
from mil.folds.splits import load_splits
from mil.paint import paint_method, paint_with
from mil.predictions import read_predictions
from mil.seals import is_sealed, refuse_unsealed
from preprocessing.errors import CheckpointError, CohortError

ABMIL = {"abmil": {"name": "abmil", "hidden_dim": 8, "attention_dim": 4}}
FAST = {"methods": ABMIL, "train": {"epochs": 2, "device": "cpu"}}


@pytest.fixture
def archive(tmp_path) -> Path:
    write_archive(tmp_path)
    return tmp_path


def changed(study: StudyConfig, section: str, **values) -> StudyConfig:
    content = study.model_dump(mode="json")
    content["mil"][section] |= values
    return StudyConfig.model_validate(content)


def member(study: StudyConfig, task: str = "tumour") -> Path:
    return study.member_dir(task, "abmil", 0, 0)


def trained(archive: Path, **mil) -> StudyConfig:
    study = study_of(archive, **(FAST | mil))
    split_task(study, "tumour")
    for fold in range(2):
        run_member(study, "tumour", "abmil", fold=fold, seed=0)
    return study


def test_the_runs_of_a_study_are_those_that_its_members_were_sealed_with(archive):
    study = trained(archive)
    splits, runs = member_runs(study, "tumour", "abmil")
    assert splits == load_splits(splits_path(study, "tumour"))
    assert set(runs) == {(0, 0), (1, 0)}
    for (fold, seed), run in runs.items():
        refuse_unsealed(study.member_dir("tumour", "abmil", fold, seed), run)
    for other in (
        changed(study, "train", epochs=3),
        changed(study, "methods", abmil={"name": "abmil", "hidden_dim": 4}),
    ):
        run = member_runs(other, "tumour", "abmil")[1][0, 0]
        with pytest.raises(CohortError, match="made under other settings"):
            refuse_unsealed(member(study), run)
    same = changed(study, "train", device="auto", seeds=2)
    assert member_runs(same, "tumour", "abmil")[1][0, 0] == runs[0, 0]
    with pytest.raises(CohortError, match="have changed since"):
        member_runs(changed(study, "split", seed=5), "tumour", "abmil")


def test_a_deleted_model_is_trained_anew(archive):
    study = trained(archive)
    path = member(study) / "checkpoint.safetensors"
    before = load_file(path)
    path.unlink()
    with pytest.raises(CohortError, match=r"no model .*fold0.*: train that fold first"):
        paint_method(study, "tumour", "abmil")
    run_member(study, "tumour", "abmil", fold=0, seed=0)
    assert all((load_file(path)[name] == before[name]).all() for name in before)


def test_a_model_of_other_settings_does_not_paint(archive):
    study = changed(trained(archive), "train", epochs=3)
    with pytest.raises(CheckpointError, match="trained under other settings, labels or splits"):
        paint_method(study, "tumour", "abmil")


def test_applied_models_do_not_paint_whom_they_were_trained_on(archive):
    study = trained(archive)
    apply = {"mine": str(member(study).parents[1])}
    paint_with(study_of(archive, tasks={}, methods={}, apply=apply), "mine")
    painted = pd.read_csv(study.output / "applied/mine/heatmaps/predictions.csv")
    splits = load_splits(splits_path(study, "tumour"))
    for slide_id, model in zip(painted["slide_id"], painted["model"], strict=True):
        fold = splits.fold_testing(slide_id.split("-")[0])
        assert model == f"tumour, abmil, fold {fold}, seed 0"


def test_a_broken_state_file_is_as_good_as_none(archive, caplog):
    study = trained(archive)
    before = load_file(member(study) / "checkpoint.safetensors")
    (member(study) / "seal.json").write_text("{")
    (member(study) / "main.state.pt").write_bytes(b"abc")
    run_member(study, "tumour", "abmil", fold=0, seed=0)
    assert "main.state.pt is cut off or damaged" in caplog.text
    after = load_file(member(study) / "checkpoint.safetensors")
    assert all((after[name] == before[name]).all() for name in before)


def test_a_deleted_file_of_fitted_values_is_made_anew(archive):
    study = trained(archive)
    (member(study) / "fitted.json").unlink()
    with pytest.raises(CohortError, match=r"fitted\.json changed"):
        evaluate_answerer(study, "tumour", "abmil")
    run_member(study, "tumour", "abmil", fold=0, seed=0)
    assert is_sealed(member(study), member_runs(study, "tumour", "abmil")[1][0, 0])


def test_features_made_anew_ask_for_new_splits(archive):
    """The same slide file, encoder and number of tiles, but other numbers."""
    study = trained(archive)
    other = np.random.default_rng(9).normal(size=(fake_archive.TILES, fake_archive.DIM))
    write_features(study.features_dir, "p3-1", "p3", other)
    with pytest.raises(CohortError, match="have changed since"):
        run_member(study, "tumour", "abmil", fold=0, seed=0)


def supplied(archive: Path, *folds: tuple[list[str], list[str], list[str]], **mil) -> StudyConfig:
    paths = [archive / f"split{i}.json" for i in range(len(folds))]
    for path, parts in zip(paths, folds, strict=True):
        names = ("train_names", "val_names", "test_names")
        path.write_text(json.dumps(dict(zip(names, parts, strict=True))))
    split = {"scheme": "supplied", "folds": len(folds), "files": list(map(str, paths))}
    return study_of(archive, **(FAST | {"split": split} | mil))


def patients(*numbers: int) -> list[str]:
    return [f"p{i}" for i in numbers]


def test_a_split_file_that_is_gone_is_named(archive):
    study = supplied(archive, (patients(*range(4)), patients(*range(4, 8)), patients(8, 9, 10, 11)))
    split_task(study, "tumour")
    (archive / "split0.json").unlink()
    with pytest.raises(CohortError, match=r"cannot read the split file .*split0\.json"):
        run_member(study, "tumour", "abmil", fold=0, seed=0)


def test_a_supplied_test_part_of_an_unknown_class_is_refused(archive):
    labels = pd.read_csv(archive / "labels.csv")
    labels.loc[labels["slide_id"].isin(["p10-1", "p10-2"]), "y"] = "c"
    labels.to_csv(archive / "labels.csv", index=False)
    target = {"name": "classification", "label": "y"}
    study = supplied(
        archive,
        (patients(*range(4)), patients(*range(4, 8)), patients(8, 9, 10, 11)),
        tasks={"tumour": {"target": target, "aggregate": "none"}},
    )
    with pytest.raises(CohortError, match=r"fold 0: class\(es\) c stand in its test part"):
        split_task(study, "tumour")
    assert not splits_path(study, "tumour").exists()


def test_copies_of_a_slide_are_listed(archive):
    study = study_of(archive, **FAST)
    record = study.features_dir / "p0-2.zarr/zarr.json"
    record.write_text(record.read_text().replace("file of p0-2", "file of p0-1"))
    split_task(study, "tumour")
    facts = json.loads(cohort_path(study, "tumour").read_text())
    assert facts["report"]["slides that repeat another slide of their patient"] == [
        "p0-2 (of p0-1)"
    ]


def test_patients_who_may_be_positive_for_all_one_knows_are_left_out(archive):
    """p0-1 is positive, p2 and p6 have two negative slides each; p4-1 is positive."""
    labels = pd.read_csv(archive / "labels.csv")
    labels.loc[labels["slide_id"].isin(["p0-2", "p2-2", "p4-1"]), "y"] = None
    labels.to_csv(archive / "labels.csv", index=False)
    cohort = task_cohort(study_of(archive, **FAST), "tumour")
    kept = set(cohort.slides["patient_id"])
    assert {"p0", "p6"} <= kept
    assert kept.isdisjoint({"p2", "p4"})
    (reason,) = [reason for reason in cohort.report if reason.startswith("slides of patients who")]
    assert cohort.report[reason] == ["p2-1", "p4-2"]


def test_slides_that_answer_for_themselves_need_no_agreement(archive):
    target = {"name": "classification", "label": "y", "positive": "b"}
    study = trained(archive, tasks={"tumour": {"target": target, "aggregate": "none"}})
    table = read_predictions(member(study) / "predictions.csv")
    assert set(table["level"]) == {"slide"}
    assert len(table) == len(pd.read_csv(archive / "labels.csv"))
    assert (table.groupby("patient_id")["part"].nunique() == 1).all()
