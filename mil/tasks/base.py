"""What a task is to the rest of the program: targets, a loss over a batch of bags, and an answer.

A task is fitted on the training patients of a fold (class order, time-bin edges), completed by the
answers of a trained model (temperature, baseline hazard), and travels with the checkpoint.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar, Self

import pandas as pd
import torch
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Answers:
    """A trained model's `logits` (bags, outputs) for one part of a fold, and the part's `encoded`
    targets.
    """

    logits: Tensor
    encoded: Tensor


class Task(ABC):
    """One question asked of a cohort. `targets` tables are indexed like the bags they belong to."""

    several_bags: ClassVar[bool] = False
    """Whether the loss compares bags with each other, so that one bag alone teaches nothing."""

    classes: tuple[str, ...] = ()
    """Names of the outputs, in their order, where a case has one of them; empty for other tasks."""

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

    def leads(self, encoded: Tensor) -> Tensor:
        """(bags,) bool: bags of which every training step should hold one, where bags compare."""
        return torch.ones(len(encoded), dtype=torch.bool)

    def labels(self, encoded: Tensor) -> Tensor | None:  # noqa: ARG002 - most tasks have no classes
        """(bags, outputs) bool: the classes of each bag, in the order of the logits.

        Several labels: those known to be positive; to a method an unknown label looks like an
        absent one. None where the task has no classes.
        """
        return None

    def terms(self, encoded: Tensor) -> int:
        """How many terms `loss` is the mean over: bags, events, or known labels."""
        return len(encoded)

    def refuse_validation(self, encoded: Tensor) -> None:  # noqa: B027 - most tasks take any
        """Raises CohortError if no loss can be measured on a validation part of these targets."""

    @abstractmethod
    def completed(self, training: Answers, validation: Answers) -> Self:
        """The task with what only a trained model's answers tell; `self` stays as it is."""

    @abstractmethod
    def predict(self, logits: Tensor) -> pd.DataFrame:
        """Logits (bags, outputs) as columns: `prob_<class>`, `prob_<label>`, `value`, or `risk` and
        `survival_<time>`.
        """

    @abstractmethod
    def evidence(self, logits: Tensor) -> Tensor:
        """(n,) evidence of logits (n, outputs) for the positive answer; signed, 0 is neutral."""

    @property
    @abstractmethod
    def evidence_name(self) -> str:
        """What `evidence` measures, for a colour bar: e.g. 'logit of tumour against the rest'."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What was fitted, as JSON values; `mil.tasks.build.restore_task` takes it."""
