"""TransMIL: correlated MIL with a transformer (Shao et al., NeurIPS 2021, arXiv:2106.00908).

    x_n = ReLU(W1 t_n + b1);  X = [cls; x_1 .. x_N]
    X = X + A1(LN X);  X = [cls; PPEG(x_1 .. x_N)];  X = X + A2(LN X);  logits = Wc LN(X)_cls + bc

A1, A2: Nystrom attention (mil.models.nystrom) with 8 heads and hidden/2 landmarks. PPEG lays the
tiles row by row on a square of side ceil(sqrt N), filled up with the first tiles (and, if smaller
than 7 x 7, with zeros to that many in rows of 7), and adds convolutions by channel:
    PPEG(X) = X + conv7(X) + conv5(X) + conv3(X)
One head of weight 1, no penalty. The order of tiles matters.
Differs from the published code, as MHIM-MIL's form does: dropout follows the embedding, and the
square is filled up in PPEG alone, so that no tile is attended to twice. Differs from both: the
three convolutions are one with the sum of their kernels; after A2 only the class token is computed.
"""

import math
from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.models.base import BagOutput, Bags, Step, TrainingOutput
from mil.models.layers import Activation, Embedding, Initialisation, initialise_xavier
from mil.models.maskable import Encoded, MaskableMethod
from mil.models.nystrom import Factors, NystromAttention
from mil.models.segments import Segments

HEADS = 8
SMALLEST_SIDE = 7
TILES_AT_ONCE = 4096


class Ppeg(nn.Module):
    """The pyramid position encoding generator."""

    def __init__(self, hidden_dim: int) -> None:
        super().__init__()
        self.conv7, self.conv5, self.conv3 = (
            nn.Conv2d(hidden_dim, hidden_dim, side, groups=hidden_dim) for side in (7, 5, 3)
        )

    def forward(self, tiles: Tensor) -> Tensor:
        """(tiles, hidden) -> (tiles, hidden)"""
        count = len(tiles)
        root = math.isqrt(count - 1) + 1
        side = max(root, SMALLEST_SIDE)
        square = torch.cat([tiles, tiles[: root**2 - count]])
        square = functional.pad(square, (0, 0, 0, side**2 - root**2)).T.unflatten(1, (side, side))
        weight, bias = self._kernel()
        encoded = functional.conv2d(square, weight, bias, padding=3, groups=len(weight))
        return tiles + encoded.flatten(1)[:, :count].T

    def of_lone_tiles(self, tiles: Tensor) -> Tensor:
        """`forward` of every single tile: (n, hidden); zeros surround it."""
        weight, bias = self._kernel()
        return tiles + tiles * weight[:, 0, 3, 3] + bias

    def _kernel(self) -> tuple[Tensor, Tensor]:
        """The sum of the three kernels, (hidden, 1, 7, 7), and of their biases (hidden,)."""
        five = functional.pad(self.conv5.weight, (1, 1, 1, 1))
        three = functional.pad(self.conv3.weight, (2, 2, 2, 2))
        layers = (self.conv7, self.conv5, self.conv3)
        biases = torch.stack([layer.get_parameter("bias") for layer in layers])
        return self.conv7.weight + five + three, biases.sum(dim=0)


