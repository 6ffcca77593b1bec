"""What a MIL method is to the rest of the program.

A method turns a bag into weighted heads plus a penalty; a task turns heads into a loss. The trainer
knows neither: loss = sum over heads of weight x task loss + penalty.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class BagOutput:
    """A model's answer to one bag, outside training: nothing is masked.

    `logits` (outputs,); `scores` (branches, tiles) before the softmax over tiles; `attention`
    (tiles,), the mean over branches of the softmaxed scores, summing to 1.
    """

    logits: Tensor
    scores: Tensor
    attention: Tensor


@dataclass(frozen=True)
class TrainingOutput:
    """`heads` (heads, outputs), `weights` (heads,) of their task losses, `penalty` a scalar."""

    heads: Tensor
    weights: Tensor
    penalty: Tensor


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
    def training_output(self, bag: Tensor, step: Step) -> TrainingOutput:
        """The heads and the penalty of one training step on a bag (tiles, dim)."""

    @abstractmethod
    def tile_logits(self, bag: Tensor) -> Tensor:
        """The answer to each tile as a bag of its own: (tiles, outputs)."""

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
