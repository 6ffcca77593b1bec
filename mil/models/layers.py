"""The attention core that every method here shares.

    h_n = act(W1 x_n [+ b1])                                    embedding, then dropout
    s_n = w (tanh(V h_n + b_V) * sigmoid(U h_n + b_U)) + b_w    gated (Ilse et al. 2018, eq. 9)
    s_n = w tanh(V h_n + b_V) + b_w                             tanh (eq. 8)
    s_n = w ReLU(V h_n)                                         relu (MHIM-MIL, without biases)
    a = softmax_N(s),  z = sum_n a_n h_n                        per branch (row of w)

Shapes: x (tiles, dim), h (tiles, hidden), s and a (branches, tiles), z (branches, hidden).
"""

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.models.segments import Segments

Scoring = Literal["gated", "tanh", "relu"]
Activation = Literal["relu", "gelu"]
Initialisation = Literal["kaiming", "xavier"]


@dataclass(frozen=True)
class Pooled:
    """`scores`, `attention` (branches, tiles of all bags); `features` (bags, branches, hidden)."""

    scores: Tensor
    attention: Tensor
    features: Tensor


class Embedding(nn.Module):
    def __init__(
        self, dim: int, hidden_dim: int, *, bias: bool, activation: Activation, dropout: float
    ) -> None:
        super().__init__()
        self.linear = nn.Linear(dim, hidden_dim, bias=bias)
        self.activation = nn.ReLU(inplace=True) if activation == "relu" else nn.GELU()
        self.dropout = nn.Dropout(dropout)

    def forward(self, bag: Tensor) -> Tensor:
        """(tiles, dim) -> (tiles, hidden); refuses what is not a bag of at least one such tile."""
        dim = self.linear.in_features
        if bag.ndim != 2 or bag.shape[0] == 0 or bag.shape[1] != dim:
            raise ValueError(
                f"expected a bag of shape (tiles >= 1, {dim}), got {tuple(bag.shape)}: pass "
                "tiles of the encoder that the model was built for"
            )
        return self.dropout(self.activation(self.linear(bag)))


class AttentionScores(nn.Module):
    """Scores of embedded tiles, before the softmax; all branches share V (and U).

    `dropout` acts on both factors of gated scores, as CLAM has it.
    """

    def __init__(
        self,
        hidden_dim: int,
        attention_dim: int,
        *,
        branches: int,
        scoring: Scoring,
        bias: bool,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        self.V = nn.Linear(hidden_dim, attention_dim, bias=bias)
        self.U = nn.Linear(hidden_dim, attention_dim, bias=bias) if scoring == "gated" else None
        self.w = nn.Linear(attention_dim, branches, bias=bias)
        self.dropout = nn.Dropout(dropout)
        self.scoring: Scoring = scoring

    def forward(self, embedded: Tensor) -> Tensor:
        """(tiles, hidden) -> (branches, tiles)."""
        if self.U is not None:
            projected = self._gated(embedded, self.U)
        elif self.scoring == "tanh":
            projected = self.V(embedded).tanh()
        else:
            projected = self.V(embedded).relu()
        return self.w(projected).T

    def _gated(self, embedded: Tensor, gate: nn.Linear) -> Tensor:
        """One product with [V; U]: half the passes over the tiles that two would take."""
        weight = torch.cat([self.V.weight, gate.weight])
        bias = None if self.V.bias is None else torch.cat([self.V.bias, gate.bias])
        values, gates = functional.linear(embedded, weight, bias).chunk(2, dim=1)
        return self.dropout(values.tanh()) * self.dropout(gates.sigmoid())


def attention_pool(scores: Tensor, embedded: Tensor, segments: Segments) -> Pooled:
    """Softmax and weighted sums over each bag's tiles; a score of -inf takes a tile out."""
    attention = segments.softmax(scores)
    return Pooled(scores, attention, features=segments.pool(attention, embedded))


def initialise_xavier(module: nn.Module) -> None:
    """Normal Xavier weights and zero biases in every Linear, as MHIM-MIL starts its models."""
    for layer in module.modules():
        if isinstance(layer, nn.Linear):
            nn.init.xavier_normal_(layer.weight)
            if layer.bias is not None:
                nn.init.zeros_(layer.bias)
