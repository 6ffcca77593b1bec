import numpy as np
import pandas as pd
import pytest

from mil.config import validate_study
from mil.data import splits_path
from mil.evaluate import evaluate_method, evaluation_dir
from mil.splits import Fold, Splits, save_splits
from preprocessing.errors import CohortError


def study(tmp_path, target: dict):
    values = {
        "output": str(tmp_path),
        "preprocessing": {"manifest": "slides.csv", "grid": {"mpp": 0.5}},
        "mil": {
            "labels": "labels.csv",
            "tasks": {"t": {"target": target}},
            "methods": {"m": {"name": "abmil"}},
            "split": {"folds": 2},
            "bootstrap": 100,
        },
    }
    return validate_study(values, source="test")


SURVIVAL = {"name": "survival", "time": "time", "event": "event"}
CLASSES = {"name": "classification", "label": "y", "positive": "b"}


def fold_of(patients: pd.Series, number: int) -> Fold:
    tested = patients[patients.index % 2 == number]
    rest = sorted(set(patients) - set(tested))
    return Fold(tuple(rest[1:]), (rest[0],), tuple(sorted(tested)))


def write_folds(study, *, shift: float = 0.0) -> None:
    """30 patients, one slide each; fold k tests those with index % 2 == k."""
    rng = np.random.default_rng(0)
    risk = rng.normal(size=30)
    base = pd.DataFrame(
        {
            "id": [f"0{i}" for i in range(30)],
            "patient_id": [f"0{i}" for i in range(30)],
            "time": np.round(np.exp(1 - risk + 0.3 * rng.normal(size=30)), 3),
            "event": (rng.random(30) < 0.7).astype(int),
            "y": np.where(risk > 0, "b", "a"),
            "risk": risk,
            "prob_a": 1 / (1 + np.exp(risk)),
            "prob_b": 1 / (1 + np.exp(-risk)),
        }
    )
    splits = Splits(tuple(fold_of(base["patient_id"], number) for number in range(2)))
    save_splits(splits, splits_path(study, "t"))
    for fold in range(2):
        tested = base.index % 2 == fold
        table = base.assign(fold=fold, part=np.where(tested, "test", "train"))
        table.loc[tested, "risk"] += shift
        table["splits"] = splits.fingerprint
        both = pd.concat([table.assign(level="slide"), table.assign(level="patient")])
        path = study.fold_dir("t", "m", fold) / "predictions.csv"
        path.parent.mkdir(parents=True, exist_ok=True)
        both.to_csv(path, index=False)


def test_metrics_of_all_folds_and_of_each(tmp_path):
    setting = study(tmp_path, CLASSES)
    write_folds(setting)
    metrics = evaluate_method(setting, "t", "m")
    overall = metrics[(metrics["fold"] == "all") & (metrics["level"] == "patient")]
    assert overall["metric"].tolist() == ["auroc", "balanced_accuracy", "macro_f1"]
    assert overall["value"].tolist() == [1, 1, 1]
    assert overall["n"].tolist() == [30, 30, 30]
    assert set(metrics["fold"]) == {"all", "0", "1"}
    written = pd.read_csv(evaluation_dir(setting, "t", "m") / "predictions.csv", dtype=str)
    assert sorted(written.loc[written["level"] == "slide", "id"]) == sorted(
        f"0{i}" for i in range(30)
    )
    assert (evaluation_dir(setting, "t", "m") / "figure.png").stat().st_size > 5000


def test_risk_groups_are_cut_on_training_risks_alone(tmp_path):
    setting = study(tmp_path, SURVIVAL)
    write_folds(setting)
    evaluate_method(setting, "t", "m")
    path = evaluation_dir(setting, "t", "m") / "predictions.csv"
    before = pd.read_csv(path)
    write_folds(setting, shift=100.0)
    metrics = evaluate_method(setting, "t", "m")
    after = pd.read_csv(path)
    assert before["risk_cut"].equals(after["risk_cut"])
    assert set(before["risk_group"]) == {"high", "low"}
    assert set(after["risk_group"]) == {"high"}
    c_index = metrics[(metrics["fold"] == "all") & (metrics["level"] == "patient")]
    assert c_index["metric"].tolist() == ["c_index"]
    assert 0.7 < c_index["value"].iloc[0] < 1


def test_predictions_of_other_folds_or_other_data_are_refused(tmp_path):
    setting = study(tmp_path, CLASSES)
    write_folds(setting)
    path = setting.fold_dir("t", "m", 1) / "predictions.csv"
    table = pd.read_csv(path, dtype=str)
    moved = table.copy()
    moved.loc[moved["id"] == "01", "part"] = "train"
    for changed in (moved, table.assign(part="test"), table.assign(splits="of last week")):
        changed.to_csv(path, index=False)
        with pytest.raises(CohortError, match="t, m, fold 1: predictions are of other splits"):
            evaluate_method(setting, "t", "m")
    path.unlink()
    with pytest.raises(CohortError, match=r"no predictions at .*fold1"):
        evaluate_method(setting, "t", "m")
