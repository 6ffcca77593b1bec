"""Metrics of survival predictions for test patients, as functions of rows of one table."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from lifelines import KaplanMeierFitter
from numpy.typing import NDArray

from mil.metrics import survival as metrics
from mil.metrics.resampling import Metric, Rows
from mil.outcomes import Outcomes
from mil.tasks.columns import survival_columns
from mil.tasks.config import SurvivalTarget


@dataclass(frozen=True)
class FoldFit:
    """What survival metrics of a fold need of its training patients.

    `training` follow-up (for the censoring weights); `times`: grid of the survival_<j> columns;
    `horizons`: the members of it that are reported by themselves.
    """

    training: Outcomes
    times: tuple[float, ...]
    horizons: tuple[float, ...]


def outcomes_of(table: pd.DataFrame, target: SurvivalTarget) -> Outcomes:
    return Outcomes(*survival_columns(table, time=target.time, event=target.event))


def survival_metrics(
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
        "c_index": lambda rows: metrics.stratified_c(outcomes[rows], risk[rows], folds[rows]),
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
        return metrics.uno_pairs(self.fit.training, test, risk, float(self.times[-1]))

    def auc_pairs(
        self, place: int, test: Outcomes, survival: NDArray[np.float64]
    ) -> tuple[float, float]:
        """At one horizon."""
        column = [self.places[place]]
        concordant, pairs = metrics.dynamic_auc_pairs(
            self.fit.training, test, 1 - survival[:, column], self.times[column]
        )
        return float(concordant[0]), float(pairs[0])

    def brier(
        self, place: int, test: Outcomes, survival: NDArray[np.float64]
    ) -> tuple[float, float]:
        """At one horizon: the sum over the patients, and their number."""
        column = [self.places[place]]
        scores = metrics.brier_at(self.fit.training, test, survival[:, column], self.times[column])
        return float(scores[0]) * len(test), float(len(test))

    def ibs(self, test: Outcomes, survival: NDArray[np.float64]) -> tuple[float, float]:
        """The Brier score over the grid, summed over the patients, and their number."""
        grid = survival[:, : len(self.times)]  # another fold may have more times
        scores = metrics.brier_at(self.fit.training, test, grid, self.times)
        mean = metrics.integrated_brier(scores, self.times)
        return mean * len(test), float(len(test))
