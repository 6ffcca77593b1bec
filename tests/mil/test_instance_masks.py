"""What STKIM's masks must hold: exact counts, who may be masked, never the whole bag."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.models.acmil import stkim_draws, stkim_mask
from mil.models.segments import Segments

TOP_K = 10
CPU = torch.device("cpu")
some_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=4)


def bag_by_bag(values, segments):
    """(K, T) -> a (K, n) of each bag."""
    return values.split(segments.sizes, dim=1)


bags = {
    "sizes": some_sizes,
    "top_k": st.integers(0, 12),
    "drop": st.floats(0, 1),
    "seed": st.integers(0, 2**31),
    "levels": st.integers(1, 50),
}


def draw_case(*, sizes, top_k, seed, levels, branches=4):
    """Scores with `levels` different values, so that ties occur, and the draws for a mask."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (branches, sum(sizes)), generator=generator).double()
    segments = Segments(sizes, CPU)
    draws = stkim_draws(branches, segments, top_k=top_k, generator=generator)
    assert draws.shape == (branches, len(sizes), min(top_k, max(sizes)))
    return scores, draws, segments


@settings(max_examples=150)
@given(**bags)
def test_stkim_count_masks_exactly_its_share_of_the_best(sizes, top_k, drop, seed, levels):
    scores, draws, segments = draw_case(sizes=sizes, top_k=top_k, seed=seed, levels=levels)
    masked = stkim_mask(scores, draws, segments, drop=drop, mode="count")
    each = zip(bag_by_bag(scores, segments), bag_by_bag(masked, segments), sizes, strict=True)
    for of_bag, hidden_of_bag, tiles in each:
        candidates = min(top_k, tiles)
        expected = min(math.floor(candidates * drop), tiles - 1)
        assert hidden_of_bag.sum(dim=1).tolist() == [expected] * len(scores)
        for row, hidden in zip(of_bag, hidden_of_bag, strict=True):
            best = row.sort(descending=True).values[:candidates]
            assert all(score >= best.min() for score in row[hidden])


@settings(max_examples=150)
@given(**bags)
def test_stkim_bernoulli_masks_among_the_best_and_never_the_whole_bag(
    sizes, top_k, drop, seed, levels
):
    scores, draws, segments = draw_case(sizes=sizes, top_k=top_k, seed=seed, levels=levels)
    masked = stkim_mask(scores, draws, segments, drop=drop, mode="bernoulli")
    each = zip(bag_by_bag(scores, segments), bag_by_bag(masked, segments), sizes, strict=True)
    for place, (of_bag, hidden_of_bag, tiles) in enumerate(each):
        candidates = min(top_k, tiles)
        below = (draws[:, place, :candidates] < drop).sum(dim=1).clamp(max=tiles - 1)
        assert hidden_of_bag.sum(dim=1).tolist() == below.tolist()
        for row, hidden in zip(of_bag, hidden_of_bag, strict=True):
            best = row.sort(descending=True).values[:candidates]
            assert all(score >= best.min() for score in row[hidden])


@pytest.mark.parametrize("mode", ["count", "bernoulli"])
@pytest.mark.parametrize("sizes", [(30,), (30, 45, 12)])
def test_stkim_masks_each_of_the_best_equally_often(mode, sizes):
    branches, drop = 4000, 0.6
    generator = torch.Generator().manual_seed(0)
    segments = Segments(sizes, CPU)
    scores = torch.cat([torch.arange(float(tiles)) for tiles in sizes]).expand(branches, -1)
    draws = stkim_draws(branches, segments, top_k=TOP_K, generator=generator)
    masked = stkim_mask(scores, draws, segments, drop=drop, mode=mode)
    standard_error = math.sqrt(drop * (1 - drop) / branches)
    for share in bag_by_bag(masked.double().mean(dim=0, keepdim=True), segments):
        assert (share[0, :-TOP_K] == 0).all()
        assert (share[0, -TOP_K:] - drop).abs().max() < 4.5 * standard_error


def test_stkim_bernoulli_varies_its_count_and_branches_differ():
    scores, segments = torch.arange(30.0).expand(50, -1), Segments([30], CPU)
    draws = stkim_draws(50, segments, top_k=TOP_K, generator=torch.Generator().manual_seed(0))
    bernoulli = stkim_mask(scores, draws, segments, drop=0.5, mode="bernoulli")
    assert len(set(bernoulli.sum(dim=1).tolist())) > 2
    count = stkim_mask(scores, draws, segments, drop=0.5, mode="count")
    assert len(count.unique(dim=0)) > 10


@pytest.mark.parametrize(("candidates", "drop", "expected"), [(100, 0.29, 28), (10, 0.6, 6)])
def test_stkim_counts_as_published_with_floors_of_float_products(candidates, drop, expected):
    assert math.floor(candidates * drop) == expected
    segments = Segments([150, 30], CPU)
    scores = torch.rand(2, 180, generator=torch.Generator().manual_seed(0))
    draws = torch.rand(2, 2, candidates, generator=torch.Generator().manual_seed(1))
    masked = stkim_mask(scores, draws, segments, drop=drop, mode="count")
    assert masked[:, :150].sum(dim=1).tolist() == [expected] * 2


def test_stkim_breaks_ties_by_position():
    draws = torch.tensor([[[0.1, 0.9, 0.8]]])
    masked = stkim_mask(torch.zeros(1, 6), draws, Segments([6], CPU), drop=0.4, mode="count")
    assert masked.tolist() == [[True, False, False, False, False, False]]
