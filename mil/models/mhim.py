"""MHIM-MIL v1 with an ABMIL base (Tang et al., ICCV 2023, arXiv:2307.15254).

    teacher (no gradient): F_t, a_t = bag vector and attention of the whole bag
    masked = random(beta_r) | lowest(beta_l) of a_t | part of highest(beta_h(t)) of a_t
    student on the kept tiles: F_s, logits
    L = task(logits) + alpha * -sum_d softmax(F_t / 0.1)_d log softmax(F_s / 1.0)_d    d: features
    after the step: theta_t <- m theta_t + (1 - m) theta_s

A plain base model is trained first; the teacher starts with all its weights, the student with those
of its embedding alone. Inference is the student on the whole bag.
Differs from the published code: the teacher's dropout is off unless asked for (untrained, two
passes with it share a quarter of their hardest tiles); kept tiles stay in the bag's order; a bag is
never masked whole: its best tile stays; the student embeds kept tiles alone, to the same values.
"""

import copy
import math
from dataclasses import dataclass
from typing import Literal, Self

import torch
from torch import Tensor

from mil.models.abmil import Abmil
from mil.models.base import BagOutput, MilMethod, Step, TrainingOutput

Schedule = Literal["constant", "cosine"]


def cosine_schedule(start: float, end: float, *, index: int, total: int) -> float:
    """Half a cosine from `start` at index 0 towards `end`, which index = total would reach."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * index / total))


@dataclass(frozen=True)
class MaskRules:
    """Shares of a bag's tiles that each rule masks, every count being taken on the whole bag.

    `high_share` (hr in the paper's code): the ceil(N high / high_share) hardest tiles are
    candidates, and this share of them, drawn at random, is masked.
    """

    random: float
    low: float
    high: float
    high_share: float

    def high_candidates(self, tiles: int) -> int:
        return math.ceil(tiles * min(self.high / self.high_share, 1.0))

    def high_masked(self, tiles: int) -> int:
        """If candidates would exceed the bag, all tiles are candidates and `high` is the share."""
        share = max(self.high_share, self.high)
        candidates = self.high_candidates(tiles)
        return candidates if share >= 1 else math.ceil(share * candidates)


@dataclass(frozen=True)
class MaskDraws:
    """Permutations whose first entries are masked: `random` of all ranks, the lowest score having
    rank 0; `high` of the candidates' ranks, the highest score having rank 0.
    """

    random: Tensor
    high: Tensor

    @classmethod
    def draw(cls, tiles: int, rules: MaskRules, generator: torch.Generator) -> Self:
        device = generator.device
        high = rules.high_candidates(tiles)
        return cls(
            random=torch.randperm(tiles, generator=generator, device=device),
            high=torch.randperm(high, generator=generator, device=device),
        )


def hard_tile_mask(scores: Tensor, rules: MaskRules, draws: MaskDraws) -> Tensor:
    """True (tiles,) where the student must do without; `scores` (tiles,), ties by position.

    Never the whole bag: if the rules together would take it, the tile with the best score stays.
    """
    tiles = len(scores)
    lowest_first = scores.argsort(stable=True)
    highest_first = scores.argsort(descending=True, stable=True)
    at_random = draws.random.to(scores.device)[: math.ceil(tiles * rules.random)]
    hard = draws.high.to(scores.device)[: rules.high_masked(tiles)]
    masked = torch.zeros(tiles, dtype=torch.bool, device=scores.device)
    masked[lowest_first[at_random]] = True
    masked[lowest_first[: math.ceil(tiles * rules.low)]] = True
    masked[highest_first[hard]] = True
    if masked.all():
        masked[highest_first[0]] = False
    return masked


def consistency_loss(
    student: Tensor, teacher: Tensor, *, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Cross-entropy between the softmaxed features of two bag vectors (hidden,); no centring."""
    target = (teacher / teacher_temperature).softmax(dim=-1)
    return -(target * (student / student_temperature).log_softmax(dim=-1)).sum()


class Mhim(MilMethod):
    """`model` becomes the student; the teacher starts as its copy, until `adopt`.

    The teacher's weights are parameters without gradient, so that checkpoints hold them.
    """

    def __init__(
        self,
        model: Abmil,
        *,
        rules: MaskRules,
        high_schedule: Schedule,
        consistency_weight: float,
        student_temperature: float,
        teacher_temperature: float,
        momentum: float,
        momentum_schedule: Schedule,
        teacher_dropout: bool,
    ) -> None:
        super().__init__()
        self.student = model
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.rules = rules
        self.high_schedule: Schedule = high_schedule
        self.consistency_weight = consistency_weight
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.momentum = momentum
        self.momentum_schedule: Schedule = momentum_schedule
        self.teacher_dropout = teacher_dropout
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.train(mode and self.teacher_dropout)
        return self

    def forward(self, bag: Tensor) -> BagOutput:
        return self.student(bag)

    def training_output(self, bag: Tensor, step: Step) -> TrainingOutput:
        rules = self.rules_at(step.index, step.total)
        return self.masked_output(bag, rules, MaskDraws.draw(len(bag), rules, step.generator))

    def rules_at(self, index: int, total: int) -> MaskRules:
        """The mask rules of one step: the share of hard tiles may decay to zero."""
        if self.high_schedule == "constant":
            return self.rules
        high = cosine_schedule(self.rules.high, 0.0, index=index, total=total)
        return MaskRules(self.rules.random, self.rules.low, high, self.rules.high_share)

    def momentum_at(self, index: int, total: int) -> float:
        """The teacher's momentum of one step: it may rise to 1."""
        if self.momentum_schedule == "constant":
            return self.momentum
        return cosine_schedule(self.momentum, 1.0, index=index, total=total)

    def masked_output(self, bag: Tensor, rules: MaskRules, draws: MaskDraws) -> TrainingOutput:
        """`training_output` under given rules and draws."""
        with torch.no_grad():
            teacher = self.teacher.pooled(bag)
        masked = hard_tile_mask(teacher.attention[0], rules, draws)
        student = self.student.pooled(bag[~masked])
        heads = self.student.classifier(student.features)
        consistency = consistency_loss(
            student.features[0],
            teacher.features[0],
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
        )
        return TrainingOutput(
            heads=heads, weights=heads.new_ones(1), penalty=self.consistency_weight * consistency
        )

    def tile_logits(self, bag: Tensor) -> Tensor:
        return self.student.tile_logits(bag)

    @torch.no_grad()
    def after_update(self, step: Step) -> None:
        momentum = self.momentum_at(step.index, step.total)
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for teacher, student in pairs:
            teacher.mul_(momentum).add_(student, alpha=1 - momentum)

    def baseline(self) -> Abmil:
        """The base model alone, with the student's initial weights; trainable, no teacher."""
        return copy.deepcopy(self.student)

    def adopt(self, baseline: MilMethod) -> None:
        if not isinstance(baseline, Abmil):
            raise TypeError(
                f"MHIM's baseline is an Abmil (see `baseline`), got {type(baseline).__name__}"
            )
        self.teacher.load_state_dict(baseline.state_dict())
        self.student.embedding.load_state_dict(baseline.embedding.state_dict())
