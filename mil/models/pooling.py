"""Mean and max pooling of tiles, the baselines that every MIL paper is compared with.

    h_n = act(W1 x_n + b1);  l_n = Wc h_n + bc
    mean: logits = 1/N sum_n l_n = Wc (1/N sum_n h_n) + bc
    max:  logits_c = max_n l_nc                                     the best tile of each output

One head of weight 1, no penalty. Both are the baselines of MHIM-MIL's comparison (Tang et al., ICCV
2023). The max is taken per output; CLAM's baseline differs: it answers with all logits of the one
tile of highest class probability, and a hazard or a risk has no such probability.
Differs from the published code: of equal maxima the first one alone has the gradient.
"""

from typing import Literal

import torch
from torch import Tensor, nn

from mil.models.base import BagOutput, Bags, MilMethod, Step, TrainingOutput
from mil.models.layers import Activation, Embedding, Initialisation, initialise_xavier
from mil.models.segments import Segments

Pooling = Literal["mean", "max"]


def first_maxima(values: Tensor, segments: Segments) -> Tensor:
    """Where in the pack each bag has its highest value, the first of equals: (K, T) -> (K, B)."""
    return segments.padded(values.detach(), -torch.inf).argmax(dim=2) + segments.starts


def pool(instances: Tensor, segments: Segments, pooling: Pooling) -> Tensor:
    """Mean or maximum of every output over each bag's tiles: (T, outputs) -> (B, outputs)."""
    values = instances.T
    if pooling == "max":
        return values.gather(1, first_maxima(values, segments)).T
    wide = torch.promote_types(values.dtype, torch.float32)  # half precision cannot hold the sum
    total = segments.padded(values, 0.0).sum(dim=2, dtype=wide)
    return (total / segments.lengths).T.to(values.dtype)


def pooled_answer(instances: Tensor, pooling: Pooling) -> BagOutput:
    """The answer to a bag whose tiles by themselves answer `instances` (tiles, outputs).

    Mean: attention 1/N, scores 0, as their softmax is that. Max: the attention of a tile is the
    share of outputs whose maximum it is, and the scores are the logits, a row per output.
    """
    segments = Segments.one(instances)
    logits = pool(instances, segments, pooling)[0]
    tiles, outputs = instances.shape
    if pooling == "mean":
        even = instances.new_full((tiles,), 1 / tiles)
        return BagOutput(logits, scores=torch.zeros_like(even)[None], attention=even)
    best = first_maxima(instances.T, segments)[:, 0]
    won = (torch.arange(tiles, device=best.device) == best[:, None]).sum(dim=0)
    return BagOutput(logits, scores=instances.T, attention=won.to(instances.dtype) / outputs)


class InstancePool(MilMethod):
    def __init__(
        self,
        dim: int,
        outputs: int,
        *,
        pooling: Pooling,
        hidden_dim: int,
        activation: Activation,
        dropout: float,
        initialisation: Initialisation,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(
            dim, hidden_dim, bias=True, activation=activation, dropout=dropout
        )
        self.classifier = nn.Linear(hidden_dim, outputs)
        self.pooling: Pooling = pooling
        if initialisation == "xavier":
            initialise_xavier(self)

    def forward(self, bag: Tensor) -> BagOutput:
        return pooled_answer(self.tile_logits(bag), self.pooling)

    def training_output(self, bags: Bags, step: Step) -> TrainingOutput:  # noqa: ARG002 - no schedule
        instances = self.tile_logits(bags.tiles)
        return TrainingOutput.one_head(pool(instances, bags.segments, self.pooling))

    def tile_logits(self, bag: Tensor) -> Tensor:
        return self.classifier(self.embedding(bag))
