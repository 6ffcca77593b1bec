"""The bags of one part of a fold, one by one as they are, or packed and altered for training.

Altered means: a random subset of the tiles (`max_tiles`), and a random share of the features zero
in all tiles of the bag (`feature_dropout`), the others being scaled up to keep the mean. Both are
drawn from the seed that comes with a bag, so that a bag read again, or by another thread, is the
same.
"""

from collections.abc import Generator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import NamedTuple

import pandas as pd
import torch
from torch import Tensor

from mil.bags import CohortFeatures
from mil.models.base import Bags
from mil.models.segments import Segments
from mil.training.prefetch import ahead


class Draw(NamedTuple):
    """A bag by its place in the part, and the seed of what is random in reading it."""

    bag: int
    seed: int


@dataclass(frozen=True)
class Alteration:
    max_tiles: int | None = None
    feature_dropout: float = 0.0


@dataclass(frozen=True)
class Part:
    """Bags of one part of a fold: `table` as Cohort.bags makes it, `encoded` its targets."""

    table: pd.DataFrame
    encoded: Tensor
    features: CohortFeatures

    def __len__(self) -> int:
        return len(self.table)

    def slide_ids(self, index: int) -> tuple[str, ...]:
        """Slides of a bag, whose tiles lie in it one slide behind the other."""
        return tuple(self.table["slide_ids"].iloc[index])

    def bag(self, index: int, device: torch.device) -> Tensor:
        """(tiles, dim) float32"""
        return self.features.stored(self.slide_ids(index)).to(device).float()

    def bags(self, device: torch.device) -> Generator[Tensor]:
        """All bags in order, read ahead where that takes time."""
        loads = (partial(self.bag, index, device) for index in range(len(self)))
        return ahead(loads, threads=self.features.readers(device))

    def sizes(self, draws: Sequence[Draw], alteration: Alteration) -> list[int]:
        """Tiles of bags as `pack` reads them."""
        whole = (sum(self.features.sizes(self.slide_ids(draw.bag))) for draw in draws)
        return [min(size, alteration.max_tiles or size) for size in whole]

    def pack(
        self,
        draws: Sequence[Draw],
        alteration: Alteration,
        *,
        labels: Tensor | None,
        device: torch.device,
    ) -> Bags:
        """Bags in the order of `draws`; `labels` (bags of the part, outputs) are of all bags."""
        generators = [torch.Generator().manual_seed(draw.seed) for draw in draws]
        stored = [self.features.stored(self.slide_ids(draw.bag)) for draw in draws]
        most = alteration.max_tiles
        kept = [
            bag if most is None else _subset(bag, most, generator)
            for bag, generator in zip(stored, generators, strict=True)
        ]
        tiles = _joined(kept, device)
        segments = Segments(tuple(map(len, kept)), device)
        if alteration.feature_dropout:
            for bag, generator in zip(tiles.split(segments.sizes), generators, strict=True):
                bag *= _dropped(bag.shape[1], alteration.feature_dropout, generator).to(device)
        if labels is not None:
            labels = labels[[draw.bag for draw in draws]].to(device)
        return Bags(tiles, segments, labels)


def placed(parts: Sequence[Part], device: torch.device) -> list[Part]:
    """The parts, with their slides' features on `device` if all of these fit there.

    Parts share features, which go there once; slides of no part stay away.
    """
    slides: dict[int, set[str]] = {}
    for part in parts:
        slides.setdefault(id(part.features), set()).update(*part.table["slide_ids"])
    features = {id(part.features): part.features for part in parts}
    there = {key: features[key].placed(device, slides[key]) for key in features}
    return [replace(part, features=there[id(part.features)]) for part in parts]


def _subset(bag: Tensor, most: int, generator: torch.Generator) -> Tensor:
    """`most` tiles or fewer, in the order of the bag."""
    if len(bag) <= most:
        return bag
    chosen = torch.randperm(len(bag), generator=generator)[:most].sort().values
    return bag[chosen.to(bag.device)]


def _dropped(dim: int, share: float, generator: torch.Generator) -> Tensor:
    """(dim,): 0 with the chance `share`, else 1 / (1 - share)."""
    return (torch.rand(dim, generator=generator) >= share) / (1 - share)


def _joined(bags: Sequence[Tensor], device: torch.device) -> Tensor:
    """(sum of tiles, dim) float32 on `device`, never a view of the features themselves."""
    sizes = [len(bag) for bag in bags]
    if bags[0].device.type == device.type:
        tiles = torch.empty(sum(sizes), bags[0].shape[1], device=device)
        for place, bag in zip(tiles.split(sizes), bags, strict=True):
            place.copy_(bag)
        return tiles
    # To a GPU in half the bytes, from memory that it can read without the CPU.
    return torch.cat(list(bags)).pin_memory().to(device, non_blocking=True).float()
