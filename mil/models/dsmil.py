"""DSMIL: dual-stream MIL (Li et al., CVPR 2021, arXiv:2011.08939).

    h_n = ReLU(W1 x_n + b1);  c_n = W0 h_n + b0                       first stream: instance logits
    m_c = argmax_n c_nc                                               critical tile of class c
    q_n = tanh(W3 ReLU(W2 h_n + b2) + b3);  v_n = ReLU(Wv h_n + bv)
    s_nc = <q_n, q_(m_c)> / sqrt(128);  a = softmax_N(s)
    B_c = sum_n a_nc v_n                                              second stream: (C, hidden)
    bag logits = conv(B) = sum_c' <W_cc', B_c'> + b_c
    L = 1/2 task(max_n c_n) + 1/2 task(bag logits)

Two heads of weight 1/2, no penalty. The choice of m_c has no gradient, its query and its logit do.
Differs from the published code: the answer is the mean of both heads' logits, thus the normalised
geometric mean of their two softmaxes, where published code takes the softmaxes' mean: that has no
meaning for a hazard or a risk. As in MHIM-MIL, a trained embedding comes before the two streams; of
equal instance logits the first is critical.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mil.models.base import BagOutput, Bags, Step, TrainingOutput
from mil.models.layers import Activation, Embedding, Initialisation, initialise_xavier
from mil.models.maskable import Encoded, MaskableMethod
from mil.models.pooling import first_maxima
from mil.models.segments import Segments


@dataclass(frozen=True)
class Streams:
    """`instances` (T, C) logits, `maxima` (B, C) the critical tiles' own, `scores` (C, T) and
    `attention` (C, T) of the second stream, its bag vectors `features` (B, C, hidden).
    """

    instances: Tensor
    maxima: Tensor
    scores: Tensor
    attention: Tensor
    features: Tensor


class Dsmil(MaskableMethod):
    def __init__(
        self,
        dim: int,
        outputs: int,
        *,
        hidden_dim: int,
        query_dim: int,
        activation: Activation,
        dropout: float,
        initialisation: Initialisation,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(
            dim, hidden_dim, bias=True, activation=activation, dropout=dropout
        )
        self.instance_classifier = nn.Linear(hidden_dim, outputs)
        self.query = nn.Sequential(
            nn.Linear(hidden_dim, query_dim), nn.ReLU(), nn.Linear(query_dim, query_dim), nn.Tanh()
        )
        self.value = nn.Sequential(nn.Linear(hidden_dim, hidden_dim), nn.ReLU())
        self.bag_classifier = nn.Conv1d(outputs, outputs, kernel_size=hidden_dim)
        if initialisation == "xavier":
            initialise_xavier(self)

    def forward(self, bag: Tensor) -> BagOutput:
        streams = self._streams(self.embedding(bag), Segments.one(bag))
        return BagOutput(
            logits=self._heads(streams).mean(dim=0)[0],
            scores=streams.scores,
            attention=streams.attention.mean(dim=0),
        )

    def training_output(self, bags: Bags, step: Step) -> TrainingOutput:  # noqa: ARG002 - no schedule
        return self.encode(self.embedding(bags.tiles), bags.segments).output

    def encode(self, embedded: Tensor, segments: Segments) -> Encoded:
        """Hard tiles are those with a high instance logit of any class."""
        streams = self._streams(embedded, segments)
        heads = self._heads(streams)
        bias = self.instance_classifier.bias
        return Encoded(
            output=TrainingOutput(
                heads=heads,
                weights=heads.new_full((2,), 0.5),
                penalty=heads.new_zeros(len(segments)),
            ),
            features=streams.features,
            hardness=lambda: streams.instances.amax(dim=1)[None],
            contributions=lambda: streams.instances - bias,
        )

    def tile_logits(self, bag: Tensor) -> Tensor:
        """In a one-tile bag the tile is critical, and every class attends to it alone: B_c = v."""
        embedded = self.embedding(bag)
        conv = self.bag_classifier
        bag_logits = nn.functional.linear(self.value(embedded), conv.weight.sum(dim=1), conv.bias)
        return (self.instance_classifier(embedded) + bag_logits) / 2

    def _heads(self, streams: Streams) -> Tensor:
        """(2, B, C): of the bag, and of its critical tiles."""
        return torch.stack([self.bag_classifier(streams.features)[:, :, 0], streams.maxima])

    def _streams(self, embedded: Tensor, segments: Segments) -> Streams:
        instances = self.instance_classifier(embedded)
        critical = first_maxima(instances.T, segments)
        query = self.query(embedded)
        pairs = zip(query[critical.T], query.split(segments.sizes), strict=True)
        scores = torch.cat([of_bag @ of_tiles.T for of_bag, of_tiles in pairs], dim=1)
        scores = scores / math.sqrt(query.shape[1])
        attention = segments.softmax(scores)
        return Streams(
            instances=instances,
            maxima=instances.T.gather(1, critical).T,
            scores=scores,
            attention=attention,
            features=segments.pool(attention, self.value(embedded)),
        )
