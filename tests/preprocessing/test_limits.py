import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preprocessing.config import QualityConfig
from preprocessing.errors import StoreError
from preprocessing.stores.limits import breaches, within
from preprocessing.stores.store import QUALITY

NONE = QualityConfig()
LIMITS = {"min_sharpness": "sharpness", "max_ink": "ink", "max_blank": "blank"}
values = st.sampled_from([0.0, 0.1, 0.3, 0.55, 1.0])
qualities = hnp.arrays(np.float32, st.tuples(st.integers(0, 9), st.just(3)), elements=values)


@given(qualities, *[st.none() | values] * 3)
def test_a_tile_is_within_where_it_keeps_every_limit(quality, sharpness, ink, blank):
    """Values and limits are drawn from the same few, so that they are often equal."""
    limits = QualityConfig(min_sharpness=sharpness, max_ink=ink, max_blank=blank)
    expected = [
        (sharpness is None or s >= np.float32(sharpness))
        and (ink is None or i <= np.float32(ink))
        and (blank is None or b <= np.float32(blank))
        for s, i, b in quality
    ]
    assert within(quality, limits, "here").tolist() == expected


@pytest.mark.parametrize("key", LIMITS)
def test_what_a_limit_asks_for_must_be_known(key):
    quality = np.array([[0.5, 0.5, 0.5]] * 4, dtype=np.float32)
    quality[1:3, QUALITY.index(LIMITS[key])] = np.nan
    limits = QualityConfig(**{key: 0.5})
    with pytest.raises(StoreError, match=rf"s1\.zarr: quality\.{key} .* for 2 of 4 tiles; extract"):
        within(quality, limits, "s1.zarr")
    assert within(quality, NONE, "s1.zarr").all()
    others = {other: 0.5 for other in LIMITS if other != key}
    assert within(quality, QualityConfig(**others), "s1.zarr").all()


def test_breaches_name_the_limit_and_pass_over_what_is_not_known():
    quality = np.array([[0.1, 0.9, 0.0], [0.9, np.nan, 0.9], [np.nan] * 3], dtype=np.float32)
    broken = breaches(quality, QualityConfig(min_sharpness=0.5, max_blank=0.5))
    assert {key: at.tolist() for key, at in broken.items()} == {
        "min_sharpness": [True, False, False],
        "max_blank": [False, True, False],
    }
    assert breaches(quality, NONE) == {}
