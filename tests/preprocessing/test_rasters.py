import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from scipy import ndimage

from preprocessing.tissue.rasters import (
    byte_quantile,
    closed,
    dilated,
    grown_within,
    median3,
    parts_touching,
    without_small,
)

shapes = hnp.array_shapes(min_dims=2, max_dims=2, min_side=1, max_side=40)
masks = hnp.arrays(np.bool_, shapes)
EIGHT = np.ones((3, 3))


def disk(radius):
    y, x = np.ogrid[-radius : radius + 1, -radius : radius + 1]
    return x**2 + y**2 <= radius**2


@given(hnp.arrays(np.uint8, shapes))
def test_medians_are_scipys(plane):
    expected = ndimage.median_filter(plane, 3, mode="nearest")
    np.testing.assert_array_equal(median3(plane), expected)


def test_medians_do_not_show_where_strips_end():
    plane = np.random.default_rng(0).integers(0, 256, (300, 50), dtype=np.uint8)
    np.testing.assert_array_equal(median3(plane), ndimage.median_filter(plane, 3, mode="nearest"))


@given(masks, st.integers(1, 9))
def test_dilation_by_a_disk_is_scipys(mask, radius):
    np.testing.assert_array_equal(
        dilated(mask, radius), ndimage.binary_dilation(mask, disk(radius))
    )


@given(masks, st.integers(1, 5))
def test_closing_by_a_disk_is_scipys_on_a_continued_border(mask, radius):
    padded = ndimage.binary_closing(np.pad(mask, radius, mode="edge"), disk(radius))
    inner = slice(radius, -radius)
    np.testing.assert_array_equal(closed(mask, radius), padded[inner, inner])


@given(masks, st.integers(0, 12))
def test_small_parts_are_dropped_and_others_kept_whole(mask, least):
    labels, parts = ndimage.label(mask)
    sizes = np.bincount(labels.ravel(), minlength=parts + 1)
    large = [part for part in range(1, parts + 1) if sizes[part] >= least]
    np.testing.assert_array_equal(without_small(mask, least), np.isin(labels, large))


@given(masks, st.data())
def test_parts_with_a_seed_are_kept_whole(mask, data):
    seeds = data.draw(hnp.arrays(np.bool_, mask.shape))
    labels, _ = ndimage.label(mask)
    touched = set(np.unique(labels[seeds])) - {0}
    np.testing.assert_array_equal(parts_touching(mask, seeds), np.isin(labels, list(touched)))


@pytest.mark.parametrize("steps", [1, 3])
def test_growth_stops_where_it_is_not_allowed(steps):
    mask, allowed = np.zeros((1, 11), dtype=bool), np.ones((1, 11), dtype=bool)
    mask[0, 5] = True
    allowed[0, 7] = False
    grown = grown_within(mask, steps=steps, within=allowed)
    assert np.flatnonzero(grown).tolist() == list(range(5 - steps, 7))
    assert not grown_within(~allowed & mask, steps=steps, within=allowed).any()


@given(hnp.arrays(np.uint8, st.integers(1, 60)), st.floats(0.01, 1))
def test_quantiles_of_bytes_are_numpys(values, share):
    expected = np.quantile(values, share, method="inverted_cdf")
    assert byte_quantile(values, share) == expected
