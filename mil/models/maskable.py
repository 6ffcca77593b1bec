"""What MHIM asks of a model that it masks: an embedding, and an encoder of embedded tiles."""

from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass

from torch import Tensor

from mil.models.base import MilMethod, TrainingOutput
from mil.models.layers import Embedding
from mil.models.segments import Segments


@dataclass(frozen=True)
class Encoded:
    """What an encoder makes of bags of T embedded tiles in all.

    `output`: heads and weights, without penalty. `features` (bags, rows, hidden): the bag vectors.
    What only a teacher is asked is a function: `hardness()` (votes, T), higher is harder to do
    without, every row ranks the tiles by itself; `contributions()` (T, outputs), class logits,
    without bias, of what each tile adds to the bag.
    """

    output: TrainingOutput
    features: Tensor
    hardness: Callable[[], Tensor]
    contributions: Callable[[], Tensor]


class MaskableMethod(MilMethod):
    embedding: Embedding

    @abstractmethod
    def encode(self, embedded: Tensor, segments: Segments) -> Encoded:
        """Reads embedded tiles (T, hidden); in training mode with dropout, but never masks."""
