"""Discrete-time survival (Zadeh & Schmid 2020): hazards per time bin, log-sigmoid likelihood.

    h_j = sigmoid(l_j),  S_j = prod_{i<=j} (1 - h_i),  S_{-1} = 1;  y the bin of `time`
    event    (observed)  -[log S_{y-1} + log h_y]
    censored             -log S_y
    loss = (1 - alpha) (both) + alpha (events only), mean over bags;   risk = -sum_j S_j

log(1 - h) = logsigmoid(-l) and log h = logsigmoid(l), so that no clamp ever stops a gradient.
Bins are right-open; interior cuts are quantiles of the event times of the training part.
"""

from itertools import pairwise
from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from mil.tasks.base import Task
from mil.tasks.columns import survival_columns
from preprocessing.errors import CohortError


class DiscreteSurvivalTask(Task):
    """`cuts`: interior edges of the bins, increasing, in the unit of `time`; bins = cuts + 1.

    `reference` is the risk at which `evidence` is 0: until `centred` that of an undecided model,
    whose hazards are all 0.5.
    """

    def __init__(
        self,
        cuts: tuple[float, ...],
        *,
        time: str,
        event: str,
        alpha: float = 0.0,
        reference: float | None = None,
    ) -> None:
        increasing = all(a < b for a, b in pairwise(cuts))
        if not cuts or not increasing:
            raise CohortError(f"time bins: expected one or more increasing cuts, got {list(cuts)}")
        self.cuts = tuple(map(float, cuts))
        self.time = time
        self.event = event
        self.alpha = alpha
        undecided = -sum(0.5**j for j in range(1, self.outputs + 1))
        self.reference = undecided if reference is None else float(reference)

    @classmethod
    def fit(
        cls, targets: pd.DataFrame, *, time: str, event: str, bins: int = 4, alpha: float = 0.0
    ) -> Self:
        """Bins of about equally many training events; fewer where events share too few times."""
        times, events = survival_columns(targets, time=time, event=event)
        cuts = _event_cuts(np.sort(times[events]), bins)
        if not cuts:
            distinct = len(np.unique(times[events]))
            raise CohortError(
                f"columns {time!r}, {event!r}: {int(events.sum())} events at {distinct} different "
                f"times among {len(times)} training cases; time bins need events at two or more"
            )
        return cls(cuts, time=time, event=event, alpha=alpha)

    def centred(self, training_logits: Tensor) -> "DiscreteSurvivalTask":
        """The same task, with `evidence` measured from the mean training risk."""
        risk = float(-_survival(training_logits.double()).sum(dim=1).mean())
        return DiscreteSurvivalTask(
            self.cuts, time=self.time, event=self.event, alpha=self.alpha, reference=risk
        )

    @property
    def outputs(self) -> int:
        return len(self.cuts) + 1

    def encode(self, targets: pd.DataFrame) -> Tensor:
        """(bags, 2) int64: bin, then event; times beyond the fitted range go to the outer bins."""
        times, events = survival_columns(targets, time=self.time, event=self.event)
        bins = np.searchsorted(self.cuts, times, side="right")
        return torch.from_numpy(np.stack([bins, events], axis=1).astype(np.int64))

    def loss(self, logits: Tensor, encoded: Tensor) -> Tensor:
        return self.loss_per_bag(logits, encoded).mean()

    def loss_per_bag(self, logits: Tensor, encoded: Tensor) -> Tensor:
        """(bags,)"""
        bins, event = encoded[:, :1], encoded[:, 1].to(logits.dtype)
        log_step = functional.logsigmoid(-logits)
        log_survival = log_step.cumsum(dim=1).gather(1, bins)[:, 0]
        # log S_{y-1} + log h_y = log S_y - log(1 - h_y) + log h_y, and the last two make the logit
        observed = event * -(log_survival + logits.gather(1, bins)[:, 0])
        censored = (1 - event) * -log_survival
        return (1 - self.alpha) * (observed + censored) + self.alpha * observed

    def predict(self, logits: Tensor) -> pd.DataFrame:
        """`risk`, and `survival_<j>`: the chance of no event up to the end of bin j = 0, 1, ..."""
        survival = _survival(logits.detach().cpu().double())
        bins = {f"survival_{j}": survival[:, j].numpy() for j in range(self.outputs)}
        return pd.DataFrame({"risk": -survival.sum(dim=1).numpy(), **bins})

    def evidence(self, logits: Tensor) -> Tensor:
        return -_survival(logits).sum(dim=1) - self.reference

    @property
    def evidence_name(self) -> str:
        return "risk above the mean training risk"

    def state(self) -> dict[str, Any]:
        return {
            "name": "survival",
            "cuts": list(self.cuts),
            "time": self.time,
            "event": self.event,
            "alpha": self.alpha,
            "reference": self.reference,
        }


def _survival(logits: Tensor) -> Tensor:
    """S (n, bins) of logits (n, bins)."""
    return functional.logsigmoid(-logits).cumsum(dim=1).exp()


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
