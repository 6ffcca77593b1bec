"""MHIM-MIL: masked hard instance mining on a base model, v1 and v2 as one method with switches.

    teacher (no gradient): F_t, hardness_n = what it makes of the whole bag
    masked = random(beta_r) | low(beta_l) of hardness | part of high(beta_h(t)) of hardness
    v2: of the L tiles left floor(L keep_ratio) stay, and the others become k recycled tokens
    student on the tiles that stay (and the tokens): F_s, heads
    L = task(heads) + alpha * mean_rows -sum_d softmax(F_t / 0.1)_d log softmax(F_s / 1.0)_d
    after the step: theta_t <- m theta_t + (1 - m) theta_s

v1: Tang et al., ICCV 2023, arXiv:2307.15254; hardness is the base's own, for ABMIL its attention.
v2: Tang et al., IJCV 2025; hardness is how sure of a class a tile's contribution is.
F are bag vectors (rows, hidden), d their features. Masks: `mhim_masks`; tokens: `recycle`.
A plain base model is trained first; the teacher starts with all its weights, the student with those
of its embedding (v1) or none (v2). Inference is the student on the whole bag.
Differs from the published code: the teacher's dropout is off unless asked for (untrained, two
passes with it share a quarter of their hardest tiles); kept tiles stay in the bag's order; a bag is
never masked whole: its hardest tile stays; the student embeds the tiles it needs alone, to the same
values; a bag without tiles to recycle gets no tokens.
"""

import copy
import math
from dataclasses import replace
from typing import Literal, Self

import torch
from torch import Tensor

from mil.models.base import BagOutput, Bags, MilMethod, Step, TrainingOutput
from mil.models.maskable import Encoded, MaskableMethod
from mil.models.mhim_masks import MaskDraws, MaskRules, Parts, certainty, hard_tile_mask, part_tiles
from mil.models.recycle import RecycleNetwork
from mil.models.segments import Segments

Schedule = Literal["constant", "cosine"]
Hardness = Literal["attention", "instance_probability"]
StudentStart = Literal["none", "embedding", "all"]


def cosine_schedule(start: float, end: float, *, index: int, total: int) -> float:
    """Half a cosine from `start` at index 0 towards `end`, which index = total would reach."""
    return end + (start - end) * 0.5 * (1 + math.cos(math.pi * index / total))


def consistency_loss(
    student: Tensor, teacher: Tensor, *, student_temperature: float, teacher_temperature: float
) -> Tensor:
    """Cross-entropy between softmaxed features (B, rows, hidden), mean over rows: (B,)."""
    target = (teacher / teacher_temperature).softmax(dim=-1)
    predicted = (student / student_temperature).log_softmax(dim=-1)
    return -(target * predicted).sum(dim=-1).mean(dim=-1)


