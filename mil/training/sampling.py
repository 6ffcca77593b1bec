"""Which bags an epoch reads, and which of them make a step.

`shuffle` reads every bag once. `balanced` reads as many, drawn with replacement so that every class
has its turn equally often. A bag with several labels has a turn with each of them; those without
any are a class of their own. Where a task compares bags, they are dealt to steps of `bags_per_step`
or a few more, so that each step has something to compare.
"""

from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mil.tasks.base import Task
from mil.training.config import TrainConfig
from mil.training.parts import Draw, Part
from mil.training.steps import deal
from preprocessing.errors import ConfigError


@dataclass(frozen=True)
class Sampler:
    """`classes` (bags, classes) bool where they are balanced; `leads` (bags,) bool where bags are
    compared with each other.
    """

    bags: int
    bags_per_step: int
    classes: Tensor | None
    leads: Tensor | None

    @classmethod
    def of(cls, task: Task, part: Part, config: TrainConfig) -> Self:
        """Raises ConfigError where what the settings ask for has no meaning for the task."""
        name = type(task).__name__
        if task.several_bags and config.bags_per_step == 1:
            raise ConfigError(
                f"train.bags_per_step: 1, but the loss of {name} compares patients with each "
                "other; set it to epoch (all training patients), or to 2 or more"
            )
        classes = None
        if config.sampling == "balanced":
            labels = task.labels(part.encoded)
            if labels is None:
                raise ConfigError(
                    "train.sampling: balanced reads every class equally often, but the answer of "
                    f"{name} has no classes; use shuffle"
                )
            classes = torch.cat([labels, ~labels.any(dim=1, keepdim=True)], dim=1)
        return cls(
            bags=len(part),
            bags_per_step=len(part) if config.bags_per_step == "epoch" else config.bags_per_step,
            classes=classes,
            leads=task.leads(part.encoded) if task.several_bags else None,
        )

    @property
    def steps(self) -> int:
        """Steps of every epoch."""
        return len(self._steps(torch.arange(self.bags)))

    def epoch(self, generator: torch.Generator) -> list[list[Draw]]:
        """The bags of each step."""
        if self.classes is None:
            order = torch.randperm(self.bags, generator=generator)
        else:
            order = balanced(self.classes, generator)
        steps = self._steps(order)
        seeds = iter(torch.randint(2**62, (self.bags,), generator=generator).tolist())
        return [[Draw(bag, next(seeds)) for bag in step.tolist()] for step in steps]

    def _steps(self, order: Tensor) -> list[Tensor]:
        if self.leads is None:
            return list(order.split(self.bags_per_step))
        return deal(order, self.leads, self.bags_per_step)


def balanced(classes: Tensor, generator: torch.Generator) -> Tensor:
    """As many bags as there are, mixed: an equal number, or one more, of each class that has any.

    `classes` (bags, classes) bool. A class's bags are drawn with replacement.
    """
    bags = len(classes)
    members = [members for column in classes.T if len(members := column.nonzero()[:, 0])]
    turns = torch.arange(bags) % len(members)
    of_class = torch.randperm(len(members), generator=generator)[turns].bincount()
    drawn = [
        mine[torch.randint(len(mine), (int(count),), generator=generator)]
        for mine, count in zip(members, of_class, strict=False)
    ]
    return torch.cat(drawn)[torch.randperm(bags, generator=generator)]
