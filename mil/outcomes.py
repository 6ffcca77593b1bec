"""Follow-up of patients as one named type, so that time and event can never be swapped."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import ArrayLike, NDArray

from preprocessing.errors import CohortError


@dataclass(frozen=True, eq=False)
class Outcomes:
    """`time` (n,) float64, finite and > 0; `event` (n,) bool, True = observed, False = censored."""

    time: NDArray[np.float64]
    event: NDArray[np.bool_]

    def __post_init__(self) -> None:
        time, event = np.asarray(self.time, dtype=np.float64), np.asarray(self.event)
        if time.ndim != 1 or event.shape != time.shape:
            raise CohortError(
                f"follow-up: expected times and events (n,), got {time.shape} and {event.shape}"
            )
        if not (np.isfinite(time) & (time > 0)).all():
            bad = time[~(np.isfinite(time) & (time > 0))]
            raise CohortError(f"follow-up: expected finite times > 0, got {bad[:5].tolist()}")
        if not np.isin(event, (0, 1)).all():
            raise CohortError(
                "follow-up: expected events 1 (observed) or 0 (censored), got "
                f"{np.setdiff1d(event, (0, 1))[:5].tolist()}"
            )
        object.__setattr__(self, "time", time)
        object.__setattr__(self, "event", event.astype(bool))

    def __len__(self) -> int:
        return len(self.time)

    def __getitem__(self, rows: ArrayLike | slice) -> "Outcomes":
        """The follow-up of some rows, repeated as often as they are named."""
        chosen = rows if isinstance(rows, slice) else np.asarray(rows)
        return Outcomes(self.time[chosen], self.event[chosen])
