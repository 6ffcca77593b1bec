"""Which tiles an MHIM student sees, for all bags of a pack at once.

    random: ceil(N beta_r) tiles        low: the ceil(N beta_l) easiest tiles
    high: of the ceil(N beta_h / hr) hardest tiles the share hr
    masked = random | low | high, and of the L tiles left floor(L keep_ratio) stay

Wherever a rule draws at random it takes the smallest of its uniform draws, one per tile and rule;
so a bag's masks depend on nothing but its own tiles and draws. All ties are broken by position.
"""

import math
from dataclasses import dataclass, fields
from typing import Self

import torch
from torch import Tensor

from mil.models.segments import Segments


@dataclass(frozen=True)
class MaskRules:
    """Shares of a bag's tiles that each rule masks, every count being taken on the whole bag.

    `high_share` (hr in the paper's code): the ceil(N high / high_share) hardest tiles are
    candidates, and this share of them, drawn at random, is masked. `keep_ratio`: the share of the
    tiles left that stays, at least one; the others are recycled.
    """

    random: float
    low: float
    high: float
    high_share: float
    keep_ratio: float = 1.0

    def high_candidates(self, tiles: Tensor) -> Tensor:
        """Of bags of so many `tiles` (B,)."""
        return _ceil_share(tiles, min(self.high / self.high_share, 1.0))

    def high_masked(self, tiles: Tensor) -> Tensor:
        """If candidates would exceed the bag, all tiles are candidates and `high` is the share."""
        return _ceil_share(self.high_candidates(tiles), max(self.high_share, self.high))


@dataclass(frozen=True)
class MaskDraws:
    """Uniform draws (T,), each tile its own: for the random rule, among the hardest, to stay."""

    random: Tensor
    high: Tensor
    keep: Tensor

    @classmethod
    def draw(cls, segments: Segments, generator: torch.Generator) -> Self:
        shape = (len(fields(cls)), sum(segments.sizes))
        draws = torch.rand(shape, generator=generator, device=generator.device)
        return cls(*draws.to(segments.device))


@dataclass(frozen=True)
class Parts:
    """Positions in a pack of the tiles that stay and that are recycled, ascending in each bag.

    `kept_sizes` and `recycled_sizes` (B,) are their numbers per bag.
    """

    kept: Tensor
    recycled: Tensor
    kept_sizes: list[int]
    recycled_sizes: list[int]


def hard_tile_mask(
    hardness: Tensor, segments: Segments, rules: MaskRules, draws: MaskDraws
) -> Tensor:
    """True (T,) where the student must do without; `hardness` (votes, T).

    Never the whole bag: if the rules together would take it, its hardest tile stays.
    """
    tiles = segments.lengths
    masked = torch.zeros(hardness.shape[1], dtype=torch.bool, device=hardness.device)
    if rules.random:
        masked |= _smallest(draws.random, segments, _ceil_share(tiles, rules.random))
    if rules.low:
        low = _ceil_share(tiles, rules.low)
        masked |= extreme_tiles(hardness, segments, low, hardest=False)
    if rules.high:
        candidates = rules.high_candidates(tiles)
        hard = extreme_tiles(hardness, segments, candidates, hardest=True)
        among_hard = draws.high.masked_fill(~hard, math.inf)
        masked |= _smallest(among_hard, segments, rules.high_masked(tiles))
    whole_bag = segments.padded(masked[None], fill=True).all(dim=2)[0]
    stays = _hardest_tile(hardness, segments)
    masked[stays] &= ~whole_bag
    return masked


def extreme_tiles(hardness: Tensor, segments: Segments, counts: Tensor, *, hardest: bool) -> Tensor:
    """True (T,) at `counts` (B,) tiles of each bag, its hardest or easiest by vote.

    Every row of `hardness` (votes, T) marks its own `counts` extreme tiles; those that most rows
    mark win.
    """
    marked = _first(hardness, segments, counts, descending=hardest)
    if len(marked) == 1:
        return marked[0]
    votes = marked.sum(dim=0, keepdim=True, dtype=torch.float32)
    return _first(votes, segments, counts, descending=True)[0]


def certainty(contributions: Tensor) -> Tensor:
    """Log-odds (T,) of the class that a tile's contribution (T, outputs) makes most probable.

    Ranks tiles as v2's score max_c softmax_c does, also where probabilities crowd at 1 / classes or
    at 1. A single output is one class against none: the log-odds are its absolute value. Outputs
    that are not classes (a hazard per time interval) are read as if they were, as published.
    """
    logits = contributions.double()
    if logits.shape[1] == 1:
        return logits[:, 0].abs()
    ordered = logits.sort(dim=1, descending=True).values
    return ordered[:, 0] - ordered[:, 1:].logsumexp(dim=1)


def part_tiles(masked: Tensor, segments: Segments, rules: MaskRules, draws: MaskDraws) -> Parts:
    """Parts the tiles that `masked` (T,) leaves; where it leaves any, at least one stays."""
    left = segments.padded(~masked[None], fill=False).sum(dim=2)[0]
    staying = (left.double() * rules.keep_ratio).floor().clamp(min=1).long()
    stays = ~masked
    if rules.keep_ratio < 1:
        among_left = draws.keep.masked_fill(masked, math.inf)
        stays = _smallest(among_left, segments, staying)
    fate = masked.byte() + (~stays).byte()  # 0 stays, 1 is recycled, 2 is masked
    by_fate = fate.argsort(stable=True)
    kept_sizes, recycled_sizes = torch.stack([staying, left - staying]).tolist()  # the one sync
    kept, recycled = sum(kept_sizes), sum(recycled_sizes)
    return Parts(
        kept=by_fate[:kept],
        recycled=by_fate[kept : kept + recycled],
        kept_sizes=kept_sizes,
        recycled_sizes=recycled_sizes,
    )


def _ceil_share(tiles: Tensor, share: float) -> Tensor:
    """In float64, to the same integers as Python's math.ceil(tiles * share)."""
    return (tiles.double() * share).ceil().long()


def _hardest_tile(hardness: Tensor, segments: Segments) -> Tensor:
    """Where in the pack (B,) each bag has the tile that most rows of `hardness` find hardest."""
    favourites = segments.padded(hardness, -math.inf).argmax(dim=2).T
    votes = favourites.new_zeros(len(segments), segments.longest)
    votes.scatter_add_(1, favourites, torch.ones_like(favourites))
    return votes.argmax(dim=1) + segments.starts


def _smallest(values: Tensor, segments: Segments, counts: Tensor) -> Tensor:
    """True (T,) at the `counts` (B,) smallest `values` (T,) of each bag."""
    return _first(values[None], segments, counts, descending=False)[0]


def _first(values: Tensor, segments: Segments, counts: Tensor, *, descending: bool) -> Tensor:
    """True (K, T) at the first `counts` (B,) of each bag in the order of `values` (K, T)."""
    last = -math.inf if descending else math.inf
    order = segments.padded(values, last).argsort(dim=2, descending=descending, stable=True)
    chosen = torch.arange(segments.longest, device=order.device) < counts[:, None]
    marks = torch.zeros_like(order, dtype=torch.bool)
    return segments.packed(marks.scatter_(2, order, chosen.expand_as(order)))
