"""ACMIL with gated attention (Zhang et al., ECCV 2024, arXiv:2311.07125).

    h_n = ReLU(W1 x_n);  s = (Ww (tanh(V h + b_V) * sigmoid(U h + b_U)) + bw)^T       (K, N)
    training: STKIM puts -inf on some of the k best scores of every branch
    a = softmax_N(s);  z_i = sum_n a_in h_n;  p_i = W_i z_i + b_i                  K branch heads
    abar = mean_i a_i;  slide = Ws (sum_n abar_n h_n) + bs
    L = task(slide) + 1/K sum_i task(p_i) + 2/(K(K-1)) sum_{i<j} cos(a_i, a_j)

With K = 1 the second and third term are absent, and so is the branch classifier.
Differs from the published code: a masked score is -inf, not -1e9, which half precision cannot hold;
masks come from an explicit generator; a bag that would be masked whole keeps one tile per branch.
"""

import math
from typing import Literal

import torch
from torch import Tensor, nn

from mil.models.base import BagOutput, MilMethod, Step, TrainingOutput
from mil.models.layers import Activation, AttentionScores, Embedding, Pooled, attention_pool

StkimMode = Literal["count", "bernoulli"]


def stkim_draws(scores: Tensor, *, top_k: int, generator: torch.Generator) -> Tensor:
    """Uniform draws (branches, min(top_k, tiles)) for `stkim_mask`, on the device of the scores."""
    branches, tiles = scores.shape
    draws = torch.rand(branches, min(top_k, tiles), generator=generator, device=generator.device)
    return draws.to(scores.device)


def stkim_mask(scores: Tensor, draws: Tensor, *, drop: float, mode: StkimMode) -> Tensor:
    """Stochastic top-k instance masking: True (branches, tiles) where a raw score is to be masked.

    Column r of the `draws` (branches, k') belongs to the r-th best tile of the branch. `count` (as
    published code does) masks the floor(k' drop) smallest draws, `bernoulli` (as the paper says)
    every draw below `drop`. Where that is the whole bag, the tile with the largest draw stays.
    """
    candidates, tiles = draws.shape[1], scores.shape[1]
    best_first = scores.detach().argsort(dim=1, descending=True, stable=True)[:, :candidates]
    smallest_first = draws.argsort(dim=1, stable=True)
    if mode == "count":
        drawn = smallest_first[:, : math.floor(candidates * drop)]
        masked = torch.zeros_like(draws, dtype=torch.bool).scatter(1, drawn, True)
    else:
        masked = draws < drop
    if candidates == tiles:
        whole = masked.all(dim=1)
        masked[whole, smallest_first[whole, -1]] = False
    return torch.zeros_like(scores, dtype=torch.bool).scatter(1, best_first, masked)


def diversity_loss(attention: Tensor) -> Tensor:
    """Mean cosine between the attention (K, N) of two different branches, K >= 2.

    No guard against zero is needed: attention sums to 1, so its norm is at least 1/sqrt(N).
    """
    unit = attention / attention.norm(dim=1, keepdim=True)
    first, second = torch.triu_indices(len(unit), len(unit), offset=1, device=unit.device)
    return (unit @ unit.T)[first, second].mean()


class Acmil(MilMethod):
    def __init__(
        self,
        dim: int,
        outputs: int,
        *,
        hidden_dim: int,
        attention_dim: int,
        branches: int,
        top_k: int,
        drop: float,
        mode: StkimMode,
        activation: Activation,
        dropout: float,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(
            dim, hidden_dim, bias=False, activation=activation, dropout=dropout
        )
        self.attention = AttentionScores(
            hidden_dim, attention_dim, branches=branches, scoring="gated", bias=True
        )
        self.branch_classifiers = nn.ModuleList(
            nn.Linear(hidden_dim, outputs) for _ in range(branches if branches > 1 else 0)
        )
        self.slide_classifier = nn.Linear(hidden_dim, outputs)
        self.top_k = top_k
        self.drop = drop
        self.mode: StkimMode = mode

    def forward(self, bag: Tensor) -> BagOutput:
        embedded = self.embedding(bag)
        pooled = attention_pool(self.attention(embedded), embedded)
        return BagOutput(
            logits=self._slide_logits(pooled),
            scores=pooled.scores,
            attention=pooled.attention.mean(dim=0),
        )

    def training_output(self, bag: Tensor, step: Step) -> TrainingOutput:
        embedded = self.embedding(bag)
        scores = self.attention(embedded)
        draws = stkim_draws(scores, top_k=self.top_k, generator=step.generator)
        masked = stkim_mask(scores, draws, drop=self.drop, mode=self.mode)
        return self.heads(attention_pool(scores.masked_fill(masked, -torch.inf), embedded))

    def heads(self, pooled: Pooled) -> TrainingOutput:
        """Slide head (weight 1), branch heads (1/K each), and the diversity loss as the penalty."""
        slide = self._slide_logits(pooled)
        branches = [
            classifier(pooled.features[i]) for i, classifier in enumerate(self.branch_classifiers)
        ]
        heads = torch.stack([slide, *branches])
        weights = heads.new_full((len(heads),), 1 / max(len(branches), 1))
        weights[0] = 1
        penalty = diversity_loss(pooled.attention) if branches else heads.new_zeros(())
        return TrainingOutput(heads=heads, weights=weights, penalty=penalty)

    def tile_logits(self, bag: Tensor) -> Tensor:
        """In a one-tile bag all attention is 1, and the slide head reads the embedded tile."""
        return self.slide_classifier(self.embedding(bag))

    def _slide_logits(self, pooled: Pooled) -> Tensor:
        # mean_i z_i = sum_n abar_n h_n, without a second pass over the tiles
        return self.slide_classifier(pooled.features.mean(dim=0))
