"""Operations within the bags of a pack equal those on each bag alone."""

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.models.segments import Segments

CPU = torch.device("cpu")
sizes_of_packs = st.lists(st.integers(1, 9), min_size=1, max_size=5)


def values(rows, sizes, *, seed=0, levels=None):
    """(rows, T), of few levels where ties are wanted."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(rows, sum(sizes), generator=generator, dtype=torch.float64)
    return drawn if levels is None else (drawn * levels).round()


@settings(max_examples=60)
@given(sizes=sizes_of_packs)
def test_padding_is_undone_and_softmax_is_of_each_bag(sizes):
    segments, scores = Segments(sizes, CPU), values(3, sizes)
    padded = segments.padded(scores, -torch.inf)
    assert padded.shape == (3, len(sizes), max(sizes))
    assert torch.equal(segments.packed(padded), scores)
    expected = torch.cat([bag.softmax(dim=1) for bag in scores.split(sizes, dim=1)], dim=1)
    torch.testing.assert_close(segments.softmax(scores), expected, rtol=0, atol=1e-14)
    assert segments.bag_of_tile.tolist() == [b for b, size in enumerate(sizes) for _ in range(size)]


@settings(max_examples=40)
@given(sizes=sizes_of_packs)
def test_pooling_and_its_gradients_are_those_of_each_bag(sizes):
    segments = Segments(sizes, CPU)
    weights = values(2, sizes).requires_grad_()
    tiles = values(4, sizes, seed=1).T.contiguous().requires_grad_()
    pooled = segments.pool(weights, tiles)
    pairs = zip(weights.split(sizes, dim=1), tiles.split(sizes), strict=True)
    expected = torch.stack([w @ x for w, x in pairs])
    torch.testing.assert_close(pooled, expected, rtol=0, atol=1e-13)
    upstream = values(len(sizes) * 2, [4], seed=2).view_as(pooled)
    ours = torch.autograd.grad(pooled, (weights, tiles), upstream)
    theirs = torch.autograd.grad(expected, (weights, tiles), upstream)
    for mine, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(mine, other, rtol=0, atol=1e-13)


@settings(max_examples=100)
@given(sizes=sizes_of_packs, count=st.integers(0, 12), seed=st.integers(0, 2**31))
def test_the_best_tiles_are_those_of_a_stable_sort(sizes, count, seed):
    segments, scores = Segments(sizes, CPU), values(3, sizes, seed=seed, levels=1)
    found = segments.best_first(scores, count)
    padded = segments.padded(scores, -torch.inf)
    expected = padded.argsort(dim=2, descending=True, stable=True)[:, :, :count]
    assert torch.equal(found, expected)


def test_scores_that_are_not_numbers_are_worst():
    scores = torch.tensor([[1.0, torch.nan, 3.0, torch.nan]])
    assert Segments([4], CPU).best_first(scores, 3)[0, 0, :2].tolist() == [2, 0]


@pytest.mark.parametrize("sizes", [[], [3, 0]])
def test_a_bag_without_tiles_is_refused(sizes):
    with pytest.raises(ValueError, match="bags of one tile or more"):
        Segments(sizes, CPU)
