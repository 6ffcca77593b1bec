import numpy as np
import pandas as pd
import pytest
from censored_cohorts import cohort, patients
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import KaplanMeierFitter
from lifelines.datasets import load_lung
from lifelines.statistics import logrank_test
from lifelines.utils import concordance_index
from sksurv import metrics as sk
from sksurv.nonparametric import kaplan_meier_estimator
from statsmodels.duration.survfunc import survdiff

from mil.metrics import survival
from mil.metrics.survival import (
    brier_at,
    calibration_at,
    cumulative_dynamic_auc,
    harrell_pairs,
    median_follow_up,
    stratified_c,
    stratified_logrank,
    uno_c,
)
from mil.outcomes import Outcomes
from preprocessing.errors import CohortError


def drawn(n: int, seed: int) -> tuple[Outcomes, np.ndarray]:
    """A larger cohort with tied times, two thirds of it censored, and an informative risk."""
    rng = np.random.default_rng(seed)
    risk = np.round(rng.normal(size=n), 1)
    death, lost = rng.exponential(40 * np.exp(-risk)), rng.exponential(15, size=n)
    return Outcomes(np.ceil(np.minimum(death, lost)), death <= lost), risk


@given(patients)
@settings(max_examples=150)
def test_harrell_is_lifelines_and_sksurvs(rows):
    outcomes, risk = cohort(rows)
    concordant, comparable = harrell_pairs(outcomes, risk)
    if comparable == 0:
        with pytest.raises(ZeroDivisionError):
            concordance_index(outcomes.time, -risk, outcomes.event)
        return
    expected = concordance_index(outcomes.time, -risk, outcomes.event)
    assert concordant / comparable == pytest.approx(expected, abs=1e-12)
    theirs = sk.concordance_index_censored(outcomes.event, outcomes.time, risk)
    assert concordant / comparable == pytest.approx(theirs[0], abs=1e-12)
    assert comparable == sum(theirs[1:4])


def test_harrell_is_the_same_in_small_parts(monkeypatch):
    outcomes, risk = drawn(150, 0)
    whole = harrell_pairs(outcomes, risk)
    monkeypatch.setattr(survival, "PAIRS_AT_ONCE", 500)
    assert harrell_pairs(outcomes, risk) == whole


def test_concordance_and_logrank_of_the_lung_cohort_are_rs():
    # R: coxph(Surv(time, status) ~ sex, lung), ... ~ age + sex, survdiff(... ~ sex)
    lung = load_lung()
    outcomes = Outcomes(lung["time"].to_numpy(), lung["status"].to_numpy())
    male = lung["sex"] == 1
    for risk, published in ((male, 0.579), (0.017045 * lung["age"] + 0.513219 * male, 0.603)):
        concordant, comparable = harrell_pairs(outcomes, risk)
        assert concordant / comparable == pytest.approx(published, abs=5e-4)
    statistic, p = stratified_logrank(outcomes, male, np.zeros(len(lung)))
    assert statistic == pytest.approx(10.3267, abs=5e-5)
    assert p == pytest.approx(0.00131116, abs=5e-9)


@given(patients, st.integers(1, 3))
@settings(max_examples=50)
def test_stratified_c_counts_the_pairs_within_strata(rows, strata):
    outcomes, risk = cohort(rows)
    fold = np.arange(len(rows)) % strata
    pairs = [harrell_pairs(outcomes[fold == f], risk[fold == f]) for f in range(strata)]
    concordant, comparable = np.sum(pairs, axis=0)
    value = stratified_c(outcomes, risk + 100 * fold, fold)  # another model, another scale
    if comparable:
        assert value == pytest.approx(concordant / comparable)
    else:
        assert np.isnan(value)


@pytest.mark.parametrize("seed", range(6))
def test_stratified_logrank_is_statsmodels_and_lifelines(seed):
    outcomes, risk = drawn(90, seed)
    group, strata = risk > 0, np.arange(90) % 3
    expected = survdiff(outcomes.time, outcomes.event, group, strata=strata)
    assert stratified_logrank(outcomes, group, strata) == pytest.approx(expected, abs=1e-9)
    unstratified = logrank_test(
        outcomes.time[group], outcomes.time[~group], outcomes.event[group], outcomes.event[~group]
    )
    statistic, p = stratified_logrank(outcomes, group, np.zeros(90))
    assert statistic == pytest.approx(unstratified.test_statistic, abs=1e-9)
    assert p == pytest.approx(unstratified.p_value, abs=1e-9)


