"""ABMIL: attention-based MIL (Ilse et al., ICML 2018, arXiv:1802.04712).

    h_n = act(W1 x_n);  s_n = score(h_n);  a = softmax_N(s);  z = sum_n a_n h_n;  logits = Wc z + bc

The three forms of `score` stand in `layers`. One head of weight 1, no penalty.
Differs from the paper: an embedding layer stands before the attention, as in CLAM and ACMIL.
"""

from torch import Tensor, nn

from mil.models.base import BagOutput, MilMethod, Step, TrainingOutput
from mil.models.layers import (
    Activation,
    AttentionScores,
    Embedding,
    Initialisation,
    Pooled,
    Scoring,
    attention_pool,
    initialise_xavier,
)


class Abmil(MilMethod):
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

    def pooled(self, bag: Tensor) -> Pooled:
        """Scores, attention and the bag vector of a bag (tiles, dim), as one branch."""
        embedded = self.embedding(bag)
        return attention_pool(self.attention(embedded), embedded)

    def forward(self, bag: Tensor) -> BagOutput:
        pooled = self.pooled(bag)
        return BagOutput(
            logits=self.classifier(pooled.features)[0],
            scores=pooled.scores,
            attention=pooled.attention[0],
        )

    def training_output(self, bag: Tensor, step: Step) -> TrainingOutput:  # noqa: ARG002 - no schedule
        logits = self.classifier(self.pooled(bag).features)
        return TrainingOutput(
            heads=logits, weights=logits.new_ones(1), penalty=logits.new_zeros(())
        )

    def tile_logits(self, bag: Tensor) -> Tensor:
        """A one-tile bag has attention 1, so the classifier reads the embedded tile itself."""
        return self.classifier(self.embedding(bag))
