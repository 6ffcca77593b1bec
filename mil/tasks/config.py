"""Configuration of the tasks; columns are named by the user, never guessed. Needs no torch."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from preprocessing.config import Section


class ClassificationConfig(Section):
    # classes written as numbers in YAML mean their text
    model_config = ConfigDict(coerce_numbers_to_str=True)

    name: Literal["classification"] = "classification"
    label: str = Field(min_length=1, description="column with the class of a slide or patient")
    classes: tuple[str, ...] | None = Field(
        default=None, description="order of the classes; None: sorted values of the training part"
    )
    positive: str | None = Field(
        default=None, description="class that heatmaps show evidence for; None: the last one"
    )

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.label,)

    @model_validator(mode="after")
    def _classes_hold_together(self) -> Self:
        if self.classes is None:
            return self
        if len(self.classes) < 2 or len(set(self.classes)) < len(self.classes):
            raise ValueError(f"classes: expected two or more different names, got {self.classes}")
        if self.positive is not None and self.positive not in self.classes:
            raise ValueError(
                f"positive: {self.positive!r} is not one of the classes {self.classes}"
            )
        return self


class SurvivalConfig(Section):
    """Discrete-time survival."""

    name: Literal["survival"] = "survival"
    time: str = Field(min_length=1, description="column with the time to event or censoring, > 0")
    event: str = Field(min_length=1, description="column with 1 = event observed, 0 = censored")
    bins: int = Field(default=4, ge=2, description="time bins, cut at quantiles of the event times")
    alpha: float = Field(
        default=0.0,
        ge=0,
        le=1,
        description="extra weight of events: (1 - alpha) all + alpha events",
    )

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.time, self.event)

    @model_validator(mode="after")
    def _time_is_not_event(self) -> Self:
        if self.time == self.event:
            raise ValueError(f"time and event name the same column {self.time!r}")
        return self


TaskConfig = Annotated[ClassificationConfig | SurvivalConfig, Field(discriminator="name")]
