"""Overlays: a score is where its tile is, in the colour of its value; all else stays bare."""

from dataclasses import replace

import matplotlib as mpl
import numpy as np
import pytest
from heatmap_fakes import make_layout, make_scores
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.heatmaps.colours import attention_colouring, blend, evidence_colouring, overlay_rgba
from mil.heatmaps.lattice import tile_raster
from preprocessing.errors import StoreError


@settings(max_examples=60)
@given(
    seed=st.integers(0, 2**32 - 1),
    stride=st.tuples(st.floats(20, 90), st.floats(20, 90)),
    tile_strides=st.tuples(st.floats(0.5, 3.2), st.sampled_from([1.0, 2.0, 7 / 6])),
    origin=st.tuples(st.floats(0, 200), st.floats(0, 200)),
    px0_per_px=st.tuples(st.floats(3, 20), st.floats(3, 20)),
)
def test_every_pixel_holds_the_mean_of_the_tiles_over_it(
    seed: int,
    stride: tuple[float, float],
    tile_strides: tuple[float, float],
    origin: tuple[float, float],
    px0_per_px: tuple[float, float],
) -> None:
    rng = np.random.default_rng(seed)
    cells = np.argwhere(rng.random((6, 7)) < 0.4)
    cells = cells if len(cells) else np.array([[0, 0]])
    tile = (stride[0] * tile_strides[0], stride[1] * tile_strides[1])
    layout = make_layout(cells, tile_px0=tile, stride_px0=stride, origin_px0=origin)
    values = rng.normal(size=len(cells))
    shape = (70, 60)
    raster = tile_raster(values, layout, shape=shape, px0_per_px=px0_per_px)

    corners = np.asarray(origin) + cells * np.asarray(stride)
    inside, clear = [], []
    for axis, count in ((0, shape[1]), (1, shape[0])):
        centres = (np.arange(count) + 0.5) * px0_per_px[axis]
        from_start = centres - corners[:, axis, None]
        from_end = from_start - tile[axis]
        inside.append((from_start >= 0) & (from_end < 0))
        # Corners are stored as whole pixels: nearer to an edge than that, either side is right.
        clear.append((np.minimum(abs(from_start), abs(from_end)) > 1.0).all(axis=0))
    over = (inside[1][:, :, None] & inside[0][:, None, :]).astype(float)
    count = over.sum(axis=0)
    mean = np.divide(
        np.tensordot(values, over, axes=1), count, out=np.full(shape, np.nan), where=count > 0
    )
    sure = np.ix_(clear[1], clear[0])
    np.testing.assert_allclose(raster[sure], mean[sure], atol=1e-9)


def test_a_tile_off_the_lattice_is_refused() -> None:
    layout = make_layout([(0, 0), (1, 0), (2, 0)])
    layout.coords_px0[1, 0] += 30
    with pytest.raises(StoreError, match=r"'s1': tile corners are 30.00 px off a lattice of 100"):
        tile_raster(np.ones(3), layout, shape=(10, 30), px0_per_px=(10, 10))


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    side=st.integers(20, 90),
    shifts=st.lists(st.tuples(st.integers(0, 400), st.integers(0, 400)), min_size=1, max_size=4),
)
def test_pieces_of_tissue_with_lattices_of_their_own(
    seed: int, side: int, shifts: list[tuple[int, int]]
) -> None:
    """Every pixel holds the mean of the tiles over it; corners a pixel apart count as one."""
    rng = np.random.default_rng(seed)
    pieces = [np.argwhere(rng.random((3, 3)) < 0.6) * side + shift for shift in shifts]
    corners = np.unique(np.concatenate([[[0, 0]], *pieces]), axis=0)
    layout = make_layout(corners, tile_px0=(side, side), stride_px0=(1.0, 1.0))
    layout = replace(layout, stride_px0=(float(side), float(side)), one_lattice=False)
    values = rng.normal(size=len(corners))
    raster = tile_raster(values, layout, shape=(100, 110), px0_per_px=(7.5, 8.5))
    centres = ((np.arange(110) + 0.5) * 7.5, (np.arange(100) + 0.5) * 8.5)
    from_start = [centres[i] - corners[:, i, None] for i in (0, 1)]
    inside = [(offset >= 0) & (offset < side) for offset in from_start]
    clear = [(np.minimum(abs(o), abs(o - side)) > 1).all(axis=0) for o in from_start]
    over = (inside[1][:, :, None] & inside[0][:, None, :]).astype(float)
    count = over.sum(axis=0)
    total = np.tensordot(values, over, axes=1)
    mean = np.divide(total, count, out=np.full(count.shape, np.nan), where=count > 0)
    sure = np.ix_(clear[1], clear[0])
    np.testing.assert_allclose(raster[sure], mean[sure], atol=1e-9)


