"""ABMIL: attention-based MIL (Ilse et al., ICML 2018, arXiv:1802.04712).

    h_n = act(W1 x_n);  s_n = score(h_n);  a = softmax_N(s);  z = sum_n a_n h_n;  logits = Wc z + bc

The three forms of `score` stand in `layers`. One head of weight 1, no penalty.
Differs from the paper: an embedding layer stands before the attention, as in CLAM and ACMIL.
"""

from torch import Tensor, nn

from mil.models.base import BagOutput, Bags, Step, TrainingOutput
from mil.models.layers import (
    Activation,
    AttentionScores,
    Embedding,
    Initialisation,
    Scoring,
    attention_pool,
    initialise_xavier,
)
from mil.models.maskable import Encoded, MaskableMethod
from mil.models.segments import Segments


class Abmil(MaskableMethod):
    def __init__(
        self,
        dim: int,
        outputs: int,
        *,
        hidden_dim: int,
        attention_dim: int,
        scoring: Scoring,
        activation: Activation,
        embedding_bias: bool,
        attention_bias: bool,
        dropout: float,
        initialisation: Initialisation,
    ) -> None:
        super().__init__()
        self.embedding = Embedding(
            dim, hidden_dim, bias=embedding_bias, activation=activation, dropout=dropout
        )
        self.attention = AttentionScores(
            hidden_dim, attention_dim, branches=1, scoring=scoring, bias=attention_bias
        )
        self.classifier = nn.Linear(hidden_dim, outputs)
        if initialisation == "xavier":
            initialise_xavier(self)

    def forward(self, bag: Tensor) -> BagOutput:
        embedded = self.embedding(bag)
        pooled = attention_pool(self.attention(embedded), embedded, Segments.one(bag))
        return BagOutput(
            logits=self.classifier(pooled.features[0, 0]),
            scores=pooled.scores,
            attention=pooled.attention[0],
        )

    def training_output(self, bags: Bags, step: Step) -> TrainingOutput:  # noqa: ARG002 - no schedule
        return self.encode(self.embedding(bags.tiles), bags.segments).output

    def encode(self, embedded: Tensor, segments: Segments) -> Encoded:
        """Hard tiles are those of high attention; a tile adds a_n h_n to the bag vector."""
        pooled = attention_pool(self.attention(embedded), embedded, segments)
        return Encoded(
            output=TrainingOutput.one_head(self.classifier(pooled.features[:, 0])),
            features=pooled.features,
            hardness=lambda: pooled.attention,
            contributions=lambda: pooled.attention.T * (embedded @ self.classifier.weight.T),
        )

    def tile_logits(self, bag: Tensor) -> Tensor:
        """A one-tile bag has attention 1, so the classifier reads the embedded tile itself."""
        return self.classifier(self.embedding(bag))
