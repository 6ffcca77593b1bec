"""Discrimination and calibration of survival predictions.

`risk` and `marker` are high where the event is expected early; `survival` holds predicted
probabilities of no event up to a time. Patients are comparable if the one with the shorter time
had the event; one censored at the very time of another's event outlived it. Risks are tied only
if they are equal.

Metrics with a `training` argument weigh patients by 1 / G, G(t) = P(not yet censored at t) among
training patients (inverse probability of censoring). G is the right-continuous Kaplan-Meier
estimate, taken at the event time itself, events before censorings of the same time: the
conventions of scikit-survival. Where G is 0, or unknown because training ends earlier, a metric
is NaN.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
from lifelines import KaplanMeierFitter
from numpy.typing import ArrayLike, NDArray
from scipy.stats import chi2

from mil.metrics.arrays import (
    Flags,
    Floats,
    equal_count_bins,
    finite,
    flags,
    ratio,
    share_below,
    unit_interval,
)
from mil.outcomes import Outcomes
from preprocessing.errors import CohortError

PAIRS_AT_ONCE = 4_000_000  # comparisons held in memory: a few arrays of 4 MB


def harrell_pairs(outcomes: Outcomes, risk: ArrayLike) -> tuple[float, int]:
    """Concordant pairs (equal risks count half) and comparable pairs; C is their ratio.

    Kept apart, so that pairs of several folds, whose risks are on different scales, can be summed.
    """
    concordant, comparable = _pairs_by_event(outcomes, risk)
    return float(concordant.sum()), int(comparable.sum())


def stratified_c(outcomes: Outcomes, risk: ArrayLike, strata: ArrayLike) -> float:
    """Harrell's C over the pairs within strata (n,), such as folds; NaN without such a pair."""
    values = finite("risks", risk, (len(outcomes),))
    pairs = [
        harrell_pairs(outcomes[mine], values[mine]) for mine in _rows_of_strata(outcomes, strata)
    ]
    concordant, comparable = np.sum(pairs, axis=0) if pairs else (0, 0)
    return float(ratio(concordant, comparable))


