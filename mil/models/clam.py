"""CLAM: clustering-constrained attention MIL (Lu et al., Nat. Biomed. Eng. 2021, arXiv:2004.09666).

    h_n = ReLU(W1 x_n + b1);  s_n = Wa (tanh(Va h_n) * sigmoid(Ua h_n));  a = softmax_N(s)
    SB, one branch:             logits   = Wc (sum_n a_n h_n) + bc
    MB, a branch per output c:  logits_c = wc (sum_n a_cn h_n) + bc
    instance loss of a class c that the bag has, with the branch of c (SB: the branch):
        the k' tiles of highest s have pseudo-label 1, the k' of lowest 0;  k' = min(k, N)
        p = W_c h + b_c, (2k', 2);  L_c = mean of l(p, pseudo-label)
    subtyping: of a class that the bag has not, the k' tiles of highest s have pseudo-label 0
    L = 0.7 task(logits) + 0.3 sum_c L_c           subtyping: the mean over all classes
    svm: l(p, y) = tau log sum_j exp((alpha [j != y] + p_j - p_y) / tau), tau = alpha = 1
         (smooth top-1 SVM, Berrada et al., ICLR 2018, eq. 8 for k = 1);  or cross-entropy

One head of weight 0.7, the instance loss as penalty. A bag of N < 2k tiles has some tiles among the
highest and among the lowest, with both pseudo-labels, as published; N < k stops published code.
Without classes (survival, regression) no tile has a pseudo-label: the head's weight is 1 and the
penalty 0. A bag with several classes (multi-label) sums over all of them.
"""

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.models.base import BagOutput, Bags, MilMethod, Step, TrainingOutput
from mil.models.layers import (
    Activation,
    AttentionScores,
    Embedding,
    Initialisation,
    attention_pool,
    initialise_xavier,
)
from mil.models.segments import Segments

InstanceLoss = Literal["svm", "cross_entropy"]


def instance_losses(logits: Tensor, kind: InstanceLoss) -> Tensor:
    """(..., 2) -> (..., 2): what each tile would lose under pseudo-label 0 and under 1."""
    if kind == "cross_entropy":
        return -logits.log_softmax(dim=-1)
    return functional.softplus(1 + logits.flip(-1) - logits)


class Clam(MilMethod):
    def __init__(
        self,
        dim: int,
        outputs: int,
        *,
        multi_branch: bool,
        hidden_dim: int,
        attention_dim: int,
        instances: int,
        instance_loss: InstanceLoss,
        subtyping: bool,
        bag_weight: float,
        activation: Activation,
        dropout: float,
        initialisation: Initialisation,
    ) -> None:
        super().__init__()
        branches = outputs if multi_branch else 1
        self.embedding = Embedding(
            dim, hidden_dim, bias=True, activation=activation, dropout=dropout
        )
        self.attention = AttentionScores(
            hidden_dim,
            attention_dim,
            branches=branches,
            scoring="gated",
            bias=True,
            dropout=dropout,
        )
        self.classifiers = nn.ModuleList(
            nn.Linear(hidden_dim, outputs // branches) for _ in range(branches)
        )
        self.instance_classifiers = nn.ModuleList(nn.Linear(hidden_dim, 2) for _ in range(outputs))
        self.instances = instances
        self.instance_loss: InstanceLoss = instance_loss
        self.subtyping = subtyping
        self.bag_weight = bag_weight
        if initialisation == "xavier":
            initialise_xavier(self)

    def forward(self, bag: Tensor) -> BagOutput:
        embedded = self.embedding(bag)
        pooled = attention_pool(self.attention(embedded), embedded, Segments.one(bag))
        return BagOutput(
            logits=self._logits(pooled.features)[0],
            scores=pooled.scores,
            attention=pooled.attention.mean(dim=0),
        )

    def training_output(self, bags: Bags, step: Step) -> TrainingOutput:  # noqa: ARG002 - no schedule
        embedded = self.embedding(bags.tiles)
        pooled = attention_pool(self.attention(embedded), embedded, bags.segments)
        logits = self._logits(pooled.features)
        if bags.labels is None:
            return TrainingOutput.one_head(logits)
        clustering = self._clustering_loss(embedded, pooled.scores, bags.segments, bags.labels)
        return TrainingOutput(
            heads=logits[None],
            weights=logits.new_full((1,), self.bag_weight),
            penalty=(1 - self.bag_weight) * clustering,
        )

    def tile_logits(self, bag: Tensor) -> Tensor:
        """In a one-tile bag all attention is 1, so that every branch reads the embedded tile."""
        return self._logits(self.embedding(bag)[:, None].expand(-1, len(self.classifiers), -1))

    def _logits(self, features: Tensor) -> Tensor:
        """(B, branches, hidden) -> (B, outputs)"""
        of_branches = [
            classifier(features[:, branch]) for branch, classifier in enumerate(self.classifiers)
        ]
        return torch.cat(of_branches, dim=1)

    def _clustering_loss(
        self, embedded: Tensor, scores: Tensor, segments: Segments, labels: Tensor
    ) -> Tensor:
        """(B,): of embedded tiles (T, hidden), scores (branches, T), labels (B, outputs)."""
        k = min(self.instances, segments.longest)
        ends = torch.stack([segments.best_first(s, k) for s in (scores, -scores)])
        places = (segments.starts[:, None] + ends).clamp(max=len(embedded) - 1)
        losses = instance_losses(self._instance_logits(embedded[places]), self.instance_loss)
        exists = torch.arange(k, device=places.device) < segments.lengths[:, None]
        share = exists.to(losses.dtype) / exists.sum(dim=1, keepdim=True)  # 1/k', k' times
        highest, lowest = (losses * share[:, :, None]).sum(dim=3)  # (C, B, 2) each
        inside = (highest[:, :, 1] + lowest[:, :, 0]) / 2
        outside = highest[:, :, 0] if self.subtyping else torch.zeros_like(inside)
        of_classes = torch.where(labels.T, inside, outside)
        return of_classes.mean(dim=0) if self.subtyping else of_classes.sum(dim=0)

    def _instance_logits(self, tiles: Tensor) -> Tensor:
        """The two logits that each class has for its tiles.

        (2, branches, B, k, hidden) -> (2, outputs, B, k, 2)
        """
        of_classes = tiles.expand(-1, len(self.instance_classifiers), -1, -1, -1).unbind(1)
        pairs = zip(self.instance_classifiers, of_classes, strict=True)
        return torch.stack([classifier(of_class) for classifier, of_class in pairs], dim=1)
