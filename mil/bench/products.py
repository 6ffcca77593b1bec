"""The matrix products that one training step of a method cannot do without, and nothing else.

    embed       H = X W^T         dW = dH^T X (features need no gradient)
    attention   P = H [V; U]^T    dH = dP [V; U], d[V; U] = dP^T H
                S = P' w^T        dP' = dS^T w, dw = dS P'
    pool        Z = A H           dA = G H^T, dH = A^T G

Each is one call into memory that is already there: their time is the limit of a step.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Widths:
    dim: int
    hidden: int
    attention: int
    gates: int
    """2 where V and U gate each other, 1 where there is V alone."""
    branches: int


Product = tuple[Tensor, Tensor, Tensor]
"""a, b, and where a @ b goes."""


def forward_products(tiles: int, widths: Widths, device: torch.device) -> list[Product]:
    n, w = tiles, widths
    projected = w.attention * w.gates
    shapes = [
        (n, w.dim, w.hidden),
        (n, w.hidden, projected),
        (n, w.attention, w.branches),
        (w.branches, n, w.hidden),
    ]
    return [_product(*shape, device) for shape in shapes]


def backward_products(tiles: int, widths: Widths, device: torch.device) -> list[Product]:
    n, w = tiles, widths
    projected = w.attention * w.gates
    shapes = [
        (w.branches, w.hidden, n),
        (n, w.branches, w.hidden),
        (n, w.branches, w.attention),
        (w.branches, n, w.attention),
        (n, projected, w.hidden),
        (projected, n, w.hidden),
        (w.hidden, n, w.dim),
    ]
    return [_product(*shape, device) for shape in shapes]


def step_products(
    tiles: int, kept: int | None, widths: Widths, device: torch.device
) -> list[Product]:
    """Of one step; `kept`: what the student of a teacher reads, None without a teacher."""
    trained = tiles if kept is None else kept
    products = forward_products(trained, widths, device)
    products += backward_products(trained, widths, device)
    return products if kept is None else products + forward_products(tiles, widths, device)


def bare_products(
    tiles: int, kept: int | None, widths: Widths, device: torch.device
) -> Callable[[], None]:
    """Runs a step's products."""
    products = step_products(tiles, kept, widths, device)

    def run() -> None:
        for a, b, out in products:
            torch.mm(a, b, out=out)

    return run


def flops(tiles: int, kept: int | None, widths: Widths) -> int:
    """Multiplications and additions of a step's products."""
    products = step_products(tiles, kept, widths, torch.device("meta"))
    return sum(2 * a.shape[0] * a.shape[1] * b.shape[1] for a, b, _ in products)


def _product(rows: int, inner: int, columns: int, device: torch.device) -> Product:
    return (
        torch.randn(rows, inner, device=device),
        torch.randn(inner, columns, device=device),
        torch.empty(rows, columns, device=device),
    )
