"""What folds are balanced by, and which classes every fold has to train on."""

from collections.abc import Callable

import pandas as pd

from mil.metrics.arrays import equal_count_bins
from mil.tasks.columns import class_names, label_values, number_values, survival_columns
from mil.tasks.config import (
    ClassificationConfig,
    Kind,
    MultilabelConfig,
    RegressionConfig,
    SurvivalTarget,
    TaskConfig,
)

PARTS_OF_VALUES = (4, 2)  # quantile bins of a regression, the finest first


def strata(target: TaskConfig, bags: pd.DataFrame) -> list[pd.Series]:
    """Values to balance folds by, the finest first: folds take the first with enough patients.

    The class; event and early or late; quantile bins of a value; for several labels see `_labels`.
    """
    return _STRATA[target.kind](target, bags)


def classes_held(target: TaskConfig, bags: pd.DataFrame) -> pd.Series | None:
    """Bag -> the classes that it has; of several labels both answers count. None without classes.

    Unknown labels are no class.
    """
    if isinstance(target, ClassificationConfig):
        return class_names(bags, target.label).map(lambda name: {name})
    if isinstance(target, MultilabelConfig):
        told = _told(target, bags)
        return pd.Series([set(row.dropna()) for _, row in told.iterrows()], index=bags.index)
    return None


def _classes(target: ClassificationConfig, bags: pd.DataFrame) -> list[pd.Series]:
    return [class_names(bags, target.label)]


def _labels(target: MultilabelConfig, bags: pd.DataFrame) -> list[pd.Series]:
    """All labels together; else the rarest answer that a bag has, of all labels, then of ever
    fewer, the rarest left out; so at last by the most balanced label alone.
    """
    told = _told(target, bags)
    counts = told.melt()["value"].value_counts()
    rarer = [min(sorted(set(told[name].dropna())), key=lambda a: counts[a]) for name in told]
    rarer.sort(key=lambda answer: counts[answer])
    together = told.fillna("unknown").agg(", ".join, axis=1)
    by_rarest = []
    for start in range(len(rarer)):
        stratum = pd.Series("others", index=bags.index)
        for answer in reversed(rarer[start:]):
            stratum = stratum.mask((told == answer).any(axis=1), answer)
        by_rarest.append(stratum)
    return [together, *by_rarest]


def _told(target: MultilabelConfig, bags: pd.DataFrame) -> pd.DataFrame:
    """(bags, labels) 'EGFR = 1', or NaN where the label is unknown."""
    values = label_values(bags, target.labels)
    return pd.DataFrame(
        {
            name: pd.Series(known, index=bags.index).map({1.0: f"{name} = 1", 0.0: f"{name} = 0"})
            for name, known in zip(target.labels, values.T, strict=True)
        }
    )


def _values(target: RegressionConfig, bags: pd.DataFrame) -> list[pd.Series]:
    values = number_values(bags, target.column)
    chosen = []
    for parts in PARTS_OF_VALUES:
        place = equal_count_bins(values, parts)
        names = [f"{target.column}, part {one + 1} of {parts}" for one in place]
        chosen.append(pd.Series(names, index=bags.index))
    return [*chosen, _anyone(bags)]


def _follow_up(target: SurvivalTarget, bags: pd.DataFrame) -> list[pd.Series]:
    """A survival cohort may do without censored patients: then the coarsest is no balance."""
    times, events = survival_columns(bags, time=target.time, event=target.event)
    table = pd.DataFrame({"time": times, "event": events}, index=bags.index)
    late = table["time"] > table.groupby("event")["time"].transform("median")
    by_event = table["event"].map({True: "event", False: "censored"})
    by_both = by_event + late.map({True: ", late", False: ", early"})
    few_censored = (by_event == "censored").sum() < (by_event == "event").sum()
    return [by_both, by_event, _anyone(bags)] if few_censored else [by_both, by_event]


def _anyone(bags: pd.DataFrame) -> pd.Series:
    return pd.Series("anyone", index=bags.index)


_STRATA: dict[Kind, Callable[..., list[pd.Series]]] = {
    "classification": _classes,
    "multilabel": _labels,
    "regression": _values,
    "survival": _follow_up,
}
