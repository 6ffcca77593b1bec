import numpy as np
import pandas as pd
import pytest
from censored_cohorts import cohort, patients
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from sksurv import metrics as sk
from sksurv.nonparametric import CensoringDistributionEstimator
from sksurv.util import Surv

from mil.metrics.ranking import (
    auroc,
)
from mil.metrics.survival import (
    CensoringSurvival,
    brier_at,
    cumulative_dynamic_auc,
    harrell_pairs,
    integrated_brier,
    uno_c,
)
from mil.outcomes import Outcomes
from preprocessing.errors import CohortError


def followed_long(rows) -> Outcomes:
    """Training patients, one of whom is seen to die after every test patient: G is never 0."""
    return cohort([*rows, (99, True, 0)])[0]


def sksurvs(outcomes: Outcomes) -> np.ndarray:
    return Surv.from_arrays(outcomes.event, outcomes.time)


def times_sksurv_takes(test: Outcomes) -> np.ndarray:
    """Times with a case and a control: scikit-survival refuses or divides by 0 elsewhere."""
    assume(test.event.any())
    times = np.unique(test.time)
    times = times[(times >= test.time[test.event].min()) & (times < test.time.max())]
    assume(len(times) >= 2)
    return times


@given(patients)
@settings(max_examples=100)
def test_censoring_survival_is_sksurvs(rows):
    outcomes, _ = cohort(rows)
    assume(outcomes.event.any())
    theirs = CensoringDistributionEstimator().fit(sksurvs(outcomes))
    ours = CensoringSurvival.fit(outcomes)
    within = np.arange(0.5, outcomes.time.max() + 0.1, 0.5)
    np.testing.assert_allclose(ours.at(within), theirs.predict_proba(within), atol=1e-12)
    beyond = outcomes.time.max() + 1
    if ours.at(outcomes.time.max()) > 0:
        assert np.isnan(ours.at(beyond))
        with pytest.raises(ValueError, match="must be smaller than largest observed time"):
            theirs.predict_proba([beyond])
    else:
        assert ours.at(beyond) == theirs.predict_proba([beyond])[0] == 0


def test_events_leave_before_censorings_of_the_same_time():
    # At 2: of four at risk one has the event, so one of three is censored: G = 2/3, not 3/4.
    outcomes = Outcomes(np.array([2.0, 2, 3, 4]), np.array([True, False, True, True]))
    ours = CensoringSurvival.fit(outcomes).at([1.9, 2, 4, 4.1])
    np.testing.assert_allclose(ours, [1, 2 / 3, 2 / 3, np.nan])


@given(patients, patients, st.sampled_from([3.0, 6.0, 6.5, np.inf]))
@settings(max_examples=150)
def test_uno_is_sksurvs(train_rows, test_rows, tau):
    training, (test, risk) = followed_long(train_rows), cohort(test_rows)
    value = uno_c(training, test, risk, tau)
    comparable = harrell_pairs(
        Outcomes(test.time, test.event & (test.time < tau)), np.zeros(len(test))
    )
    if comparable[1] == 0:
        assert np.isnan(value)
        return
    limit = None if np.isinf(tau) else tau
    expected = sk.concordance_index_ipcw(sksurvs(training), sksurvs(test), risk, tau=limit)[0]
    assert value == pytest.approx(expected, abs=1e-9)


@given(patients, patients)
@settings(max_examples=100)
def test_dynamic_auc_and_brier_are_sksurvs(train_rows, test_rows):
    training, (test, risk) = followed_long(train_rows), cohort(test_rows)
    times = times_sksurv_takes(test)
    rng = np.random.default_rng(len(test_rows))
    markers = risk[:, None] + rng.integers(-1, 2, (len(test), len(times))) / 4
    predicted = np.sort(rng.random(markers.shape), axis=1)[:, ::-1]
    train_y, test_y = sksurvs(training), sksurvs(test)
    areas = sk.cumulative_dynamic_auc(train_y, test_y, markers, times)[0]
    ours = cumulative_dynamic_auc(training, test, markers, times)
    np.testing.assert_allclose(ours, areas, atol=1e-9)
    ours = brier_at(training, test, predicted, times)
    np.testing.assert_allclose(
        ours, sk.brier_score(train_y, test_y, predicted, times)[1], atol=1e-9
    )
    integral = sk.integrated_brier_score(train_y, test_y, predicted, times)
    assert integrated_brier(ours, times) == pytest.approx(integral, abs=1e-9)


@given(patients, patients)
@settings(max_examples=100)
def test_times_that_training_does_not_reach_are_undefined(train_rows, test_rows):
    (training, _), (test, risk) = cohort(train_rows), cohort(test_rows)
    times = np.arange(1.0, 12)
    markers = np.repeat(risk[:, None], len(times), axis=1)
    reached = np.nan_to_num(CensoringSurvival.fit(training).at(times)) > 0
    brier = brier_at(training, test, np.full(markers.shape, 0.7), times)
    assert (np.isnan(brier) == ~reached).all()
    weighed = np.nan_to_num(CensoringSurvival.fit(training).at(test.time)) > 0
    areas = cumulative_dynamic_auc(training, test, markers, times)
    for time, area in zip(times, areas, strict=True):
        case = test.event & (test.time <= time)
        defined = case.any() and weighed[case].all() and (test.time > time).any()
        assert np.isnan(area) == (not defined)
    assert 0 <= np.nan_to_num(uno_c(training, test, risk, np.inf)) <= 1


