import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from statsmodels.stats.multitest import multipletests

from mil.metrics.resampling import bootstrap_p, holm, patient_draws, percentile_interval
from preprocessing.errors import CohortError


@given(st.lists(st.integers(0, 9), min_size=1, max_size=40), st.integers(0, 100))
@settings(max_examples=50)
def test_all_rows_of_a_drawn_patient_come_along_and_strata_keep_their_patients(patients, seed):
    patients = np.array(patients)
    strata = patients % 3
    rows_of = {p: (patients == p).sum() for p in patients}
    for rows in patient_draws(patients, strata, 5, seed):
        times_drawn = {}
        for patient in np.unique(patients[rows]):
            counts = np.bincount(rows, minlength=len(patients))[patients == patient]
            assert len(set(counts)) == 1
            times_drawn[patient] = counts[0]
        for stratum in np.unique(strata):
            here = sum(k for p, k in times_drawn.items() if p % 3 == stratum)
            assert here == len(set(patients[strata == stratum]))
        assert len(rows) == sum(k * rows_of[p] for p, k in times_drawn.items())


def test_draws_are_those_of_the_seed():
    first, again, other = (
        np.concatenate(list(patient_draws(np.arange(30), None, 4, seed))) for seed in (1, 1, 2)
    )
    assert (first == again).all()
    assert (first != other).any()


def test_every_patient_is_drawn_as_often_as_a_poisson_count_says():
    draws = np.concatenate(list(patient_draws(np.arange(50), np.arange(50) % 2, 4000, 0)))
    assert np.bincount(draws) == pytest.approx(np.full(50, 4000), rel=0.08)


def test_interval_has_about_the_width_of_theory():
    # A mean of 400 independent values of variance 1: standard error 1/20.
    values = np.random.default_rng(0).normal(size=400)
    means = [values[rows].mean() for rows in patient_draws(np.arange(400), None, 2000, 0)]
    low, high = percentile_interval(means)
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.1)


def test_slides_of_one_patient_do_not_count_as_independent():
    values = np.repeat(np.random.default_rng(0).normal(size=100), 4)
    widths = []
    for patients in (np.repeat(np.arange(100), 4), np.arange(400)):
        means = [values[rows].mean() for rows in patient_draws(patients, None, 2000, 0)]
        low, high = percentile_interval(means)
        widths.append(high - low)
    assert widths[0] / widths[1] == pytest.approx(2, rel=0.1)


def test_a_patient_in_two_strata_is_refused_by_name():
    with pytest.raises(CohortError, match=r"got 1 patients in several, such as \['a'\]"):
        next(patient_draws(["a", "a", "b"], [0, 1, 1], 1, 0))
    with pytest.raises(CohortError, match=r"one stratum per row, got 2 strata of 3 rows"):
        next(patient_draws(["a", "a", "b"], [0, 1], 1, 0))


def test_undefined_draws_do_not_count():
    values = np.append(np.arange(101.0), [np.nan] * 50)
    assert percentile_interval(values) == pytest.approx((2.5, 97.5))
    assert np.isnan(percentile_interval([np.nan])).all()
    assert bootstrap_p([1.0, 2.0, np.nan, -1.0]) == bootstrap_p([1.0, 2.0, -1.0])
    assert np.isnan(bootstrap_p([np.nan]))


def test_bootstrap_p_by_hand():
    assert bootstrap_p(np.ones(999)) == 2 / 1000
    assert bootstrap_p(-np.ones(999)) == 2 / 1000
    assert bootstrap_p(np.zeros(999)) == 1
    assert bootstrap_p([-1.0] * 9 + [1.0] * 90) == pytest.approx(2 * 10 / 100)


def test_bootstrap_p_keeps_its_level():
    rng = np.random.default_rng(0)
    rejected = 0
    for _ in range(400):
        differences = rng.normal(size=60)
        means = differences[rng.integers(60, size=(400, 60))].mean(axis=1)
        rejected += bootstrap_p(means) < 0.05
    assert 8 <= rejected <= 36  # 5 % of 400, and three standard errors around it


@given(st.lists(st.integers(0, 50), min_size=1, max_size=12))
@settings(max_examples=15)  # statsmodels collects garbage in every call
def test_holm_is_statsmodels(fiftieths):
    p_values = np.array(fiftieths) / 50
    expected = multipletests(p_values, method="holm")[1]
    np.testing.assert_allclose(holm(p_values), expected, atol=1e-12)


def test_holm_leaves_out_what_was_not_tested():
    adjusted = holm([0.01, np.nan, 0.04])
    assert adjusted[[0, 2]] == pytest.approx([0.02, 0.04])
    assert np.isnan(adjusted[1])
    assert holm([]).shape == (0,)
