"""What turns a model's answers into calls: fitted on validation and training rows of one fold.

Classification (validation rows): the threshold of the positive class, by the task's rule, and the
quantile of split-conformal prediction (Angelopoulos & Bates 2021). Several labels (validation rows
where the label is known): a threshold each, by the same rule. Survival (training rows): the risk
that separates the high from the low group, their median. A regression's value is not called.
"""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.metrics.calibration import (
    conformal_quantile,
    conformal_sets,
    threshold_at_sensitivity,
    threshold_at_specificity,
    youden_threshold,
)
from mil.tasks.columns import class_names, label_values, named
from mil.tasks.config import (
    ClassificationConfig,
    Kind,
    MultilabelConfig,
    OperatingPointConfig,
    TaskConfig,
)
from preprocessing.errors import CheckpointError, CohortError

LEVELS = ("slide", "patient")
SET_SEPARATOR = "|"
HALF = 0.5  # a label without a threshold is called where yes is more probable than no


@dataclass(frozen=True)
class ClassDecision:
    """`threshold` of the positive class, NaN where classes are more than two or validation has one
    class only: then the most probable class is called. `quantile` infinite: too few validation
    rows for the coverage, and every conformal set holds all classes.
    """

    positive: str | None
    threshold: float
    quantile: float

    def apply(self, table: pd.DataFrame) -> pd.DataFrame:
        """Adds threshold, predicted, conformal_set ('a|b') and abstain (not exactly one class)."""
        inside = conformal_sets(probabilities_of(table), self.quantile)
        return with_calls(table.assign(threshold=self.threshold), self.positive, inside)


@dataclass(frozen=True)
class RiskDecision:
    """`risk_cut`: the median standardised risk of the training patients."""

    risk_cut: float

    def apply(self, table: pd.DataFrame) -> pd.DataFrame:
        """Adds risk_cut and risk_group (high or low)."""
        return with_risk_groups(table.assign(risk_cut=self.risk_cut))


@dataclass(frozen=True)
class LabelDecision:
    """`thresholds`: label -> probability from which on it is called; NaN where the known labels of
    validation are all alike: then it is called from 0.5 on.
    """

    thresholds: dict[str, float]

    def apply(self, table: pd.DataFrame) -> pd.DataFrame:
        """Adds threshold_<label> and predicted_<label> (1 or 0)."""
        cuts = {f"threshold_{name}": cut for name, cut in self.thresholds.items()}
        return with_label_calls(table.assign(**cuts))


@dataclass(frozen=True)
class NoDecision:
    """Of answers that stand for themselves: the value of a regression."""

    def apply(self, table: pd.DataFrame) -> pd.DataFrame:
        """The table as it is."""
        return table


Decision = ClassDecision | RiskDecision | LabelDecision | NoDecision


def with_calls(
    table: pd.DataFrame, positive: str | None, inside: NDArray[np.bool_]
) -> pd.DataFrame:
    """Adds what is called of the probabilities: the positive class from the row's threshold on,
    without one the most probable class; and `inside` (rows, classes), the classes of the set.
    """
    classes = classes_of(table)
    called = np.array(classes)[probabilities_of(table).argmax(axis=1)]
    if positive is not None and len(classes) == 2:
        (negative,) = [c for c in classes if c != positive]
        above = (table[f"prob_{positive}"] >= table["threshold"]).to_numpy()
        by_threshold = np.where(above, positive, negative)
        called = np.where(table["threshold"].notna(), by_threshold, called)
    return table.assign(
        predicted=called.tolist(),
        conformal_set=[SET_SEPARATOR.join(np.array(classes)[row]) for row in inside],
        abstain=inside.sum(axis=1) != 1,
    )


def members_of_sets(table: pd.DataFrame) -> NDArray[np.bool_]:
    """(rows, classes): which classes the conformal sets of `with_calls` hold."""
    held = [set(str(s).split(SET_SEPARATOR)) for s in table["conformal_set"].fillna("")]
    return np.array([[c in each for c in classes_of(table)] for each in held], dtype=bool)


def with_risk_groups(table: pd.DataFrame) -> pd.DataFrame:
    """Adds risk_group: high where the standardised risk is above the row's cut, else low."""
    high = table["risk_sd"] > table["risk_cut"]
    return table.assign(risk_group=high.map({True: "high", False: "low"}))


def with_label_calls(table: pd.DataFrame) -> pd.DataFrame:
    """Adds predicted_<label>: '1' from the row's threshold on, from 0.5 on where it has none."""
    calls = {}
    for name in classes_of(table):
        cut = table[f"threshold_{name}"].fillna(HALF)
        calls[f"predicted_{name}"] = (table[f"prob_{name}"] >= cut).map({True: "1", False: "0"})
    return table.assign(**calls)


def classes_of(table: pd.DataFrame) -> list[str]:
    """The classes, or labels, that have a probability."""
    return [c.removeprefix("prob_") for c in map(str, table.columns) if c.startswith("prob_")]


def probabilities_of(table: pd.DataFrame) -> NDArray[np.float64]:
    """(rows, classes)"""
    return table[[f"prob_{c}" for c in classes_of(table)]].to_numpy(dtype=float)


def class_indices(table: pd.DataFrame, label: str) -> NDArray[np.intp]:
    """The true class of every row, as its place among the prob_ columns."""
    place = {name: i for i, name in enumerate(classes_of(table))}
    names = class_names(table, label)
    strange = ~names.isin(list(place)).to_numpy()
    if strange.any():
        ids = table.get("id", table.index)
        raise CohortError(
            f"column {label!r}: the model knows the classes {list(place)}, got "
            f"{sorted(set(names[strange]))} for {named(ids[strange])}; map the labels to its "
            "classes, or leave these out"
        )
    return np.array([place[name] for name in names], dtype=np.intp)


