"""Metrics of values against scikit-learn, scipy and statsmodels."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import linregress, pearsonr, rankdata, spearmanr
from sklearn.metrics import mean_absolute_error, mean_squared_error, r2_score
from statsmodels.api import OLS

from mil.metrics import regression
from preprocessing.errors import CohortError


def answered(n: int = 90, folds: int = 1, seed: int = 0):
    """Observed and predicted values with some ties, and their folds."""
    rng = np.random.default_rng(seed)
    observed = np.round(rng.normal(50, 10, n))
    predicted = np.round(0.6 * observed + rng.normal(20, 6, n))
    return observed, predicted, np.arange(n) % folds


def test_errors_are_sklearns():
    observed, predicted, _ = answered()
    assert regression.r2(observed, predicted) == pytest.approx(r2_score(observed, predicted))
    assert regression.mean_absolute_error(observed, predicted) == pytest.approx(
        mean_absolute_error(observed, predicted)
    )
    assert regression.root_mean_squared_error(observed, predicted) == pytest.approx(
        np.sqrt(mean_squared_error(observed, predicted))
    )
    assert regression.bias(observed, predicted) == pytest.approx((predicted - observed).mean())


def test_correlations_and_slope_of_one_fold_are_scipys():
    observed, predicted, fold = answered()
    assert regression.pearson(observed, predicted, fold) == pytest.approx(
        pearsonr(observed, predicted)[0]
    )
    assert regression.spearman(observed, predicted, fold) == pytest.approx(
        spearmanr(observed, predicted)[0]
    )
    assert regression.calibration_slope(observed, predicted, fold) == pytest.approx(
        linregress(predicted, observed).slope
    )


def residuals(values, dummies) -> np.ndarray:
    return OLS(values, dummies).fit().resid


def test_several_folds_are_compared_within_themselves():
    """The partial correlation given the fold, and the slope beside one intercept a fold."""
    observed, predicted, fold = answered(folds=4)
    observed = observed + 30 * fold
    dummies = np.eye(4)[fold]
    partial = pearsonr(residuals(observed, dummies), residuals(predicted, dummies))[0]
    assert regression.pearson(observed, predicted, fold) == pytest.approx(partial)
    model = OLS(observed, np.column_stack([predicted, dummies])).fit()
    slope = regression.calibration_slope(observed, predicted, fold)
    assert slope == pytest.approx(model.params[0])
    ranks = [np.empty(len(fold)), np.empty(len(fold))]
    for one in range(4):
        for values, place in zip((observed, predicted), ranks, strict=True):
            place[fold == one] = rankdata(values[fold == one]) / (fold == one).sum()
    partial = pearsonr(residuals(ranks[0], dummies), residuals(ranks[1], dummies))[0]
    assert regression.spearman(observed, predicted, fold) == pytest.approx(partial)


def test_a_large_fold_weighs_by_its_rows_and_not_by_their_cube():
    """60 rows without any correlation beside four folds of 15 with one of 0.8."""
    rng = np.random.default_rng(0)
    sizes, aims = (60, 15, 15, 15, 15), (0.0, 0.8, 0.8, 0.8, 0.8)
    observed, predicted = [], []
    for size, aim in zip(sizes, aims, strict=True):
        own = np.arange(size, dtype=float)
        share = 1.0 if aim else 0.0
        mixed = [share * own + 0.75 * rng.permutation(size) for _ in range(300)]
        observed.append(own)
        predicted.append(min(mixed, key=lambda ranks: abs(spearmanr(own, ranks)[0] - aim)))
    each = [spearmanr(*pair)[0] for pair in zip(observed, predicted, strict=True)]
    assert each == pytest.approx(aims, abs=0.01)
    found = regression.spearman(
        np.concatenate(observed), np.concatenate(predicted), np.repeat(range(5), sizes)
    )
    assert found == pytest.approx(np.average(each, weights=sizes), abs=0.01)


def test_models_that_know_the_training_mean_alone_have_no_correlation():
    """Pooled they would correlate negatively: who is tested is not in the mean."""
    observed, _, fold = answered(folds=5)
    of_others = [observed[fold != one].mean() for one in range(5)]
    predicted = np.array(of_others)[fold]
    assert pearsonr(observed, predicted)[0] < -0.05
    for score in (regression.pearson, regression.spearman, regression.calibration_slope):
        assert np.isnan(score(observed, predicted, fold))


@settings(max_examples=50)
@given(st.integers(0, 10**6), st.floats(0.1, 100), st.floats(-1000, 1000))
def test_a_change_of_unit_changes_errors_alone(seed, factor, shift):
    observed, predicted, fold = answered(40, 2, seed)
    other = [factor * values + shift for values in (observed, predicted)]
    for score in (regression.r2,):
        assert score(*other) == pytest.approx(score(observed, predicted), rel=1e-6, abs=1e-6)
    for score in (regression.pearson, regression.calibration_slope):
        assert score(*other, fold) == pytest.approx(score(observed, predicted, fold), abs=1e-6)
    for score in (regression.mean_absolute_error, regression.root_mean_squared_error):
        assert score(*other) == pytest.approx(factor * score(observed, predicted), rel=1e-6)


def test_what_the_data_leave_open_is_nan():
    same = np.full(5, 0.1)
    other = np.arange(5.0)
    fold = np.zeros(5)
    assert np.isnan(regression.r2(same, other))
    assert np.isnan(regression.pearson(same, other, fold))
    assert np.isnan(regression.spearman(other, same, fold))
    assert np.isnan(regression.calibration_slope(other, same, fold))
    none = np.zeros(0)
    for score in (regression.r2, regression.mean_absolute_error, regression.bias):
        assert np.isnan(score(none, none))
    assert np.isnan(regression.root_mean_squared_error(none, none))
    assert np.isnan(regression.pearson(none, none, none))


def test_malformed_input_is_refused():
    with pytest.raises(CohortError, match=r"expected finite predicted values, got nan in row 1"):
        regression.r2([1, 2], [1, np.nan])
    with pytest.raises(CohortError, match=r"expected predicted values of shape \(2\), got \(3,\)"):
        regression.bias([1, 2], [1, 2, 3])
    with pytest.raises(CohortError, match=r"one stratum per row, got \(1,\) strata of 2"):
        regression.pearson([1, 2], [1, 2], [0])
