"""Which figures a task has, drawn from the rows of an evaluation."""

from collections.abc import Callable, Mapping
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.evaluation.survival_metrics import FoldFit, outcomes_of
from mil.figures.calibration import calibration_figure
from mil.figures.classification import confusion_figure
from mil.figures.common import first_tests
from mil.figures.curves import precision_recall_figure, roc_figure
from mil.figures.survival import (
    kaplan_meier_figure,
    survival_calibration_figure,
    time_dependent_auc_figure,
)
from mil.figures.values import predicted_observed_figure
from mil.metrics.survival import calibration_at, stratified_logrank
from mil.outcomes import Outcomes
from mil.tasks.config import Kind, SurvivalTarget, TaskConfig
from preprocessing.artefacts import whole_file

CURVES: dict[str, Callable[..., None]] = {
    "roc": roc_figure,
    "precision_recall": precision_recall_figure,
    "calibration": calibration_figure,
}
# Figures of the test rows alone, by file name; those of survival need more.
FIGURES: dict[Kind, dict[str, Callable[..., None]]] = {
    "classification": {**CURVES, "confusion": confusion_figure},
    "multilabel": CURVES,
    "regression": {"predicted_observed": predicted_observed_figure},
}
CALIBRATION_GROUPS = 4
PER_GROUP = 12  # patients; a Kaplan-Meier estimate of fewer says little


def draw_figures(
    test: pd.DataFrame,
    metrics: pd.DataFrame,
    target: TaskConfig,
    folder: Path,
    *,
    fits: Mapping[int, FoldFit],
    title: str,
) -> None:
    """`test`: test predictions of all levels and folds; `metrics`: rows of metrics.csv."""
    if isinstance(target, SurvivalTarget):
        _draw_survival(test, metrics, target, folder, fits=fits, title=title)
        return
    for name, draw in FIGURES[target.kind].items():
        with whole_file(folder / f"{name}.png") as partial:
            draw(test, target, partial, title=title)


def _draw_survival(
    test: pd.DataFrame,
    metrics: pd.DataFrame,
    target: SurvivalTarget,
    folder: Path,
    *,
    fits: Mapping[int, FoldFit],
    title: str,
) -> None:
    patients = test[test["level"] == "patient"]
    shown = first_tests(patients)
    outcomes = outcomes_of(shown, target)
    high = (shown["risk_group"] == "high").to_numpy()
    logrank = stratified_logrank(outcomes, high, shown["fold"].to_numpy())
    with whole_file(folder / "kaplan_meier.png") as partial:
        kaplan_meier_figure(patients, target, partial, title=title, logrank=logrank)
    tables = calibration_tables(shown, outcomes, fits)
    with whole_file(folder / "survival_calibration.png") as partial:
        survival_calibration_figure(patients, target, tables, partial, title=title)
    pooled = metrics[(metrics["fold"] == "all") & metrics["metric"].str.startswith("td_auc_")]
    rows = pooled[["value", "low", "high"]].assign(time=mean_horizons(fits))
    with whole_file(folder / "time_dependent_auc.png") as partial:
        time_dependent_auc_figure(rows, target, partial, title=title)


def mean_horizons(fits: Mapping[int, FoldFit]) -> list[float]:
    """The horizons, each the mean over the folds: theirs differ unless the task names them."""
    return np.mean([fit.horizons for fit in fits.values()], axis=0).tolist()


def calibration_tables(
    patients: pd.DataFrame, outcomes: Outcomes, fits: Mapping[int, FoldFit]
) -> dict[float, pd.DataFrame]:
    """Per horizon: predicted against observed survival in groups of similar prediction."""
    groups = int(np.clip(len(patients) // PER_GROUP, 2, CALIBRATION_GROUPS))
    tables = {}
    for horizon in mean_horizons(fits):
        predicted = survival_at(patients, fits, horizon)
        tables[horizon] = calibration_at(outcomes, predicted, horizon, groups)
    return tables


def survival_at(
    patients: pd.DataFrame, fits: Mapping[int, FoldFit], time: float
) -> NDArray[np.float64]:
    """(n,) predicted survival at `time`, linear between the times of each fold's grid."""
    found = np.full(len(patients), np.nan)
    for fold in patients["fold"].unique():
        mine = (patients["fold"] == fold).to_numpy()
        times = fits[fold].times
        grid = patients.loc[mine, [f"survival_{j:02d}" for j in range(len(times))]].to_numpy(float)
        found[mine] = [np.interp(time, [0.0, *times], [1.0, *row]) for row in grid]
    return found
