"""ACMIL with multi-head attention (Zhang et al., ECCV 2024, arXiv:2311.07125).

    h_n = ReLU(W1 x_n);  per branch i: a learned query q_i, and head by head of width c
    s_in = (Wq_i q_i + bq_i) . (Wk_i h_n + bk_i) / sqrt(c)                 (heads, K, N)
    training: STKIM puts -inf on some of the k best scores of every head and branch
    a = softmax_N(s);  z_i = LN(Wo_i [sum_n a_in (Wv_i h_n + bv_i)] + bo_i)
    p_i = W_i z_i + b_i                                                     K branch heads
    abar = mean_i a_i, head by head;  slide = Ws LN(Wo [sum_n abar_n (Wv h_n + bv)] + bo) + bs
    L = task(slide) + 1/K sum_i task(p_i) + mean over heads 2/(K(K-1)) sum_{i<j} cos(a_i, a_j)

Dropout acts on what Wo makes. With K = 1 the second and third term are absent, and so is all that
they alone use. Keys and values are never formed, only (heads K) rows of scores: s is linear in h_n
with the rows Wk^T (Wq q + bq), and Wv is applied to pooled tiles, whose weights sum to 1.
Differs from the published code as `acmil` does.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.models.acmil import BranchedMethod, StkimMode, diversity_loss
from mil.models.layers import Activation, Embedding, Pooled
from mil.models.segments import Segments


class BranchQuery(nn.Module):
    """A branch's question to every tile, in all its heads."""

    def __init__(self, hidden_dim: int, heads: int) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(hidden_dim).normal_(std=1e-6))
        self.query = nn.Linear(hidden_dim, hidden_dim)
        self.key = nn.Linear(hidden_dim, hidden_dim)
        self.heads = heads

    def forward(self) -> tuple[Tensor, Tensor]:
        """Weights (heads, hidden) and biases (heads,) that turn a tile into its scores."""
        query = self.query(self.token).unflatten(0, (self.heads, -1))
        query = query / math.sqrt(query.shape[1])
        weight = self.key.weight.unflatten(0, (self.heads, -1))
        bias = self.key.bias.unflatten(0, (self.heads, -1))
        return torch.einsum("hc,hcl->hl", query, weight), (query * bias).sum(dim=1)


class PooledReader(nn.Module):
    """Values of pooled tiles, head by head, then Wo, dropout and LayerNorm."""

    def __init__(self, hidden_dim: int, heads: int, dropout: float) -> None:
        super().__init__()
        self.value = nn.Linear(hidden_dim, hidden_dim)
        self.out = nn.Linear(hidden_dim, hidden_dim)
        self.dropout = nn.Dropout(dropout)
        self.norm = nn.LayerNorm(hidden_dim, eps=1e-6)
        self.heads = heads

    def forward(self, pooled: Tensor) -> Tensor:
        """(bags, heads, hidden) -> (bags, hidden)."""
        weight = self.value.weight.unflatten(0, (self.heads, -1))
        values = torch.einsum("bhl,hcl->bhc", pooled, weight).flatten(1) + self.value.bias
        return self.norm(self.dropout(self.out(values)))


class AcmilMha(BranchedMethod):
    """Scores have a row for each head and branch, all branches of a head together."""

    def __init__(
        self,
        dim: int,
        outputs: int,
        *,
        hidden_dim: int,
        heads: int,
        branches: int,
        top_k: int,
        drop: float,
        mode: StkimMode,
        activation: Activation,
        dropout: float,
        attention_dropout: float,
    ) -> None:
        super().__init__(rows=heads * branches, top_k=top_k, drop=drop, mode=mode)
        if hidden_dim % heads:
            raise ValueError(
                f"{heads} attention heads cannot share an embedding of width {hidden_dim}: choose "
                "a divisor of hidden_dim"
            )
        self.embedding = Embedding(
            dim, hidden_dim, bias=False, activation=activation, dropout=dropout
        )
        with_heads = branches if branches > 1 else 0
        self.queries = nn.ModuleList(BranchQuery(hidden_dim, heads) for _ in range(branches))
        self.branch_readers = nn.ModuleList(
            PooledReader(hidden_dim, heads, attention_dropout) for _ in range(with_heads)
        )
        self.branch_classifiers = nn.ModuleList(
            nn.Linear(hidden_dim, outputs) for _ in range(with_heads)
        )
        self.slide_reader = PooledReader(hidden_dim, heads, attention_dropout)
        self.slide_classifier = nn.Linear(hidden_dim, outputs)
        self.attention_heads = heads

    def scores(self, embedded: Tensor) -> Tensor:
        """(T, hidden) -> (heads * branches, T) before the softmax; a head's branches together."""
        weights, biases = zip(*(query() for query in self.queries), strict=True)
        weight, bias = torch.stack(weights, dim=1), torch.stack(biases, dim=1)
        return functional.linear(embedded, weight.flatten(0, 1), bias.flatten()).T

    def slide_logits(self, pooled: Pooled) -> Tensor:
        # the mean over branches of what they pool is what their mean attention pools
        features = self._by_head(pooled.features, dim=1).mean(dim=2)
        return self.slide_classifier(self.slide_reader(features))

    def branch_logits(self, pooled: Pooled) -> list[Tensor]:
        features = self._by_head(pooled.features, dim=1)
        readers = zip(self.branch_readers, self.branch_classifiers, strict=True)
        return [
            classifier(reader(features[:, :, i])) for i, (reader, classifier) in enumerate(readers)
        ]

    def diversity(self, attention: Tensor, segments: Segments) -> Tensor:
        """The mean over heads."""
        heads = self._by_head(attention, dim=0)
        return torch.stack([diversity_loss(head, segments) for head in heads]).mean(dim=0)

    def tile_logits(self, bag: Tensor) -> Tensor:
        """In a one-tile bag all attention is 1, and the slide head reads the embedded tile."""
        embedded = self.embedding(bag)[:, None].expand(-1, self.attention_heads, -1)
        return self.slide_classifier(self.slide_reader(embedded))

    def _by_head(self, rows: Tensor, dim: int) -> Tensor:
        """Splits an axis of heads * branches in two."""
        return rows.unflatten(dim, (self.attention_heads, -1))
