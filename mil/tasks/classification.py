"""Classification: cross-entropy over classes whose order is fixed on the training part.

`evidence` is the log-odds of the positive class, logit_p - logsumexp(the other logits); for two
classes the difference of the two logits.
"""

from typing import Any, Self

import pandas as pd
import torch
from torch import Tensor
from torch.nn import functional

from mil.tasks.base import Task
from mil.tasks.columns import class_names, named
from preprocessing.errors import CohortError


class ClassificationTask(Task):
    """`classes` in the order of the logits; `positive` defaults to the last of them."""

    def __init__(
        self, classes: tuple[str, ...], *, label: str, positive: str | None = None
    ) -> None:
        if len(classes) < 2 or len(set(classes)) < len(classes):
            raise CohortError(
                f"column {label!r}: expected two or more different classes, got {list(classes)}"
            )
        self.classes = tuple(classes)
        self.label = label
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
    ) -> Self:
        """The classes of the training targets: sorted, unless `classes` gives their order."""
        seen = set(class_names(targets, label))
        task = cls(classes or tuple(sorted(seen)), label=label, positive=positive)
        task.encode(targets)  # refuses what is not one of the classes
        missing = [name for name in task.classes if name not in seen]
        if missing:
            raise CohortError(
                f"column {label!r}: no training case of class {missing}, only {sorted(seen)}; use "
                "fewer folds, or leave the class out"
            )
        return task

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
        return functional.cross_entropy(logits, encoded)

    def predict(self, logits: Tensor) -> pd.DataFrame:
        probabilities = logits.detach().cpu().double().softmax(dim=1).numpy()
        return pd.DataFrame(
            {f"prob_{name}": probabilities[:, i] for i, name in enumerate(self.classes)}
        )

    def evidence(self, logits: Tensor) -> Tensor:
        positive = self.classes.index(self.positive)
        others = [i for i in range(self.outputs) if i != positive]
        return logits[:, positive] - logits[:, others].logsumexp(dim=1)

    @property
    def evidence_name(self) -> str:
        rest = [name for name in self.classes if name != self.positive]
        against = rest[0] if len(rest) == 1 else "the rest"
        return f"log-odds of {self.positive} against {against}"

    def state(self) -> dict[str, Any]:
        return {
            "name": "classification",
            "classes": list(self.classes),
            "label": self.label,
            "positive": self.positive,
        }
