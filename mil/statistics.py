"""Metrics of test predictions with patient-bootstrap intervals.

Tables hold the test predictions of one level (slide or patient): columns fold, patient_id, the
target columns, and `prob_<class>` or `risk`. A metric maps rows of such a table, some of them
possibly more than once, to a number; it is NaN where it is undefined.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from lifelines.utils import concordance_index
from numpy.typing import NDArray
from sklearn.metrics import roc_auc_score

from mil.tasks.columns import survival_columns
from mil.tasks.config import ClassificationConfig, SurvivalConfig, TaskConfig

Rows = NDArray[np.intp]
Metric = Callable[[Rows], float]


def metrics_for(table: pd.DataFrame, target: TaskConfig) -> dict[str, Metric]:
    """The metrics of a target, by name."""
    if isinstance(target, SurvivalConfig):
        return {"c_index": _harrell_c(table, target)}
    return _classification_metrics(table, target)


def whole(table: pd.DataFrame) -> Rows:
    return np.arange(len(table))


def classes_of(table: pd.DataFrame) -> list[str]:
    return [c.removeprefix("prob_") for c in map(str, table.columns) if c.startswith("prob_")]


def _classification_metrics(table: pd.DataFrame, target: ClassificationConfig) -> dict[str, Metric]:
    """AUROC of the positive class (without one: mean over classes against the rest), balanced
    accuracy and macro F1 of the most probable class.
    """
    classes = classes_of(table)
    probabilities = table[[f"prob_{c}" for c in classes]].to_numpy()
    truth = table[target.label].map({name: i for i, name in enumerate(classes)}).to_numpy(dtype=int)
    answers = probabilities.argmax(axis=1)
    asked = [classes.index(target.positive)] if target.positive else list(range(len(classes)))

    def auroc(rows: Rows) -> float:
        each = [_binary_auroc(truth[rows] == c, probabilities[rows, c]) for c in asked]
        return float(np.mean(each))

    def confusion(rows: Rows) -> NDArray[np.intp]:
        """(truth, answer) counts."""
        pairs = truth[rows] * len(classes) + answers[rows]
        return np.bincount(pairs, minlength=len(classes) ** 2).reshape(len(classes), -1)

    def balanced_accuracy(rows: Rows) -> float:
        counts = confusion(rows)
        return _mean_ratio(counts.diagonal(), counts.sum(axis=1))

    def macro_f1(rows: Rows) -> float:
        counts = confusion(rows)
        return _mean_ratio(2 * counts.diagonal(), counts.sum(axis=0) + counts.sum(axis=1))

    return {"auroc": auroc, "balanced_accuracy": balanced_accuracy, "macro_f1": macro_f1}


def _binary_auroc(truth: NDArray[np.bool_], score: NDArray[np.float64]) -> float:
    return float(roc_auc_score(truth, score)) if 0 < truth.sum() < len(truth) else float("nan")


def _mean_ratio(part: NDArray[np.intp], of: NDArray[np.intp]) -> float:
    """Mean over the classes for which the ratio is defined."""
    occurring = of > 0
    return float(np.mean(part[occurring] / of[occurring]))


def _harrell_c(table: pd.DataFrame, target: SurvivalConfig) -> Metric:
    """Harrell's C within folds, their mean: risks of two folds' models are not on one scale."""
    times, events = survival_columns(table, time=target.time, event=target.event)
    risk, folds = table["risk"].to_numpy(), table["fold"].to_numpy()

    def c_index(rows: Rows) -> float:
        values = []
        for fold in np.unique(folds[rows]):
            mine = rows[folds[rows] == fold]
            try:
                values.append(concordance_index(times[mine], -risk[mine], events[mine]))
            except ZeroDivisionError:  # lifelines: no two patients of this fold can be compared
                continue
        return float(np.mean(values)) if values else float("nan")

    return c_index


def bootstrap_intervals(
    table: pd.DataFrame, metrics: dict[str, Metric], *, resamples: int, seed: int = 0
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals from drawing patients with replacement, within their folds.

    All rows of a drawn patient come along; resamples in which a metric is undefined do not count.
    """
    rng = np.random.default_rng(seed)
    patient = table.groupby(["fold", "patient_id"]).ngroup().to_numpy()
    by_fold = [
        [np.flatnonzero(patient == one) for one in np.unique(patient[table["fold"] == fold])]
        for fold in table["fold"].unique()
    ]
    draws: dict[str, list[float]] = {name: [] for name in metrics}
    for _ in range(resamples):
        rows = np.concatenate(
            [
                patients[i]
                for patients in by_fold
                for i in rng.integers(len(patients), size=len(patients))
            ]
        )
        for name, metric in metrics.items():
            draws[name].append(metric(rows))
    return {name: _interval(np.array(values)) for name, values in draws.items()}


def _interval(values: NDArray[np.float64]) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)
