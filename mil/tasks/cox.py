"""Cox proportional hazards: a log-risk r per bag, compared within risk sets, and a baseline.

    R_i = {j: t_j >= t_i};  D_i = events at time t_i, d_i of them, in any order numbered 0, 1, ...
    Efron    l_i = log(sum_{R_i} e^{r_j} - (number of i / d_i) sum_{D_i} e^{r_j}) - r_i
    Breslow  l_i = log sum_{R_i} e^{r_j} - r_i
    loss = mean of l_i over events, 0 without one
    H_0(t) = sum over event times s <= t of d_s / sum_{t_j >= s} e^{r_j}
    S(t) = exp(-H_0(t) e^r)

The loss is Breslow's (1974) or Efron's (1977); the baseline is Breslow's for both, as in
lifelines. Sums of exponentials stay in log space, and in float64 whatever the logits are.
"""

from dataclasses import asdict, dataclass
from typing import Any, ClassVar, Literal, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mil.outcomes import Outcomes
from mil.tasks.base import Answers
from mil.tasks.config import SurvivalTarget
from mil.tasks.survival import FollowUp, RiskScale, SurvivalTask, read_outcomes, restored_parts
from preprocessing.errors import CohortError, TrainingError

Ties = Literal["efron", "breslow"]
LOG_CERTAIN = 50.0  # exp(-exp(50)) is 0 in float64, and exp(50) is far from overflow


def cox_loss(log_risk: Tensor, time: Tensor, event: Tensor, *, ties: Ties = "efron") -> Tensor:
    """Mean negative log partial likelihood over events, of `log_risk` and `time` (n,), `event` (n,)
    bool; in the dtype of `log_risk`. Exactly 0, with a graph, where no event is.
    """
    if not event.any():
        return (log_risk * 0).sum()
    order = time.argsort(descending=True)
    risk, time, event = log_risk[order].double(), time[order], event[order]
    # with later times first, the risk set of a time is all up to its last occurrence
    event_times, own, tied = time[event].unique_consecutive(return_inverse=True, return_counts=True)
    last = torch.searchsorted(-time, -event_times, right=True) - 1
    at_risk = risk.logcumsumexp(dim=0)[last][own]
    risk = risk[event]
    gone = torch.zeros_like(at_risk)
    if ties == "efron":
        number = torch.arange(len(own), device=own.device) - (tied.cumsum(0) - tied)[own]
        share = number.double() / tied[own]  # a quotient of integers would be float32
        gone = torch.log1p(-share * (_grouped_logsumexp(risk, own)[own] - at_risk).exp())
    return (at_risk + gone - risk).mean().to(log_risk.dtype)


def _grouped_logsumexp(values: Tensor, group: Tensor) -> Tensor:
    """(groups,) of values (n,) and their group (n,) 0, 1, ..., none of them empty."""
    groups = int(group.max()) + 1
    highest = values.new_zeros(groups).scatter_reduce(
        0, group, values.detach(), "amax", include_self=False
    )
    shifted = (values - highest[group]).exp()
    return highest + values.new_zeros(groups).index_add(0, group, shifted).log()


@dataclass(frozen=True)
class Baseline:
    """Cumulative baseline hazard as steps: `log_hazard` from each of `times` on, 0 before."""

    times: tuple[float, ...]
    log_hazard: tuple[float, ...]

    @classmethod
    def breslow(cls, outcomes: Outcomes, log_risk: NDArray[np.float64]) -> Self:
        order = np.argsort(outcomes.time)
        time, risk = outcomes.time[order], log_risk[order]
        event_times, deaths = np.unique(outcomes.time[outcomes.event], return_counts=True)
        at_risk = np.logaddexp.accumulate(risk[::-1])[::-1]
        steps = np.log(deaths) - at_risk[np.searchsorted(time, event_times)]
        log_hazard = np.logaddexp.accumulate(steps)
        return cls(tuple(event_times.tolist()), tuple(log_hazard.tolist()))

    def log_hazard_at(self, times: ArrayLike) -> NDArray[np.float64]:
        """Log H_0: -inf before the first event, held after the last."""
        place = np.searchsorted(self.times, np.asarray(times, dtype=np.float64), side="right")
        return np.array([-np.inf, *self.log_hazard])[place]


