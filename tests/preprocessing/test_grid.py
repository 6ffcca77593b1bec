import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.geometry import Level, Pyramid, Size, plan_tiles
from preprocessing.grid import make_grid
from preprocessing.tissue import TissueMask


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
