"""What a MIL method is to the rest of the program.

A method turns bags into weighted heads plus a penalty; a task turns heads into a loss. The trainer
knows neither: loss = sum over heads of weight x task loss of the head + mean penalty of the bags.

Training packs several bags into one tensor, without padding; see mil.models.segments.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor, nn

from mil.models.segments import Segments


@dataclass(frozen=True)
class Bags:
    """Bags packed one behind the other: `tiles` (sum of sizes, dim), `segments` where each lies.

    `labels` (bags, outputs) bool: the classes that each bag has, where the task has classes; None
    for survival and regression. Methods see them in training only.
    """

    tiles: Tensor
    segments: Segments
    labels: Tensor | None = None

    @classmethod
    def pack(cls, bags: Sequence[Tensor], labels: Tensor | None = None) -> Self:
        tiles = bags[0] if len(bags) == 1 else torch.cat(list(bags))
        return cls(tiles, Segments(tuple(map(len, bags)), tiles.device), labels)

    def __len__(self) -> int:
        return len(self.segments)


@dataclass(frozen=True)
class BagOutput:
    """A model's answer to one bag, outside training: nothing is masked.

    `logits` (outputs,); `scores` (branches, tiles) before the softmax over tiles; `attention`
    (tiles,) sums to 1: the mean over branches of the softmaxed scores, unless the method says how
    else it weighs tiles.
    """

    logits: Tensor
    scores: Tensor
    attention: Tensor


@dataclass(frozen=True)
class TrainingOutput:
    """`heads` (heads, bags, outputs), `weights` (heads,) of their losses, `penalty` (bags,)."""

    heads: Tensor
    weights: Tensor
    penalty: Tensor

    @classmethod
    def one_head(cls, logits: Tensor, penalty: Tensor | None = None) -> Self:
        """A single head of weight 1 with `logits` (bags, outputs)."""
        nothing = logits.new_zeros(len(logits))
        return cls(logits[None], logits.new_ones(1), nothing if penalty is None else penalty)


@dataclass(frozen=True)
class Step:
    """Where training stands, for schedules: `index` in [0, total), and the generator for masks."""

    index: int
    total: int
    generator: torch.Generator


class MilMethod(nn.Module, ABC):
    @abstractmethod
    def forward(self, bag: Tensor) -> BagOutput:
        """The unmasked answer to a bag (tiles, dim)."""

    @abstractmethod
    def training_output(self, bags: Bags, step: Step) -> TrainingOutput:
        """The heads and the penalties of one training step on some bags."""

    @abstractmethod
    def tile_logits(self, bag: Tensor) -> Tensor:
        """The answer to each tile alone: (tiles, outputs)."""

    def after_update(self, step: Step) -> None:
        """Runs after every optimiser step, and after backward: a momentum teacher moves here."""

    def baseline(self) -> MilMethod | None:
        """A model to train first, whose weights `adopt` then takes over; None for most methods."""
        return None

    def adopt(self, baseline: MilMethod) -> None:
        """Takes over the trained `baseline`; called once, before the first training step."""
        raise TypeError(
            f"{type(self).__name__} has no baseline stage, yet was given {type(baseline).__name__}"
        )
