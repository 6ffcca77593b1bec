"""Test predictions of all folds -> metrics and a figure. Nothing is fitted on test rows."""

from pathlib import Path

import pandas as pd

from mil.config import StudyConfig
from mil.plots import kaplan_meier_figure, roc_figure
from mil.statistics import bootstrap_intervals, metrics_for
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
    if isinstance(target, SurvivalConfig):
        folds = [_with_risk_group(fold) for fold in folds]
    everything = pd.concat(folds, ignore_index=True)
    test = everything[everything["part"] == "test"].drop(columns="part")
    _refuse_twice_tested(test)
    metrics = pd.concat(
        [_metric_rows(test[test["level"] == level], level, target, study) for level in LEVELS],
        ignore_index=True,
    )
    folder = evaluation_dir(study, task, method)
    with whole_file(folder / "predictions.csv") as partial:
        test.to_csv(partial, index=False)
    with whole_file(folder / "metrics.csv") as partial:
        metrics.to_csv(partial, index=False)
    patients = test[test["level"] == "patient"]
    with whole_file(folder / "figure.png") as partial:
        if isinstance(target, SurvivalConfig):
            kaplan_meier_figure(patients, target, partial, title=f"{task}, {method}")
        else:
            roc_figure(test, target, partial, title=f"{task}, {method}")
    return metrics


def read_predictions(path: Path) -> pd.DataFrame:
    """Ids and labels stay text, so that '007' and '1' come back as they went."""
    if not path.is_file():
        raise CohortError(f"no predictions at {path}: train that fold first")
    table = pd.read_csv(path, dtype=str)
    numeric = [c for c in table if c == "risk" or str(c).startswith(("prob_", "survival_"))]
    return table.astype({"fold": int, **dict.fromkeys(numeric, float)})


def _with_risk_group(fold: pd.DataFrame) -> pd.DataFrame:
    """Adds risk_group: above or below the median risk of the fold's *training* patients."""
    training = fold[(fold["part"] == "train") & (fold["level"] == "patient")]
    cut = training["risk"].median()
    return fold.assign(
        risk_cut=cut, risk_group=(fold["risk"] > cut).map({True: "high", False: "low"})
    )


def _refuse_twice_tested(test: pd.DataFrame) -> None:
    twice = test.loc[test.duplicated(["level", "id"]), "id"].tolist()
    if twice:
        raise CohortError(f"{twice[:5]} are tested in more than one fold: train all folds anew")


def _metric_rows(
    test: pd.DataFrame, level: str, target: TaskConfig, study: StudyConfig
) -> pd.DataFrame:
    """One row a metric over all folds, with its interval, and one row a metric and fold."""
    metrics = metrics_for(target)
    intervals = bootstrap_intervals(test, metrics, resamples=study.mil.bootstrap)
    rows = []
    for name, metric in metrics.items():
        low, high = intervals[name]
        rows.append(_row(level, name, "all", metric(test), test) | {"low": low, "high": high})
        rows += [
            _row(level, name, str(fold), metric(part), part) for fold, part in test.groupby("fold")
        ]
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
