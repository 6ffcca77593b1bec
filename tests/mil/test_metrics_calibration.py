import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import log_softmax, softmax
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import roc_curve

from mil.metrics.calibration import (
    conformal_quantile,
    conformal_sets,
    fit_temperature,
    threshold_at_sensitivity,
    threshold_at_specificity,
    youden_threshold,
)
from mil.metrics.classification import sensitivity_specificity
from preprocessing.errors import CohortError, ConfigError

scored = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=30)


def drawn(n: int, sharpness: float, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Logits (n, 3) `sharpness` times too large, and truths drawn from the right probabilities."""
    rng = np.random.default_rng(seed)
    logits = 2 * rng.normal(size=(n, 3))
    truth = (softmax(logits, axis=1).cumsum(axis=1) > rng.random((n, 1))).argmax(axis=1)
    return sharpness * logits, truth


def loss(logits, truth, temperature: float) -> float:
    of_truth = log_softmax(logits / temperature, axis=1)[np.arange(len(truth)), truth]
    return float(-of_truth.sum() + np.log(temperature) ** 2 / 2)


@pytest.mark.parametrize("sharpness", [0.3, 1.0, 4.0])
def test_temperature_finds_how_much_too_sharp_the_logits_are(sharpness):
    logits, truth = drawn(5000, sharpness)
    assert fit_temperature(logits, truth) == pytest.approx(sharpness, rel=0.1)


def test_temperature_of_many_patients_is_a_logistic_regression_on_the_margin():
    # Two classes without intercept: 1 / T is the coefficient of the logit difference; the prior
    # of the temperature weighs nothing against 20 000 patients.
    logits, truth = drawn(20_000, 2.0)
    pair = truth < 2
    margin = (logits[:, 1] - logits[:, 0])[pair, None]
    slope = LogisticRegression(C=np.inf, fit_intercept=False, tol=1e-8).fit(margin, truth[pair])
    found = fit_temperature(logits[pair, :2], truth[pair])
    assert found == pytest.approx(1 / slope.coef_[0, 0], rel=1e-3)


@given(st.integers(0, 10_000), st.integers(1, 12), st.sampled_from([0.01, 0.3, 3.0, 300.0]))
@settings(max_examples=40)
def test_temperature_is_the_best_of_all_in_its_range(seed, n, scale):
    rng = np.random.default_rng(seed)
    logits, truth = scale * rng.normal(size=(n, 3)), rng.integers(3, size=n)
    found = fit_temperature(logits, truth)
    others = np.geomspace(0.05, 20, 400)
    assert 0.05 <= found <= 20
    best = min(loss(logits, truth, other) for other in others)
    assert loss(logits, truth, found) <= best * (1 + 1e-6)


def test_temperature_of_a_few_separated_patients_stays_between_the_bounds():
    logits = np.array([[4.0, -4.0], [-4.0, 4.0], [3.0, -3.0]])
    assert 0.2 < fit_temperature(logits, [0, 1, 0]) < 1
    assert fit_temperature(np.zeros((0, 2)), []) == pytest.approx(1, abs=1e-5)


def test_temperature_is_the_lower_of_two_minima():
    # 20 separated patients of tiny margin: a minimum near T = 0.63, and a lower one at the bound.
    logits = np.tile([0.03, 0.0], (20, 1))
    assert fit_temperature(logits, np.zeros(20)) == pytest.approx(0.05, rel=1e-3)


def test_conformal_quantile_is_the_order_statistic():
    scores = np.arange(1, 20) / 20  # 19 patients: the (19 + 1) * 0.9 = 18th smallest
    assert conformal_quantile(scores, 0.9) == 18 / 20
    assert conformal_quantile(np.arange(1, 100), 0.55) == 55  # though 100 * 0.55 > 55 in floats
    assert conformal_quantile(scores, 0.96) == np.inf
    assert conformal_quantile([], 0.9) == np.inf


def test_conformal_sets_cover_new_patients_as_promised():
    covered = []
    for seed in range(300):
        logits, truth = drawn(90, 3.0, seed)
        predicted = softmax(logits, axis=1)
        of_truth = predicted[np.arange(90), truth]
        quantile = conformal_quantile(1 - of_truth[:40], 0.8)
        covered.append(conformal_sets(predicted, quantile)[np.arange(40, 90), truth[40:]].mean())
    # exact: 33 / 41 = 0.805 (Vovk); 300 cohorts know it to about 0.005
    assert np.mean(covered) == pytest.approx(33 / 41, abs=0.015)


def test_conformal_sets_hold_every_class_without_enough_patients():
    predicted = np.array([[1.0, 0.0], [0.3, 0.7]])
    assert conformal_sets(predicted, np.inf).all()
    assert conformal_sets(predicted, 0.2).tolist() == [[True, False], [False, False]]


@given(scored)
@settings(max_examples=100)
def test_thresholds_are_the_best_of_sklearns_curve(pairs):
    truth, score = (np.array(column) for column in zip(*pairs, strict=True))
    if truth.all() or not truth.any():
        assert np.isnan(youden_threshold(truth, score))
        assert np.isnan(threshold_at_sensitivity(truth, score, 0.9))
        assert np.isnan(threshold_at_specificity(truth, score, 0.9))
        return
    false_rate, true_rate, _ = roc_curve(truth, score, drop_intermediate=False)
    reached = sensitivity_specificity(truth, score >= youden_threshold(truth, score))
    assert sum(reached) == pytest.approx((true_rate - false_rate).max() + 1)
    for least in (0.5, 0.9, 1.0):
        threshold = threshold_at_sensitivity(truth, score, least)
        sensitivity, specificity = sensitivity_specificity(truth, score >= threshold)
        assert sensitivity >= least
        assert specificity == pytest.approx(1 - false_rate[true_rate >= least].min())
        threshold = threshold_at_specificity(truth, score, least)
        sensitivity, specificity = sensitivity_specificity(truth, score >= threshold)
        assert specificity >= least
        assert sensitivity == pytest.approx(true_rate[1 - false_rate >= least].max())


def test_thresholds_lie_midway_and_separate_neighbours_in_floating_point():
    assert youden_threshold([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9]) == pytest.approx(0.4)
    assert threshold_at_sensitivity([0, 0, 1, 1], [0.1, 0.2, 0.6, 0.9], 1) == pytest.approx(0.4)
    assert threshold_at_sensitivity([1, 0, 1], [0.1, 0.2, 0.6], 1) == 0.1  # all are called
    assert threshold_at_specificity([1, 0], [0.1, 0.6], 1) == np.nextafter(0.6, 1)  # none is
    low = 0.3
    for _ in range(2):  # the midpoint of two neighbours rounds to the even one
        low, high = np.nextafter(low, 1), np.nextafter(np.nextafter(low, 1), 1)
        assert youden_threshold([0, 1], [low, high]) == high


def test_shares_outside_their_range_and_broken_logits_are_refused():
    with pytest.raises(ConfigError, match=r"expected a coverage above 0 and at most 1, got 1\.5"):
        conformal_quantile([0.1], 1.5)
    with pytest.raises(ConfigError, match=r"expected a sensitivity above 0 and at most 1, got 90"):
        threshold_at_sensitivity([0, 1], [0.1, 0.2], 90)
    with pytest.raises(CohortError, match=r"expected finite logits, got \[inf, 0\.0\] in row 0"):
        fit_temperature([[np.inf, 0.0]], [0])
