"""Bags as training reads them: subsets of tiles, features left out, and packs."""

import pandas as pd
import pytest
import torch

from mil.bags import CohortFeatures, TileOrigin
from mil.training.parts import Alteration, Draw, Part

CPU = torch.device("cpu")
DIM = 50


@pytest.fixture
def part():
    """Tile t of slide s has the value 1000 s + t + 1 in every feature; bag 1 has two slides."""
    sizes = [40, 3, 10, 5]
    tiles = {
        f"s{s}": (1000 * s + 1 + torch.arange(n))[:, None].repeat(1, DIM).half()
        for s, n in enumerate(sizes)
    }
    table = pd.DataFrame({"slide_ids": [("s0",), ("s2", "s1"), ("s3",)]})
    origin = TileOrigin("fake", "0", "none", 0.5, 224)
    return Part(table, torch.arange(3), CohortFeatures(tiles, {}, origin))


def packed(part, draws, *, labels=None, **settings):
    return part.pack(draws, Alteration(**settings), labels=labels, device=CPU)


def test_a_pack_is_its_bags_one_behind_the_other(part):
    labels = torch.eye(3, dtype=torch.bool)
    pack = packed(part, [Draw(2, 0), Draw(1, 0)], labels=labels)
    assert pack.segments.sizes == (5, 13)
    assert torch.equal(pack.tiles, torch.cat([part.bag(2, CPU), part.bag(1, CPU)]))
    assert pack.tiles.dtype == torch.float32
    assert torch.equal(pack.labels, labels[[2, 1]])


def test_a_pack_of_one_slide_is_no_view_of_the_features(part):
    pack = packed(part, [Draw(2, 0)])
    pack.tiles.zero_()
    assert (part.bag(2, CPU) > 0).all()


def test_tiles_are_drawn_from_the_whole_bag_in_its_order(part):
    seen = set()
    for seed in range(60):
        draws = [Draw(1, seed), Draw(2, seed)]
        assert part.sizes(draws, Alteration(max_tiles=6)) == [6, 5]
        pack = packed(part, draws, max_tiles=6)
        first, second = pack.tiles[:, 0].split(pack.segments.sizes)
        place = {value: i for i, value in enumerate(part.bag(1, CPU)[:, 0].tolist())}
        places = [place[value] for value in first.tolist()]
        assert places == sorted(set(places))
        assert len(places) == 6
        assert torch.equal(second, part.bag(2, CPU)[:, 0])  # five tiles: all of them
        seen.update(places)
    assert seen == set(range(13))


def test_dropped_features_are_zero_in_the_whole_bag_and_the_mean_stays(part):
    shares = []
    for seed in range(100):
        pack = packed(part, [Draw(0, seed), Draw(2, seed + 1000)], feature_dropout=0.25)
        masks = []
        for index, bag in zip((0, 2), pack.tiles.split(pack.segments.sizes), strict=True):
            factor = bag / part.bag(index, CPU)
            assert torch.allclose(factor, factor[:1].expand_as(factor))  # one mask for all tiles
            lost = factor[0] == 0
            assert torch.allclose(factor[0][~lost], torch.tensor(1 / 0.75))
            masks.append(lost)
            shares.append(lost.float().mean())
        assert not torch.equal(*masks)  # each bag has its own
    assert torch.stack(shares).mean() == pytest.approx(0.25, abs=0.02)


def test_the_same_seed_reads_the_same_bag_whatever_is_packed_with_it(part):
    both = {"max_tiles": 4, "feature_dropout": 0.5}
    alone = packed(part, [Draw(1, 7)], **both)
    among = packed(part, [Draw(0, 1), Draw(1, 7), Draw(2, 2)], **both)
    assert torch.equal(among.tiles[4:8], alone.tiles)
    assert not torch.equal(packed(part, [Draw(1, 8)], **both).tiles, alone.tiles)


def test_reading_leaves_the_global_generator_alone(part):
    before = torch.get_rng_state()
    packed(part, [Draw(0, 1)], max_tiles=4, feature_dropout=0.5)
    assert torch.equal(torch.get_rng_state(), before)
