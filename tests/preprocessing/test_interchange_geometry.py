"""Where imported tiles lie, for any slide: places, strides, and the mask under them."""

from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from interchange_fakes import row

from preprocessing.interchange.base import ForeignTiles, GivenFacts
from preprocessing.interchange.incoming import store_contents


def contents(coords, unit, *, mpp=(0.25, 0.25), **facts):
    tiles = ForeignTiles(
        Path("foreign.h5"),
        np.asarray(coords),
        unit,
        np.zeros((len(coords), 1), np.float32),
        tile_px=64,
        mpp=mpp,
        **facts,
    )
    requested = (facts["tile_um"] if "tile_um" in facts else facts["tile_px0"][0] * mpp[0]) / 64
    return store_contents(
        row(), tiles, GivenFacts(tile_mpp=requested), encoder="uni", origin=("t", "e")
    )


@settings(max_examples=60)
@given(
    coords=st.lists(
        st.tuples(st.integers(0, 250_000), st.integers(0, 250_000)), min_size=1, max_size=20
    ),
    mpp=st.tuples(st.floats(0.1, 2.0), st.floats(0.98, 1.02)),
)
def test_micrometres_of_single_precision_name_the_same_pixel(coords, mpp):
    x, y = mpp[0], mpp[0] * mpp[1]
    um = (np.array(coords) * (x, y)).astype(np.float32)
    found = contents(um, "um", mpp=(x, y), tile_um=100.0)
    assert found.coords_px0.tolist() == [list(pair) for pair in coords]


@settings(max_examples=100)
@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.floats(50, 700),
    overlap=st.sampled_from([0.0, 0.25, 0.5]),
    corner=st.tuples(st.integers(0, 900), st.integers(0, 900)),
    stated=st.booleans(),
)
def test_the_stride_is_that_of_the_lattice(seed, side, overlap, corner, stated):
    """Stated, or found: exactly where tiles lie edge to edge, else as well as whole pixels tell:
    corners n strides apart, each rounded by half a pixel at most, leave one nth of a pixel.
    """
    step = side * (1 - overlap)
    cells = np.argwhere(np.random.default_rng(seed).random((30, 40)) < 0.5)[:, ::-1]
    coords = np.floor(cells * step + corner + 0.5).astype(int)
    said = {"stride_px0": (step, step)} if stated else {}
    found = contents(coords, "px0", tile_px0=(side, side), **said).provenance
    apart = np.ptp(cells, axis=0)
    error = 0 * apart if stated or overlap == 0 else 1 / apart
    assert abs(found.stride_px0_x - step) <= error[0]
    assert abs(found.stride_px0_y - step) <= error[1]


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.floats(70, 400),
    mpp=st.floats(0.2, 1.0),
)
def test_the_mask_covers_every_tile_and_little_else(seed, side, mpp):
    coords = np.random.default_rng(seed).integers(0, 3000, size=(6, 2))
    found = contents(coords, "px0", mpp=(mpp, mpp), tile_px0=(side, side))
    scale = found.provenance.mask_px0_per_px_x
    height, width = found.tissue_mask.shape
    assert (width - 1) * scale < found.provenance.level0_width <= width * scale
    assert (height - 1) * scale < found.provenance.level0_height <= height * scale
    centres_x = (np.arange(width) + 0.5) * scale
    centres_y = (np.arange(height) + 0.5) * scale
    for x, y in coords:
        inside_x = (centres_x >= x) & (centres_x < x + side)
        inside_y = (centres_y >= y) & (centres_y < y + side)
        assert found.tissue_mask[np.ix_(inside_y, inside_x)].all()
    far = np.ones_like(found.tissue_mask)
    for x, y in coords:
        near_x = (centres_x >= x - scale) & (centres_x < x + side + scale)
        near_y = (centres_y >= y - scale) & (centres_y < y + side + scale)
        far[np.ix_(near_y, near_x)] = False
    assert not found.tissue_mask[far].any()
