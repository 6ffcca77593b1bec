"""An instance classifier with prototypes, after INS (Qu et al., 2023, arXiv:2307.02249).

    h_n = act(W1 x_n + b1);  l_n = Wc h_n + bc;  r_n = h_n / |h_n|
    candidates Y_n from the slide label alone: the slide's classes and the negative class
    pseudo-class c_n = argmax over Y_n of l_n
    soft label s_n = phi softmax over Y_n of l_n + (1 - phi) onehot(argmax over Y_n of <r_n, mu_c>)
    after the step: mu_c <- normalised 0.9 mu_c + 0.1 mean of r_n with pseudo-class c
    L = task(mean_n l_n) + mean_n -sum_c s_nc log softmax(l_n)_c;  phi: 0.95 -> 0.8 over training
    answer = mean_n l_n, or the maximum of each output

One head of weight 1 (the bag constraint, on the answer itself), the instance loss as penalty. There
is none where a slide has not one class of several (survival, regression, several labels): what is
left then is the mean of instance answers. While a
candidate of a tile has no prototype yet, the tile's second term is even over its candidates.
What is not INS: the tile encoder is frozen, and without augmented views of a tile there can be no
contrastive term; so prototypes lie in the embedding, not in its projection. Nothing is remembered
of single tiles between epochs: INS's soft label is a moving average of its second term, here the
classifier's own present belief stands for the past. Prototypes move once a step, not once a tile.
Differs from the published code: the labels of tiles, which it takes after warm-up, are never used.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional

from mil.models.base import BagOutput, Bags, MilMethod, Step, TrainingOutput
from mil.models.layers import Activation, Embedding, Initialisation, initialise_xavier
from mil.models.pooling import Pooling, pool, pooled_answer
from preprocessing.errors import ConfigError


class Ins(MilMethod):
    prototypes: Tensor

    def __init__(
        self,
        dim: int,
        outputs: int,
        *,
        classes: tuple[str, ...],
        negative: str | None,
        pooling: Pooling,
        hidden_dim: int,
        instance_weight: float,
        prototype_momentum: float,
        belief_start: float,
        belief_end: float,
        activation: Activation,
        dropout: float,
        initialisation: Initialisation,
    ) -> None:
        """`classes`: names of the outputs where they exclude one another, else empty. `negative`:
        the one of normal tiles; None: a tile has its slide's class.
        """
        super().__init__()
        if classes and negative is not None and negative not in classes:
            raise ConfigError(
                f"negative: {negative!r} is none of the task's classes {', '.join(classes)}; name "
                "the one that stands for normal tissue, or leave it out"
            )
        self.embedding = Embedding(
            dim, hidden_dim, bias=True, activation=activation, dropout=dropout
        )
        self.classifier = nn.Linear(hidden_dim, outputs)
        self.register_buffer("prototypes", torch.zeros(outputs, hidden_dim))
        self._of_step: list[tuple[Tensor, Tensor]] = []
        self.has_classes = bool(classes)
        self.negative = classes.index(negative) if classes and negative is not None else None
        self.pooling: Pooling = pooling
        self.instance_weight = instance_weight
        self.prototype_momentum = prototype_momentum
        self.belief_start = belief_start
        self.belief_end = belief_end
        if initialisation == "xavier":
            initialise_xavier(self)

    def forward(self, bag: Tensor) -> BagOutput:
        return pooled_answer(self.tile_logits(bag), self.pooling)

    def training_output(self, bags: Bags, step: Step) -> TrainingOutput:
        embedded = self.embedding(bags.tiles)
        instances = self.classifier(embedded)
        answers = pool(instances, bags.segments, self.pooling)
        if bags.labels is None or not self.has_classes:
            return TrainingOutput.one_head(answers)
        candidates = self.candidates(bags.labels)[bags.segments.bag_of_tile]
        with torch.no_grad():
            unit = functional.normalize(embedded.to(self.prototypes.dtype), dim=1)
            target = self.soft_labels(instances, unit, candidates, phi=self.phi_at(step))
            self._collect(instances, unit, candidates)
        losses = -(target * instances.log_softmax(dim=1)).sum(dim=1, keepdim=True)
        penalty = self.instance_weight * pool(losses, bags.segments, "mean")[:, 0]
        return TrainingOutput.one_head(answers, penalty)

    def phi_at(self, step: Step) -> float:
        """How much of a soft label is the classifier's belief, the rest being the prototypes'."""
        return self.belief_start + (self.belief_end - self.belief_start) * step.index / step.total

    def candidates(self, labels: Tensor) -> Tensor:
        """The classes that a bag's tiles may have, (B, outputs) bool as `labels` are."""
        possible = labels.clone()
        if self.negative is not None:
            possible[:, self.negative] = True
        return possible

    def soft_labels(
        self, instances: Tensor, unit: Tensor, candidates: Tensor, *, phi: float
    ) -> Tensor:
        """(T, outputs): of logits, unit embeddings (T, hidden) and candidates (T, outputs)."""
        belief = instances.masked_fill(~candidates, -torch.inf).softmax(dim=1)
        nearness = (unit @ self.prototypes.T).masked_fill(~candidates, -torch.inf)
        nearest = functional.one_hot(nearness.argmax(dim=1), nearness.shape[1]).to(belief.dtype)
        even = candidates.to(belief.dtype) / candidates.sum(dim=1, keepdim=True)
        known = (self.prototypes.any(dim=1) | ~candidates).all(dim=1, keepdim=True)
        return phi * belief + (1 - phi) * torch.where(known, nearest, even)

    def _collect(self, instances: Tensor, unit: Tensor, candidates: Tensor) -> None:
        """Keeps what the prototypes will move by: a step may come in several packs."""
        pseudo = instances.masked_fill(~candidates, -torch.inf).argmax(dim=1)
        members = functional.one_hot(pseudo, instances.shape[1]).to(unit.dtype)
        with torch.autocast(unit.device.type, enabled=False):
            self._of_step.append((members.T @ unit, members.sum(dim=0)))

    @torch.no_grad()
    def after_update(self, step: Step) -> None:  # noqa: ARG002 - the same at every step
        if not self._of_step:
            return
        sums, counts = (torch.stack(parts).sum(dim=0) for parts in zip(*self._of_step, strict=True))
        self._of_step = []
        mean = sums / counts.clamp(min=1)[:, None]
        moved = self.prototype_momentum * self.prototypes + (1 - self.prototype_momentum) * mean
        moved = functional.normalize(moved, dim=1)
        self.prototypes.copy_(torch.where(counts[:, None] > 0, moved, self.prototypes))

    def tile_logits(self, bag: Tensor) -> Tensor:
        return self.classifier(self.embedding(bag))