def test_one_hot_tile_lies_where_it_belongs_and_nothing_else_is_painted() -> None:
    scores = make_scores([(5, 2), (1, 1)], evidence=[4, 0])
    overlay = overlay_rgba(
        scores.evidence,
        scores,
        shape=(80, 120),
        px0_per_px=(10.0, 10.0),
        colouring=evidence_colouring(4.0),
    )
    expected = np.zeros((80, 120), dtype=bool)
    expected[20:30, 50:60] = True
    np.testing.assert_array_equal(overlay[..., 3] > 0, expected)
    assert overlay[25, 55].tolist() == [*_rgb("managua_r", 1.0), round(0.75 * 255)]


def _rgb(name: str, position: float) -> list[int]:
    return [round(channel * 255) for channel in mpl.colormaps[name](position)[:3]]


def test_off_tiles_nothing_is_painted_in_the_attention_map_either() -> None:
    scores = make_scores([(0, 0), (3, 3)])
    overlay = overlay_rgba(
        scores.relative_attention,
        scores,
        shape=(50, 50),
        px0_per_px=(10.0, 10.0),
        colouring=attention_colouring,
    )
    painted = overlay[..., 3] > 0
    assert painted.sum() == 200
    assert painted[:10, :10].all()
    assert painted[30:40, 30:40].all()


def test_positive_evidence_is_warm_negative_is_cold_and_neutral_is_transparent() -> None:
    warm, neutral, cold = evidence_colouring(2.0)(np.array([2.0, 0.0, -2.0]))
    assert warm[0] > warm[2]
    assert cold[2] > cold[0]
    assert neutral[3] == 0


@given(st.floats(-10, 10), st.floats(0.1, 10))
def test_evidence_beyond_the_scale_has_its_end_colour(value: float, limit: float) -> None:
    colour = evidence_colouring(limit)(np.array([value, np.clip(value, -limit, limit)]))
    np.testing.assert_array_equal(colour[0], colour[1])


@given(st.floats(0.001, 1), st.floats(0.001, 1))
def test_stronger_evidence_is_never_fainter(a: float, b: float) -> None:
    weak, strong = evidence_colouring(1.0)(np.array([min(a, b), -max(a, b)]))
    assert strong[3] >= weak[3]


def test_attention_colours_are_viridis_on_a_log_scale() -> None:
    rgba = attention_colouring(np.array([1.0, 64.0, 1 / 64, 0.0, 1e9, np.nan]))
    expected = [_rgb("viridis", position) for position in (0.5, 1.0, 0.0, 0.0, 1.0)]
    assert rgba[:5, :3].tolist() == expected
    assert rgba[:, 3].tolist() == [128] * 5 + [0]


def test_blending_keeps_what_lies_under_transparent_pixels() -> None:
    under = np.full((1, 3, 3), 100, dtype=np.uint8)
    over = np.array([[[255, 0, 0, 0], [255, 0, 0, 255], [200, 0, 0, 51]]], dtype=np.uint8)
    assert blend(over, under).tolist() == [[[100] * 3, [255, 0, 0], [120, 80, 80]]]
