"""Metrics of test predictions by the kind of target, and their patient-bootstrap intervals.

Tables hold the test predictions of one level (slide or patient) as mil.predictions writes them. A
metric maps rows of such a table, some of them possibly more than once, to a number; it is NaN where
it is undefined. Where the folds were repeated it is the mean over the repeats.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.evaluation.class_metrics import classification_metrics
from mil.evaluation.label_metrics import label_metrics
from mil.evaluation.survival_metrics import FoldFit, survival_metrics
from mil.evaluation.value_metrics import value_metrics
from mil.metrics.resampling import Metric, Rows, patient_draws, percentile_interval
from mil.tasks.config import Kind, TaskConfig

_METRICS: dict[Kind, Callable[..., dict[str, Metric]]] = {
    "classification": lambda table, target, _: classification_metrics(table, target),
    "multilabel": lambda table, target, _: label_metrics(table, target),
    "regression": lambda table, target, _: value_metrics(table, target),
    "survival": survival_metrics,
}


def metrics_for(
    table: pd.DataFrame, target: TaskConfig, fits: Mapping[int, FoldFit] | None = None
) -> dict[str, Metric]:
    """The metrics of a target, by name; survival needs the `fits` of its folds."""
    found = _METRICS[target.kind](table, target, fits or {})
    repeats = table["repeat"].to_numpy()
    if len(np.unique(repeats)) == 1:
        return found
    return {name: _mean_over(metric, repeats) for name, metric in found.items()}


def whole(table: pd.DataFrame) -> Rows:
    return np.arange(len(table))


def _mean_over(metric: Metric, repeats: NDArray[np.intp]) -> Metric:
    def mean(rows: Rows) -> float:
        values = [metric(rows[repeats[rows] == one]) for one in np.unique(repeats[rows])]
        defined = [value for value in values if np.isfinite(value)]
        return float(np.mean(defined)) if defined else float("nan")

    return mean


def draws_of(table: pd.DataFrame, resamples: int) -> list[Rows]:
    """Bootstrap samples of the table's patients: within their folds, or where folds were repeated
    over all patients, with every row of a drawn patient.
    """
    once = table["repeat"].nunique() == 1
    strata = table["fold"].to_numpy() if once else None
    patients = table["patient_id"].to_numpy()
    return list(patient_draws(patients, strata, resamples=resamples, seed=0))


@dataclass(frozen=True)
class Interval:
    """A 95 % percentile interval, and in which share of the draws the metric was undefined."""

    low: float
    high: float
    undefined: float


def bootstrap_intervals(metrics: Mapping[str, Metric], draws: list[Rows]) -> dict[str, Interval]:
    """Draws in which a metric is undefined do not count."""
    found = {}
    for name, metric in metrics.items():
        values = np.array([metric(rows) for rows in draws])
        found[name] = Interval(*percentile_interval(values), float(np.isnan(values).mean()))
    return found