class Mhim(MilMethod):
    """`model` becomes the student; the teacher starts as its copy, until `adopt`.

    The teacher's weights are parameters without gradient, so that checkpoints hold them. `recycle`
    is needed where `rules.keep_ratio` is below 1; `merge_test` has its tokens, of all tiles, join
    the bag at inference too.
    """

    def __init__(
        self,
        model: MaskableMethod,
        *,
        rules: MaskRules,
        score: Hardness,
        high_schedule: Schedule,
        consistency_weight: float,
        student_temperature: float,
        teacher_temperature: float,
        momentum: float,
        momentum_schedule: Schedule,
        teacher_dropout: bool,
        student_init: StudentStart,
        recycle: RecycleNetwork | None,
        merge_test: bool,
    ) -> None:
        super().__init__()
        if recycle is None and (rules.keep_ratio < 1 or merge_test):
            raise ValueError(
                f"keep_ratio {rules.keep_ratio} and merge_test {merge_test} need a recycle network"
            )
        self.student = model
        self.teacher = copy.deepcopy(model).requires_grad_(False)
        self.recycle = recycle
        self.rules = rules
        self.score: Hardness = score
        self.high_schedule: Schedule = high_schedule
        self.consistency_weight = consistency_weight
        self.student_temperature = student_temperature
        self.teacher_temperature = teacher_temperature
        self.momentum = momentum
        self.momentum_schedule: Schedule = momentum_schedule
        self.teacher_dropout = teacher_dropout
        self.student_init: StudentStart = student_init
        self.merge_test = merge_test
        self.train()

    def train(self, mode: bool = True) -> Self:
        super().train(mode)
        self.teacher.train(mode and self.teacher_dropout)
        return self

    def forward(self, bag: Tensor) -> BagOutput:
        """With `merge_test` the tokens change the logits; scores and attention are of tiles."""
        output = self.student(bag)
        if self.recycle is None or not self.merge_test:
            return output
        embedded = self.student.embedding(bag)
        tokens = self.recycle(embedded, Segments.one(embedded))
        merged = torch.cat([embedded, tokens[0]])
        return replace(output, logits=_answer(self.student.encode(merged, Segments.one(merged))))

    def training_output(self, bags: Bags, step: Step) -> TrainingOutput:
        rules = self.rules_at(step.index, step.total)
        return self.masked_output(bags, rules, MaskDraws.draw(bags.segments, step.generator))

    def rules_at(self, index: int, total: int) -> MaskRules:
        """The mask rules of one step: the share of hard tiles may decay to zero."""
        if self.high_schedule == "constant":
            return self.rules
        high = cosine_schedule(self.rules.high, 0.0, index=index, total=total)
        return replace(self.rules, high=high)

    def momentum_at(self, index: int, total: int) -> float:
        """The teacher's momentum of one step: it may rise to 1."""
        if self.momentum_schedule == "constant":
            return self.momentum
        return cosine_schedule(self.momentum, 1.0, index=index, total=total)

    def masked_output(self, bags: Bags, rules: MaskRules, draws: MaskDraws) -> TrainingOutput:
        """`training_output` under given rules and draws."""
        with torch.no_grad():
            teacher = self.teacher.encode(self.teacher.embedding(bags.tiles), bags.segments)
            masked = hard_tile_mask(self.hardness(teacher), bags.segments, rules, draws)
            parts = part_tiles(masked, bags.segments, rules, draws)
        student = self.student.encode(*self._student_pack(bags.tiles, parts))
        consistency = consistency_loss(
            student.features,
            teacher.features,
            student_temperature=self.student_temperature,
            teacher_temperature=self.teacher_temperature,
        )
        return replace(student.output, penalty=self.consistency_weight * consistency)

    def hardness(self, teacher: Encoded) -> Tensor:
        """(votes, T): how hard to do without each tile is, by the rule that `score` names."""
        if self.score == "attention":
            return teacher.hardness()
        return certainty(teacher.contributions())[None]

    def tile_logits(self, bag: Tensor) -> Tensor:
        """The student's; no tokens join a tile that is asked alone."""
        return self.student.tile_logits(bag)

    @torch.no_grad()
    def after_update(self, step: Step) -> None:
        momentum = self.momentum_at(step.index, step.total)
        pairs = zip(self.teacher.parameters(), self.student.parameters(), strict=True)
        for teacher, student in pairs:
            teacher.mul_(momentum).add_(student, alpha=1 - momentum)
        if self.recycle is not None:
            self.recycle.move_queries()

    def baseline(self) -> MaskableMethod:
        """The base model alone, with the student's initial weights; trainable, no teacher."""
        return copy.deepcopy(self.student)

    def adopt(self, baseline: MilMethod) -> None:
        if not isinstance(baseline, type(self.student)):
            raise TypeError(
                f"this MHIM's baseline is an {type(self.student).__name__} (see `baseline`), got "
                f"{type(baseline).__name__}"
            )
        self.teacher.load_state_dict(baseline.state_dict())
        if self.student_init == "all":
            self.student.load_state_dict(baseline.state_dict())
        elif self.student_init == "embedding":
            self.student.embedding.load_state_dict(baseline.embedding.state_dict())

    def _student_pack(self, tiles: Tensor, parts: Parts) -> tuple[Tensor, Segments]:
        """The embedded tiles that stay, each bag's tokens behind them, and where the bags lie."""
        embedded = self.student.embedding(tiles[torch.cat([parts.kept, parts.recycled])])
        if self.recycle is None or not len(parts.recycled):
            return embedded, Segments(parts.kept_sizes, tiles.device)
        kept, recycled = embedded.split([len(parts.kept), len(parts.recycled)])
        givers = [size for size in parts.recycled_sizes if size]
        tokens = self.recycle(recycled, Segments(givers, tiles.device))
        if self.training:
            self.recycle.remember(tokens)
        of_giver = iter(tokens)
        bags = [
            [bag, next(of_giver)] if size else [bag]
            for bag, size in zip(kept.split(parts.kept_sizes), parts.recycled_sizes, strict=True)
        ]
        sizes = [sum(map(len, pieces)) for pieces in bags]
        packed = torch.cat([piece for pieces in bags for piece in pieces])
        return packed, Segments(sizes, tiles.device)


def _answer(bag: Encoded) -> Tensor:
    """The logits (outputs,) of one bag: its heads by their weights, as every base answers."""
    weights = bag.output.weights / bag.output.weights.sum()
    return (weights[:, None] * bag.output.heads[:, 0]).sum(dim=0)
