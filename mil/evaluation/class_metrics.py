"""Metrics of a classification's test predictions, as functions of rows of one table."""

from collections.abc import Callable

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.decisions import (
    class_indices,
    classes_of,
    members_of_sets,
    positive_class,
    probabilities_of,
)
from mil.metrics import classification as classes_metrics
from mil.metrics import ranking
from mil.metrics.resampling import Metric, Rows
from mil.tasks.config import ClassificationConfig


def classification_metrics(table: pd.DataFrame, target: ClassificationConfig) -> dict[str, Metric]:
    """Of the positive class where there is one, else the mean over classes against the rest.

    The AUROC compares cases within folds only, as risks are; all else is of all folds together.
    """
    classes = classes_of(table)
    truth = class_indices(table, target.label)
    probabilities = probabilities_of(table)
    uncalibrated = table[[f"uncalibrated_{c}" for c in classes]].to_numpy(dtype=float)
    called = table["predicted"].map({c: i for i, c in enumerate(classes)}).to_numpy(dtype=np.intp)
    positive = positive_class(target, classes)
    asked = [classes.index(positive)] if positive else list(range(len(classes)))

    folds = table["fold"].to_numpy()

    def auroc(rows: Rows) -> float:
        each = [
            ranking.stratified_auroc(truth[rows] == c, probabilities[rows, c], folds[rows])
            for c in asked
        ]
        return float(np.mean(each))

    def pooled_precision(rows: Rows) -> float:
        each = [ranking.auprc(truth[rows] == c, probabilities[rows, c]) for c in asked]
        return float(np.mean(each))

    def confused(score: Callable[..., float]) -> Metric:
        return lambda rows: score(
            classes_metrics.confusion(truth[rows], called[rows], len(classes))
        )

    found: dict[str, Metric] = {
        "auroc": auroc,
        "auprc": pooled_precision,
        "accuracy": confused(classes_metrics.accuracy),
        "balanced_accuracy": confused(classes_metrics.balanced_accuracy),
        "macro_f1": confused(classes_metrics.macro_f1),
    }
    if positive:
        ill, called_ill = truth == classes.index(positive), called == classes.index(positive)
        found["sensitivity"] = lambda r: classes_metrics.sensitivity_specificity(
            ill[r], called_ill[r]
        )[0]
        found["specificity"] = lambda r: classes_metrics.sensitivity_specificity(
            ill[r], called_ill[r]
        )[1]
    if target.ordered:
        found["kappa"] = confused(lambda counts: classes_metrics.kappa(counts, "quadratic"))
    for name, answers in (("", probabilities), ("_uncalibrated", uncalibrated)):
        found[f"brier{name}"] = _of_rows(classes_metrics.brier, truth, answers)
        found[f"ece{name}"] = _of_rows(classes_metrics.expected_calibration_error, truth, answers)
    return found | _conformal_metrics(table, target)


def _of_rows(score: Callable[..., float], truth: NDArray, answers: NDArray) -> Metric:
    return lambda rows: score(truth[rows], answers[rows])


def _conformal_metrics(table: pd.DataFrame, target: ClassificationConfig) -> dict[str, Metric]:
    """Share of conformal sets that hold the truth, their mean size, share of abstentions."""
    inside = members_of_sets(table)
    covered = inside[np.arange(len(table)), class_indices(table, target.label)]
    sizes = inside.sum(axis=1)
    abstained = table["abstain"].to_numpy(dtype=float)
    return {
        "conformal_coverage": lambda rows: float(covered[rows].mean()),
        "conformal_set_size": lambda rows: float(sizes[rows].mean()),
        "abstained": lambda rows: float(abstained[rows].mean()),
    }
