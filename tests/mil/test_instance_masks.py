"""What instance masks must hold: exact counts, who may be masked, never the whole bag."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.models.acmil import stkim_draws, stkim_mask
from mil.models.mhim import MaskDraws, MaskRules, hard_tile_mask

TOP_K = 10

# --- ACMIL: STKIM

bags = {
    "tiles": st.integers(1, 40),
    "top_k": st.integers(0, 12),
    "drop": st.floats(0, 1),
    "seed": st.integers(0, 2**31),
    "levels": st.integers(1, 50),
}


def draw_case(*, tiles, top_k, seed, levels, branches=4):
    """Scores with `levels` different values, so that ties occur, and the draws for a mask."""
    generator = torch.Generator().manual_seed(seed)
    scores = torch.randint(levels, (branches, tiles), generator=generator).double()
    draws = stkim_draws(scores, top_k=top_k, generator=generator)
    assert draws.shape == (branches, min(top_k, tiles))
    return scores, draws


@settings(max_examples=150, deadline=None)
@given(**bags)
def test_stkim_count_masks_exactly_its_share_of_the_best(tiles, top_k, drop, seed, levels):
    scores, draws = draw_case(tiles=tiles, top_k=top_k, seed=seed, levels=levels)
    masked = stkim_mask(scores, draws, drop=drop, mode="count")
    candidates = min(top_k, tiles)
    expected = min(math.floor(candidates * drop), tiles - 1)
    assert masked.sum(dim=1).tolist() == [expected] * len(scores)
    for row, hidden in zip(scores, masked, strict=True):
        best = row.sort(descending=True).values[:candidates]
        assert all(score >= best.min() for score in row[hidden])


@settings(max_examples=150, deadline=None)
@given(**bags)
def test_stkim_bernoulli_masks_among_the_best_and_never_the_whole_bag(
    tiles, top_k, drop, seed, levels
):
    scores, draws = draw_case(tiles=tiles, top_k=top_k, seed=seed, levels=levels)
    masked = stkim_mask(scores, draws, drop=drop, mode="bernoulli")
    candidates = min(top_k, tiles)
    below = (draws < drop).sum(dim=1).clamp(max=tiles - 1)
    assert masked.sum(dim=1).tolist() == below.tolist()
    for row, hidden in zip(scores, masked, strict=True):
        best = row.sort(descending=True).values[:candidates]
        assert all(score >= best.min() for score in row[hidden])


@pytest.mark.parametrize("mode", ["count", "bernoulli"])
def test_stkim_masks_each_of_the_best_equally_often(mode):
    branches, drop = 4000, 0.6
    generator = torch.Generator().manual_seed(0)
    scores = torch.arange(30.0).expand(branches, -1)
    draws = stkim_draws(scores, top_k=TOP_K, generator=generator)
    share = stkim_mask(scores, draws, drop=drop, mode=mode).double().mean(dim=0)
    assert (share[:-TOP_K] == 0).all()
    standard_error = math.sqrt(drop * (1 - drop) / branches)
    assert (share[-TOP_K:] - drop).abs().max() < 4.5 * standard_error


def test_stkim_bernoulli_varies_its_count_and_branches_differ():
    scores = torch.arange(30.0).expand(50, -1)
    draws = stkim_draws(scores, top_k=TOP_K, generator=torch.Generator().manual_seed(0))
    bernoulli = stkim_mask(scores, draws, drop=0.5, mode="bernoulli")
    assert len(set(bernoulli.sum(dim=1).tolist())) > 2
    count = stkim_mask(scores, draws, drop=0.5, mode="count")
    assert len(count.unique(dim=0)) > 10


# --- MHIM: masks

shares = st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.02, 0.5, 0.7, 1.0])
rules = st.builds(
    MaskRules, random=shares, low=shares, high=shares, high_share=st.floats(0.01, 1) | st.just(1.0)
)


def mask_of(tiles, rule, *, seed=0, levels=None):
    generator = torch.Generator().manual_seed(seed)
    scores = torch.rand(tiles, generator=generator)
    if levels is not None:
        scores = (scores * levels).floor()
    return scores, hard_tile_mask(scores, rule, MaskDraws.draw(tiles, rule, generator))


@settings(max_examples=200, deadline=None)
@given(tiles=st.integers(1, 60), rule=rules, seed=st.integers(0, 2**31), levels=st.integers(1, 60))
def test_mhim_never_masks_the_whole_bag(tiles, rule, seed, levels):
    scores, masked = mask_of(tiles, rule, seed=seed, levels=levels)
    low, random = math.ceil(tiles * rule.low), math.ceil(tiles * rule.random)
    high = rule.high_masked(tiles)
    assert high == math.ceil(min(rule.high_share, 1) * rule.high_candidates(tiles)) or (
        rule.high > rule.high_share
    )
    count = int(masked.sum())
    assert count <= tiles - 1
    assert min(max(low, random, high), tiles - 1) <= count <= low + random + high
    if low + random + high == 0:
        assert count == 0
    if max(low, random, high) == tiles:
        # the rules take everything: the best tile alone stays
        assert scores[~masked].tolist() == [scores.max().item()]


@settings(max_examples=60, deadline=None)
@given(tiles=st.integers(1, 80), share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_mhim_low_and_high_take_the_extremes(tiles, share, seed):
    expected = min(math.ceil(tiles * share), tiles - 1)
    scores, masked = mask_of(tiles, MaskRules(0, share, 0, 1), seed=seed)
    assert set(scores[masked].tolist()) == set(scores.sort().values[:expected].tolist())
    scores, masked = mask_of(tiles, MaskRules(0, 0, share, 1), seed=seed)
    assert int(masked.sum()) == expected
    if math.ceil(tiles * share) < tiles:
        best = scores.sort(descending=True).values[:expected]
        assert set(scores[masked].tolist()) == set(best.tolist())


def test_mhim_random_share_of_high_candidates_is_uniform():
    rule, tiles, repeats = MaskRules(0, 0, 0.1, 0.5), 50, 2000
    assert (rule.high_candidates(tiles), rule.high_masked(tiles)) == (10, 5)
    scores = torch.arange(50.0)
    generator = torch.Generator().manual_seed(0)
    draws = (MaskDraws.draw(tiles, rule, generator) for _ in range(repeats))
    share = sum(hard_tile_mask(scores, rule, d).double() for d in draws) / repeats
    assert (share[:40] == 0).all()
    assert (share[40:] - 0.5).abs().max() < 4.5 * math.sqrt(0.25 / repeats)


@pytest.mark.parametrize(
    ("rule", "tiles", "expected"),
    [
        # kept counts that the published training logs show for Camelyon16 and TCGA bags
        (MaskRules(0.5, 0.0, 0.01, 0.5), 9129, 4534),
        (MaskRules(0.7, 0.2, 0.02, 1.0), 10315, 2420),
    ],
)
def test_mhim_keeps_about_as_many_tiles_as_the_published_logs(rule, tiles, expected):
    _, masked = mask_of(tiles, rule)
    assert int((~masked).sum()) == pytest.approx(expected, rel=0.03)


def test_ties_are_broken_by_position():
    scores = torch.zeros(6)
    rule = MaskRules(0, 0, 0.5, 1)
    masked = hard_tile_mask(scores, rule, MaskDraws.draw(6, rule, torch.Generator()))
    assert masked.tolist() == [True, True, True, False, False, False]
    draws = torch.tensor([[0.1, 0.9, 0.8]])
    masked = stkim_mask(scores[None], draws, drop=0.4, mode="count")
    assert masked.tolist() == [[True, False, False, False, False, False]]
