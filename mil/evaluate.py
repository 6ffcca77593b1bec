"""Test predictions of all folds -> metrics and a figure. Nothing is fitted on test rows."""

from pathlib import Path

import numpy as np
import pandas as pd

from mil.config import StudyConfig
from mil.data import splits_path
from mil.plots import kaplan_meier_figure, roc_figure
from mil.predictions import read_predictions, write_csv
from mil.splits import Splits, load_splits
from mil.statistics import bootstrap_intervals, metrics_for, whole
from mil.tasks.config import SurvivalConfig, TaskConfig
from preprocessing.artefacts import whole_file
from preprocessing.errors import CohortError

LEVELS = ("slide", "patient")


def evaluation_dir(study: StudyConfig, task: str, method: str) -> Path:
    return study.output / "evaluation" / task / method


def evaluate_method(study: StudyConfig, task: str, method: str) -> pd.DataFrame:
    """Writes predictions.csv, metrics.csv and figure.png of a method on a task; returns metrics."""
    target = study.mil.tasks[task].target
    folds = [
        read_predictions(study.fold_dir(task, method, fold) / "predictions.csv")
        for fold in range(study.mil.split.folds)
    ]
    _refuse_other_folds(folds, load_splits(splits_path(study, task)), f"{task}, {method}")
    if isinstance(target, SurvivalConfig):
        folds = [_with_risk_group(fold) for fold in folds]
    everything = pd.concat(folds, ignore_index=True)
    test = everything[everything["part"] == "test"].drop(columns=["part", "splits"])
    metrics = pd.concat(
        [_metric_rows(test[test["level"] == level], level, target, study) for level in LEVELS],
        ignore_index=True,
    )
    folder = evaluation_dir(study, task, method)
    write_csv(test, folder / "predictions.csv")
    write_csv(metrics, folder / "metrics.csv")
    patients = test[test["level"] == "patient"]
    with whole_file(folder / "figure.png") as partial:
        if isinstance(target, SurvivalConfig):
            kaplan_meier_figure(patients, target, partial, title=f"{task}, {method}")
        else:
            roc_figure(test, target, partial, title=f"{task}, {method}")
    return metrics


def _with_risk_group(fold: pd.DataFrame) -> pd.DataFrame:
    """Adds risk_group: above or below the median risk of the fold's *training* patients."""
    training = fold[(fold["part"] == "train") & (fold["level"] == "patient")]
    cut = training["risk"].median()
    return fold.assign(
        risk_cut=cut, risk_group=(fold["risk"] > cut).map({True: "high", False: "low"})
    )


def _refuse_other_folds(folds: list[pd.DataFrame], splits: Splits, where: str) -> None:
    """Every fold's predictions are of the splits as they stand: no patient twice, none missing."""
    for number, table in enumerate(folds):
        tested = set(table.loc[table["part"] == "test", "patient_id"])
        if set(table["splits"]) != {splits.fingerprint} or tested != set(splits.folds[number].test):
            raise CohortError(
                f"{where}, fold {number}: predictions are of other splits or other data than now; "
                "train that fold anew"
            )


def _metric_rows(
    test: pd.DataFrame, level: str, target: TaskConfig, study: StudyConfig
) -> pd.DataFrame:
    """One row a metric over all folds, with its interval, and one row a metric and fold."""
    test = test.reset_index(drop=True)
    metrics = metrics_for(test, target)
    intervals = bootstrap_intervals(test, metrics, resamples=study.mil.bootstrap)
    fold = test["fold"].to_numpy()
    rows = []
    for name, metric in metrics.items():
        low, high = intervals[name]
        everyone = whole(test)
        rows.append(_row(level, name, "all", metric(everyone), test) | {"low": low, "high": high})
        for number in np.unique(fold):
            mine = everyone[fold == number]
            rows.append(_row(level, name, str(number), metric(mine), test.iloc[mine]))
    return pd.DataFrame(rows)


def _row(level: str, name: str, fold: str, value: float, table: pd.DataFrame) -> dict[str, object]:
    return {
        "level": level,
        "metric": name,
        "fold": fold,
        "value": value,
        "n": len(table),
        "patients": table["patient_id"].nunique(),
    }
