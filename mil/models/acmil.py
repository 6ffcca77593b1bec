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

from abc import abstractmethod
from typing import Literal

import torch
from torch import Tensor, nn

from mil.models.base import BagOutput, Bags, MilMethod, Step, TrainingOutput
from mil.models.layers import Activation, AttentionScores, Embedding, Pooled, attention_pool
from mil.models.segments import Segments

StkimMode = Literal["count", "bernoulli"]


def stkim_draws(rows: int, segments: Segments, *, top_k: int, generator: torch.Generator) -> Tensor:
    """Uniform draws (rows, bags, min(top_k, longest bag)) for `stkim_mask`."""
    shape = (rows, len(segments), min(top_k, segments.longest))
    return torch.rand(shape, generator=generator, device=generator.device).to(segments.device)


def stkim_mask(
    scores: Tensor, draws: Tensor, segments: Segments, *, drop: float, mode: StkimMode
) -> Tensor:
    """Stochastic top-k instance masking: True (rows, T) where a raw score is to be masked.

    A row of `scores` (rows, T) is a branch, or a branch's attention head. Entry r of the `draws`
    (rows, bags, k) belongs to the r-th best tile of that row and bag; a bag of n tiles has
    k' = min(k, n) candidates. `count` (as published code does) masks the floor(k' drop) smallest
    draws, `bernoulli` (as the paper says) every draw below `drop`. Where that is the whole bag, the
    tile with the largest draw stays.
    """
    k = draws.shape[2]
    candidates = segments.lengths.clamp(max=k)[:, None]
    exists = torch.arange(k, device=draws.device) < candidates
    draws = draws.masked_fill(~exists, torch.inf)
    rank = draws.argsort(dim=2, stable=True).argsort(dim=2)
    counted = rank < (candidates.double() * drop).floor()
    masked = counted if mode == "count" else draws < drop
    all_drawn = (masked | ~exists).all(dim=2, keepdim=True)
    whole_bag = all_drawn & (candidates == segments.lengths[:, None])
    masked = masked & ~(whole_bag & (rank == candidates - 1))
    placed = torch.zeros(
        len(scores), len(segments), segments.longest, dtype=torch.bool, device=scores.device
    )
    return segments.packed(placed.scatter(2, segments.best_first(scores, k), masked))


def diversity_loss(attention: Tensor, segments: Segments) -> Tensor:
    """Mean cosine between the attention (K, T) of two different branches, K >= 2, bag by bag: (B,).

    No guard against zero is needed: attention sums to 1, so its norm is at least 1/sqrt(n).
    """
    of_bags = segments.padded(attention, 0.0).transpose(0, 1)
    unit = of_bags / of_bags.norm(dim=2, keepdim=True)
    branches = len(attention)
    first, second = torch.triu_indices(branches, branches, offset=1, device=unit.device)
    return (unit @ unit.mT)[:, first, second].mean(dim=1)


class BranchedMethod(MilMethod):
    """What both forms of ACMIL share: masked scores of several branches, their heads and penalty.

    `rows` of scores a tile has: the branches, times the heads of multi-head attention.
    """

    embedding: Embedding

    def __init__(self, *, rows: int, top_k: int, drop: float, mode: StkimMode) -> None:
        super().__init__()
        self.rows = rows
        self.top_k = top_k
        self.drop = drop
        self.mode: StkimMode = mode

    @abstractmethod
    def scores(self, embedded: Tensor) -> Tensor:
        """(T, hidden) -> (rows, T) before the softmax."""

    @abstractmethod
    def slide_logits(self, pooled: Pooled) -> Tensor:
        """(bags, outputs), of the branches' mean attention."""

    @abstractmethod
    def branch_logits(self, pooled: Pooled) -> list[Tensor]:
        """(bags, outputs) of each branch; empty where there is one branch alone."""

    @abstractmethod
    def diversity(self, attention: Tensor, segments: Segments) -> Tensor:
        """How alike the branches' attention (rows, T) is: (bags,)."""

    def forward(self, bag: Tensor) -> BagOutput:
        embedded = self.embedding(bag)
        pooled = attention_pool(self.scores(embedded), embedded, Segments.one(bag))
        return BagOutput(
            logits=self.slide_logits(pooled)[0],
            scores=pooled.scores,
            attention=pooled.attention.mean(dim=0),
        )

    def training_output(self, bags: Bags, step: Step) -> TrainingOutput:
        draws = stkim_draws(self.rows, bags.segments, top_k=self.top_k, generator=step.generator)
        return self.masked_output(bags, draws)

    def masked_output(self, bags: Bags, draws: Tensor) -> TrainingOutput:
        """`training_output` under given draws (rows, bags, k) of STKIM."""
        embedded = self.embedding(bags.tiles)
        scores = self.scores(embedded)
        masked = stkim_mask(scores, draws, bags.segments, drop=self.drop, mode=self.mode)
        scores = scores.masked_fill(masked, -torch.inf)
        return self.heads(attention_pool(scores, embedded, bags.segments), bags.segments)

    def heads(self, pooled: Pooled, segments: Segments) -> TrainingOutput:
        """Slide head (weight 1), branch heads (1/K each), and the diversity loss as the penalty."""
        slide, branches = self.slide_logits(pooled), self.branch_logits(pooled)
        if not branches:
            return TrainingOutput.one_head(slide)
        heads = torch.stack([slide, *branches])
        weights = heads.new_full((len(heads),), 1 / len(branches))
        weights[0] = 1
        return TrainingOutput(heads, weights, penalty=self.diversity(pooled.attention, segments))


class Acmil(BranchedMethod):
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
        super().__init__(rows=branches, top_k=top_k, drop=drop, mode=mode)
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

    def scores(self, embedded: Tensor) -> Tensor:
        return self.attention(embedded)

    def slide_logits(self, pooled: Pooled) -> Tensor:
        # mean_i z_i = sum_n abar_n h_n, without a second pass over the tiles
        return self.slide_classifier(pooled.features.mean(dim=1))

    def branch_logits(self, pooled: Pooled) -> list[Tensor]:
        of_branches = enumerate(self.branch_classifiers)
        return [classifier(pooled.features[:, i]) for i, classifier in of_branches]

    def diversity(self, attention: Tensor, segments: Segments) -> Tensor:
        return diversity_loss(attention, segments)

    def tile_logits(self, bag: Tensor) -> Tensor:
        """In a one-tile bag all attention is 1, and the slide head reads the embedded tile."""
        return self.slide_classifier(self.embedding(bag))
