"""Metrics of test predictions as rows of metrics.csv: value, interval, and what to know of it."""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.decisions import asked_of, known_truth
from mil.evaluation.held_out import HeldOut
from mil.evaluation.label_metrics import MACRO, of_one_label
from mil.evaluation.statistics import Interval, bootstrap_intervals, draws_of, metrics_for, whole
from mil.evaluation.value_metrics import IN_UNIT
from mil.figures.common import time_label
from mil.metrics.classification import wilson_interval
from mil.metrics.ranking import delong_interval, newcombe_interval, stratified_auroc
from mil.metrics.resampling import Metric
from mil.tasks.config import (
    ClassificationConfig,
    MultilabelConfig,
    RegressionConfig,
    SurvivalTarget,
    TaskConfig,
)

Truth = NDArray[np.bool_]
Score = NDArray[np.float64]
SHARES = ("accuracy", "sensitivity", "specificity", "conformal_coverage", "abstained")


def metric_rows(test: HeldOut, level: str, target: TaskConfig, resamples: int) -> pd.DataFrame:
    """One row a metric over all folds, with its interval, and one row a metric and fold."""
    table = test.level(level)
    metrics = metrics_for(table, target, test.fits)
    intervals = bootstrap_intervals(metrics, draws_of(table, resamples))
    fold = table["fold"].to_numpy()
    rows = []
    everyone = whole(table)
    for name, metric in metrics.items():
        value, interval = metric(everyone), intervals[name]
        low, high, about = at_the_boundary(name, value, interval, table, target)
        notes = [
            _horizon_note(name, test, target),
            _conformal_note(name, level, test.fitted),
            left_out_note(name, metrics, table, target),
            _threshold_note(name, table, target),
            _unit_note(name, target),
            f"undefined in {interval.undefined:.0%} of resamples" * (interval.undefined > 0.01),
            about,
        ]
        known = measured(name, table, target)
        row = _row(level, name, "all", value, table.iloc[known])
        rows.append(row | {"low": low, "high": high, "note": "; ".join(filter(None, notes))})
        for number in np.unique(fold):
            mine = table.iloc[known[fold[known] == number]]
            rows.append(_row(level, name, str(number), metric(everyone[fold == number]), mine))
    if level == "patient":
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
    base, question = metric, None
    if isinstance(target, MultilabelConfig):
        base, question = of_one_label(metric, target)
        if question is None:  # the mean of several shares is no share
            return interval.low, interval.high, ""
    if base in SHARES and isinstance(target, ClassificationConfig | MultilabelConfig):
        low, high = wilson_interval(value, cases_of(base, table, target, question))
        return float(low), float(high), "Wilson's interval: all resamples agree"
    found = positive_scores(table, target, question)
    if base == "auroc" and found is not None:
        strata = table["fold"].to_numpy()[measured(metric, table, target)]
        low, high = newcombe_interval(value, found[0], strata=strata)
        return low, high, "Newcombe's interval: all resamples agree"
    return interval.low, interval.high, ""


def measured(metric: str, table: pd.DataFrame, target: TaskConfig) -> NDArray[np.intp]:
    """The rows that a metric is of: where it is of one label, those that know it."""
    if isinstance(target, MultilabelConfig) and (label := of_one_label(metric, target)[1]):
        return known_truth(table, target, label)[0]
    return whole(table)


def cases_of(
    share: str,
    table: pd.DataFrame,
    target: ClassificationConfig | MultilabelConfig,
    question: str | None = None,
) -> int:
    """Of how many rows a share is: of one class for sensitivity and specificity."""
    if share not in ("sensitivity", "specificity"):
        return len(table)
    name = question or asked_of(table, target)[0]
    positive = known_truth(table, target, name)[1]
    return int(positive.sum() if share == "sensitivity" else (~positive).sum())


def left_out_note(
    name: str, metrics: dict[str, Metric], table: pd.DataFrame, target: TaskConfig
) -> str:
    """Which labels a mean over labels leaves out."""
    if not isinstance(target, MultilabelConfig) or name not in MACRO:
        return ""
    values = {label: metrics[f"{name}_{label}"](whole(table)) for label in target.labels}
    lost = [label for label, value in values.items() if np.isnan(value)]
    return f"without {', '.join(lost)}, of which it is undefined" if lost else ""


def _threshold_note(name: str, table: pd.DataFrame, target: TaskConfig) -> str:
    """Where validation gave no model of a fold a threshold of the label."""
    if not isinstance(target, MultilabelConfig):
        return ""
    base, label = of_one_label(name, target)
    if label is None or base not in ("sensitivity", "specificity"):
        return ""
    lacking = table.loc[table[f"threshold_{label}"].isna(), "fold"].nunique()
    folds = table["fold"].nunique()
    return f"no threshold in {lacking} of {folds} folds: called from 0.5 on" if lacking else ""


def _unit_note(name: str, target: TaskConfig) -> str:
    if not isinstance(target, RegressionConfig) or name not in IN_UNIT or target.unit is None:
        return ""
    return f"in {target.unit}"


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


def _delong_row(table: pd.DataFrame, target: TaskConfig) -> list[dict[str, object]]:
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
    table: pd.DataFrame, target: TaskConfig, label: str | None = None
) -> tuple[Truth, Score] | None:
    """Truth and score of the positive class, or of a `label` where it is known; None where DeLong
    does not apply.
    """
    asked = [label] if label else _one_question(table, target)
    if not isinstance(target, ClassificationConfig | MultilabelConfig) or len(asked) != 1:
        return None
    if table["repeat"].nunique() > 1:
        return None
    rows, truth = known_truth(table, target, asked[0])
    both = 0 < truth.sum() < len(truth)
    return (truth, table[f"prob_{asked[0]}"].to_numpy(dtype=float)[rows]) if both else None


def _one_question(table: pd.DataFrame, target: TaskConfig) -> list[str]:
    return asked_of(table, target) if isinstance(target, ClassificationConfig) else []