@given(patients, patients, st.integers(1, 9))
@settings(max_examples=100)
def test_what_happens_to_patients_later_does_not_count(train_rows, test_rows, time):
    (training, _), (test, risk) = cohort(train_rows), cohort(test_rows)
    cut = Outcomes(np.minimum(test.time, time + 0.5), test.event & (test.time <= time))
    predicted = np.exp(-np.exp(risk))[:, None]
    for metric, values in ((brier_at, predicted), (cumulative_dynamic_auc, risk[:, None])):
        whole = metric(training, test, values, [time])
        np.testing.assert_array_equal(metric(training, cut, values, [time]), whole)


def test_uno_is_undefined_only_if_a_pair_needs_an_unknown_weight():
    training = Outcomes(np.array([1.0, 2, 3]), np.array([True, False, True]))  # known up to 3
    test = Outcomes(np.array([2.0, 5, 7]), np.array([True, True, True]))
    assert np.isnan(uno_c(training, test, [3, 2, 1], np.inf))
    assert uno_c(training, test, [3, 2, 1], 5.0) == 1
    last = Outcomes(test.time, np.array([True, False, True]))  # no one outlived the event at 7
    assert uno_c(training, last, [3, 2, 1], np.inf) == 1


def test_without_censoring_the_weighted_metrics_are_the_plain_ones():
    rng = np.random.default_rng(0)
    test = Outcomes(rng.integers(1, 20, 60).astype(float), np.ones(60, dtype=bool))
    risk, predicted, times = rng.normal(size=60), rng.random((60, 3)), np.array([4.0, 9.0, 15.0])
    concordant, comparable = harrell_pairs(test, risk)
    assert uno_c(test, test, risk, np.inf) == pytest.approx(concordant / comparable)
    alive = test.time[:, None] > times
    expected = ((alive - predicted) ** 2).mean(axis=0)
    np.testing.assert_allclose(brier_at(test, test, predicted, times), expected)
    areas = cumulative_dynamic_auc(test, test, np.repeat(risk[:, None], 3, axis=1), times)
    np.testing.assert_allclose(areas, [auroc(~alive[:, i], risk) for i in range(3)])


def test_weights_undo_the_censoring():
    # Exponential times of known survival: with and without censoring the same scores but for noise.
    rng = np.random.default_rng(0)
    rate = rng.uniform(0.02, 0.2, 20_000)
    death, lost = rng.exponential(1 / rate), rng.exponential(12, 20_000)
    times = np.array([3.0, 6.0, 12.0])
    predicted = np.exp(-rate[:, None] * times)
    complete = Outcomes(death, np.ones(20_000, dtype=bool))
    censored = Outcomes(np.minimum(death, lost), death <= lost)
    markers = 1 - predicted
    for metric, values in ((brier_at, predicted), (cumulative_dynamic_auc, markers)):
        truth = metric(complete, complete, values, times)
        np.testing.assert_allclose(metric(censored, censored, values, times), truth, atol=0.015)


def test_a_published_cohort_agrees_with_sksurv(shared):
    table = pd.read_csv(shared / "tables/mhim/label_luad_surv.csv")
    outcomes = Outcomes(table["Event"].to_numpy(), table["Status"].to_numpy())
    rng = np.random.default_rng(0)
    test_part = rng.random(len(outcomes)) < 0.3
    test_part[outcomes.time.argmax()] = False
    training, test = outcomes[~test_part], outcomes[test_part]
    risk = rng.normal(size=len(test))
    times = np.quantile(training.time[training.event], np.linspace(0.05, 0.95, 19))
    train_y, test_y = sksurvs(training), sksurvs(test)
    predicted = np.exp(-times / 40 * np.exp(risk)[:, None] / 2)
    expected = sk.concordance_index_ipcw(train_y, test_y, risk, tau=times[-1])[0]
    assert uno_c(training, test, risk, times[-1]) == pytest.approx(expected, abs=1e-9)
    markers = np.repeat(risk[:, None], len(times), axis=1)
    np.testing.assert_allclose(
        cumulative_dynamic_auc(training, test, markers, times),
        sk.cumulative_dynamic_auc(train_y, test_y, risk, times)[0],
        atol=1e-9,
    )
    integral = sk.integrated_brier_score(train_y, test_y, predicted, times)
    ours = integrated_brier(brier_at(training, test, predicted, times), times)
    assert ours == pytest.approx(integral, abs=1e-9)


def test_integrated_brier_leaves_out_unknown_times_and_refuses_disorder():
    assert integrated_brier([0.1, 0.3, np.nan], [1, 2, 4]) == pytest.approx(0.2)
    assert np.isnan(integrated_brier([0.1, np.nan], [1, 2]))
    with pytest.raises(CohortError, match=r"increasing times, got \[2\.0, 1\.0\]"):
        integrated_brier([0.1, 0.3], [2, 1])
