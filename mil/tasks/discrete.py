"""Discrete-time survival (Zadeh & Schmid 2020): hazards per time bin, log-sigmoid likelihood.

    h_j = sigmoid(l_j),  S_j = prod_{i<=j} (1 - h_i),  S_{-1} = 1;  y the bin of `time`
    event    (observed)  -[log S_{y-1} + log h_y]
    censored             -log S_y
    loss = (1 - alpha) (both) + alpha (events only), mean over bags;   risk = -sum_j S_j

log(1 - h) = logsigmoid(-l) and log h = logsigmoid(l), so that no clamp ever stops a gradient.
Bins are right-open; interior cuts are quantiles of the event times of the training part. Within a
bin the hazard is constant: log S is linear in time from 0 at time 0 over log S_j at the end of bin
j; the last bin ends at the longest training time, and S is held from there on.
"""

from itertools import pairwise
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import ArrayLike, NDArray
from torch import Tensor
from torch.nn import functional

from mil.tasks.base import Answers
from mil.tasks.config import SurvivalConfig
from mil.tasks.survival import FollowUp, RiskScale, SurvivalTask, read_outcomes, restored_parts
from preprocessing.errors import CohortError


class DiscreteSurvivalTask(SurvivalTask):
    """`cuts`: interior edges of the bins, increasing, in the unit of `time`; bins = cuts + 1.

    Until `completed`, evidence is measured from an undecided model, whose hazards are all 0.5.
    """

    def __init__(
        self,
        cuts: tuple[float, ...],
        follow_up: FollowUp,
        *,
        alpha: float = 0.0,
        scale: RiskScale | None = None,
    ) -> None:
        increasing = all(a < b for a, b in pairwise(cuts))
        if not cuts or not increasing:
            raise CohortError(f"time bins: expected one or more increasing cuts, got {list(cuts)}")
        self.cuts = tuple(map(float, cuts))
        self.alpha = alpha
        undecided = -sum(0.5**j for j in range(1, self.outputs + 1))
        super().__init__(follow_up, scale=scale, neutral=undecided)

    @classmethod
    def fit(cls, targets: pd.DataFrame, config: SurvivalConfig) -> Self:
        """Bins of about equally many training events; fewer where events share too few times."""
        outcomes = read_outcomes(targets, config.time, config.event)
        event_times = np.sort(outcomes.time[outcomes.event])
        cuts = _event_cuts(event_times, config.bins)
        if not cuts:
            raise CohortError(
                f"columns {config.time!r}, {config.event!r}: {len(event_times)} events at "
                f"{len(np.unique(event_times))} different times among {len(outcomes)} training "
                "cases; time bins need events at two or more"
            )
        return cls(cuts, FollowUp.fit(config, outcomes), alpha=config.alpha)

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Self:
        follow_up, scale = restored_parts(state)
        return cls(tuple(state["cuts"]), follow_up, alpha=state["alpha"], scale=scale)

    def completed(self, training: Answers, validation: Answers) -> Self:  # noqa: ARG002 - no use
        scale = RiskScale.of(self.risk(training.logits.detach().cpu().double()))
        return type(self)(self.cuts, self.follow_up, alpha=self.alpha, scale=scale)

    @property
    def outputs(self) -> int:
        return len(self.cuts) + 1

    @property
    def ends(self) -> tuple[float, ...]:
        """(bins,) where each bin ends; a last bin that would be empty is one float wide."""
        return (*self.cuts, max(self.follow_up.longest, float(np.nextafter(self.cuts[-1], np.inf))))

    def encode(self, targets: pd.DataFrame) -> Tensor:
        """(bags, 2) int64: bin, then event; times beyond the fitted range go to the outer bins."""
        outcomes = self.follow_up.outcomes(targets)
        bins = np.searchsorted(self.cuts, outcomes.time, side="right")
        return torch.from_numpy(np.stack([bins, outcomes.event], axis=1).astype(np.int64))

    def loss(self, logits: Tensor, encoded: Tensor) -> Tensor:
        return self.loss_per_bag(logits, encoded).mean()

    def loss_per_bag(self, logits: Tensor, encoded: Tensor) -> Tensor:
        """(bags,)"""
        bins, event = encoded[:, :1], encoded[:, 1].to(logits.dtype)
        log_survival = _log_survival(logits).gather(1, bins)[:, 0]
        # log S_{y-1} + log h_y = log S_y - log(1 - h_y) + log h_y, and the last two make the logit
        observed = event * -(log_survival + logits.gather(1, bins)[:, 0])
        censored = (1 - event) * -log_survival
        return (1 - self.alpha) * (observed + censored) + self.alpha * observed

    def risk(self, logits: Tensor) -> Tensor:
        return -_log_survival(logits).exp().sum(dim=1)

    def survival_at(self, logits: Tensor, times: ArrayLike) -> NDArray[np.float64]:
        """(n, times); at the end of bin j it is S_j."""
        log_survival = _log_survival(logits.detach().cpu().double()).numpy()
        knots = np.array([0.0, *self.ends])
        values = np.concatenate([np.zeros((len(log_survival), 1)), log_survival], axis=1)
        times = np.asarray(times, dtype=np.float64)
        place = np.clip(np.searchsorted(knots, times, side="right") - 1, 0, self.outputs - 1)
        share = np.clip((times - knots[place]) / np.diff(knots)[place], 0, 1)
        return np.exp(values[:, place] + share * (values[:, place + 1] - values[:, place]))

    @property
    def evidence_name(self) -> str:
        return "risk above the mean training risk"

    def state(self) -> dict[str, Any]:
        mine = {"name": "survival", "cuts": list(self.cuts), "alpha": self.alpha}
        return mine | super().state()


def _log_survival(logits: Tensor) -> Tensor:
    """Log S (n, bins) of logits (n, bins)."""
    return functional.logsigmoid(-logits).cumsum(dim=1)


def _event_cuts(event_times: np.ndarray, bins: int) -> tuple[float, ...]:
    """Interior quantiles of the sorted event times, but none that closes a bin without event.

    Where most events share the first time no quantile is left: then the second time is the one cut.
    """
    distinct = np.unique(event_times)
    if len(distinct) < 2:
        return ()
    kept: list[float] = []
    earlier = 0
    for cut in np.quantile(event_times, np.linspace(0, 1, bins + 1)[1:-1]):
        before = int(np.searchsorted(event_times, cut, side="left"))
        if before > earlier:
            kept.append(float(cut))
            earlier = before
    return tuple(kept) or (float(distinct[1]),)
