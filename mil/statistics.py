"""Metrics of test predictions with patient-bootstrap intervals.

Every function takes a table of test predictions of one level (slide or patient): columns fold,
patient_id, the target columns, and `prob_<class>` or `risk`.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd
from lifelines.utils import concordance_index
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from mil.tasks.config import SurvivalConfig, TaskConfig

Metric = Callable[[pd.DataFrame], float]


def metrics_for(target: TaskConfig) -> dict[str, Metric]:
    """The metrics of a target, by name; each gives NaN where it is undefined."""
    if isinstance(target, SurvivalConfig):
        return {"c_index": lambda table: harrell_c(table, time=target.time, event=target.event)}
    label, positive = target.label, target.positive
    return {
        "auroc": lambda table: auroc(table, label=label, positive=positive),
        "balanced_accuracy": lambda table: balanced_accuracy(table, label=label),
        "macro_f1": lambda table: macro_f1(table, label=label),
    }


def auroc(table: pd.DataFrame, *, label: str, positive: str | None) -> float:
    """AUROC of the positive class; without one, the mean over classes of one against the rest."""
    if positive is not None:
        return _binary_auroc(table[label] == positive, table[f"prob_{positive}"])
    each = [_binary_auroc(table[label] == c, table[f"prob_{c}"]) for c in _classes(table)]
    return float(np.mean(each))


def _binary_auroc(truth: pd.Series, score: pd.Series) -> float:
    return float(roc_auc_score(truth, score)) if truth.nunique() == 2 else float("nan")


def balanced_accuracy(table: pd.DataFrame, *, label: str) -> float:
    """Mean recall over the classes that occur; the answer is the most probable class."""
    occurring = sorted(table[label].unique())
    return float(
        recall_score(table[label], most_probable(table), labels=occurring, average="macro")
    )


def macro_f1(table: pd.DataFrame, *, label: str) -> float:
    """Unweighted mean of F1 over the classes that occur or are answered."""
    answers = most_probable(table)
    present = sorted(set(table[label]) | set(answers))
    return float(f1_score(table[label], answers, labels=present, average="macro"))


def harrell_c(table: pd.DataFrame, *, time: str, event: str) -> float:
    """Harrell's C within folds, their mean: risks of two folds' models are not on one scale."""
    values = []
    for _, fold in table.groupby("fold"):
        times, events = pd.to_numeric(fold[time]), pd.to_numeric(fold[event])
        try:
            values.append(concordance_index(times, -fold["risk"], events))
        except ZeroDivisionError:  # lifelines: no two patients of this fold can be compared
            continue
    return float(np.mean(values)) if values else float("nan")


def most_probable(table: pd.DataFrame) -> pd.Series:
    classes = _classes(table)
    best = table[[f"prob_{c}" for c in classes]].to_numpy().argmax(axis=1)
    return pd.Series(np.array(classes)[best], index=table.index)


def _classes(table: pd.DataFrame) -> list[str]:
    return [c.removeprefix("prob_") for c in table.columns if c.startswith("prob_")]


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
        rows = [
            patients[i]
            for patients in by_fold
            for i in rng.integers(len(patients), size=len(patients))
        ]
        resample = table.iloc[np.concatenate(rows)]
        for name, metric in metrics.items():
            draws[name].append(metric(resample))
    return {name: _interval(np.array(values)) for name, values in draws.items()}


def _interval(values: np.ndarray) -> tuple[float, float]:
    defined = values[~np.isnan(values)]
    if not len(defined):
        return float("nan"), float("nan")
    low, high = np.quantile(defined, [0.025, 0.975])
    return float(low), float(high)
