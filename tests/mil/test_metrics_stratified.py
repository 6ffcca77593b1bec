"""AUROC of pairs within folds, and its DeLong variance."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import norm

from mil.metrics.ranking import (
    auroc,
    delong,
    delong_interval,
    delong_test,
    newcombe_interval,
    stratified_auroc,
    stratified_delong,
)
from preprocessing.errors import CohortError

rows = st.lists(
    st.tuples(st.booleans(), st.integers(0, 6), st.integers(0, 2)), min_size=1, max_size=40
)


def folds_of(n: int, seed: int = 0) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    folds = np.arange(n) % 4
    truth = rng.random(n) < 0.4
    return truth, rng.normal(size=n) + truth + 5 * folds, folds


@settings(max_examples=100)
@given(rows)
def test_it_is_the_share_of_rightly_ordered_pairs_within_strata(drawn):
    truth, score, strata = (np.array(values) for values in zip(*drawn, strict=True))
    credit = [
        0.5 if score[i] == score[j] else float(score[i] > score[j])
        for i in np.flatnonzero(truth)
        for j in np.flatnonzero(~truth)
        if strata[i] == strata[j]
    ]
    found = stratified_auroc(truth, score, strata)
    assert found == pytest.approx(np.mean(credit)) if credit else np.isnan(found)


def test_models_that_know_the_prevalence_alone_are_chance_and_pooled_they_are_below():
    """Each fold's score is its training prevalence: lower just where the test part has more."""
    rng = np.random.default_rng(0)
    pooled, within = [], []
    for _ in range(50):
        truth, folds = rng.random(60) < 0.5, np.arange(60) % 5
        prevalence = np.array([truth[folds != k].mean() for k in range(5)])
        pooled.append(auroc(truth, prevalence[folds]))
        within.append(stratified_auroc(truth, prevalence[folds], folds))
    assert within == [0.5] * 50
    assert np.mean(pooled) < 0.4


def test_scales_of_folds_do_not_matter():
    truth, score, folds = folds_of(80)
    moved = score * (1 + folds) - 9 * folds
    assert stratified_auroc(truth, score, folds) == stratified_auroc(truth, moved, folds)


def test_one_stratum_is_no_stratum():
    truth, score, _ = folds_of(60)
    other = score + np.random.default_rng(1).normal(size=60)
    one = np.zeros(60)
    assert delong_interval(truth, score, strata=one) == pytest.approx(delong_interval(truth, score))
    assert delong_test(truth, score, other, strata=one).p == pytest.approx(
        delong_test(truth, score, other).p
    )
    assert stratified_delong(truth, [score, other], one)[1] == pytest.approx(
        delong(truth, [score, other])[1]
    )


def test_its_variance_is_that_of_repeated_cohorts():
    """Over many cohorts the spread of the AUROC is the mean DeLong deviation, and covers 95 %."""
    areas, deviations, covered = [], [], []
    expected = 0.76  # P(N(1, 2) > 0)
    for seed in range(400):
        truth, score, folds = folds_of(120, seed)
        area, covariance = stratified_delong(truth, score[None], folds)
        low, high = delong_interval(truth, score, strata=folds)
        areas.append(area[0])
        deviations.append(np.sqrt(covariance[0, 0]))
        covered.append(low <= expected <= high)
    assert np.mean(areas) == pytest.approx(expected, abs=0.005)
    assert np.mean(deviations) == pytest.approx(np.std(areas), rel=0.1)
    assert np.mean(covered) == pytest.approx(0.95, abs=0.03)


@pytest.mark.parametrize(("area", "expected"), [(0.5, (0.3234, 0.6766)), (1.0, (0.8873, 1.0))])
def test_newcombes_interval_solves_its_equation_and_is_no_point_at_the_boundary(area, expected):
    """Sizes 18 and 18; the ends are where (area - t)^2 is z^2 times Hanley & McNeil's variance."""
    truth = np.arange(36) < 18
    low, high = newcombe_interval(area, truth)
    assert (low, high) == pytest.approx(expected, abs=1e-4)
    for t in {low, high} - {1.0}:
        inner = 1 + 17 * ((1 - t) / (2 - t) + t / (1 + t))
        assert (area - t) ** 2 == pytest.approx(1.959964**2 * t * (1 - t) * inner / 18**2, rel=1e-4)


def test_small_folds_and_a_high_auroc_still_cover():
    """Without a fallback a third of these intervals would be points, and 62 % would cover."""
    area = 0.98
    shift = norm.ppf(area) * np.sqrt(2)
    rng = np.random.default_rng(0)
    covered = []
    for _ in range(300):
        truth = rng.random(36) < 0.5
        score = rng.normal(size=36) + shift * truth
        low, high = delong_interval(truth, score, strata=np.arange(36) % 4)
        covered.append(low <= area <= high)
    assert np.mean(covered) > 0.93


def test_strata_of_one_class_say_nothing():
    truth, score, folds = folds_of(80)
    alone = np.where(truth & (folds == 3), 9, folds)
    kept = alone != 9
    assert stratified_auroc(truth, score, alone) == pytest.approx(
        stratified_auroc(truth[kept], score[kept], alone[kept])
    )
    assert np.isfinite(delong_interval(truth, score, strata=alone)).all()
    assert np.isnan(stratified_auroc(truth, score, np.arange(80)))
    assert np.isnan(delong_interval(truth, score, strata=np.arange(80))).all()


def test_strata_of_another_length_are_refused():
    truth, score, _ = folds_of(8)
    with pytest.raises(CohortError, match=r"one stratum per patient, got \(3,\) strata of 8"):
        stratified_auroc(truth, score, np.zeros(3))