class CoxTask(SurvivalTask):
    """One logit: the log-risk, whose zero means nothing until `completed` centres it."""

    several_bags: ClassVar[bool] = True

    def __init__(
        self,
        follow_up: FollowUp,
        *,
        ties: Ties = "efron",
        scale: RiskScale | None = None,
        baseline: Baseline | None = None,
    ) -> None:
        super().__init__(follow_up, scale=scale, neutral=0.0)
        self.ties: Ties = ties
        self.baseline = baseline

    @classmethod
    def fit(cls, targets: pd.DataFrame, target: SurvivalTarget, *, ties: Ties = "efron") -> Self:
        outcomes = read_outcomes(targets, target.time, target.event)
        _refuse_incomparable(outcomes, "training", target.event)
        return cls(FollowUp.fit(target, outcomes), ties=ties)

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Self:
        follow_up, scale = restored_parts(state)
        steps = state["baseline"]
        baseline = None
        if steps is not None:
            baseline = Baseline(tuple(steps["times"]), tuple(steps["log_hazard"]))
        return cls(follow_up, ties=state["ties"], scale=scale, baseline=baseline)

    def completed(self, training: Answers, validation: Answers) -> Self:  # noqa: ARG002 - no use
        """With the training part's baseline hazard, for risks centred on its mean."""
        risk = self.risk(training.logits.detach().cpu().double())
        scale = RiskScale.of(risk)
        baseline = Baseline.breslow(_outcomes(training.encoded), risk.numpy() - scale.mean)
        return type(self)(self.follow_up, ties=self.ties, scale=scale, baseline=baseline)

    @property
    def outputs(self) -> int:
        return 1

    def encode(self, targets: pd.DataFrame) -> Tensor:
        """(bags, 2) float64: time, then event."""
        outcomes = self.follow_up.outcomes(targets)
        return torch.from_numpy(np.stack([outcomes.time, outcomes.event], axis=1))

    def leads(self, encoded: Tensor) -> Tensor:
        return encoded[:, 1] == 1

    def terms(self, encoded: Tensor) -> int:
        return int(self.leads(encoded).sum())

    def refuse_validation(self, encoded: Tensor) -> None:
        _refuse_incomparable(_outcomes(encoded), "validation", self.follow_up.event)

    def loss(self, logits: Tensor, encoded: Tensor) -> Tensor:
        return cox_loss(logits[:, 0], encoded[:, 0], encoded[:, 1] == 1, ties=self.ties)

    def risk(self, logits: Tensor) -> Tensor:
        return logits[:, 0]

    def survival_at(self, logits: Tensor, times: ArrayLike) -> NDArray[np.float64]:
        if self.baseline is None:
            raise TrainingError(
                f"survival at {times} needs a baseline hazard, which this Cox task lacks: complete "
                "it with the training answers first"
            )
        relative = self.evidence(logits.detach().cpu().double()).numpy()
        log_hazard = relative[:, None] + self.baseline.log_hazard_at(times)
        return np.exp(-np.exp(np.minimum(log_hazard, LOG_CERTAIN)))

    @property
    def evidence_name(self) -> str:
        return "log hazard ratio against the mean training risk"

    def state(self) -> dict[str, Any]:
        steps = None
        if self.baseline is not None:
            steps = {name: list(values) for name, values in asdict(self.baseline).items()}
        return {"name": "cox", "ties": self.ties, "baseline": steps, **super().state()}


def _outcomes(encoded: Tensor) -> Outcomes:
    return Outcomes(encoded[:, 0].cpu().numpy(), encoded[:, 1].cpu().numpy())


def _refuse_incomparable(outcomes: Outcomes, part: str, event: str) -> None:
    """An event tells something only beside one who outlived it (censored then, or seen later)."""
    latest = outcomes.time.max()
    outlived = outcomes.time < latest
    outlived |= bool((~outcomes.event[outcomes.time == latest]).any())
    if not (outcomes.event & outlived).any():
        raise CohortError(
            f"column {event!r}: {int(outcomes.event.sum())} events among the {len(outcomes)} "
            f"{part} cases, none of them outlived by another, so a Cox model has nothing to "
            "compare; use fewer folds, or a larger validation share"
        )
