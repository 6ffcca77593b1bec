import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import brunnermunzel
from sklearn import metrics as sk
from sklearn.calibration import calibration_curve
from statsmodels.stats.proportion import proportion_confint

from mil.metrics.classification import (
    accuracy,
    balanced_accuracy,
    brier,
    confusion,
    expected_calibration_error,
    kappa,
    macro_f1,
    reliability,
    sensitivity_specificity,
)
from mil.metrics.ranking import (
    auprc,
    auroc,
    delong,
    delong_interval,
    delong_test,
)
from preprocessing.errors import CohortError

# Patients with ovarian cancer: albumin, total protein, K-G score, benefit of surgery; the example
# of DeLong, DeLong and Clarke-Pearson 1988 as SAS's manual of PROC LOGISTIC prints and solves it.
OVARIAN = """
3.0 5.8 10 0  3.2 6.3 5 1  3.9 6.8 3 1  2.8 4.8 6 0  3.2 5.8 3 1  0.9 4.0 5 0  2.5 5.7 8 0
1.6 5.6 5 1  3.8 5.7 5 1  3.7 6.7 6 1  3.2 5.4 4 1  3.8 6.6 6 1  4.1 6.6 5 1  3.6 5.7 5 1
4.3 7.0 4 1  3.6 6.7 4 0  2.3 4.4 6 1  4.2 7.6 4 0  4.0 6.6 6 0  3.5 5.8 6 1  3.8 6.8 7 1
3.0 4.7 8 0  4.5 7.4 5 1  3.7 7.4 5 1  3.1 6.6 6 1  4.1 8.2 6 1  4.3 7.0 5 1  4.3 6.5 4 1
3.2 5.1 5 1  2.6 4.7 6 1  3.3 6.8 6 0  1.7 4.0 7 0  3.7 6.1 5 1  3.3 6.3 7 1  4.2 7.7 6 1
3.5 6.2 5 1  2.9 5.7 9 0  2.1 4.8 7 1  2.8 6.2 8 0  4.0 7.0 7 1  3.3 5.7 6 1  3.7 6.9 5 1
3.6 6.6 5 1
"""

scored = st.lists(st.tuples(st.booleans(), st.integers(0, 8)), min_size=2, max_size=40)
answered = st.lists(st.tuples(st.integers(0, 3), st.integers(0, 3)), min_size=2, max_size=40)


def columns(pairs) -> tuple[np.ndarray, np.ndarray]:
    first, second = zip(*pairs, strict=True)
    return np.array(first), np.array(second)


