import numpy as np
import pytest
from hypothesis import assume, given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from preprocessing.geometry import Level, Pyramid, Size, plan_tiles
from preprocessing.tissue.grid import make_grid
from preprocessing.tissue.segmentation import TissueMask


def plan(size_px0, mpp0, *, mpp, tile_px, overlap_px=0, levels=1):
    pyramid = Pyramid(
        tuple(
            Level(k, Size(max(1, size_px0.width >> k), max(1, size_px0.height >> k)), float(2**k))
            for k in range(levels)
        ),
        mpp0,
        mpp0,
    )
    return plan_tiles(pyramid, mpp=mpp, tile_px=tile_px, overlap_px=overlap_px, max_upsampling=2)


def everywhere(size_px0):
    return TissueMask(np.ones((1, 1), dtype=bool), size_px0.width, size_px0.height)


sizes = st.builds(Size, st.integers(40, 3000), st.integers(40, 3000))
plans = st.fixed_dictionaries(
    {
        "mpp": st.floats(0.5, 2.0),
        "tile_px": st.integers(32, 300),
        "overlap_px": st.integers(0, 16),
        "levels": st.integers(1, 4),
    }
)


@st.composite
def bounded_slides(draw):
    """A slide and a vendor's bounds, which may stick out of it, or none."""
    size_px0 = draw(sizes)
    if draw(st.booleans()):
        return size_px0, None
    x, y = draw(st.integers(0, size_px0.width - 1)), draw(st.integers(0, size_px0.height - 1))
    extent = st.integers(1, 3000)
    return size_px0, (x, y, draw(extent), draw(extent))


@given(bounded_slides(), st.floats(0.2, 1.0), plans)
def test_tiles_stay_inside_and_no_further_tile_fits(slide, mpp0, request):
    size_px0, bounds = slide
    geometry = plan(size_px0, mpp0, **request)
    tiles = make_grid(size_px0, geometry, everywhere(size_px0), min_tissue=0.0, bounds_px0=bounds)
    x, y, width, height = bounds or (0, 0, size_px0.width, size_px0.height)
    right, bottom = min(x + width, size_px0.width), min(y + height, size_px0.height)
    counts = [len(np.unique(tiles.coords_px0[:, axis])) for axis in (0, 1)]
    assert len(tiles) == counts[0] * counts[1]
    axes = (
        (x, right, geometry.tile_px0_x, geometry.stride_px0_x),
        (y, bottom, geometry.tile_px0_y, geometry.stride_px0_y),
    )
    room = [stop - start - tile + 1e-6 for start, stop, tile, _ in axes]
    if min(room) < 0:
        assert len(tiles) == 0
        return
    for axis, (start, stop, tile, stride) in enumerate(axes):
        corners = np.unique(tiles.coords_px0[:, axis])
        assert corners[0] >= start
        assert corners[-1] + tile <= stop + 1e-5
        assert start + counts[axis] * stride + tile > stop
        exact = start + stride * np.arange(counts[axis])
        assert np.abs(corners - exact).max() < 1  # level-0 round trip


@given(sizes, st.floats(0.2, 1.0), plans)
def test_tiles_do_not_depend_on_the_pyramid_levels(size_px0, mpp0, request):
    grids = [
        make_grid(
            size_px0,
            plan(size_px0, mpp0, **{**request, "levels": levels}),
            everywhere(size_px0),
            min_tissue=0.5,
        )
        for levels in (1, request["levels"])
    ]
    np.testing.assert_array_equal(grids[0].coords_px0, grids[1].coords_px0)


@given(sizes, plans)
def test_order_is_row_major(size_px0, request):
    geometry = plan(size_px0, 0.5, **request)
    coords = make_grid(size_px0, geometry, everywhere(size_px0), min_tissue=0).coords_px0
    order = np.lexsort((coords[:, 0], coords[:, 1]))
    np.testing.assert_array_equal(order, np.arange(len(coords)))


@given(bounded_slides(), st.floats(0.2, 1.0), plans)
def test_a_corner_lies_at_its_lattice_point_or_is_the_last_that_fits(slide, mpp0, request):
    size_px0, bounds = slide
    geometry = plan(size_px0, mpp0, **request)
    tiles = make_grid(size_px0, geometry, everywhere(size_px0), min_tissue=0, bounds_px0=bounds)
    assume(len(tiles))
    x, y, width, height = bounds or (0, 0, size_px0.width, size_px0.height)
    ends = min(x + width, size_px0.width), min(y + height, size_px0.height)
    strides = geometry.stride_px0_x, geometry.stride_px0_y
    sides = geometry.tile_px0_x, geometry.tile_px0_y
    for axis, start in enumerate((x, y)):
        corners = tiles.coords_px0[:, axis]
        exact = start + np.rint((corners - start) / strides[axis]) * strides[axis]
        pulled_in = corners == np.floor(ends[axis] - sides[axis] + 1e-6)
        assert ((np.abs(corners - exact) <= 0.5) | pulled_in).all()


@given(sizes, st.floats(0.2, 1.0), plans)
def test_neighbours_share_the_overlap_that_was_asked_for(size_px0, mpp0, request):
    geometry = plan(size_px0, mpp0, **request)
    tiles = make_grid(size_px0, geometry, everywhere(size_px0), min_tissue=0)
    shared_px0 = request["overlap_px"] * request["mpp"] / mpp0
    sides = geometry.tile_px0_x, geometry.tile_px0_y
    for axis, side in enumerate(sides):
        corners = np.unique(tiles.coords_px0[:, axis])
        np.testing.assert_allclose(side - np.diff(corners), shared_px0, atol=1.5)


