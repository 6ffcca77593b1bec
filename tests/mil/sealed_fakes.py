"""Sealed predictions of members that were never trained, for tests of what reads them."""

import json

import pandas as pd
import pytest

from mil.config import StudyConfig, validate_study
from mil.data import splits_path
from mil.evaluation import contest, held_out
from mil.folds.splits import Fold, Splits, load_splits, save_splits
from mil.predictions import write_csv
from mil.seals import seal

SURVIVAL = {"name": "survival", "time": "months", "event": "died"}
CLASSES = {"name": "classification", "label": "y", "positive": "tumour"}
FOLDS = 4


@pytest.fixture
def runs(monkeypatch) -> None:
    """The runs of members that were written here and never trained."""

    def splits_of(setting: StudyConfig, task: str) -> Splits:
        return load_splits(splits_path(setting, task))

    def written(setting: StudyConfig, task: str, answerer: str, splits: Splits | None = None):
        splits = splits_of(setting, task)
        seeds = setting.seeds(answerer)
        return splits, {(k, s): "run" for k in range(len(splits.folds)) for s in seeds}

    monkeypatch.setattr(held_out, "member_runs", written)
    monkeypatch.setattr(contest, "task_splits", splits_of)


def study(
    tmp_path, target: dict, *, seeds: int = 1, methods=("m", "n"), baselines=(), **mil
) -> StudyConfig:
    values = {
        "output": str(tmp_path),
        "preprocessing": {"manifest": "slides.csv", "grid": {"mpp": 0.5}},
        "mil": {
            "labels": "labels.csv",
            "tasks": {"t": {"target": target, "baselines": list(baselines)}},
            "methods": {name: {"name": "abmil"} for name in methods},
            "split": {"folds": FOLDS},
            "train": {"seeds": seeds},
            "bootstrap": 100,
            **mil,
        },
    }
    return validate_study(values, source="test")


def write_members(setting: StudyConfig, method: str, table: pd.DataFrame, *, seed: int = 0) -> None:
    """Members whose fold k tests the rows of fold k and trains on the others."""
    names = sorted(table["patient_id"].unique())
    folds = []
    for k in range(FOLDS):
        tested = sorted(table.loc[table["fold"] == k, "patient_id"].unique())
        rest = [name for name in names if name not in tested]
        folds.append(Fold(tuple(rest[5:]), tuple(rest[:5]), tuple(tested)))
    splits = Splits(tuple(folds))
    save_splits(splits, splits_path(setting, "t"))
    for k, fold in enumerate(splits.folds):
        part_of = {name: part for part, ids in fold.parts().items() for name in ids}
        rows = table.assign(fold=k, repeat=0, seed=seed, splits=splits.fingerprint)
        rows["part"] = rows["patient_id"].map(part_of)
        folder = setting.member_dir("t", method, k, seed)
        write_csv(rows, folder / "predictions.csv")
        decisions = {level: {"quantile": 0.5 if k else "inf"} for level in ("slide", "patient")}
        about = {"times": [6, 12, 24], "horizons": [12, 24], "fold": k, "decisions": decisions}
        (folder / "fitted.json").write_text(json.dumps(about))
        seal(folder, "run")