def cohort(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """Truth and three scores (3, n) of rising worth, with ties."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.4
    return truth, np.round(rng.normal(size=(3, n)) + np.array([[0], [0.5], [1]]) * truth, 1)


def by_definition(truth, scores) -> tuple[np.ndarray, np.ndarray]:
    """DeLong's areas and covariance from the kernel of every pair of a positive and a negative."""
    above = scores[:, truth][:, :, None] - scores[:, ~truth][:, None, :]
    kernel = (np.sign(above) + 1) / 2
    covariance = np.cov(kernel.mean(axis=2)) / truth.sum()
    return kernel.mean(axis=(1, 2)), covariance + np.cov(kernel.mean(axis=1)) / (~truth).sum()


@given(scored)
@settings(max_examples=100)
def test_auroc_and_auprc_are_sklearns_with_ties(pairs):
    truth, score = columns(pairs)
    if truth.all() or not truth.any():
        assert np.isnan(auroc(truth, score))
        assert np.isnan(auprc(truth, score))
    else:
        assert auroc(truth, score) == pytest.approx(sk.roc_auc_score(truth, score), abs=1e-12)
        expected = sk.average_precision_score(truth, score)
        assert auprc(truth, score) == pytest.approx(expected, abs=1e-12)


def test_delong_gives_the_published_areas_and_errors():
    table = np.array(OVARIAN.split(), dtype=float).reshape(-1, 4)
    scores = np.stack([10 - table[:, 2], table[:, 0], table[:, 1]])
    areas, covariance = delong(table[:, 3], scores)
    assert areas == pytest.approx([0.7258, 0.7366, 0.6478], abs=5e-5)
    assert np.sqrt(covariance.diagonal()) == pytest.approx([0.1028, 0.0927, 0.1000], abs=5e-5)
    contrast = np.array([[-1, 1, 0], [-1, 0, 1]])
    gap = contrast @ areas
    statistic = gap @ np.linalg.solve(contrast @ covariance @ contrast.T, gap)
    assert statistic == pytest.approx(2.5340, abs=5e-5)


def test_delong_is_its_definition_over_all_pairs():
    truth, scores = cohort(80)
    areas, covariance = delong(truth, scores)
    expected_areas, expected_covariance = by_definition(truth, scores)
    np.testing.assert_allclose(areas, expected_areas, atol=1e-12)
    np.testing.assert_allclose(covariance, expected_covariance, atol=1e-12)


def test_delongs_variance_is_that_of_the_brunner_munzel_test():
    truth, scores = cohort(60)
    areas, covariance = delong(truth, scores)
    for score, area, variance in zip(scores, areas, covariance.diagonal(), strict=True):
        expected = brunnermunzel(score[~truth], score[truth]).statistic
        assert (area - 0.5) / np.sqrt(variance) == pytest.approx(expected)


def test_delongs_interval_holds_the_true_area_as_often_as_it_says():
    # Two normal distributions one standard deviation apart: area Phi(1 / sqrt 2) = 0.7602.
    truth = np.arange(60) < 25
    rng = np.random.default_rng(0)
    held = 0
    for _ in range(1000):
        low, high = delong_interval(truth, rng.normal(size=60) + truth)
        held += low <= 0.76025 <= high
    assert 930 <= held <= 970


def test_without_delongs_variance_the_interval_is_newcombes_and_no_point():
    low, high = delong_interval([0, 0, 1, 1], [1, 2, 3, 4])
    assert 0.2 < low < 0.6
    assert high == 1
    low, high = delong_interval([0, 0, 1, 1], [5, 5, 5, 5])
    assert low == pytest.approx(1 - high)
    assert low < 0.2
    assert delong_interval([0, 0, 1], [1, 2, 3])[0] < 0.5  # one patient of a class
    assert np.isnan(delong_interval([0, 0], [1, 2])).all()


def test_delong_test_is_antisymmetric_and_normal():
    truth, scores = cohort(100)
    forward, backward = (
        delong_test(truth, scores[2], scores[0]),
        delong_test(truth, scores[0], scores[2]),
    )
    assert forward.value == pytest.approx(-backward.value)
    assert forward.p == pytest.approx(backward.p)
    assert forward.low == pytest.approx(-backward.high)
    # p = 0.05 exactly where the interval of 95 % ends at 0
    deviation = (forward.high - forward.low) / 2 / 1.959964
    assert forward.p < 0.05
    assert forward.low > 0
    assert forward.value / deviation > 1.96


def test_delong_test_keeps_its_level_when_the_scores_are_equally_good():
    rng = np.random.default_rng(1)
    truth = np.arange(80) < 30
    rejected = 0
    for _ in range(1000):
        common = rng.normal(size=80) + truth
        a, b = common + rng.normal(size=80), common + rng.normal(size=80)
        rejected += delong_test(truth, a, b).p < 0.05
    assert 30 <= rejected <= 70


def test_delong_test_without_variance():
    truth, scores = cohort(20)
    same = delong_test(truth, scores[0], scores[0] * 2)
    assert (same.value, same.low, same.high, same.p) == (0, 0, 0, 1)
    perfect = delong_test([0, 0, 1, 1], [1, 1, 2, 2], [1, 1, 1, 1])
    assert perfect.value == 0.5
    assert np.isnan([perfect.low, perfect.high, perfect.p]).all()


@given(answered)
@settings(max_examples=100)
def test_metrics_of_the_confusion_are_sklearns(pairs):
    truth, answer = columns(pairs)
    counts = confusion(truth, answer, 4)
    assert (counts == sk.confusion_matrix(truth, answer, labels=range(4))).all()
    occurring = sorted(set(truth))
    recalls = sk.recall_score(truth, answer, labels=occurring, average="macro", zero_division=0)
    assert accuracy(counts) == pytest.approx(sk.accuracy_score(truth, answer))
    assert balanced_accuracy(counts) == pytest.approx(recalls)
    assert macro_f1(counts) == pytest.approx(sk.f1_score(truth, answer, average="macro"))
    if set(truth) == set(answer) and len(set(truth)) == 1:
        assert np.isnan(kappa(counts))
        return
    for weights, name in (("none", None), ("quadratic", "quadratic")):
        expected = sk.cohen_kappa_score(truth, answer, weights=name, labels=range(4))
        assert kappa(counts, weights) == pytest.approx(expected, abs=1e-12)


def test_metrics_of_no_patients_are_undefined():
    nobody = confusion([], [], 3)
    for value in (accuracy, balanced_accuracy, macro_f1, kappa):
        assert np.isnan(value(nobody))
    assert np.isnan(sensitivity_specificity([], [])).all()
    assert np.isnan(brier([], np.zeros((0, 2))))
    assert np.isnan(expected_calibration_error([], np.zeros((0, 2))))
    assert np.isnan(auroc([], []))


@given(scored)
@settings(max_examples=50)
def test_sensitivity_and_specificity_are_recalls(pairs):
    truth, score = columns(pairs)
    sensitivity, specificity = sensitivity_specificity(truth, score > 4)
    for value, side in ((sensitivity, truth), (specificity, ~truth)):
        if side.any():
            assert value == pytest.approx(((score > 4) == truth)[side].mean())
        else:
            assert np.isnan(value)


@pytest.mark.parametrize("classes", [2, 3, 5])
def test_brier_is_sklearns(classes):
    rng = np.random.default_rng(classes)
    truth = rng.integers(classes, size=50)
    predicted = rng.dirichlet(np.ones(classes), size=50)
    expected = sk.brier_score_loss(
        truth, predicted[:, 1] if classes == 2 else predicted, labels=list(range(classes))
    )
    assert brier(truth, predicted) == pytest.approx(expected)


def test_calibration_error_by_hand():
    # Bin (0.5, 0.6]: confidence 0.6 twice, one of two right; bin (0.8, 0.9]: 0.9, right.
    predicted = np.array([[0.6, 0.4], [0.4, 0.6], [0.1, 0.9]])
    error = expected_calibration_error([0, 0, 1], predicted)
    assert error == pytest.approx((2 * 0.1 + 1 * 0.1) / 3)
    # 0.5 belongs to (0.4, 0.5], not to the bin of 0.55
    apart = expected_calibration_error([0, 1], [[0.5, 0.5], [0.55, 0.45]])
    assert apart == pytest.approx((0.5 + 0.55) / 2)


def test_calibration_error_vanishes_for_true_probabilities_and_not_for_sharpened_ones():
    rng = np.random.default_rng(0)
    predicted = rng.dirichlet(np.ones(3), size=20_000)
    truth = (predicted.cumsum(axis=1) > rng.random((20_000, 1))).argmax(axis=1)
    assert expected_calibration_error(truth, predicted) < 0.015
    sharp = predicted**4 / (predicted**4).sum(axis=1, keepdims=True)
    assert expected_calibration_error(truth, sharp) > 0.15


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 20)), min_size=1, max_size=60))
@settings(max_examples=50)
def test_reliability_is_sklearns_curve_with_wilsons_interval(pairs):
    truth, twentieths = columns(pairs)
    curve = reliability(truth, twentieths / 20, bins=5)
    observed, predicted = calibration_curve(truth, twentieths / 20, n_bins=5, strategy="quantile")
    np.testing.assert_allclose(curve.observed, observed, atol=1e-12)
    np.testing.assert_allclose(curve.predicted, predicted, atol=1e-12)
    assert curve.count.sum() == len(truth)
    hits = np.round(curve.observed * curve.count)
    low, high = proportion_confint(hits, curve.count, method="wilson")
    np.testing.assert_allclose(curve.low, low, atol=1e-9)
    np.testing.assert_allclose(curve.high, high, atol=1e-9)


def test_malformed_input_is_refused_with_the_value():
    with pytest.raises(CohortError, match=r"expected finite scores, got nan in row 1 \(1 such row"):
        auroc([0, 1], [0.5, np.nan])
    with pytest.raises(CohortError, match=r"expected scores of shape \(2\), got \(3,\)"):
        auroc([0, 1], [0.1, 0.2, 0.3])
    with pytest.raises(CohortError, match=r"expected truth as True or False, got \[2\]"):
        auroc([0, 2], [0.1, 0.2])
    with pytest.raises(CohortError, match=r"answers as class numbers 0\.\.1, got \[7\]"):
        confusion([0, 1], [7, 0], 2)
    with pytest.raises(CohortError, match=r"probabilities between 0 and 1, got \[-0\.1, 1\.1\]"):
        brier([0], [[-0.1, 1.1]])
    with pytest.raises(CohortError, match=r"sum to 1 in each row, got \[0\.5, 0\.6\] in row 0"):
        brier([0], [[0.5, 0.6]])
