"""What a cohort cannot be asked, told before any fold is made."""

from collections.abc import Callable
from typing import Protocol

import pandas as pd

from mil.config_messages import meant
from mil.decisions import SET_SEPARATOR
from mil.tasks.build import fit_task
from mil.tasks.columns import class_names, label_values, named, survival_columns
from mil.tasks.config import (
    ClassificationConfig,
    Kind,
    MultilabelConfig,
    SurvivalTarget,
    TaskConfig,
)
from preprocessing.errors import CohortError


class Question(Protocol):
    """What of a task's section (mil.config.TaskSection) is asked here."""

    @property
    def target(self) -> TaskConfig: ...

    @property
    def bag(self) -> str: ...

    @property
    def aggregate(self) -> str: ...


def refuse_impossible(section: Question, bags: pd.DataFrame) -> None:
    """Refuses, before any fold is made, what no training part of these bags could be trained on.

    `bags`: all of the cohort, as Cohort.bags makes them. Raises CohortError.
    """
    target = section.target
    if refuse := _REFUSALS.get(target.kind):
        refuse(section, target, bags)
    try:
        fit_task(target, bags)
    except CohortError as error:
        raise CohortError(f"not even the whole cohort could be trained on: {error}") from error


def _refuse_late_times(_section: Question, target: SurvivalTarget, bags: pd.DataFrame) -> None:
    times, _ = survival_columns(bags, time=target.time, event=target.event)
    late = [f"{time:g}" for time in target.times or () if time > times.max()]
    if late:
        raise CohortError(
            f"target.times: survival at {named(late)} is asked for, but the longest follow-up in "
            f"column {target.time!r} is {times.max():g}; give earlier times, in the column's unit"
        )


def _refuse_classes(section: Question, target: ClassificationConfig, bags: pd.DataFrame) -> None:
    names = class_names(bags, target.label)
    seen = sorted(set(names))
    where = f"column {target.label!r} of {len(names)} {section.bag}s"
    if len(seen) < 2:
        raise CohortError(
            f"{where}: expected two or more classes, all of them are {seen}; name another column "
            "in target.label, or add cases of another class"
        )
    classes = list(target.classes or seen)
    strange = names[~names.isin(classes)]
    if len(strange):
        raise CohortError(
            f"{where}: expected one of target.classes {classes}, got {sorted(set(strange))} for "
            f"{named(strange.index)}{meant(str(strange.iloc[0]), classes)}; name all classes, or "
            "leave these cases out"
        )
    asked = [*classes, *([target.positive] if target.positive else ())]
    absent = [c for c in asked if c not in seen]
    if absent:
        raise CohortError(
            f"{where}: no case of {absent}, which target.classes or target.positive name; the "
            f"classes of the column are {seen}{meant(absent[0], seen)}"
        )
    if piped := [c for c in classes if SET_SEPARATOR in c]:
        raise CohortError(
            f"{where}: {SET_SEPARATOR!r} separates the classes of a prediction set and cannot be "
            f"part of one, got {piped}; rename them in the label table"
        )
    _refuse_several(section, target, classes)


def _refuse_several(section: Question, target: ClassificationConfig, classes: list[str]) -> None:
    if len(classes) == 2:
        return
    if section.aggregate == "max":
        raise CohortError(
            f"aggregate: max joins slides of two classes, but column {target.label!r} has "
            f"{len(classes)}: {classes}; use aggregate: none (slides answer for themselves), mean, "
            "or merge classes"
        )
    if target.operating_point.rule != "youden":
        raise CohortError(
            f"operating_point: a threshold separates two classes, but column {target.label!r} has "
            f"{len(classes)}: {classes}; leave it out (the most probable class is called then)"
        )


def _refuse_labels(section: Question, target: MultilabelConfig, bags: pd.DataFrame) -> None:
    values = label_values(bags, target.labels)
    for name, known in zip(target.labels, values.T, strict=True):
        yes, no = int((known == 1).sum()), int((known == 0).sum())
        if not yes or not no:
            raise CohortError(
                f"column {name!r} of {len(bags)} {section.bag}s: {yes} yes, {no} no, "
                f"{len(bags) - yes - no} unknown: nothing tells yes from no; leave it out of "
                "target.labels, or add cases of the other answer"
            )


# What fitting a task does not refuse by itself, or says less well.
_REFUSALS: dict[Kind, Callable[..., None]] = {
    "classification": _refuse_classes,
    "multilabel": _refuse_labels,
    "survival": _refuse_late_times,
}
