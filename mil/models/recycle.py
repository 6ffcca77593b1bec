"""The global recycle network of MHIM-MIL v2 (Tang et al., IJCV 2025): many tiles to few tokens.

    x = LN(tiles),  q = Wq LN(Q)                                Q: k global queries, not trained
    token = Wo [softmax_N(q_h (Wk_h x)^T / sqrt(d)) (Wv_h x)]_h + bo       per head h of width d
    after the step: Q <- m Q + (1 - m) mean token of the step's bags

Dropout acts on the attention and on the output. Keys and values are linear in x, so they are never
formed: scores are (Wk_h^T q_h) x^T, and Wv_h is applied to the pooled x, in any order the same.
Differs from the published code: Q moves after the optimiser step, not between forward and backward,
where it spoils a gradient; with several bags in a step, it moves once, by the mean over its bags.
"""

import math

import torch
from torch import Tensor, nn

from mil.models.layers import initialise_xavier
from mil.models.segments import Segments


class RecycleNetwork(nn.Module):
    queries: Tensor
    _token_sum: Tensor

    def __init__(
        self,
        hidden_dim: int,
        *,
        tokens: int,
        heads: int,
        head_dim: int,
        dropout: float,
        momentum: float,
    ) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_dim)
        self.keys_values = nn.Linear(hidden_dim, 2 * heads * head_dim, bias=False)
        self.query = nn.Linear(hidden_dim, heads * head_dim, bias=False)
        self.out = nn.Linear(heads * head_dim, hidden_dim)
        self.attention_dropout = nn.Dropout(dropout)
        self.out_dropout = nn.Dropout(dropout)
        self.heads = heads
        self.momentum = momentum
        initialise_xavier(self)
        bound = math.sqrt(6 / (3 * 256 + hidden_dim))  # as published: that of visual prompt tuning
        queries = torch.empty(tokens, hidden_dim).uniform_(-bound, bound)
        self.register_buffer("queries", queries)
        self.register_buffer("_token_sum", torch.zeros_like(queries), persistent=False)
        self._bags_seen = 0

    def forward(self, tiles: Tensor, segments: Segments) -> Tensor:
        """Embedded tiles (R, hidden) of B bags -> tokens (B, k, hidden)."""
        normed = self.norm(tiles)
        query = self.query(self.norm(self.queries)).unflatten(1, (self.heads, -1))
        keys, values = self.keys_values.weight.unflatten(0, (2, self.heads, -1))
        reading = torch.einsum("khd,hdl->hkl", query, keys).flatten(0, 1)
        scores = reading @ normed.T / math.sqrt(query.shape[2])
        attention = self.attention_dropout(segments.softmax(scores))
        pooled = segments.pool(attention, normed).unflatten(1, (self.heads, -1))
        per_head = torch.einsum("bhkl,hdl->bkhd", pooled, values)
        return self.out_dropout(self.out(per_head.flatten(2)))

    @torch.no_grad()
    def remember(self, tokens: Tensor) -> None:
        """Notes tokens (B, k, hidden) of bags of this step, for `move_queries`.

        Bags that are all noted twice, as where a step replays them, leave the mean as it is.
        """
        self._token_sum += tokens.detach().sum(dim=0)
        self._bags_seen += len(tokens)

    @torch.no_grad()
    def move_queries(self) -> None:
        """Moves the queries towards the mean of the tokens noted since the last move."""
        if self._bags_seen:
            mean = self._token_sum / self._bags_seen
            self.queries.mul_(self.momentum).add_(mean, alpha=1 - self.momentum)
        self._token_sum.zero_()
        self._bags_seen = 0
