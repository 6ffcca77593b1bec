"""What survival tasks share: the follow-up, the times to report, and a risk on a known scale.

    risk_sd = (risk - mean) / sd          mean, sd: of the training risks
    evidence = risk - mean

Times are those of the training part of a fold: the 5, 10, ..., 95 % quantiles of its event times
and the horizons. Equal ones are one in the grid, so that it may be shorter; horizons keep their
places, so that those of several folds can be compared.
"""

from abc import abstractmethod
from copy import copy
from dataclasses import asdict, dataclass, replace
from typing import Any, Self

import numpy as np
import pandas as pd
from numpy.typing import ArrayLike, NDArray
from torch import Tensor

from mil.outcomes import Outcomes
from mil.tasks.base import Task
from mil.tasks.columns import survival_columns
from mil.tasks.config import SurvivalTarget
from preprocessing.errors import CohortError

GRID_SHARES = np.arange(1, 20) / 20
HORIZON_SHARES = (0.25, 0.5, 0.75)


@dataclass(frozen=True)
class FollowUp:
    """The columns of the follow-up and the times at which survival is told, in their unit.

    `times` increase and hold every one of `horizons`; `longest`, the longest training time, is as
    far as a training part can tell.
    """

    time: str
    event: str
    times: tuple[float, ...]
    horizons: tuple[float, ...]
    longest: float

    @classmethod
    def fit(cls, target: SurvivalTarget, outcomes: Outcomes) -> Self:
        """`outcomes` are of the training part and hold an event."""
        event_times = outcomes.time[outcomes.event]
        longest = float(outcomes.time.max())
        horizons = np.array(target.times or np.quantile(event_times, HORIZON_SHARES))
        if horizons[-1] > longest:
            raise CohortError(
                f"times: survival at {horizons[-1]:g} is asked for, but the longest follow-up of "
                f"the training part is {longest:g}; give times in the unit of column "
                f"{target.time!r}, within the follow-up"
            )
        times = np.union1d(np.quantile(event_times, GRID_SHARES), horizons)
        return cls(
            target.time, target.event, tuple(times.tolist()), tuple(horizons.tolist()), longest
        )

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Self:
        lists = {name: tuple(state[name]) for name in ("times", "horizons")}
        values: dict[str, Any] = {**state, **lists}
        return cls(**values)

    def outcomes(self, targets: pd.DataFrame) -> Outcomes:
        return read_outcomes(targets, self.time, self.event)


@dataclass(frozen=True)
class RiskScale:
    """Mean and standard deviation (of the population) of the training risks."""

    mean: float
    sd: float

    @classmethod
    def of(cls, risk: Tensor) -> Self:
        equal = bool(risk.min() == risk.max())  # the deviation of equal risks may round above 0
        return cls(float(risk.mean()), 0.0 if equal else float(risk.std(correction=0)))


class SurvivalTask(Task):
    """`scale` is None until `completed`: then `neutral` stands in for the mean training risk."""

    def __init__(self, follow_up: FollowUp, *, scale: RiskScale | None, neutral: float) -> None:
        self.follow_up = follow_up
        self.scale = scale
        self.reference = neutral if scale is None else scale.mean

    @property
    def times(self) -> tuple[float, ...]:
        """The grid of the survival columns; holds the horizons."""
        return self.follow_up.times

    @property
    def horizons(self) -> tuple[float, ...]:
        """The times to report survival at."""
        return self.follow_up.horizons

    @abstractmethod
    def risk(self, logits: Tensor) -> Tensor:
        """(n,) of logits (n, outputs): the higher, the earlier the event is expected."""

    @abstractmethod
    def survival_at(self, logits: Tensor, times: ArrayLike) -> NDArray[np.float64]:
        """(n, times) chance of no event up to each time; held beyond the training follow-up."""

    def on_grid(self, times: tuple[float, ...]) -> Self:
        """The same task, whose `predict` tells survival at other times than its own."""
        other = copy(self)
        other.follow_up = replace(self.follow_up, times=times)
        return other

    def predict(self, logits: Tensor) -> pd.DataFrame:
        """`risk`; `risk_sd`, in training deviations (0 if these had none); and `survival_<j>`, the
        chance of no event up to the j-th of `times`.
        """
        logits = logits.detach().cpu().double()
        survival = self.survival_at(logits, self.times)
        risk = self.risk(logits).numpy()
        sd = 0.0 if self.scale is None else self.scale.sd
        relative = (risk - self.reference) / sd if sd > 0 else np.zeros_like(risk)
        columns = {f"survival_{j:02d}": survival[:, j] for j in range(len(self.times))}
        return pd.DataFrame({"risk": risk, "risk_sd": relative, **columns})

    def evidence(self, logits: Tensor) -> Tensor:
        return self.risk(logits) - self.reference

    def state(self) -> dict[str, Any]:
        """What every survival task has; the subclass adds its name and what is its own."""
        follow_up = asdict(self.follow_up)
        lists = {name: list(follow_up[name]) for name in ("times", "horizons")}
        return {
            "follow_up": follow_up | lists,
            "scale": None if self.scale is None else asdict(self.scale),
        }


def read_outcomes(targets: pd.DataFrame, time: str, event: str) -> Outcomes:
    """The follow-up columns of a target table, every refusal naming its rows."""
    return Outcomes(*survival_columns(targets, time=time, event=event))


def restored_parts(state: dict[str, Any]) -> tuple[FollowUp, RiskScale | None]:
    """The parts of `SurvivalTask.state`, for the constructor of a subclass."""
    scale = state["scale"]
    return FollowUp.restore(state["follow_up"]), None if scale is None else RiskScale(**scale)