def _pairs_by_event(outcomes: Outcomes, risk: ArrayLike) -> tuple[Floats, NDArray[np.intp]]:
    """Per patient with the event: (concordant, comparable) patients who outlived it, (events,)."""
    values = finite("risks", risk, (len(outcomes),))
    event = outcomes.event
    # A patient censored at t outlived the events at t: no number lies between t and the next.
    until = np.where(event, outcomes.time, np.nextafter(outcomes.time, np.inf))
    early, own = outcomes.time[event], values[event]
    concordant, comparable = np.zeros(len(early)), np.zeros(len(early), dtype=np.intp)
    step = max(1, PAIRS_AT_ONCE // max(1, len(outcomes)))
    for start in range(0, len(early), step):
        these = slice(start, start + step)
        outlived = early[these, None] < until
        above = np.count_nonzero(outlived & (own[these, None] > values), axis=1)
        not_below = np.count_nonzero(outlived & (own[these, None] >= values), axis=1)
        concordant[these] = (above + not_below) / 2
        comparable[these] = np.count_nonzero(outlived, axis=1)
    return concordant, comparable


@dataclass(frozen=True, eq=False)
class CensoringSurvival:
    """G(t) = P(not yet censored at t), a right-continuous step function known up to `reach`."""

    times: Floats
    survival: NDArray[np.floating]
    reach: float

    @classmethod
    def fit(cls, outcomes: Outcomes) -> "CensoringSurvival":
        """Kaplan-Meier of the censoring times; events leave before censorings of the same time."""
        times, place = np.unique(outcomes.time, return_inverse=True)
        events = np.bincount(place[outcomes.event], minlength=len(times))
        censored = np.bincount(place[~outcomes.event], minlength=len(times))
        leaving = events + censored
        at_risk = len(outcomes) - np.cumsum(leaving) + censored
        survival = np.cumprod(1 - censored / np.maximum(at_risk, 1))
        if not len(times):
            return cls(times, survival, 0.0)
        return cls(times, survival, np.inf if survival[-1] == 0 else float(times[-1]))

    def at(self, times: ArrayLike) -> Floats:
        """G at each time; NaN beyond `reach` (infinite once G is 0)."""
        asked = np.asarray(times, dtype=np.float64)
        steps = np.append(1.0, self.survival)[np.searchsorted(self.times, asked, "right")]
        return np.where(asked > self.reach, np.nan, steps)


def uno_c(training: Outcomes, test: Outcomes, risk: ArrayLike, tau: float) -> float:
    """Uno's C: pairs whose event is before `tau` (inf: no limit), weighted by 1 / G(event)^2.

    Uno et al. 2011. NaN without such a pair, or if G is 0 or unknown at an event of such a pair.
    """
    return float(ratio(*uno_pairs(training, test, risk, tau)))


def uno_pairs(
    training: Outcomes, test: Outcomes, risk: ArrayLike, tau: float
) -> tuple[float, float]:
    """Weights of the concordant and of all pairs of `uno_c`, to be summed over folds."""
    concordant, comparable = _pairs_by_event(test, risk)
    times = test.time[test.event]
    used = (times < tau) & (comparable > 0)
    weight = ratio(1, CensoringSurvival.fit(training).at(times[used])) ** 2
    return float((weight * concordant[used]).sum()), float((weight * comparable[used]).sum())


def cumulative_dynamic_auc(
    training: Outcomes, test: Outcomes, marker: ArrayLike, times: ArrayLike
) -> Floats:
    """AUROC at each time (T,) of patients with the event by then against those still without it.

    `marker` (n, T). The former are weighted by 1 / G at their event (Uno et al. 2007). NaN without
    patients on both sides.
    """
    return ratio(*dynamic_auc_pairs(training, test, marker, times))


def dynamic_auc_pairs(
    training: Outcomes, test: Outcomes, marker: ArrayLike, times: ArrayLike
) -> tuple[Floats, Floats]:
    """Weights (T,) of the concordant and of all pairs of `cumulative_dynamic_auc`, to be summed
    over folds.
    """
    asked = finite("times", times, (None,))
    values = finite("markers", marker, (len(test), len(asked)))
    weight = ratio(1, CensoringSurvival.fit(training).at(test.time))
    concordant, pairs = np.zeros(len(asked)), np.zeros(len(asked))
    for i, time in enumerate(asked):
        case, control = (test.time <= time) & test.event, test.time > time
        if not (case.any() and control.any()):
            continue
        below = share_below(values[case, i], values[control, i])
        concordant[i] = (weight[case] * below).sum() * control.sum()
        pairs[i] = weight[case].sum() * control.sum()
    return concordant, pairs


def brier_at(training: Outcomes, test: Outcomes, survival: ArrayLike, times: ArrayLike) -> Floats:
    """Mean squared error of the predicted survival (n, T) at each time, (T,); Graf et al. 1999.

    Patients with the event by then are weighted by 1 / G at their event, those followed longer by
    1 / G(t), those censored before not at all. NaN exactly where G(t) is 0 or unknown, which
    depends on the training patients alone.
    """
    asked = finite("times", times, (None,))
    values = unit_interval("survival probabilities", survival, (len(test), len(asked)))
    censoring = CensoringSurvival.fit(training)
    at_event, at_time = ratio(1, censoring.at(test.time)), ratio(1, censoring.at(asked))
    followed = test.time[:, None] > asked
    died = ~followed & test.event[:, None]
    errors = np.where(died, values**2 * at_event[:, None], 0)
    errors += np.where(followed, (1 - values) ** 2 * at_time, 0)
    return np.where(np.isnan(at_time), np.nan, ratio(errors.sum(axis=0), len(test)))


def integrated_brier(brier: ArrayLike, times: ArrayLike) -> float:
    """Mean of the Brier scores (T,) over increasing times, by trapezoids.

    Times at which it is NaN are left out; NaN if fewer than two remain.
    """
    values = np.asarray(brier, dtype=np.float64)
    asked = finite("times", times, values.shape)
    if (np.diff(asked) <= 0).any():
        raise CohortError(f"metrics: expected increasing times, got {asked.tolist()}")
    known = ~np.isnan(values)
    if known.sum() < 2:
        return float("nan")
    asked = asked[known]
    return float(np.trapezoid(values[known], asked) / (asked[-1] - asked[0]))


def stratified_logrank(
    outcomes: Outcomes, group: ArrayLike, strata: ArrayLike
) -> tuple[float, float]:
    """Log-rank chi^2 (1 degree of freedom) and p of two groups (bool, n), compared within strata.

    Observed minus expected events and their hypergeometric variances are summed over the strata
    (n,). NaN if no stratum has an event with patients of both groups at risk.
    """
    members = flags("groups", group, len(outcomes))
    terms = [
        _logrank_terms(outcomes[mine], members[mine]) for mine in _rows_of_strata(outcomes, strata)
    ]
    excess, variance = np.sum(terms, axis=0) if terms else (0, 0)
    statistic = float(ratio(excess**2, variance))
    return statistic, float(chi2.sf(statistic, 1))


def _logrank_terms(outcomes: Outcomes, member: Flags) -> tuple[float, float]:
    """Observed minus expected events of the group's members, and the variance of that."""
    times, events = np.unique(outcomes.time[outcomes.event], return_counts=True)
    at_risk = _at_risk(outcomes.time, times)
    share = _at_risk(outcomes.time[member], times) / at_risk
    excess = (outcomes.event & member).sum() - (events * share).sum()
    # One patient at risk has share 0 or 1 and so no variance, whatever stands below.
    left = (at_risk - events) / np.maximum(at_risk - 1, 1)
    return float(excess), float((events * share * (1 - share) * left).sum())


def _at_risk(follow_up: Floats, times: Floats) -> NDArray[np.intp]:
    return len(follow_up) - np.searchsorted(np.sort(follow_up), times, "left")


def _rows_of_strata(outcomes: Outcomes, strata: ArrayLike) -> list[NDArray[np.intp]]:
    labels = np.asarray(strata)
    if labels.shape != outcomes.time.shape:
        raise CohortError(
            f"metrics: expected one stratum per patient, got {labels.shape} strata of "
            f"{len(outcomes)} patients"
        )
    return [np.flatnonzero(labels == one) for one in np.unique(labels)]


def median_follow_up(outcomes: Outcomes) -> float:
    """Median follow-up by reverse Kaplan-Meier, in the unit of the times (Schemper and Smith 1996).

    Censoring is the event here. NaN if that curve does not fall to one half.
    """
    if not len(outcomes):
        return float("nan")
    fitted = KaplanMeierFitter().fit(outcomes.time, ~outcomes.event)
    median = float(fitted.median_survival_time_)
    return median if np.isfinite(median) else float("nan")


def calibration_at(
    outcomes: Outcomes, survival_at_t: ArrayLike, t: float, groups: int
) -> pd.DataFrame:
    """Predicted against observed survival at time `t` in groups of about equal count.

    Rows, by rising prediction: predicted (mean), observed (Kaplan-Meier), its 95 % interval low
    and high (log-log), n. Equal predictions share a group, empty groups are left out. Observed is
    NaN if `t` is beyond the group's follow-up, the interval also if the group has no event yet.
    """
    predicted = unit_interval("survival probabilities", survival_at_t, (len(outcomes),))
    of_group = equal_count_bins(predicted, groups)
    rows = [
        (predicted[mine].mean(), *_observed_at(outcomes[mine], t), len(mine))
        for mine in (np.flatnonzero(of_group == one) for one in np.unique(of_group))
    ]
    return pd.DataFrame(rows, columns=pd.Index(["predicted", "observed", "low", "high", "n"]))


def _observed_at(outcomes: Outcomes, t: float) -> tuple[float, float, float]:
    """Kaplan-Meier survival at `t` and its 95 % log-log interval."""
    unknown = float("nan")
    fitted = KaplanMeierFitter().fit(outcomes.time, outcomes.event, timeline=[t])
    observed = float(fitted.survival_function_.iloc[-1, 0])
    if t > outcomes.time.max() and observed > 0:
        return unknown, unknown, unknown
    if observed in (0.0, 1.0):
        return observed, unknown, unknown
    low, high = fitted.confidence_interval_.iloc[-1]
    return observed, float(low), float(high)
