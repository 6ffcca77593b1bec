"""The gradient of one optimiser step over several bags, with the graphs of all bags or of one.

    L = sum over heads k of w_k task(heads_k of all bags) + mean penalty of the bags

`one_graph` keeps every bag's activations until backward. `two_passes` keeps one bag's: the first
pass, without a graph, collects the heads, whose gradient g = dL/dheads is taken alone; the second
replays the bags from the same random states and backpropagates <heads_b, g_b> + penalty_b / bags
through each. By the chain rule that is the same gradient, for twice the forward computation.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Self

import torch
from torch import Tensor

from mil.models.base import MilMethod, Step, TrainingOutput

BagLoss = Callable[[Tensor], Tensor]
"""The task's loss of one head's logits (bags, outputs) over the bags of a step."""


@dataclass(frozen=True)
class RandomStates:
    """Where the generators stand that a training output draws from: masks, and dropout."""

    masks: Tensor
    cpu: Tensor
    cuda: list[Tensor]

    @classmethod
    def now(cls, generator: torch.Generator) -> Self:
        return cls(generator.get_state(), torch.get_rng_state(), torch.cuda.get_rng_state_all())

    def restore(self, generator: torch.Generator) -> None:
        generator.set_state(self.masks)
        torch.set_rng_state(self.cpu)
        torch.cuda.set_rng_state_all(self.cuda)


def one_graph(
    method: MilMethod, bags: Sequence[Callable[[], Tensor]], step: Step, loss: BagLoss
) -> float:
    """Adds the gradient of L to the method's parameters; returns L. `bags` load a bag each."""
    outputs = [method.training_output(bag(), step) for bag in bags]
    total = _weighted(outputs, torch.stack([out.heads for out in outputs], dim=1), loss)
    total = total + torch.stack([out.penalty for out in outputs]).mean()
    total.backward()
    return float(total.detach())


def two_passes(
    method: MilMethod, bags: Sequence[Callable[[], Tensor]], step: Step, loss: BagLoss
) -> float:
    """As `one_graph`, in the memory of one bag; every bag is loaded twice."""
    states = RandomStates.now(step.generator)
    with torch.no_grad():
        outputs = [method.training_output(bag(), step) for bag in bags]
    heads = torch.stack([out.heads for out in outputs], dim=1).requires_grad_()
    total = _weighted(outputs, heads, loss)
    (gradient,) = torch.autograd.grad(total, heads)
    states.restore(step.generator)
    for place, bag in enumerate(bags):
        out = method.training_output(bag(), step)
        ((out.heads * gradient[:, place]).sum() + out.penalty / len(bags)).backward()
    penalty = torch.stack([out.penalty for out in outputs]).mean()
    return float((total + penalty).detach())


def _weighted(outputs: Sequence[TrainingOutput], heads: Tensor, loss: BagLoss) -> Tensor:
    """The weighted task losses of heads (heads, bags, outputs); weights are the same for all."""
    weighted = [w * loss(h) for w, h in zip(outputs[0].weights, heads, strict=True)]
    return torch.stack(weighted).sum()


def deal(order: Tensor, leads: Tensor, bags_per_step: int) -> list[Tensor]:
    """Steps of `bags_per_step` bags or more, as even as can be, each with a lead where possible.

    `order` (bags,) is a permutation; `leads` (bags,) bool, those of which a step should hold one.
    Leads come first in a round of one bag a step, then the others, both in the order given.
    """
    steps = max(1, len(order) // bags_per_step)
    leading = leads[order]
    dealt = torch.cat([order[leading], order[~leading]])
    return [dealt[first::steps] for first in range(steps)]
