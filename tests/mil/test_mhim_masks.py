"""What MHIM's masks must hold: exact counts, who may be masked, votes, never the whole bag."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.models.mhim_masks import (
    MaskDraws,
    MaskRules,
    certainty,
    extreme_tiles,
    hard_tile_mask,
    part_tiles,
)
from mil.models.segments import Segments

CPU = torch.device("cpu")
some_sizes = st.lists(st.integers(1, 40), min_size=1, max_size=4)


def bag_by_bag(values, segments):
    """(K, T) -> a (K, n) of each bag."""
    return values.split(segments.sizes, dim=1)


shares = st.floats(0, 1) | st.sampled_from([0.0, 0.01, 0.02, 0.29, 0.5, 0.7, 1.0])
rules = st.builds(
    MaskRules,
    random=shares,
    low=shares,
    high=shares,
    high_share=st.floats(0.01, 1) | st.just(1.0),
    keep_ratio=st.floats(0.01, 1) | st.sampled_from([0.8, 0.9, 1.0]),
)


def masks_of(sizes, rule, *, seed=0, levels=None, votes=1):
    """Scores (votes, T), masks (T,), segments and the draws."""
    generator = torch.Generator().manual_seed(seed)
    segments = Segments(sizes, CPU)
    scores = torch.rand(votes, sum(sizes), generator=generator)
    if levels is not None:
        scores = (scores * levels).floor()
    draws = MaskDraws.draw(segments, generator)
    return scores, hard_tile_mask(scores, segments, rule, draws), segments, draws


def mask_of(tiles, rule, **case):
    scores, masked, _, _ = masks_of([tiles], rule, **case)
    return scores[0], masked


def candidates_of(rule, tiles):
    return math.ceil(tiles * min(rule.high / rule.high_share, 1.0))


def high_count(rule, tiles):
    """In Python's own arithmetic, as the published code counts."""
    return math.ceil(max(rule.high_share, rule.high) * candidates_of(rule, tiles))


@settings(max_examples=200)
@given(sizes=some_sizes, rule=rules, seed=st.integers(0, 2**31), levels=st.integers(1, 60))
def test_mhim_never_masks_the_whole_bag(sizes, rule, seed, levels):
    scores, masked, segments, _ = masks_of(sizes, rule, seed=seed, levels=levels)
    each = zip(sizes, scores[0].split(sizes), masked.split(sizes), strict=True)
    lengths = segments.lengths
    assert rule.high_candidates(lengths).tolist() == [candidates_of(rule, n) for n in sizes]
    assert rule.high_masked(lengths).tolist() == [high_count(rule, n) for n in sizes]
    for tiles, of_bag, hidden in each:
        low, random = math.ceil(tiles * rule.low), math.ceil(tiles * rule.random)
        high = high_count(rule, tiles)
        count = int(hidden.sum())
        assert count <= tiles - 1
        assert min(max(low, random, high), tiles - 1) <= count <= low + random + high
        if low + random + high == 0:
            assert count == 0
        if max(low, random, high) == tiles:
            # the rules take everything: the best tile alone stays
            assert of_bag[~hidden].tolist() == [of_bag.max().item()]


@settings(max_examples=60)
@given(sizes=some_sizes, share=st.floats(0, 1), seed=st.integers(0, 2**31))
def test_mhim_low_and_high_take_the_extremes(sizes, share, seed):
    scores, low, _, _ = masks_of(sizes, MaskRules(0, share, 0, 1), seed=seed)
    _, high, _, _ = masks_of(sizes, MaskRules(0, 0, share, 1), seed=seed)
    each = zip(sizes, *(of.split(sizes) for of in (scores[0], low, high)), strict=True)
    for tiles, of_bag, lowest, highest in each:
        expected = min(math.ceil(tiles * share), tiles - 1)
        assert set(of_bag[lowest].tolist()) == set(of_bag.sort().values[:expected].tolist())
        assert int(highest.sum()) == expected
        if math.ceil(tiles * share) < tiles:
            best = of_bag.sort(descending=True).values[:expected]
            assert set(of_bag[highest].tolist()) == set(best.tolist())


