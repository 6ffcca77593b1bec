"""Configuration of the tasks: classification, several labels, regression and survival.

Columns are named by the user, never guessed. Needs no torch.
"""

from itertools import pairwise
from typing import Annotated, ClassVar, Literal, Self

from pydantic import ConfigDict, Field, PositiveFloat, model_validator

from preprocessing.config import Section

Kind = Literal["classification", "multilabel", "regression", "survival"]
"""What the rest of the chain tells targets apart by; `survival` is discrete-time and Cox."""


class OperatingPointConfig(Section):
    """How the threshold of the positive class is chosen; on validation patients only."""

    rule: Literal["youden", "sensitivity", "specificity"] = Field(
        default="youden",
        description="youden: the largest sensitivity + specificity; otherwise the best of the "
        "other, while this one is at least `least`",
    )
    least: float | None = Field(
        default=None, gt=0, le=1, description="sensitivity and specificity only: what to keep"
    )

    @model_validator(mode="after")
    def _least_goes_with_the_rule(self) -> Self:
        if (self.rule == "youden") != (self.least is None):
            raise ValueError(
                f"least: rule sensitivity or specificity needs it, youden takes none; the rule is "
                f"{self.rule!r}, least is {self.least}"
            )
        return self


class ClassificationConfig(Section):
    # classes written as numbers in YAML mean their text
    model_config = ConfigDict(coerce_numbers_to_str=True)
    kind: ClassVar[Kind] = "classification"

    name: Literal["classification"] = "classification"
    label: str = Field(min_length=1, description="column with the class of a slide or patient")
    classes: tuple[str, ...] | None = Field(
        default=None, description="order of the classes; None: sorted values of the training part"
    )
    positive: str | None = Field(
        default=None, description="class that heatmaps show evidence for; None: the last one"
    )
    ordered: bool = Field(
        default=False, description="classes are grades, in the order of `classes`: weighted kappa"
    )
    class_weights: Literal["none", "balanced"] = Field(
        default="none", description="balanced: every class weighs the same in the training loss"
    )
    coverage: float = Field(
        default=0.9, ge=0.5, lt=1, description="share of conformal sets that hold the true class"
    )
    operating_point: OperatingPointConfig = OperatingPointConfig()

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.label,)

    @model_validator(mode="after")
    def _classes_hold_together(self) -> Self:
        if self.classes is None:
            if self.ordered:
                raise ValueError("ordered: give the order in `classes`, from least to most")
            return self
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: expected two or more different names, got {self.classes}")
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(
                f"positive: {self.positive!r} is not one of the classes {self.classes}"
            )
        return self


class MultilabelConfig(Section):
    """Several yes/no labels of a slide or patient, such as mutations; some may be unknown."""

    kind: ClassVar[Kind] = "multilabel"

    name: Literal["multilabel"] = "multilabel"
    labels: tuple[Annotated[str, Field(min_length=1)], ...] = Field(
        description="two or more columns with 1 = yes, 0 = no, empty = unknown"
    )
    positive: str | None = Field(
        default=None, description="label that heatmaps show evidence for; None: the first"
    )
    label_weights: Literal["none", "balanced"] = Field(
        default="none",
        description="balanced: a label's yes and no weigh the same in the training loss",
    )
    operating_point: OperatingPointConfig = OperatingPointConfig()

    @property
    def columns(self) -> tuple[str, ...]:
        return self.labels

    @model_validator(mode="after")
    def _labels_hold_together(self) -> Self:
        if len(self.labels) < 2:
            raise ValueError(
                f"labels: one label is a classification: write name: classification and label, "
                f"got {list(self.labels)}"
            )
        digits = [name for name in self.labels if name.isdigit()]
        if digits:  # brier_1 is the Brier score at the first horizon
            raise ValueError(
                f"labels: a number is no name, for results are called by it (auroc_EGFR), got "
                f"{digits}; rename the column in the label table"
            )
        if len(set(self.labels)) < len(self.labels):
            raise ValueError(f"labels: expected different columns, got {list(self.labels)}")
        if self.positive is not None and self.positive not in self.labels:
            raise ValueError(
                f"positive: {self.positive!r} is not one of the labels {list(self.labels)}"
            )
        return self


class RegressionConfig(Section):
    """A continuous value of a slide or patient, such as a biomarker score."""

    kind: ClassVar[Kind] = "regression"

    name: Literal["regression"] = "regression"
    column: str = Field(min_length=1, description="column with the value, a number")
    unit: str | None = Field(
        default=None, min_length=1, description="unit of the value (ng/ml), for axes and tables"
    )

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.column,)


class SurvivalTarget(Section):
    """What every survival task is asked: the follow-up, and when to report survival."""

    kind: ClassVar[Kind] = "survival"

    time: str = Field(min_length=1, description="column with the time to event or censoring, > 0")
    event: str = Field(min_length=1, description="column with 1 = event observed, 0 = censored")
    times: tuple[PositiveFloat, ...] | None = Field(
        default=None,
        min_length=1,
        description="horizons to report survival at, in the unit of `time`; None: the quartiles of "
        "the training event times",
    )
    unit: str | None = Field(
        default=None, min_length=1, description="unit of `time` (months), for axes and tables"
    )

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.time, self.event)

    @model_validator(mode="after")
    def _time_is_not_event(self) -> Self:
        if self.time == self.event:
            raise ValueError(f"time and event name the same column {self.time!r}")
        return self

    @model_validator(mode="after")
    def _times_increase(self) -> Self:
        if any(late <= early for early, late in pairwise(self.times or ())):
            raise ValueError(f"times: expected increasing times, got {self.times}")
        return self


class SurvivalConfig(SurvivalTarget):
    """Discrete-time survival."""

    name: Literal["survival"] = "survival"
    bins: int = Field(default=4, ge=2, description="time bins, cut at quantiles of the event times")
    alpha: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="extra weight of events: (1 - alpha) all + alpha events",
    )


class CoxConfig(SurvivalTarget):
    """Cox proportional hazards; a step must hold several patients."""

    name: Literal["cox"] = "cox"
    ties: Literal["efron", "breslow"] = Field(
        default="efron", description="how events at the same time share a risk set"
    )


TaskConfig = Annotated[
    ClassificationConfig | MultilabelConfig | RegressionConfig | SurvivalConfig | CoxConfig,
    Field(discriminator="name"),
]