@given(bounded_slides(), st.floats(0.2, 1.0), plans, st.data())
def test_a_larger_mask_loses_no_tile_and_lowers_no_fraction(slide, mpp0, request, data):
    size_px0, bounds = slide
    geometry = plan(size_px0, mpp0, **request)
    mask = data.draw(hnp.arrays(np.bool_, (5, 4)))
    more = mask | data.draw(hnp.arrays(np.bool_, (5, 4)))
    least = data.draw(st.floats(0.01, 1))
    found = []
    for tissue in (mask, more):
        scaled = TissueMask(tissue, size_px0.width / 4, size_px0.height / 5)
        tiles = make_grid(size_px0, geometry, scaled, min_tissue=least, bounds_px0=bounds)
        corners = map(tuple, tiles.coords_px0.tolist())
        found.append(dict(zip(corners, tiles.tissue_fraction, strict=True)))
    assert found[0].keys() <= found[1].keys()
    assert all(found[0][corner] <= found[1][corner] + 1e-6 for corner in found[0])


@given(bounded_slides(), st.floats(0.2, 1.0), plans)
def test_bounds_are_as_good_as_a_slide_of_that_size(slide, mpp0, request):
    size_px0, bounds = slide
    assume(bounds)
    x, y, width, height = bounds
    inner = Size(min(width, size_px0.width - x), min(height, size_px0.height - y))
    geometry = plan(inner, mpp0, **request)
    bounded = make_grid(size_px0, geometry, everywhere(size_px0), min_tissue=0.0, bounds_px0=bounds)
    alone = make_grid(inner, geometry, everywhere(inner), min_tissue=0.0)
    np.testing.assert_array_equal(bounded.coords_px0 - [x, y], alone.coords_px0)


@pytest.mark.parametrize("min_tissue", [0.0, 0.3])
def test_the_same_slide_gives_the_same_tiles(min_tissue):
    size_px0 = Size(2317, 1999)
    mask = TissueMask(np.random.default_rng(0).random((40, 50)) < 0.4, 2317 / 50, 1999 / 40)
    geometry = plan(size_px0, 0.37, mpp=0.5, tile_px=61, overlap_px=7)
    one, two = (make_grid(size_px0, geometry, mask, min_tissue=min_tissue) for _ in range(2))
    np.testing.assert_array_equal(one.coords_px0, two.coords_px0)
    np.testing.assert_array_equal(one.tissue_fraction, two.tissue_fraction)
    assert (np.diff(one.coords_px0[:, 1]) >= 0).all()


@given(st.integers(0, 2**32 - 1), st.floats(0, 1))
def test_fractions_and_selection_equal_the_mean_of_each_tile(seed, min_tissue):
    """Tiles of 8 x 8 mask pixels: the fraction is a plain mean."""
    mask = np.random.default_rng(seed).random((37, 50)) < 0.4
    size_px0 = Size(50 * 4, 37 * 4)
    geometry = plan(size_px0, 0.5, mpp=0.5, tile_px=32)
    tiles = make_grid(size_px0, geometry, TissueMask(mask, 4.0, 4.0), min_tissue=min_tissue)
    expected = {
        (32 * col, 32 * row): mask[8 * row : 8 * row + 8, 8 * col : 8 * col + 8].mean()
        for row in range(4)
        for col in range(6)
    }
    kept = {corner: share for corner, share in expected.items() if share >= min_tissue}
    assert list(map(tuple, tiles.coords_px0)) == list(kept)
    np.testing.assert_allclose(tiles.tissue_fraction, list(kept.values()), atol=1e-6)


def test_hand_counted_grid():
    size_px0 = Size(1000, 900)
    geometry = plan(size_px0, 0.25, mpp=0.5, tile_px=224, overlap_px=112)
    tiles = make_grid(size_px0, geometry, everywhere(size_px0), min_tissue=1.0)
    corners = [(x, y) for y in (0, 224, 448) for x in (0, 224, 448)]
    assert list(map(tuple, tiles.coords_px0)) == corners
    assert (tiles.coords_px0.dtype, tiles.tissue_fraction.dtype) == (np.int32, np.float32)


def test_a_corner_that_rounds_out_of_the_slide_is_pulled_in():
    """Two tiles of 100.5 px fill 201 px; the second starts at 100.5, and 101 would stick out."""
    size_px0 = Size(201, 101)
    geometry = plan(size_px0, 0.5, mpp=0.75, tile_px=67)
    tiles = make_grid(size_px0, geometry, everywhere(size_px0), min_tissue=0)
    assert list(map(tuple, tiles.coords_px0)) == [(0, 0), (100, 0)]


def test_an_exact_fit_is_not_lost_to_float_rounding():
    """224 * 2.1 / 0.35 is 1344, in floats 1344.0000000000002."""
    size_px0 = Size(9 * 1344, 1344)
    geometry = plan(size_px0, 0.35, mpp=2.1, tile_px=224)
    assert len(make_grid(size_px0, geometry, everywhere(size_px0), min_tissue=0)) == 9


def test_a_slide_smaller_than_a_tile_has_no_tile():
    size_px0 = Size(223, 5000)
    geometry = plan(size_px0, 0.5, mpp=0.5, tile_px=224)
    tiles = make_grid(size_px0, geometry, everywhere(size_px0), min_tissue=0)
    assert tiles.coords_px0.shape == (0, 2)
    assert tiles.tissue_fraction.shape == (0,)


def test_bounds_outside_the_slide_give_no_tile():
    size_px0 = Size(1000, 1000)
    geometry = plan(size_px0, 0.5, mpp=0.5, tile_px=100)
    tiles = make_grid(
        size_px0, geometry, everywhere(size_px0), min_tissue=0, bounds_px0=(2000, 0, 500, 500)
    )
    assert len(tiles) == 0
