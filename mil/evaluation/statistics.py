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
    class_indices,
    classes_of,
    members_of_sets,
    positive_class,
    probabilities_of,
)
from mil.metrics import classification as classes_metrics
from mil.metrics import ranking
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


def _survival_metrics(
    table: pd.DataFrame, target: SurvivalTarget, fits: Mapping[int, FoldFit]
) -> dict[str, Metric]:
    """Pairs are compared within folds only, risks of two folds' models are not on one scale, and
    counted over all folds; Brier scores are of all patients. Censoring weights are of the training
    patients of each fold.
    """
    outcomes = outcomes_of(table, target)
    risk, folds = table["risk_sd"].to_numpy(dtype=float), table["fold"].to_numpy()
    longest = max(len(fit.times) for fit in fits.values())
    survival = table[[f"survival_{j:02d}" for j in range(longest)]].to_numpy(dtype=float)
    slices = {fold: _FoldSlice(fits[fold]) for fold in np.unique(folds)}

    def over_folds(terms: Callable[["_FoldSlice", Outcomes, Rows], tuple[float, float]]) -> Metric:
        """Sum of the first terms over the sum of the second ones."""

        def metric(rows: Rows) -> float:
            each = []
            for fold in np.unique(folds[rows]):
                mine = rows[folds[rows] == fold]
                each.append(terms(slices[fold], outcomes[mine], mine))
            part, of = np.sum(each, axis=0)
            return float(part / of) if of > 0 else float("nan")

        return metric

    def auc(place: int) -> Metric:
        return over_folds(lambda fold, o, rows: fold.auc_pairs(place, o, survival[rows]))

    def brier(place: int) -> Metric:
        return over_folds(lambda fold, o, rows: fold.brier(place, o, survival[rows]))

    ibs = over_folds(lambda fold, o, rows: fold.ibs(o, survival[rows]))
    without = over_folds(lambda fold, o, _: fold.ibs(o, fold.reference_of(o)))

    def skill(rows: Rows) -> float:
        reference = without(rows)
        return 1 - ibs(rows) / reference if reference > 0 else float("nan")

    found: dict[str, Metric] = {
        "c_index": lambda rows: survival_metrics.stratified_c(
            outcomes[rows], risk[rows], folds[rows]
        ),
        "uno_c": over_folds(lambda fold, o, rows: fold.uno_pairs(o, risk[rows])),
    }
    for place in range(len(next(iter(slices.values())).fit.horizons)):
        found[f"td_auc_{place + 1}"] = auc(place)
        found[f"brier_{place + 1}"] = brier(place)
    return found | {"ibs": ibs, "ibs_skill": skill}


class _FoldSlice:
    """Survival metrics of one fold's test patients, as terms to be summed over folds."""

    def __init__(self, fit: FoldFit) -> None:
        self.fit = fit
        self.times = np.array(fit.times)
        self.places = [int(np.argmin(np.abs(self.times - h))) for h in fit.horizons]
        curve = KaplanMeierFitter().fit(fit.training.time, fit.training.event)
        self.reference = curve.survival_function_at_times(self.times).to_numpy()

    def reference_of(self, test: Outcomes) -> NDArray[np.float64]:
        """The training patients' Kaplan-Meier curve, given to everyone."""
        return np.tile(self.reference, (len(test), 1))

    def uno_pairs(self, test: Outcomes, risk: NDArray[np.float64]) -> tuple[float, float]:
        """Up to the last time of the grid."""
        return survival_metrics.uno_pairs(self.fit.training, test, risk, float(self.times[-1]))

    def auc_pairs(
        self, place: int, test: Outcomes, survival: NDArray[np.float64]
    ) -> tuple[float, float]:
        """At one horizon."""
        column = [self.places[place]]
        concordant, pairs = survival_metrics.dynamic_auc_pairs(
            self.fit.training, test, 1 - survival[:, column], self.times[column]
        )
        return float(concordant[0]), float(pairs[0])

    def brier(
        self, place: int, test: Outcomes, survival: NDArray[np.float64]
    ) -> tuple[float, float]:
        """At one horizon: the sum over the patients, and their number."""
        column = [self.places[place]]
        scores = survival_metrics.brier_at(
            self.fit.training, test, survival[:, column], self.times[column]
        )
        return float(scores[0]) * len(test), float(len(test))

    def ibs(self, test: Outcomes, survival: NDArray[np.float64]) -> tuple[float, float]:
        """The Brier score over the grid, summed over the patients, and their number."""
        grid = survival[:, : len(self.times)]  # another fold may have more times
        scores = survival_metrics.brier_at(self.fit.training, test, grid, self.times)
        mean = survival_metrics.integrated_brier(scores, self.times)
        return mean * len(test), float(len(test))


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
