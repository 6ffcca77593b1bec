"""Metrics of test predictions, with patient-bootstrap intervals and paired comparisons.

Tables hold the test predictions of one level (slide or patient) as mil.predictions writes them. A
metric maps rows of such a table, some of them possibly more than once, to a number; it is NaN where
it is undefined. Where the folds were repeated it is the mean over the repeats.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from lifelines import KaplanMeierFitter
from numpy.typing import NDArray

from mil.decisions import (
    SET_SEPARATOR,
    class_indices,
    classes_of,
    positive_class,
    probabilities_of,
)
from mil.metrics import classification as classes_metrics
from mil.metrics import survival as survival_metrics
from mil.metrics.resampling import patient_draws, percentile_interval
from mil.outcomes import Outcomes
from mil.tasks.columns import survival_columns
from mil.tasks.config import ClassificationConfig, SurvivalTarget, TaskConfig

Rows = NDArray[np.intp]
Metric = Callable[[Rows], float]


@dataclass(frozen=True)
class FoldFit:
    """What survival metrics of a fold need of its training patients.

    `training` follow-up (for the censoring weights); `times`: grid of the survival_<j> columns;
    `horizons`: the members of it that are reported by themselves.
    """

    training: Outcomes
    times: tuple[float, ...]
    horizons: tuple[float, ...]


def metrics_for(
    table: pd.DataFrame, target: TaskConfig, fits: Mapping[int, FoldFit] | None = None
) -> dict[str, Metric]:
    """The metrics of a target, by name; survival needs the `fits` of its folds."""
    if isinstance(target, SurvivalTarget):
        found = _survival_metrics(table, target, fits or {})
    else:
        found = _classification_metrics(table, target)
    repeats = table["repeat"].to_numpy()
    if len(np.unique(repeats)) == 1:
        return found
    return {name: _mean_over(metric, repeats) for name, metric in found.items()}


def whole(table: pd.DataFrame) -> Rows:
    return np.arange(len(table))


def outcomes_of(table: pd.DataFrame, target: SurvivalTarget) -> Outcomes:
    return Outcomes(*survival_columns(table, time=target.time, event=target.event))


def _classification_metrics(table: pd.DataFrame, target: ClassificationConfig) -> dict[str, Metric]:
    """Of the positive class where there is one, else the mean over classes against the rest."""
    classes = classes_of(table)
    truth = class_indices(table, target.label)
    probabilities = probabilities_of(table)
    uncalibrated = table[[f"uncalibrated_{c}" for c in classes]].to_numpy(dtype=float)
    called = table["predicted"].map({c: i for i, c in enumerate(classes)}).to_numpy(dtype=np.intp)
    positive = positive_class(target, classes)
    asked = [classes.index(positive)] if positive else list(range(len(classes)))

    def ranked(score: Callable[..., float]) -> Metric:
        return lambda rows: float(
            np.mean([score(truth[rows] == c, probabilities[rows, c]) for c in asked])
        )

    def confused(score: Callable[..., float]) -> Metric:
        return lambda rows: score(
            classes_metrics.confusion(truth[rows], called[rows], len(classes))
        )

    found: dict[str, Metric] = {
        "auroc": ranked(classes_metrics.auroc),
        "auprc": ranked(classes_metrics.auprc),
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
    sets = [str(s).split(SET_SEPARATOR) if s else [] for s in table["conformal_set"].fillna("")]
    truth = np.array(classes_of(table))[class_indices(table, target.label)]
    covered = np.array([t in held for t, held in zip(truth, sets, strict=True)], dtype=float)
    sizes = np.array([len(held) for held in sets], dtype=float)
    abstained = table["abstain"].to_numpy(dtype=float)
    return {
        "conformal_coverage": lambda rows: float(covered[rows].mean()),
        "conformal_set_size": lambda rows: float(sizes[rows].mean()),
        "abstained": lambda rows: float(abstained[rows].mean()),
    }


def _survival_metrics(
    table: pd.DataFrame, target: SurvivalTarget, fits: Mapping[int, FoldFit]
) -> dict[str, Metric]:
    """Pairs are compared within folds only: risks of two folds' models are not on one scale.

    Harrell's C counts the pairs of all folds together; the others are means over the folds,
    weighted by their patients, with censoring weights of the fold's training patients.
    """
    outcomes = outcomes_of(table, target)
    risk, folds = table["risk_sd"].to_numpy(dtype=float), table["fold"].to_numpy()
    grid = [c for c in map(str, table.columns) if c.startswith("survival_")]
    survival = table[grid].to_numpy(dtype=float)
    slices = {fold: _FoldSlice(fits[fold]) for fold in np.unique(folds)}

    def by_fold(score: Callable[["_FoldSlice", Outcomes, Rows], float]) -> Metric:
        def metric(rows: Rows) -> float:
            values, counts = [], []
            for fold in np.unique(folds[rows]):
                mine = rows[folds[rows] == fold]
                values.append(score(slices[fold], outcomes[mine], mine))
                counts.append(len(mine))
            return _weighted_mean(np.array(values), np.array(counts))

        return metric

    def at(kind: str, place: int) -> Metric:
        return by_fold(lambda fold, o, rows: fold.at(kind, place, o, survival[rows]))

    found: dict[str, Metric] = {
        "c_index": lambda rows: survival_metrics.stratified_c(
            outcomes[rows], risk[rows], folds[rows]
        ),
        "uno_c": by_fold(lambda fold, o, rows: fold.uno_c(o, risk[rows])),
    }
    for place in range(max((len(fit.horizons) for fit in fits.values()), default=0)):
        found[f"td_auc_{place + 1}"] = at("auc", place)
        found[f"brier_{place + 1}"] = at("brier", place)
    found["ibs"] = by_fold(lambda fold, o, rows: fold.ibs(o, survival[rows]))
    found["ibs_skill"] = by_fold(lambda fold, o, rows: fold.skill(o, survival[rows]))
    return found


class _FoldSlice:
    """Survival metrics of one fold's test patients."""

    def __init__(self, fit: FoldFit) -> None:
        self.fit = fit
        self.times = np.array(fit.times)
        self.places = [int(np.argmin(np.abs(self.times - h))) for h in fit.horizons]
        curve = KaplanMeierFitter().fit(fit.training.time, fit.training.event)
        self.reference = curve.survival_function_at_times(self.times).to_numpy()

    def uno_c(self, test: Outcomes, risk: NDArray[np.float64]) -> float:
        """Up to the last time of the grid."""
        return survival_metrics.uno_c(self.fit.training, test, risk, float(self.times[-1]))

    def at(self, kind: str, place: int, test: Outcomes, survival: NDArray[np.float64]) -> float:
        """Cumulative/dynamic AUC, or Brier score, at one horizon."""
        if place >= len(self.places):
            return float("nan")
        column = [self.places[place]]
        training, chosen = self.fit.training, survival[:, column]
        if kind == "auc":
            scores = survival_metrics.cumulative_dynamic_auc(
                training, test, 1 - chosen, self.times[column]
            )
        else:
            scores = survival_metrics.brier_at(training, test, chosen, self.times[column])
        return float(scores[0])

    def ibs(self, test: Outcomes, survival: NDArray[np.float64]) -> float:
        """The Brier score over the grid, where it is defined."""
        grid = survival[:, : len(self.times)]  # another fold may have more times
        scores = survival_metrics.brier_at(self.fit.training, test, grid, self.times)
        defined = np.isfinite(scores)
        if defined.sum() < 2:
            return float("nan")
        return survival_metrics.integrated_brier(scores[defined], self.times[defined])

    def skill(self, test: Outcomes, survival: NDArray[np.float64]) -> float:
        """1 - IBS / IBS of the training patients' Kaplan-Meier curve given to everyone."""
        without = self.ibs(test, np.tile(self.reference, (len(test), 1)))
        return 1 - self.ibs(test, survival) / without if without > 0 else float("nan")


def _weighted_mean(values: NDArray[np.float64], counts: NDArray[np.intp]) -> float:
    defined = np.isfinite(values)
    return float(np.average(values[defined], weights=counts[defined])) if defined.any() else np.nan


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


def bootstrap_intervals(
    metrics: Mapping[str, Metric], draws: list[Rows]
) -> dict[str, tuple[float, float]]:
    """95 % percentile intervals; draws in which a metric is undefined do not count."""
    return {
        name: percentile_interval(np.array([metric(rows) for rows in draws]))
        for name, metric in metrics.items()
    }
