"""Nystrom attention (Xiong et al., AAAI 2021, arXiv:2102.03902), as TransMIL uses it.

    Q, K, V = Wqkv X;  Q = Q / sqrt(d)                                     per head of width d
    Q~, K~ = means over m runs of consecutive tokens                       m landmarks
    softmax(Q K~^T) Z softmax(Q~ K^T) V + conv33(V), heads side by side, through Wo, dropout
    Z ~ P^+, P = softmax(Q~ K~^T): Z_0 = P^T / (largest column sum of all heads), then six times
    Z <- 1/4 Z (13 I - PZ (15 I - PZ (7 I - PZ)))

Zeros stand in front of X, so that its length is a multiple of m; they are attended to like tokens.
Differs from the published code: products are taken from the right, so that nothing as wide as
(tokens, m) is kept for backward; Z is computed in float32 or better; the largest row sum, a factor
of the published normaliser, is left out, being 1.
"""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

ITERATIONS = 6
KERNEL = 33


def pseudo_inverse(matrix: Tensor, start: Tensor) -> Tensor:
    """Six steps of the iteration above from Z_0 = `start`; both (..., m, m)."""
    identity = torch.eye(matrix.shape[-1], dtype=matrix.dtype, device=matrix.device)
    inverse = start
    for _ in range(ITERATIONS):
        product = matrix @ inverse
        inner = 15 * identity - product @ (7 * identity - product)
        inverse = 0.25 * inverse @ (13 * identity - product @ inner)
    return inverse


def wide(tensor: Tensor) -> Tensor:
    """In float32 or better."""
    return tensor.to(torch.promote_types(tensor.dtype, torch.float32))


def attend(queries: Tensor, keys: Tensor, values: Tensor) -> Tensor:
    """softmax(queries keys^T) values: (heads, a, d), (heads, b, d), (heads, b, d)."""
    of_batch = functional.scaled_dot_product_attention(
        queries[None], keys[None], values[None], scale=1.0
    )
    return of_batch[0]


@dataclass(frozen=True)
class Factors:
    """`q`, `k`, `v` (heads, padding + tokens, d), landmarks (heads, m, d), `inverse` (heads, m, m).

    `first` is the place of the first token, behind the padding.
    """

    first: int
    q: Tensor
    k: Tensor
    v: Tensor
    q_landmarks: Tensor
    k_landmarks: Tensor
    inverse: Tensor

    def attended(self, rows: slice) -> Tensor:
        """softmax(Q K~^T) Z softmax(Q~ K^T) V of some rows: (heads, rows, d)."""
        summary = self.inverse @ wide(attend(self.q_landmarks, self.k, self.v))
        return attend(self.q[:, rows], self.k_landmarks, summary.to(self.v.dtype))

    @torch.no_grad()
    def weights_of_first(self) -> Tensor:
        """How much the first token attends to each token: (heads, tokens).

        The row is of a product of three matrices, not of a softmax: it may be negative, and with
        the part of the padding, which is left out here, its sum is near 1, not 1.
        """
        with torch.autocast(self.q.device.type, enabled=False):
            q, k, marks = wide(self.q[:, self.first]), wide(self.k), wide(self.q_landmarks)
            nearest = (q[:, None] @ wide(self.k_landmarks).mT).softmax(dim=2)
            through = nearest @ self.inverse
            heads = zip(through, marks, k, strict=True)
            rows = torch.cat([by @ (mark @ key.T).softmax(dim=1) for by, mark, key in heads])
        return rows[:, self.first :]


class NystromAttention(nn.Module):
    def __init__(self, hidden_dim: int, *, heads: int, landmarks: int, dropout: float) -> None:
        super().__init__()
        self.heads = heads
        self.landmarks = landmarks
        self.qkv = nn.Linear(hidden_dim, 3 * hidden_dim, bias=False)
        self.convolution = nn.Conv2d(
            heads, heads, (KERNEL, 1), padding=(KERNEL // 2, 0), groups=heads, bias=False
        )
        self.out = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.Dropout(dropout))

    def forward(self, tokens: Tensor, *, first_only: bool = False) -> tuple[Tensor, Factors]:
        """(tokens, hidden) -> (tokens, hidden), or (1, hidden): what the first token receives."""
        factors = self._factors(tokens)
        first, v = factors.first, factors.v
        rows = slice(first, first + 1 if first_only else None)
        with torch.autocast(tokens.device.type, enabled=False):
            attended = factors.attended(rows)
        reached = v[:, : first + 1 + KERNEL // 2] if first_only else v
        mixed = attended + self.convolution(reached[None])[0, :, rows]
        return self.out(mixed.transpose(0, 1).flatten(1)), factors

    def of_pairs(self, tokens: Tensor) -> Tensor:
        """`forward` of every single pair, as if a sequence of its own: (n, 2, hidden), the same.

        A pair stands behind m - 2 zeros and each of these m rows is its own landmark. Equal rows
        and columns stay equal in every product, so that 3 x 3 matrices tell all: entry (i, j) is
        the sum over the g_j columns of group j, g = (m - 2, 1, 1), which makes the product of two
        such matrices an ordinary one, and P^T is diag(g)^-1 P^T diag(g).
        """
        groups = functional.pad(tokens, (0, 0, 1, 0))
        q, k, v = self._heads(groups)
        with torch.autocast(tokens.device.type, enabled=False):
            count = torch.tensor([self.landmarks - 2.0, 1.0, 1.0], device=tokens.device)
            count = count.to(wide(q).dtype)
            p = (wide(q) @ wide(k).mT + count.log()).softmax(dim=3)
            columns = (count @ p) / count
            largest = columns.amax(dim=(1, 2))[:, None, None, None]
            z = pseudo_inverse(p, p.mT * count / count[:, None] / largest)
            attended = (p @ (z @ (p @ wide(v))))[:, :, 1:].to(v.dtype)
        offset = torch.arange(2, device=tokens.device)
        taps = self.convolution.weight[:, 0, :, 0][:, KERNEL // 2 + offset - offset[:, None]]
        mixed = attended + taps @ v[:, :, 1:]
        return self.out(mixed.transpose(1, 2).flatten(2))

    def _heads(self, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Q, K, V (..., heads, tokens, d) of tokens (..., tokens, hidden)."""
        q, k, v = (
            part.unflatten(-1, (self.heads, -1)).transpose(-3, -2)
            for part in self.qkv(tokens).chunk(3, dim=-1)
        )
        return q / q.shape[-1] ** 0.5, k, v

    def _factors(self, tokens: Tensor) -> Factors:
        first = -len(tokens) % self.landmarks
        q, k, v = self._heads(functional.pad(tokens, (0, 0, first, 0)))
        with torch.autocast(tokens.device.type, enabled=False):
            q_landmarks = q.unflatten(1, (self.landmarks, -1)).mean(dim=2)
            k_landmarks = k.unflatten(1, (self.landmarks, -1)).mean(dim=2)
            p = (wide(q_landmarks) @ wide(k_landmarks).mT).softmax(dim=2)
            z = pseudo_inverse(p, p.mT / p.sum(dim=1).amax())
        return Factors(first, q, k, v, q_landmarks, k_landmarks, inverse=z)
