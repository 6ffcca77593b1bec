from math import isclose

import pytest
from hypothesis import given
from hypothesis import strategies as st

from preprocessing.geometry import Level, Pyramid, ResolutionError, Size, plan_tiles


def pyramid(*downsamples, mpp_x=0.25, mpp_y=None, width=40_000, height=30_000):
    levels = tuple(
        Level(index, Size(max(1, int(width / d)), max(1, int(height / d))), d)
        for index, d in enumerate(downsamples)
    )
    return Pyramid(levels, mpp_x, mpp_x if mpp_y is None else mpp_y)


pyramids = st.builds(
    lambda steps, mpp_x, anisotropy: pyramid(
        *[float(2**k) for k in sorted({0, *steps})], mpp_x=mpp_x, mpp_y=mpp_x * anisotropy
    ),
    st.lists(st.integers(1, 7)),
    st.floats(0.1, 1.0),
    st.floats(0.9, 1.1),
)
requests = st.fixed_dictionaries(
    {"mpp": st.floats(1.2, 10.0), "tile_px": st.integers(16, 512), "overlap_px": st.integers(0, 15)}
)


def test_a_40x_slide_at_20x_takes_448_level_0_pixels_for_224():
    tiles = plan_tiles(pyramid(1.0, 4.0, 16.0), mpp=0.5, tile_px=224)
    assert (tiles.tile_px0_x, tiles.tile_px0_y) == (448, 448)
    assert (tiles.level, tiles.read_px_x) == (0, 448)
    tiles = plan_tiles(pyramid(1.0, 4.0, 16.0), mpp=1.5, tile_px=224)
    assert (tiles.level, tiles.tile_px0_x, tiles.read_px_x) == (1, 1344, 336)


def test_aperio_mpp_is_not_rounded_to_a_magnification():
    tiles = plan_tiles(pyramid(1.0, mpp_x=0.499), mpp=0.5, tile_px=224)
    assert tiles.tile_px0_x == pytest.approx(224 * 500 / 499, rel=1e-12)


def test_axes_with_different_mpp_give_a_square_on_the_glass():
    tiles = plan_tiles(pyramid(1.0, mpp_x=0.25, mpp_y=0.5), mpp=1.0, tile_px=100)
    assert (tiles.tile_px0_x, tiles.tile_px0_y) == (400, 200)


def test_level_sizes_that_vendors_rounded_still_serve():
    """TCGA-like: 4443 px over 2221 px is a downsample of 2.00045, meant as 2."""
    tiles = plan_tiles(pyramid(1.0, 4443 / 2221, mpp_x=0.5), mpp=1.0, tile_px=224)
    assert tiles.level == 1
    assert tiles.read_px_x == pytest.approx(224, rel=1e-3)


@given(pyramids, requests)
def test_effective_mpp_is_the_requested_one(slide, request):
    tiles = plan_tiles(slide, **request)
    for effective_mpp in (tiles.effective_mpp_x, tiles.effective_mpp_y):
        assert isclose(effective_mpp, request["mpp"], rel_tol=1e-12)
    assert isclose(tiles.tile_px0_x * slide.mpp_x, request["tile_px"] * request["mpp"])
    stride_um = (request["tile_px"] - request["overlap_px"]) * request["mpp"]
    assert isclose(tiles.stride_px0_y * slide.mpp_y, stride_um)


@given(pyramids, requests)
def test_the_coarsest_adequate_level_is_read(slide, request):
    tiles = plan_tiles(slide, **request)
    assert min(tiles.read_px_x, tiles.read_px_y) >= request["tile_px"] * (1 - 1.1e-3)
    coarser = [n.downsample for n in slide.levels if n.index > tiles.level]
    for downsample in coarser:
        read_px = (tiles.tile_px0_x / downsample, tiles.tile_px0_y / downsample)
        assert min(read_px) < request["tile_px"]


@given(pyramids, requests)
def test_the_grid_in_level_0_does_not_depend_on_the_levels(slide, request):
    single = Pyramid(slide.levels[:1], slide.mpp_x, slide.mpp_y)
    many, one = plan_tiles(slide, **request), plan_tiles(single, **request)
    assert (many.tile_px0_x, many.tile_px0_y) == (one.tile_px0_x, one.tile_px0_y)
    assert (many.stride_px0_x, many.stride_px0_y) == (one.stride_px0_x, one.stride_px0_y)


@given(pyramids, requests)
def test_the_read_box_is_the_tile_in_the_pixels_of_its_level(slide, request):
    tiles = plan_tiles(slide, **request)
    downsample = slide.levels[tiles.level].downsample
    assert isclose(tiles.read_px_x * downsample, tiles.tile_px0_x)
    assert isclose(tiles.read_px_y * downsample, tiles.tile_px0_y)


def test_too_fine_a_request_is_refused_up_to_the_allowed_upsampling():
    slide = pyramid(1.0, 4.0, mpp_x=0.5)
    with pytest.raises(ResolutionError, match=r"0\.25 um/px were requested.*0\.5 um/px.*1\.1x"):
        plan_tiles(slide, mpp=0.25, tile_px=224, max_upsampling=1.1)
    tiles = plan_tiles(slide, mpp=0.25, tile_px=224, max_upsampling=2)
    assert (tiles.level, tiles.tile_px0_x, tiles.effective_mpp_x) == (0, 112, 0.25)


@pytest.mark.parametrize(
    ("request_", "message"),
    [
        ({"mpp": 0.0, "tile_px": 224}, "mpp must be a positive number, got 0.0"),
        ({"mpp": float("nan"), "tile_px": 224}, "got nan"),
        (
            {"mpp": 0.5, "tile_px": 224, "overlap_px": 224},
            r"overlap_px must be in \[0, tile_px=224",
        ),
    ],
)
def test_impossible_requests_name_the_value(request_, message):
    with pytest.raises(ValueError, match=message):
        plan_tiles(pyramid(1.0), **request_)


def test_impossible_slides_name_the_value():
    with pytest.raises(ValueError, match="width must be a positive number, got 0"):
        Size(0, 5)
    with pytest.raises(ValueError, match="at least one level"):
        Pyramid((), 0.5, 0.5)
    with pytest.raises(ValueError, match=r"downsamples must rise from 1, got \[1.0, 4.0, 2.0\]"):
        pyramid(1.0, 4.0, 2.0)
    with pytest.raises(ValueError, match=r"numbered 0, 1, 2.*got \[1\]"):
        Pyramid((Level(1, Size(5, 5), 1.0),), 0.5, 0.5)
    with pytest.raises(ValueError, match="mpp_y must be a positive number, got -1"):
        pyramid(1.0, mpp_y=-1.0)
