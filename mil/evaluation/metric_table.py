"""Metrics of test predictions as rows of metrics.csv: value, interval, and what to know of it."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.decisions import class_indices, classes_of, positive_class
from mil.evaluation.held_out import HeldOut
from mil.evaluation.statistics import Interval, bootstrap_intervals, draws_of, metrics_for, whole
from mil.figures.common import time_label
from mil.metrics.classification import wilson_interval
from mil.metrics.ranking import delong_interval, newcombe_interval, stratified_auroc
from mil.tasks.config import ClassificationConfig, SurvivalTarget, TaskConfig

SHARES = ("accuracy", "sensitivity", "specificity", "conformal_coverage", "abstained")


def metric_rows(test: HeldOut, level: str, target: TaskConfig, resamples: int) -> pd.DataFrame:
    """One row a metric over all folds, with its interval, and one row a metric and fold."""
    table = test.level(level)
    metrics = metrics_for(table, target, test.fits)
    intervals = bootstrap_intervals(metrics, draws_of(table, resamples))
    fold = table["fold"].to_numpy()
    rows = []
    for name, metric in metrics.items():
        everyone = whole(table)
        value, interval = metric(everyone), intervals[name]
        low, high, about = at_the_boundary(name, value, interval, table, target)
        notes = [
            _horizon_note(name, test, target),
            _conformal_note(name, level, test.fitted),
            f"undefined in {interval.undefined:.0%} of resamples" * (interval.undefined > 0.01),
            about,
        ]
        row = _row(level, name, "all", value, table)
        rows.append(row | {"low": low, "high": high, "note": "; ".join(filter(None, notes))})
        for number in np.unique(fold):
            mine = everyone[fold == number]
            rows.append(_row(level, name, str(number), metric(mine), table.iloc[mine]))
    if level == "patient" and isinstance(target, ClassificationConfig):
        rows += _delong_row(table, target)
    return pd.DataFrame(rows)


def at_the_boundary(
    metric: str, value: float, interval: Interval, table: pd.DataFrame, target: TaskConfig
) -> tuple[float, float, str]:
    """The interval, or where every draw gives the same value one that is no point, and its name.

    Only for patients that are independent rows: one repeat, level patient.
    """
    alone = not table["patient_id"].duplicated().any()
    if interval.low < interval.high or not alone or np.isnan(value):
        return interval.low, interval.high, ""
    if metric in SHARES and isinstance(target, ClassificationConfig):
        cases = cases_of(metric, table, target)
        low, high = wilson_interval(value, cases)
        return float(low), float(high), "Wilson's interval: all resamples agree"
    found = positive_scores(table, target)
    if metric == "auroc" and found is not None:
        low, high = newcombe_interval(value, found[0], strata=table["fold"].to_numpy())
        return low, high, "Newcombe's interval: all resamples agree"
    return interval.low, interval.high, ""


def cases_of(metric: str, table: pd.DataFrame, target: ClassificationConfig) -> int:
    """Of how many rows a share is: of one class for sensitivity and specificity."""
    if metric not in ("sensitivity", "specificity"):
        return len(table)
    classes = classes_of(table)
    positive = class_indices(table, target.label) == classes.index(
        str(positive_class(target, classes))
    )
    return int(positive.sum() if metric == "sensitivity" else (~positive).sum())


def _conformal_note(metric: str, level: str, fitted: list[dict]) -> str:
    """Where a validation part was too small, its conformal sets hold every class."""
    if metric not in ("conformal_coverage", "conformal_set_size", "abstained"):
        return ""
    small = sum(state["decisions"][level]["quantile"] == "inf" for state in fitted)
    if not small:
        return ""
    return f"all classes in the sets of {small} of {len(fitted)} models: validation too small"


def _horizon_note(metric: str, test: HeldOut, target: TaskConfig) -> str:
    """Of what time a metric speaks, and whose censoring weighs its patients."""
    if not isinstance(target, SurvivalTarget) or metric == "c_index":
        return ""
    unit = time_label(target)
    own = "" if test.fitted else "; censoring weights and reference of this cohort itself"
    if metric == "uno_c":
        tau = np.mean([fit.times[-1] for fit in test.fits.values()])
        return f"up to {tau:.3g} ({unit}){own}"
    if not metric.startswith(("td_auc_", "brier_")):
        return own.removeprefix("; ")
    place = int(metric.rsplit("_", 1)[1]) - 1
    times = [fit.horizons[place] for fit in test.fits.values()]
    if target.times is not None:
        return f"at {times[0]:g} ({unit}){own}"
    quantile = f"{(place + 1) * 25} % quantile of training event times"
    return f"at {np.mean(times):.3g} ({unit}), mean of the folds' {quantile}{own}"


def _delong_row(table: pd.DataFrame, target: ClassificationConfig) -> list[dict[str, object]]:
    """AUROC with DeLong's interval, where patients are independent rows: no repeats."""
    positive = positive_scores(table, target)
    if positive is None:
        return []
    truth, score = positive
    folds = table["fold"].to_numpy()
    low, high = delong_interval(truth, score, strata=folds)
    value = stratified_auroc(truth, score, folds)
    return [_row("patient", "auroc_delong", "all", value, table) | {"low": low, "high": high}]


def _row(level: str, name: str, fold: str, value: float, table: pd.DataFrame) -> dict[str, object]:
    return {
        "level": level,
        "metric": name,
        "fold": fold,
        "value": value,
        "n": len(table),
        "patients": table["patient_id"].nunique(),
    }


def positive_scores(
    table: pd.DataFrame, target: TaskConfig
) -> tuple[NDArray[np.bool_], NDArray[np.float64]] | None:
    """Truth and score of the positive class; None where DeLong does not apply."""
    if not isinstance(target, ClassificationConfig) or table["repeat"].nunique() > 1:
        return None
    classes = classes_of(table)
    positive = positive_class(target, classes)
    if positive is None:
        return None
    truth = class_indices(table, target.label) == classes.index(positive)
    both = 0 < truth.sum() < len(truth)
    return (truth, table[f"prob_{positive}"].to_numpy(dtype=float)) if both else None