def positive_class(target: ClassificationConfig, classes: list[str]) -> str | None:
    """The class that a binary question is about; None for several classes without a `positive`."""
    return target.positive or (classes[-1] if len(classes) == 2 else None)


def asked_of(table: pd.DataFrame, target: ClassificationConfig | MultilabelConfig) -> list[str]:
    """What is asked with yes or no: the positive class, else each class; or each label."""
    classes = classes_of(table)
    if isinstance(target, MultilabelConfig):
        return classes
    positive = positive_class(target, classes)
    return [positive] if positive is not None else classes


def known_truth(
    table: pd.DataFrame, target: ClassificationConfig | MultilabelConfig, name: str
) -> tuple[NDArray[np.intp], NDArray[np.bool_]]:
    """The rows of which it is known whether they have the class or label `name`; and whether."""
    if isinstance(target, MultilabelConfig):
        values = label_values(table, (name,))[:, 0]
        rows = np.flatnonzero(~np.isnan(values))
        return rows, values[rows] == 1
    truth = class_names(table, target.label) == name
    return np.arange(len(table)), truth.to_numpy(dtype=bool)


def fit_decisions(target: TaskConfig, table: pd.DataFrame) -> dict[str, Decision]:
    """Per level, from the training and validation rows of one fold's predictions alone."""
    fitted: dict[str, Decision] = {}
    for level in [level for level in LEVELS if (table["level"] == level).any()]:
        mine = table[table["level"] == level]
        training, validation = (mine[mine["part"] == part] for part in ("train", "validation"))
        fitted[level] = _FITS[target.kind](target, training, validation)
    return fitted


def apply_decisions(decisions: dict[str, Decision], table: pd.DataFrame) -> pd.DataFrame:
    """The rows with what is called of them, in their order."""
    parts = [decisions[level].apply(table[table["level"] == level]) for level in decisions]
    return pd.concat([part for part in parts if len(part)]).sort_index()


def decisions_state(decisions: dict[str, Decision]) -> dict[str, dict[str, Any]]:
    """As JSON values: NaN and infinity, which JSON lacks, as text."""
    return {
        level: {k: _plain(v) for k, v in asdict(decision).items()}
        for level, decision in decisions.items()
    }


def restore_decisions(state: dict[str, dict[str, Any]]) -> dict[str, Decision]:
    return {level: _restore(values) for level, values in state.items()}


def _fit_risk(_target: TaskConfig, training: pd.DataFrame, _: pd.DataFrame) -> RiskDecision:
    return RiskDecision(float(training["risk_sd"].median()))


def _fit_labels(
    target: MultilabelConfig, _: pd.DataFrame, validation: pd.DataFrame
) -> LabelDecision:
    thresholds = {}
    for name in target.labels:
        known, truth = known_truth(validation, target, name)
        score = validation[f"prob_{name}"].to_numpy(dtype=float)[known]
        # nobody with a known label has no scores to put a threshold between
        cut = _threshold(target.operating_point, truth, score) if len(known) else math.nan
        thresholds[name] = cut
    return LabelDecision(thresholds)


def _fit_nothing(_target: TaskConfig, _training: pd.DataFrame, _: pd.DataFrame) -> NoDecision:
    return NoDecision()


def _fit_classes(
    target: ClassificationConfig, _: pd.DataFrame, validation: pd.DataFrame
) -> ClassDecision:
    classes = classes_of(validation)
    truth = class_indices(validation, target.label)
    probabilities = probabilities_of(validation)
    positive = positive_class(target, classes)
    threshold = math.nan
    if len(classes) == 2 and positive is not None:
        place = classes.index(positive)
        threshold = _threshold(target.operating_point, truth == place, probabilities[:, place])
    of_truth = 1 - probabilities[np.arange(len(truth)), truth]
    return ClassDecision(positive, threshold, conformal_quantile(of_truth, target.coverage))


def _threshold(
    rule: OperatingPointConfig, truth: NDArray[np.bool_], score: NDArray[np.float64]
) -> float:
    if rule.rule == "youden" or rule.least is None:
        return youden_threshold(truth, score)
    if rule.rule == "sensitivity":
        return threshold_at_sensitivity(truth, score, rule.least)
    return threshold_at_specificity(truth, score, rule.least)


_FITS: dict[Kind, Callable[..., Decision]] = {
    "classification": _fit_classes,
    "multilabel": _fit_labels,
    "regression": _fit_nothing,
    "survival": _fit_risk,
}


def _plain(value: object) -> object:
    if isinstance(value, dict):
        return {name: _plain(one) for name, one in value.items()}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _restore(values: dict[str, Any]) -> Decision:
    """The decision that has just these fields; numbers may be text."""
    kinds = (ClassDecision, RiskDecision, LabelDecision, NoDecision)
    found = next((k for k in kinds if {field.name for field in fields(k)} == set(values)), None)
    if found is None:
        raise CheckpointError(
            f"expected the thresholds, risk cut or nothing of a decision, got {values}; was the "
            "checkpoint written by another version? Train it anew"
        )
    return found(**{name: _number(value, name) for name, value in values.items()})


def _number(value: Any, name: str) -> Any:
    if name == "positive":
        return value
    if isinstance(value, dict):
        return {label: float(one) for label, one in value.items()}
    return float(value)
