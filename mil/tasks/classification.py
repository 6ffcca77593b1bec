"""Classification: cross-entropy over classes whose order is fixed on the training part.

    loss = 1/n sum_i w(y_i) * -log softmax(l_i)_{y_i}     w = 1, or cases / (classes * cases of y)
    probability = softmax(l / T)                          T fitted on validation (Guo et al. 2017)
    evidence = (l_p - logsumexp(the other logits)) / T    p the positive class

The weighted sum is divided by n and not by the sum of the weights (as torch does), so that weights
act in a step of one bag, too. A model trained with them answers for a cohort of equally frequent
classes.
"""

from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from mil.metrics.calibration import fit_temperature
from mil.tasks.base import Answers, Task
from mil.tasks.columns import class_names, named
from preprocessing.errors import CohortError


class ClassificationTask(Task):
    """`classes` in the order of the logits; `positive` defaults to the last of them.

    `weights` (classes,) act on the loss; the `temperature` is 1 until `completed`.
    """

    def __init__(
        self,
        classes: tuple[str, ...],
        *,
        label: str,
        positive: str | None = None,
        weights: tuple[float, ...] | None = None,
        temperature: float = 1.0,
    ) -> None:
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise CohortError(
                f"column {label!r}: expected two or more different classes, got {list(classes)}"
            )
        self.classes = tuple(classes)
        self.label = label
        self.weights = weights
        self.temperature = temperature
        self.positive = self.classes[-1] if positive is None else positive
        if self.positive not in self.classes:
            raise CohortError(
                f"positive class {positive!r} is not in column {label!r}, whose classes are "
                f"{list(classes)}"
            )

    @classmethod
    def fit(
        cls,
        targets: pd.DataFrame,
        *,
        label: str,
        classes: tuple[str, ...] | None = None,
        positive: str | None = None,
        weighted: bool = False,
    ) -> Self:
        """The classes of the training targets: sorted, unless `classes` gives their order.

        `weighted`: all classes weigh the same in the training loss, and their cases 1 on average.
        """
        seen = set(class_names(targets, label))
        task = cls(classes or tuple(sorted(seen)), label=label, positive=positive)
        encoded = task.encode(targets)  # refuses what is not one of the classes
        missing = [name for name in task.classes if name not in seen]
        if missing:
            raise CohortError(
                f"column {label!r}: no training case of class {missing}, only {sorted(seen)}; use "
                "fewer folds, or leave the class out"
            )
        if weighted:
            shares = encoded.bincount().double() * task.outputs / len(encoded)
            task.weights = tuple((1 / shares).tolist())
        return task

    def completed(self, training: Answers, validation: Answers) -> Self:  # noqa: ARG002 - no use
        """With the temperature that suits the validation answers."""
        logits = validation.logits.detach().cpu().double().numpy()
        temperature = fit_temperature(logits, validation.encoded.cpu().numpy())
        return type(self)(
            self.classes,
            label=self.label,
            positive=self.positive,
            weights=self.weights,
            temperature=temperature,
        )

    @property
    def outputs(self) -> int:
        return len(self.classes)

    def encode(self, targets: pd.DataFrame) -> Tensor:
        """Class indices (bags,) int64."""
        names = class_names(targets, self.label)
        unknown = ~names.isin(self.classes).to_numpy()
        if unknown.any():
            raise CohortError(
                f"column {self.label!r}: expected one of {list(self.classes)}, got "
                f"{sorted(set(names[unknown]))} for {named(targets.index[unknown])}"
            )
        return torch.tensor([self.classes.index(name) for name in names], dtype=torch.int64)

    def loss(self, logits: Tensor, encoded: Tensor) -> Tensor:
        losses = functional.cross_entropy(logits, encoded, reduction="none")
        if self.weights is not None:
            losses = losses * losses.new_tensor(self.weights)[encoded]
        return losses.mean()

    def labels(self, encoded: Tensor) -> Tensor:
        return functional.one_hot(encoded, self.outputs).bool()

    def predict(self, logits: Tensor) -> pd.DataFrame:
        """`prob_<class>`, and `uncalibrated_<class>` as if the temperature were 1."""
        logits = logits.detach().cpu().double()
        named = (("prob", logits / self.temperature), ("uncalibrated", logits))
        return pd.DataFrame(
            {
                f"{prefix}_{name}": values.softmax(dim=1)[:, i].numpy()
                for prefix, values in named
                for i, name in enumerate(self.classes)
            }
        )

    def evidence(self, logits: Tensor) -> Tensor:
        positive = self.classes.index(self.positive)
        others = [i for i in range(self.outputs) if i != positive]
        return (logits[:, positive] - logits[:, others].logsumexp(dim=1)) / self.temperature

    @property
    def evidence_name(self) -> str:
        rest = [name for name in self.classes if name != self.positive]
        against = rest[0] if len(rest) == 1 else "the rest"
        return f"log-odds of {self.positive} against {against}"

    @classmethod
    def restore(cls, state: dict[str, Any]) -> Self:
        weights = state["weights"]
        return cls(
            tuple(state["classes"]),
            label=state["label"],
            positive=state["positive"],
            weights=None if weights is None else tuple(weights),
            temperature=state["temperature"],
        )

    def state(self) -> dict[str, Any]:
        return {
            "name": "classification",
            "classes": list(self.classes),
            "label": self.label,
            "positive": self.positive,
            "weights": None if self.weights is None else list(self.weights),
            "temperature": self.temperature,
        }
