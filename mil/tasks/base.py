"""What a task is to the rest of the program: targets, a loss over a batch of bags, and an answer.

A task is fitted on the training patients of a fold (class order, time-bin edges) and travels with
the checkpoint.
"""

from abc import ABC, abstractmethod
from typing import Any

import pandas as pd
from torch import Tensor


class Task(ABC):
    """One question asked of a cohort. `targets` tables are indexed like the bags they belong to."""

    @property
    @abstractmethod
    def outputs(self) -> int:
        """Number of logits of a head."""

    @abstractmethod
    def encode(self, targets: pd.DataFrame) -> Tensor:
        """The target rows as a tensor (bags, ...) for `loss`."""

    @abstractmethod
    def loss(self, logits: Tensor, encoded: Tensor) -> Tensor:
        """Mean loss of logits (bags, outputs) against `encode`d targets."""

    @abstractmethod
    def predict(self, logits: Tensor) -> pd.DataFrame:
        """Logits (bags, outputs) as columns: `prob_<class>`, or `risk` and `survival_<bin>`."""

    @abstractmethod
    def evidence(self, logits: Tensor) -> Tensor:
        """(n,) evidence of logits (n, outputs) for the positive answer; signed, 0 is neutral."""

    @property
    @abstractmethod
    def evidence_name(self) -> str:
        """What `evidence` measures, for a colour bar: e.g. 'logit of tumour against the rest'."""

    def centred(self, training_logits: Tensor) -> "Task":  # noqa: ARG002 - for those that need it
        """The task with its neutral evidence placed by a trained model's training answers."""
        return self

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What was fitted, as JSON values; `mil.tasks.build.restore_task` takes it."""
