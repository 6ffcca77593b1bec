import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.tissue.ink import is_black, is_pale_ink, is_red_ink, is_vivid_ink

# Optical densities of red, green, blue: Ruifrok and Johnston (2001), and bluer haematoxylin, as
# many scanners show it.
HAEMATOXYLIN = {"Ruifrok": (0.65, 0.70, 0.29), "bluer": (0.70, 0.66, 0.26)}
HAEMATOXYLIN |= {"bluest": (0.75, 0.62, 0.23)}
EOSIN, DAB = (0.07, 0.99, 0.11), (0.27, 0.57, 0.78)
# Colours of pens in whole-slide images, as the thresholds of published ink filters have them.
PENS = {
    "blue": (30, 65, 130),
    "washed blue": (145, 180, 210),
    "washed out": (175, 210, 230),
    "cyan": (120, 170, 200),
    "green": (25, 120, 90),
    "pale green": (60, 170, 110),
    "washed green": (190, 220, 200),
}


def transmission(**dyes):
    return 10 ** -sum(amount * np.array(density) for amount, density in dyes.values())


def is_ink(colour):
    red, green, blue = colour
    low, high = colour.min(), colour.max()
    return bool(
        is_vivid_ink(red, green, blue, low=low, high=high)
        | is_pale_ink(red, green, low=low, high=high)
        | is_red_ink(red, green, blue, low=low, high=high)
    )


@given(
    st.sampled_from(sorted(HAEMATOXYLIN)),
    st.floats(0, 0.7),
    st.sampled_from([EOSIN, DAB]),
    st.floats(0, 0.5),
    st.floats(0, 1),
)
def test_no_mixture_of_dyes_and_glass_is_ink(blue, h, other, amount, glass):
    stained = transmission(h=(h, HAEMATOXYLIN[blue]), other=(amount, other))
    assert not is_ink(glass + (1 - glass) * stained)


@given(st.sampled_from(sorted(HAEMATOXYLIN)), st.floats(0, 3), st.floats(0, 1))
def test_haematoxylin_of_any_strength_is_no_pale_ink(name, amount, glass):
    """Of what the average is missing, the share of green does not change with the glass in it."""
    colour = glass + (1 - glass) * transmission(h=(amount, HAEMATOXYLIN[name]))
    assert not is_pale_ink(colour[0], colour[1], low=colour.min(), high=colour.max())


@pytest.mark.parametrize("pen", PENS)
def test_pens_are_ink(pen):
    assert is_ink(np.array(PENS[pen]) / 244)


@pytest.mark.parametrize("pen", sorted(PENS.keys() - {"blue"}))  # half of that looks stained
def test_pens_are_ink_where_glass_shines_through(pen):
    assert is_ink(0.55 * np.array(PENS[pen]) / 244 + 0.45)


def test_green_over_dense_tumour_is_ink():
    assert is_ink(np.array([0.11, 0.27, 0.24]))


def test_black_is_dark_or_dark_grey():
    dark = np.array([[0.1, 0.05, 0.15], [0.38, 0.35, 0.34], [0.38, 0.20, 0.34], [0.6, 0.6, 0.6]])
    black = is_black(dark.min(axis=1), dark.max(axis=1))
    assert black.tolist() == [True, True, False, False]


def test_arrays_and_tensors_agree():
    colours = np.random.default_rng(0).random((3, 500))
    low, high = colours.min(axis=0), colours.max(axis=0)
    tensors, limits = torch.from_numpy(colours), map(torch.from_numpy, (low, high))
    t_low, t_high = limits
    for of_arrays, of_tensors in (
        (is_black(low, high), is_black(t_low, t_high)),
        (
            is_vivid_ink(*colours, low=low, high=high),
            is_vivid_ink(*tensors, low=t_low, high=t_high),
        ),
        (
            is_pale_ink(*colours[:2], low=low, high=high),
            is_pale_ink(*tensors[:2], low=t_low, high=t_high),
        ),
        (is_red_ink(*colours, low=low, high=high), is_red_ink(*tensors, low=t_low, high=t_high)),
    ):
        assert 0 < of_arrays.mean() < 1
        np.testing.assert_array_equal(of_arrays, of_tensors.numpy())