class TransMil(MaskableMethod):
    def __init__(
        self,
        dim: int,
        outputs: int,
        *,
        hidden_dim: int,
        activation: Activation,
        dropout: float,
        attention_dropout: float,
        initialisation: Initialisation,
    ) -> None:
        super().__init__()
        if hidden_dim % HEADS:
            raise ValueError(
                f"expected a hidden_dim that {HEADS} heads can share, got {hidden_dim}: choose a "
                f"multiple of {HEADS}"
            )
        self.embedding = Embedding(
            dim, hidden_dim, bias=True, activation=activation, dropout=dropout
        )
        self.class_token = nn.Parameter(torch.randn(1, hidden_dim))
        self.norm1, self.norm2, self.norm = (nn.LayerNorm(hidden_dim) for _ in range(3))
        self.attention1, self.attention2 = (
            NystromAttention(
                hidden_dim, heads=HEADS, landmarks=hidden_dim // 2, dropout=attention_dropout
            )
            for _ in range(2)
        )
        self.ppeg = Ppeg(hidden_dim)
        self.classifier = nn.Linear(hidden_dim, outputs)
        if initialisation == "xavier":
            initialise_xavier(self)

    def forward(self, bag: Tensor) -> BagOutput:
        """`scores` (8, tiles): what the class token attends to in A1, head by head.

        They may be negative and do not sum to 1. `attention` is their mean over heads, 0 where that
        is negative, divided by its sum; 1/N where no mean is positive.
        """
        features, factors = self._read(self.embedding(bag))
        scores = factors.weights_of_first()[:, 1:]
        positive = scores.mean(dim=0).clamp(min=0)
        total = positive.sum()
        attention = torch.where(total > 0, positive / total, 1 / len(bag))
        return BagOutput(self.classifier(features), scores=scores, attention=attention)

    def training_output(self, bags: Bags, step: Step) -> TrainingOutput:  # noqa: ARG002 - no schedule
        tiles = self.embedding(bags.tiles).split(bags.segments.sizes)
        features = torch.stack([self._read(of_bag)[0] for of_bag in tiles])
        return TrainingOutput.one_head(self.classifier(features))

    def encode(self, embedded: Tensor, segments: Segments) -> Encoded:
        """Hard tiles are those that the class token attends to in A1, every head has a vote.

        A tile adds attention x value to each head; contributions send that through Wo (bias and
        dropout included, as published) to the classifier.
        """
        reads = [self._read(of_bag) for of_bag in embedded.split(segments.sizes)]
        features = torch.stack([of_bag for of_bag, _ in reads])
        factors = [of_bag for _, of_bag in reads]

        def hardness() -> Tensor:
            return torch.cat([of_bag.weights_of_first()[:, 1:] for of_bag in factors], dim=1)

        return Encoded(
            output=TrainingOutput.one_head(self.classifier(features)),
            features=features[:, None],
            hardness=hardness,
            contributions=lambda: self._contributions(hardness(), factors),
        )

    def tile_logits(self, bag: Tensor) -> Tensor:
        """A lone tile stands next to the class token and the padding, in A1 and in A2.

        That padding, hidden/2 - 2 zeros, has most of the attention, which draws these answers
        together: they rank tiles, but tell less of one than the same tile does in its bag.
        """
        chunks = self.embedding(bag).split(TILES_AT_ONCE)
        return torch.cat([self._lone_tiles(of_chunk) for of_chunk in chunks])

    def _read(self, embedded: Tensor) -> tuple[Tensor, Factors]:
        """The bag vector (hidden,) of embedded tiles (tiles, hidden), and the factors of A1."""
        tokens = torch.cat([self.class_token.to(embedded.dtype), embedded])
        attended, factors = self.attention1(self.norm1(tokens))
        tokens = tokens + attended
        tokens = torch.cat([tokens[:1], self.ppeg(tokens[1:])])
        attended, _ = self.attention2(self.norm2(tokens), first_only=True)
        return self.norm(tokens[0] + attended[0]), factors

    def _lone_tiles(self, embedded: Tensor) -> Tensor:
        """Logits (n, outputs) of n one-tile bags."""
        tokens = torch.stack([self.class_token.expand_as(embedded), embedded], dim=1)
        tokens = tokens + self.attention1.of_pairs(self.norm1(tokens))
        tile = self.ppeg.of_lone_tiles(tokens[:, 1])
        tokens = torch.stack([tokens[:, 0], tile], dim=1)
        attended = self.attention2.of_pairs(self.norm2(tokens))
        return self.classifier(self.norm(tokens[:, 0] + attended[:, 0]))

    def _contributions(self, hardness: Tensor, factors: Sequence[Factors]) -> Tensor:
        """(T, outputs)"""
        values = torch.cat([of_bag.v[:, of_bag.first + 1 :] for of_bag in factors], dim=1)
        weighted = hardness[:, :, None].to(values.dtype) * values
        by_tile = self.attention1.out(weighted.transpose(0, 1).flatten(1))
        return functional.linear(by_tile, self.classifier.weight)
