"""Metrics of several labels' test predictions, as functions of rows of one table.

`auroc_<label>` and so on are of the rows where that label is known; `auroc` is their mean over the
labels of which it is defined.
"""

from collections.abc import Callable

import numpy as np
import pandas as pd

from mil.decisions import known_truth
from mil.metrics import ranking
from mil.metrics.arrays import Flags, Floats, ratio
from mil.metrics.classification import sensitivity_specificity
from mil.metrics.resampling import Metric, Rows
from mil.tasks.config import MultilabelConfig

# Of truth, probability, call and fold, each of the rows where the label is known.
_SCORES: dict[str, Callable[..., float]] = {
    "auroc": lambda truth, score, _, folds: ranking.stratified_auroc(truth, score, folds),
    "auprc": lambda truth, score, *_: ranking.auprc(truth, score),
    "sensitivity": lambda truth, _, called, __: sensitivity_specificity(truth, called)[0],
    "specificity": lambda truth, _, called, __: sensitivity_specificity(truth, called)[1],
    "brier": lambda truth, score, *_: float(ratio(((score - truth) ** 2).sum(), len(truth))),
}
MACRO = tuple(_SCORES)


def label_metrics(table: pd.DataFrame, target: MultilabelConfig) -> dict[str, Metric]:
    """The means over the labels first, then every label by itself."""
    folds = table["fold"].to_numpy()
    answers = {name: _answers(table, target, name) for name in target.labels}

    def of_label(score: Callable[..., float], name: str) -> Metric:
        known, truth, probability, called = answers[name]

        def metric(rows: Rows) -> float:
            mine = rows[known[rows]]
            return score(truth[mine], probability[mine], called[mine], folds[mine])

        return metric

    single = {
        f"{metric}_{name}": of_label(score, name)
        for metric, score in _SCORES.items()
        for name in target.labels
    }
    everyone = np.arange(len(table))
    means = {}
    for metric in MACRO:
        each = [single[f"{metric}_{name}"] for name in target.labels]
        means[metric] = _mean([one for one in each if np.isfinite(one(everyone))])
    return means | single


def of_one_label(metric: str, target: MultilabelConfig) -> tuple[str, str | None]:
    """('auroc', 'EGFR') of auroc_EGFR; of a mean over labels no label."""
    for base in MACRO:
        name = metric.removeprefix(f"{base}_")
        if name != metric and name in target.labels:
            return base, name
    return metric, None


def _answers(
    table: pd.DataFrame, target: MultilabelConfig, name: str
) -> tuple[Flags, Flags, Floats, Flags]:
    """(n,) each: whether the label is known, whether it is yes, its probability, its call."""
    known, yes = np.zeros(len(table), dtype=bool), np.zeros(len(table), dtype=bool)
    rows, truth = known_truth(table, target, name)
    known[rows], yes[rows] = True, truth
    called = (table[f"predicted_{name}"] == "1").to_numpy()
    return known, yes, table[f"prob_{name}"].to_numpy(dtype=float), called


def _mean(metrics: list[Metric]) -> Metric:
    """NaN where one of them is, and without any."""
    return lambda rows: float(np.mean([one(rows) for one in metrics])) if metrics else np.nan