def test_logrank_without_both_groups_at_risk_is_undefined():
    outcomes, _ = drawn(10, 0)
    assert np.isnan(stratified_logrank(outcomes, np.ones(10), np.zeros(10))).all()
    assert np.isnan(stratified_logrank(outcomes, np.arange(10) % 2, np.arange(10))).all()
    with pytest.raises(CohortError, match=r"one stratum per patient, got \(9,\) strata of 10"):
        stratified_logrank(outcomes, np.ones(10), np.zeros(9))


@given(patients)
@settings(max_examples=50)
def test_median_follow_up_is_lifelines_reverse_kaplan_meier(rows):
    outcomes, _ = cohort(rows)
    theirs = KaplanMeierFitter().fit(outcomes.time, ~outcomes.event).median_survival_time_
    value = median_follow_up(outcomes)
    assert value == theirs if np.isfinite(theirs) else np.isnan(value)


def test_calibration_groups_are_sksurvs_kaplan_meier():
    outcomes, risk = drawn(240, 3)
    predicted = np.exp(-0.2 * np.exp(risk))
    table = calibration_at(outcomes, predicted, 10.0, 4)
    assert list(table.columns) == ["predicted", "observed", "low", "high", "n"]
    assert table["n"].sum() == 240
    assert table["predicted"].is_monotonic_increasing
    cuts = np.quantile(predicted, [0, 0.25, 0.5, 0.75, 1])
    groups = pd.cut(predicted, cuts, include_lowest=True, labels=False)
    for i, row in table.iterrows():
        mine = outcomes[groups == i]
        times, curve, ends = kaplan_meier_estimator(mine.event, mine.time, conf_type="log-log")
        at = np.searchsorted(times, 10.0, "right") - 1
        expected = [predicted[groups == i].mean(), curve[at], ends[0, at], ends[1, at], len(mine)]
        np.testing.assert_allclose(row, expected, atol=1e-9)


def test_calibration_beyond_follow_up_and_without_events():
    censored = Outcomes(np.array([1.0, 2, 3]), np.zeros(3, dtype=bool))
    row = calibration_at(censored, [0.5, 0.5, 0.5], 2.5, 3).iloc[0]
    assert (row["observed"], row["n"]) == (1, 3)
    assert np.isnan(row[["low", "high"]].to_numpy(dtype=float)).all()
    assert np.isnan(calibration_at(censored, [0.5, 0.5, 0.5], 4.0, 3)["observed"]).all()
    died = Outcomes(np.array([1.0, 2, 3]), np.ones(3, dtype=bool))
    assert calibration_at(died, [0.5, 0.5, 0.5], 4.0, 3)["observed"].tolist() == [0]


def test_nobody_to_test_or_to_train_on_is_undefined():
    nobody, (some, risk) = Outcomes(np.zeros(0), np.zeros(0)), drawn(20, 0)
    assert harrell_pairs(nobody, []) == (0, 0)
    assert np.isnan(stratified_c(nobody, [], []))
    assert np.isnan(stratified_logrank(nobody, [], [])).all()
    assert np.isnan(median_follow_up(nobody))
    assert np.isnan(uno_c(some, nobody, [], np.inf))
    assert np.isnan(uno_c(nobody, some, risk, np.inf))
    assert np.isnan(brier_at(some, nobody, np.zeros((0, 2)), [1, 2])).all()
    assert np.isnan(brier_at(nobody, some, np.zeros((20, 2)), [1, 2])).all()
    assert np.isnan(cumulative_dynamic_auc(some, nobody, np.zeros((0, 2)), [1, 2])).all()
    assert calibration_at(nobody, [], 1.0, 3).empty


def test_malformed_predictions_are_refused():
    outcomes, risk = drawn(5, 0)
    with pytest.raises(CohortError, match=r"expected risks of shape \(5\), got \(4,\)"):
        harrell_pairs(outcomes, risk[:4])
    with pytest.raises(CohortError, match=r"survival probabilities of shape \(5, 2\), got \(5, 1"):
        brier_at(outcomes, outcomes, np.ones((5, 1)), [1, 2])
    with pytest.raises(CohortError, match=r"probabilities between 0 and 1, got \[2\.5, 2\.5\]"):
        brier_at(outcomes[:2], outcomes[:2], np.full((2, 1), 2.5), [1])
    with pytest.raises(CohortError, match=r"expected finite risks, got nan in row 0 \(5 such rows"):
        uno_c(outcomes, outcomes, np.full(5, np.nan), np.inf)
