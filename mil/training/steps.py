"""The gradient of one optimiser step over several bags, which come as packs (mil.models.base.Bags).

    L = sum over heads k of w_k task(heads_k of all bags) + mean penalty of the bags

`one_graph` keeps the activations of all packs until backward; the other two keep one pack's.
`accumulate` is for a task whose loss is a mean over terms of single bags: each pack's loss and
penalty, times the pack's share of the step's terms and bags, are backpropagated by themselves.
`two_passes` is for a task that compares bags: the first pass, without a graph, collects the heads,
whose gradient g = dL/dheads is taken alone; the second replays the packs from the same random
states and backpropagates <heads_b, g_b> + penalty_b / bags through each. By the chain rule that is
the same gradient, for twice the forward computation.

Packs are asked for in order, in `two_passes` all of them twice, so that a reader can be ahead.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mil.models.base import Bags, TrainingOutput
from mil.tasks.base import Task

Packs = Sequence[Callable[[], Bags]]
Forward = Callable[[Bags], TrainingOutput]


def _unscaled(loss: Tensor) -> Tensor:
    return loss


@dataclass(frozen=True)
class StepLoss:
    """The task's word on the bags of a step, whose targets are `encoded` (bags, ...).

    `scaled` is applied to a loss before its backward pass, as half precision asks for.
    """

    task: Task
    encoded: Tensor
    scaled: Callable[[Tensor], Tensor] = _unscaled

    def __len__(self) -> int:
        return len(self.encoded)

    def of(self, weights: Tensor, heads: Tensor, bags: slice = slice(None)) -> Tensor:
        """The weighted task losses of heads (heads, bags, outputs), of some bags or of all."""
        losses = [self.task.loss(head, self.encoded[bags]) for head in heads]
        return (torch.stack(losses) * weights).sum()

    def share(self, bags: slice) -> float:
        """Of the terms that the loss of the whole step is the mean of."""
        return self.task.terms(self.encoded[bags]) / max(1, self.task.terms(self.encoded))


@dataclass(frozen=True)
class RandomStates:
    """Where the generators stand that a training output draws from: masks, and dropout.

    `cuda` is None for a CPU: asking would wake a GPU that another process may hold alone.
    """

    masks: Tensor
    cpu: Tensor
    cuda: Tensor | None

    @classmethod
    def now(cls, masks: torch.Generator) -> Self:
        """`masks` lies on the device of the training."""
        on_gpu = masks.device.type == "cuda"
        cuda = torch.cuda.get_rng_state(masks.device) if on_gpu else None
        return cls(masks.get_state(), torch.get_rng_state(), cuda)

    def restore(self, masks: torch.Generator) -> None:
        masks.set_state(self.masks)
        torch.set_rng_state(self.cpu)
        if self.cuda is not None:
            torch.cuda.set_rng_state(self.cuda, masks.device)


def accumulate(forward: Forward, packs: Packs, loss: StepLoss) -> Tensor:
    """Adds the gradient of L to the method's parameters; returns L. For a task that does not
    compare bags, or a step of one pack.
    """
    parts, start = [], 0
    for pack in packs:
        out = forward(pack())
        bags = slice(start, start + len(out.penalty))
        part = loss.share(bags) * loss.of(out.weights, out.heads, bags)
        part = part + out.penalty.sum() / len(loss)
        loss.scaled(part).backward()
        parts.append(part.detach())
        start = bags.stop
    return torch.stack(parts).sum()


def two_passes(
    forward: Forward, packs: Packs, loss: StepLoss, generator: torch.Generator
) -> Tensor:
    """As `accumulate`, for any task; every pack is loaded twice.

    `generator` is the one that masks are drawn from.
    """
    states = RandomStates.now(generator)
    with torch.no_grad():
        outputs = [forward(pack()) for pack in packs]
    heads = _heads(outputs).requires_grad_()
    total = loss.of(outputs[0].weights, heads)
    (gradient,) = torch.autograd.grad(total, heads)
    states.restore(generator)
    start = 0
    for pack in packs:
        out = forward(pack())
        bags = slice(start, start + len(out.penalty))
        part = (out.heads * gradient[:, bags]).sum() + out.penalty.sum() / len(loss)
        loss.scaled(part).backward()
        start = bags.stop
    return (total + _penalty(outputs)).detach()


def _heads(outputs: Sequence[TrainingOutput]) -> Tensor:
    """(heads, bags, outputs)"""
    return torch.cat([out.heads for out in outputs], dim=1)


def _penalty(outputs: Sequence[TrainingOutput]) -> Tensor:
    return torch.cat([out.penalty for out in outputs]).mean()


def deal(order: Tensor, leads: Tensor, bags_per_step: int) -> list[Tensor]:
    """Steps of `bags_per_step` bags or more, as even as can be, each with a lead where possible.

    `order` (bags,) is a permutation; `leads` (bags,) bool, those of which a step should hold one.
    Leads come first in a round of one bag a step, then the others, both in the order given.
    """
    steps = max(1, len(order) // bags_per_step)
    leading = leads[order]
    dealt = torch.cat([order[leading], order[~leading]])
    return [dealt[first::steps] for first in range(steps)]


def packs_of(sizes: Sequence[int], most: int) -> list[slice]:
    """Neighbouring bags of `sizes` tiles as packs: of up to `most` tiles, or of one larger bag."""
    packs, start, tiles = [], 0, 0
    for place, size in enumerate(sizes):
        if place > start and tiles + size > most:
            packs.append(slice(start, place))
            start, tiles = place, 0
        tiles += size
    return [*packs, slice(start, len(sizes))]