@settings(max_examples=100)
@given(
    sizes=some_sizes,
    rule=rules,
    votes=st.integers(1, 5),
    levels=st.integers(1, 60),
    seed=st.integers(0, 2**31),
)
def test_masks_and_parts_of_a_pack_are_those_of_its_bags(sizes, rule, votes, levels, seed):
    scores, masked, segments, draws = masks_of(sizes, rule, seed=seed, levels=levels, votes=votes)
    parts = part_tiles(masked, segments, rule, draws)
    places = torch.arange(sum(sizes)).split(sizes)
    own_draws = zip(*(d.split(sizes) for d in vars(draws).values()), strict=True)
    kept, recycled = [], []
    for of_bag, place, own in zip(bag_by_bag(scores, segments), places, own_draws, strict=True):
        alone, one = MaskDraws(*own), Segments([len(place)], CPU)
        mask = hard_tile_mask(of_bag, one, rule, alone)
        assert torch.equal(mask, masked[place])
        part = part_tiles(mask, one, rule, alone)
        kept.append(place[part.kept])
        recycled.append(place[part.recycled])
    assert torch.equal(parts.kept, torch.cat(kept))
    assert torch.equal(parts.recycled, torch.cat(recycled))
    assert parts.kept_sizes == [len(of_bag) for of_bag in kept]
    assert parts.recycled_sizes == [len(of_bag) for of_bag in recycled]


@settings(max_examples=100)
@given(sizes=some_sizes, rule=rules, seed=st.integers(0, 2**31))
def test_parts_share_what_masks_leave_by_the_smallest_draws(sizes, rule, seed):
    _, masked, segments, draws = masks_of(sizes, rule, seed=seed)
    parts = part_tiles(masked, segments, rule, draws)
    split = (draws.keep.split(sizes), masked.split(sizes), parts.kept.split(parts.kept_sizes))
    recycled = parts.recycled.split(parts.recycled_sizes)
    start = 0
    for noise, hidden, stay, go in zip(*split, recycled, strict=True):
        left = int((~hidden).sum())
        assert len(stay) == max(1, math.floor(left * rule.keep_ratio))
        assert sorted([*stay.tolist(), *go.tolist()]) == (
            ((~hidden).nonzero()[:, 0] + start).tolist()
        )
        assert stay.tolist() == sorted(stay.tolist())
        assert go.tolist() == sorted(go.tolist())
        if len(go):
            assert noise[stay - start].max() <= noise[go - start].min()
        start += len(noise)


def vote(scores, count, *, hardest):
    """Votes of heads for their `count` extreme tiles, and who has most, one bag at a time."""
    tiles = scores.shape[1]
    sign = -1 if hardest else 1
    votes = [0] * tiles
    for head in scores.tolist():
        for tile in sorted(range(tiles), key=lambda n: (sign * head[n], n))[:count]:
            votes[tile] += 1
    return sorted(sorted(range(tiles), key=lambda n: (-votes[n], n))[:count])


