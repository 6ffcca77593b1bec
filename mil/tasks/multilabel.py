"""Several yes/no labels of a bag: one logit each, binary cross-entropy over what is known.

    loss = 1/K sum over the K known (bag i, label l) of  w_l(y_il) * -log sigmoid(+-l_il)
           + for y = 1, - for y = 0;  w = 1, or known cases of l / (2 * cases of l with this y)
    probability of l = sigmoid(l_il / T_l)     T_l fitted on validation (Guo et al. 2017); 1 where
                                               all known validation cases of l are alike
    evidence = l_p / T_p                       p the positive label: its log-odds

Labels do not exclude each other, so that their probabilities do not sum to 1. An unknown label (NaN
among the targets) is in no loss, no temperature and no weight. A model trained with balanced
weights answers for a cohort in which every label has a prevalence of 50 %.
"""

from typing import Any, Self

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from mil.metrics.calibration import fit_temperature
from mil.tasks.base import Answers, Task
from mil.tasks.columns import label_values
from mil.tasks.config import MultilabelConfig
from preprocessing.errors import CohortError

Weights = tuple[tuple[float, float], ...]


class MultilabelTask(Task):
    """`names` in the order of the logits; `positive` defaults to the first of them.

    `weights` of (no, yes) act on the loss, label by label; the `temperatures` are 1 until
    `completed`.
    """

    def __init__(
        self,
        names: tuple[str, ...],
        *,
        positive: str | None = None,
        weights: Weights | None = None,
        temperatures: tuple[float, ...] | None = None,
    ) -> None:
        self.names = tuple(names)
        self.positive = self.names[0] if positive is None else positive
        if self.positive not in self.names:
            raise CohortError(f"positive label {positive!r} is not one of {list(names)}")
        self.weights = weights
        self.temperatures = (1.0,) * len(names) if temperatures is None else tuple(temperatures)

    @classmethod
    def fit(cls, targets: pd.DataFrame, config: MultilabelConfig) -> Self:
        """`targets`: of the training part; refuses a label of which all known cases are alike."""
        values = label_values(targets, config.labels)
        yes, no = (values == 1).sum(axis=0), (values == 0).sum(axis=0)
        for name, with_it, without in zip(config.labels, yes, no, strict=True):
            if not with_it or not without:
                raise CohortError(
                    f"column {name!r}: {with_it} training cases are 1 and {without} are 0, a label "
                    "needs both; use fewer folds or another split.seed, or leave the label out"
                )
        weights = None
        if config.label_weights == "balanced":
            both = ((yes + no) / (2 * np.stack([no, yes]))).T
            weights = tuple((float(of_no), float(of_yes)) for of_no, of_yes in both)
        return cls(config.labels, positive=config.positive, weights=weights)

    def completed(self, training: Answers, validation: Answers) -> Self:  # noqa: ARG002 - no use
        """With the temperature of each label that suits the validation answers.

        It stays 1 where these know no case or one answer alone: that would make it ever surer.
        """
        logits = validation.logits.detach().cpu().double().numpy()
        truth = validation.encoded.cpu().numpy()
        temperatures = []
        for place in range(self.outputs):
            known = ~np.isnan(truth[:, place])
            if len(np.unique(truth[known, place])) < 2:
                temperatures.append(1.0)
                continue
            yes = logits[known, place]
            # softmax of (0, l) is sigmoid(l)
            both = np.stack([np.zeros_like(yes), yes], axis=1)
            temperatures.append(fit_temperature(both, truth[known, place].astype(np.intp)))
        return type(self)(
            self.names,
            positive=self.positive,
            weights=self.weights,
            temperatures=tuple(temperatures),
        )

    @property
    def outputs(self) -> int:
        return len(self.names)

    def encode(self, targets: pd.DataFrame) -> Tensor:
        """(bags, labels) float64: 1, 0, or NaN where the label is unknown."""
        return torch.from_numpy(label_values(targets, self.names))

    def loss(self, logits: Tensor, encoded: Tensor) -> Tensor:
        """0, with a graph, where no label is known."""
        known = ~encoded.isnan()
        truth = encoded.nan_to_num().to(logits.dtype)
        losses = functional.binary_cross_entropy_with_logits(logits, truth, reduction="none")
        if self.weights is not None:
            of_no, of_yes = logits.new_tensor(self.weights).T
            losses = losses * torch.where(truth == 1, of_yes, of_no)
        return (losses * known).sum() / known.sum().clamp(min=1)

    def labels(self, encoded: Tensor) -> Tensor:
        return encoded == 1

    def terms(self, encoded: Tensor) -> int:
        return int((~encoded.isnan()).sum())

    def predict(self, logits: Tensor) -> pd.DataFrame:
        """`prob_<label>`, and `uncalibrated_<label>` as if the temperatures were 1."""
        logits = logits.detach().cpu().double()
        scaled = logits / logits.new_tensor(self.temperatures)
        return pd.DataFrame(
            {
                f"{prefix}_{name}": values.sigmoid()[:, i].numpy()
                for prefix, values in (("prob", scaled), ("uncalibrated", logits))
                for i, name in enumerate(self.names)
            }
        )

    def evidence(self, logits: Tensor) -> Tensor:
        place = self.names.index(self.positive)
        return logits[:, place] / self.temperatures[place]

    @property
    def evidence_name(self) -> str:
        return f"log-odds of {self.positive}"

    def state(self) -> dict[str, Any]:
        return {
            "name": "multilabel",
            "names": list(self.names),
            "positive": self.positive,
            "weights": None if self.weights is None else [list(pair) for pair in self.weights],
            "temperatures": list(self.temperatures),
        }

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Self:
        weights = state["weights"]
        return cls(
            tuple(state["names"]),
            positive=state["positive"],
            weights=None if weights is None else tuple((no, yes) for no, yes in weights),
            temperatures=tuple(state["temperatures"]),
        )
