"""Regression: squared error of one logit against the value, standardised by the training part.

    z = (value - mean) / sd           mean, sd (of the population): of the training values
    loss = 1/n sum_i (l_i - z_i)^2
    answer = mean + sd * l            in the unit of the value
    evidence = l                      0 is the mean training value

The scale is fitted on the training part alone; what is far outside it is answered all the same.
"""

from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from mil.tasks.base import Answers, Task
from mil.tasks.columns import number_values
from preprocessing.errors import CohortError


class RegressionTask(Task):
    """`mean` and `sd` > 0 of the training values of `column`."""

    def __init__(self, column: str, *, mean: float, sd: float) -> None:
        if not (np.isfinite(mean) and np.isfinite(sd) and sd > 0):
            raise CohortError(
                f"column {column!r}: expected a finite mean and a deviation above 0, got {mean} "
                f"and {sd}"
            )
        self.column, self.mean, self.sd = column, mean, sd

    @classmethod
    def fit(cls, targets: pd.DataFrame, column: str) -> Self:
        values = number_values(targets, column)
        if values.min() == values.max():
            raise CohortError(
                f"column {column!r}: all {len(values)} training cases have the value "
                f"{values[0]:g}, there is nothing to learn; name another column"
            )
        return cls(column, mean=float(values.mean()), sd=float(values.std()))

    def completed(self, training: Answers, validation: Answers) -> Self:  # noqa: ARG002 - no use
        """Itself: nothing but the scale is fitted, and that before training."""
        return self

    @property
    def outputs(self) -> int:
        return 1

    def encode(self, targets: pd.DataFrame) -> Tensor:
        """Standardised values (bags,) float64."""
        return torch.from_numpy((number_values(targets, self.column) - self.mean) / self.sd)

    def loss(self, logits: Tensor, encoded: Tensor) -> Tensor:
        return functional.mse_loss(logits[:, 0], encoded.to(logits.dtype))

    def predict(self, logits: Tensor) -> pd.DataFrame:
        """`value`, in the unit of the column."""
        answer = self.mean + self.sd * logits[:, 0].detach().cpu().double()
        return pd.DataFrame({"value": answer.numpy()})

    def evidence(self, logits: Tensor) -> Tensor:
        return logits[:, 0]

    @property
    def evidence_name(self) -> str:
        return f"{self.column} above the training mean, in standard deviations"

    def state(self) -> dict[str, Any]:
        return {"name": "regression", "column": self.column, "mean": self.mean, "sd": self.sd}

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Self:
        return cls(state["column"], mean=state["mean"], sd=state["sd"])