@settings(max_examples=100)
@given(
    sizes=some_sizes,
    votes=st.integers(1, 8),
    levels=st.integers(1, 40),
    share=st.floats(0, 1),
    hardest=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_heads_vote_for_the_extreme_tiles(sizes, votes, levels, share, hardest, seed):
    scores, _, segments, _ = masks_of(
        sizes, MaskRules(0, 0, 0, 1), seed=seed, levels=levels, votes=votes
    )
    counts = torch.tensor([math.ceil(tiles * share) for tiles in sizes])
    extreme = extreme_tiles(scores, segments, counts, hardest=hardest).split(sizes)
    each = zip(bag_by_bag(scores, segments), counts.tolist(), extreme, strict=True)
    for of_bag, count, ours in each:
        assert ours.nonzero()[:, 0].tolist() == vote(of_bag, count, hardest=hardest)


@settings(max_examples=60)
@given(
    sizes=some_sizes, votes=st.integers(1, 8), levels=st.integers(1, 40), seed=st.integers(0, 2**31)
)
def test_where_rules_take_all_the_tile_that_most_heads_find_hardest_stays(
    sizes, votes, levels, seed
):
    everything = MaskRules(1, 0, 0, 1)
    scores, masked, segments, _ = masks_of(sizes, everything, seed=seed, levels=levels, votes=votes)
    for of_bag, hidden in zip(bag_by_bag(scores, segments), masked.split(sizes), strict=True):
        assert (~hidden).nonzero()[:, 0].tolist() == vote(of_bag, 1, hardest=True)


def test_mhim_random_share_of_high_candidates_is_uniform():
    rule, tiles, repeats = MaskRules(0, 0, 0.1, 0.5), 50, 2000
    lengths = torch.tensor(tiles)
    assert (rule.high_candidates(lengths), rule.high_masked(lengths)) == (10, 5)
    segments = Segments([tiles] * repeats, CPU)  # each bag of a pack has draws of its own
    draws = MaskDraws.draw(segments, torch.Generator().manual_seed(0))
    scores = torch.arange(50.0).repeat(repeats)[None]
    masked = hard_tile_mask(scores, segments, rule, draws).view(repeats, tiles)
    assert masked.sum(dim=1).tolist() == [5] * repeats
    share = masked.double().mean(dim=0)
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


def test_the_published_share_that_stays():
    """47 tiles that no rule masks, 0.8 of them kept: 37 stay and 10 are recycled."""
    segments = Segments([50], CPU)
    draws = MaskDraws.draw(segments, torch.Generator().manual_seed(0))
    masked = torch.arange(50) < 3
    parts = part_tiles(masked, segments, MaskRules(0, 0, 0.05, 1, keep_ratio=0.8), draws)
    assert (parts.kept_sizes, parts.recycled_sizes) == ([37], [10])


def test_ties_are_broken_by_position():
    scores, segments = torch.zeros(6), Segments([6], CPU)
    rule = MaskRules(0, 0, 0.5, 1)
    draws = MaskDraws.draw(segments, torch.Generator())
    masked = hard_tile_mask(scores[None], segments, rule, draws)
    assert masked.tolist() == [True, True, True, False, False, False]
    masked = hard_tile_mask(scores.expand(3, -1), segments, rule, draws)
    assert masked.tolist() == [True, True, True, False, False, False]
    equal = MaskDraws(scores, scores, scores)
    parts = part_tiles(scores > 0, segments, MaskRules(0, 0, 0, 1, keep_ratio=0.5), equal)
    assert parts.kept.tolist() == [0, 1, 2]


# --- MHIM v2: class-aware scores


@settings(max_examples=60)
@given(classes=st.integers(2, 5), scale=st.floats(1e-2, 5), seed=st.integers(0, 2**31))
def test_certainty_is_the_log_odds_of_the_highest_probability(classes, scale, seed):
    generator = torch.Generator().manual_seed(seed)
    logits = scale * torch.randn(40, classes, generator=generator, dtype=torch.float64)
    probability = logits.softmax(dim=1).amax(dim=1)
    assert torch.allclose(certainty(logits), probability.logit(), atol=1e-9)


@pytest.mark.parametrize("scale", [1e-6, 40.0])
@pytest.mark.parametrize("classes", [2, 3])
def test_certainty_ranks_where_float32_probabilities_are_nearly_all_equal(scale, classes):
    """Where all other logits are 0, the published score is a rising function of the highest."""
    highest = torch.rand(2000, generator=torch.Generator().manual_seed(0)) + 0.5
    logits = torch.zeros(2000, classes)
    logits[:, 0] = scale * highest
    assert len(logits.softmax(dim=1).amax(dim=1).unique()) < 30
    assert torch.equal(certainty(logits).argsort(stable=True), highest.argsort(stable=True))


def test_certainty_of_one_output_is_its_distance_from_zero():
    logits = torch.tensor([[-3.0], [0.0], [1.0]])
    assert certainty(logits).tolist() == [3, 0, 1]
    two_sided = torch.cat([logits, torch.zeros(3, 1)], dim=1)
    assert torch.allclose(certainty(logits), certainty(two_sided))
