"""Softmax, pooling and ranking within the bags of a pack.

Tiles of several bags lie behind each other along one axis of T = n_1 + ... + n_B; nothing as wide
as a feature is ever padded. Where an operation needs a rectangle, the few values a tile has (scores
of K branches) are padded to (K, B, longest bag), which for bags of one size is a view.
"""

from collections.abc import Sequence
from functools import cached_property
from typing import Any, Self

import torch
from torch import Tensor


class Segments:
    """Where bags of `sizes` tiles lie in a pack on `device`."""

    def __init__(self, sizes: Sequence[int], device: torch.device) -> None:
        self.sizes = tuple(int(size) for size in sizes)
        if not self.sizes or min(self.sizes) < 1:
            raise ValueError(f"expected bags of one tile or more, got sizes {self.sizes}")
        self.device = device
        self.longest = max(self.sizes)
        self._even = min(self.sizes) == self.longest

    @classmethod
    def one(cls, bag: Tensor) -> Self:
        """A single bag (tiles, ...)."""
        return cls((len(bag),), bag.device)

    def __len__(self) -> int:
        return len(self.sizes)

    @cached_property
    def lengths(self) -> Tensor:
        """(B,) int64"""
        return torch.tensor(self.sizes, device=self.device)

    @cached_property
    def starts(self) -> Tensor:
        """(B,) int64: where in the pack each bag begins."""
        return self.lengths.cumsum(0) - self.lengths

    @cached_property
    def bag_of_tile(self) -> Tensor:
        """(T,) int64"""
        return torch.arange(len(self.sizes), device=self.device).repeat_interleave(
            self.lengths, output_size=sum(self.sizes)
        )

    @cached_property
    def _place(self) -> Tensor:
        """(T,) int64: where each tile stands in a flattened (B, longest) rectangle."""
        shift = torch.arange(len(self), device=self.device) * self.longest - self.starts
        return torch.arange(sum(self.sizes), device=self.device) + shift[self.bag_of_tile]

    def padded(self, values: Tensor, fill: float) -> Tensor:
        """(K, T) -> (K, B, longest), `fill` behind the tiles of the shorter bags."""
        rows = len(values)
        if self._even:
            return values.reshape(rows, len(self), self.longest)
        flat = values.new_full((rows, len(self) * self.longest), fill)
        return flat.index_copy(1, self._place, values).view(rows, len(self), self.longest)

    def packed(self, padded: Tensor) -> Tensor:
        """(K, B, longest) -> (K, T); undoes `padded`."""
        flat = padded.reshape(len(padded), -1)
        return flat if self._even else flat.index_select(1, self._place)

    def softmax(self, scores: Tensor) -> Tensor:
        """Over the tiles of each bag: (K, T) -> (K, T)."""
        return self.packed(self.padded(scores, -torch.inf).softmax(dim=2))

    def pool(self, weights: Tensor, tiles: Tensor) -> Tensor:
        """sum_n w_kn tile_n over the tiles of each bag: (K, T), (T, L) -> (B, K, L)."""
        if len(self) == 1:
            return (weights @ tiles)[None]
        return _pool(weights.to(tiles.dtype), tiles, self.sizes)

    def best_first(self, scores: Tensor, count: int) -> Tensor:
        """Places (K, B, count) within the bag of its best tiles, ties by position; of bags with
        fewer tiles the rest are padding places.

        Sorts `count` tiles and not the bag. Scores of a training gone astray, not a number, are
        worst: what notices such a training is its loss.
        """
        count = min(count, self.longest)
        ranked = self.padded(scores.detach(), -torch.inf)
        ranked = ranked.nan_to_num(nan=-torch.inf, posinf=torch.inf, neginf=-torch.inf)
        if count == 0:
            return torch.empty(*ranked.shape[:2], 0, dtype=torch.int64, device=self.device)
        least = ranked.topk(count, dim=2).values[:, :, -1:]
        better, tied = ranked > least, ranked == least
        first_tied = tied & (tied.cumsum(dim=2) <= count - better.sum(dim=2, keepdim=True))
        best = (better | first_tied).nonzero()[:, 2].view(*ranked.shape[:2], count)
        order = ranked.gather(2, best).argsort(dim=2, descending=True, stable=True)
        return best.gather(2, order)


class _Pool(torch.autograd.Function):
    """Matrix products bag by bag into one tensor each way.

    Slices of an ordinary graph would fill and add one gradient of the whole pack for every bag.
    """

    @staticmethod
    def forward(ctx: Any, weights: Tensor, tiles: Tensor, sizes: tuple[int, ...]) -> Tensor:
        ctx.save_for_backward(weights, tiles)
        ctx.sizes = sizes
        pooled = tiles.new_empty(len(sizes), len(weights), tiles.shape[1])
        for bag, w, x in zip(pooled, weights.split(sizes, dim=1), tiles.split(sizes), strict=True):
            torch.mm(w, x, out=bag)
        return pooled

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        weights, tiles = ctx.saved_tensors
        for_weights, for_tiles = torch.empty_like(weights), torch.empty_like(tiles)
        start = 0
        for size, pooled in zip(ctx.sizes, grad_outputs[0], strict=True):
            mine = slice(start, start + size)
            for_weights[:, mine] = pooled @ tiles[mine].T
            torch.mm(weights[:, mine].T, pooled, out=for_tiles[mine])
            start += size
        return for_weights, for_tiles, None


def _pool(weights: Tensor, tiles: Tensor, sizes: tuple[int, ...]) -> Tensor:
    return _Pool.apply(weights, tiles, sizes)  # pyright: ignore[reportReturnType]
