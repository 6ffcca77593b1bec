"""The whole chain, from stores to metrics, on labels that say nothing and on labels that do.

Shuffled labels must give an AUROC and a C-index whose interval covers 0.5, for every method and
baseline: a leak of any stage would lift them. Unshuffled ones must not, or the test could not fail.
A true 95 % interval misses once in twenty times, so several shuffles are judged together.
"""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from fake_archive import study_of, write_archive, write_features

from mil.config import StudyConfig
from mil.evaluation.held_out import read_held_out
from mil.evaluation.metric_table import metric_rows
from mil.experiment import run_member, split_task
from preprocessing.errors import CohortError

PATIENTS = 40
SHUFFLES = 2
METHODS = {
    name: {"name": name, "hidden_dim": 16, "attention_dim": 8}
    for name in ("abmil", "acmil", "mhim")
}
METHODS["acmil"]["top_k"] = 3  # more would hide all that a bag of nine tiles has to tell
TARGETS = {
    "tumour": {"name": "classification", "label": "y", "positive": "b"},
    "survival": {"name": "survival", "time": "t", "event": "e", "bins": 2},
    "cox": {"name": "cox", "time": "t", "event": "e"},
}
METRIC = {"tumour": "auroc", "survival": "c_index", "cox": "c_index"}


def make_study(folder: Path, task: str) -> StudyConfig:
    tasks = {task: {"bag": "patient", "target": TARGETS[task], "covariates": ["age"]}}
    train = {"epochs": 15, "learning_rate": 5e-3, "device": "cpu", "bags_per_step": 4}
    return study_of(
        folder,
        labels=str(folder / "labels.csv"),
        tasks=tasks,
        methods=METHODS,
        split={"folds": 3},
        train=train,
        bootstrap=200,
    )


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    """Patients of whom half are ill: shifted tiles, earlier deaths, higher age."""
    folder = tmp_path_factory.mktemp("archive")
    write_archive(folder, patients=PATIENTS)
    rng = np.random.default_rng(1)
    table = pd.read_csv(folder / "labels.csv")
    patient = table["slide_id"].str.split("-").str[0]
    number = patient.str[1:].astype(int)
    ill = (number % 4 < 2).to_numpy()
    by_patient = {p: rng.exponential(1.0) for p in patient.unique()}
    life = patient.map(by_patient) * np.where(ill, 4, 40) + 0.01
    table = table.assign(
        y=np.where(ill, "b", "a"),
        t=life.round(3),
        e=(number % 5 > 0).astype(int),
        age=50 + 20 * ill + number % 7,
    )
    table.to_csv(folder / "labels.csv", index=False)
    for slide, owner, sick in zip(table["slide_id"], patient, ill, strict=True):
        features = rng.normal(size=(9, 6))
        features[:3] += 2.5 * sick
        write_features(folder / "out" / "features", slide, owner, features)
    return folder


def shuffle_patients(table: pd.DataFrame, seed: int) -> pd.DataFrame:
    """Every patient gets the labels of another one; features and age stay."""
    patient = table["slide_id"].str.split("-").str[0]
    labels = table.assign(patient=patient).drop_duplicates("patient").set_index("patient")
    names = labels.index.to_numpy()
    owner = dict(zip(names, np.random.default_rng(seed).permutation(names), strict=True))
    return table.assign(**{c: patient.map(owner).map(labels[c]) for c in ("y", "t", "e")})


def intervals(study: StudyConfig, task: str) -> dict[str, pd.Series]:
    """Answerer -> the row of the task's main metric over all folds, patients."""
    split_task(study, task)
    found = {}
    for answerer in study.answerers(task):
        for fold in range(3):
            run_member(study, task, answerer, fold=fold, seed=0)
        test = read_held_out(study, task, answerer)
        rows = metric_rows(test, "patient", study.mil.tasks[task].target, study.mil.bootstrap)
        chosen = rows[rows["metric"] == METRIC[task]]
        found[answerer] = chosen[chosen["fold"] == "all"].iloc[0]
    return found


@pytest.mark.slow
@pytest.mark.parametrize("task", TARGETS)
def test_shuffled_labels_give_chance_and_true_ones_do_not(archive, task):
    study = make_study(archive, task)
    true = pd.read_csv(archive / "labels.csv")
    try:
        for answerer, row in intervals(study, task).items():
            assert row["low"] > 0.5, f"{answerer} learns nothing from true labels: {row['value']}"
        shuffled = []
        for seed in range(SHUFFLES):
            shuffle_patients(true, seed).to_csv(archive / "labels.csv", index=False)
            shuffled.append(pd.DataFrame(intervals(study, task)).T)
    finally:
        true.to_csv(archive / "labels.csv", index=False)
    table = pd.concat(shuffled).rename_axis("answerer").reset_index()
    covered = (table["low"] <= 0.5) & (table["high"] >= 0.5)
    assert covered.mean() >= 0.8, table
    error = (table["high"] - table["low"]).astype(float) / (2 * 1.96)
    table["z"] = (table["value"].astype(float) - 0.5) / error
    z = table.groupby("answerer")["z"].sum() / np.sqrt(SHUFFLES)
    assert (z.abs() < 3).all(), z


def test_one_image_under_two_patients_is_refused_when_folds_are_made(tmp_path):
    write_archive(tmp_path)
    store = tmp_path / "out" / "features" / "p5-1.zarr" / "zarr.json"
    original = store.read_text()
    assert "file of p5-1" in original
    store.write_text(original.replace("file of p5-1", "file of p2-1"))
    with pytest.raises(CohortError, match=r"'p2-1' .*and 'p5-1' .*are the same image"):
        split_task(study_of(tmp_path), "tumour")
