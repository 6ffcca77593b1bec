"""Columns of a target table, checked: every refusal names the rows by their index."""

from collections.abc import Hashable, Iterable

import numpy as np
import pandas as pd

from preprocessing.errors import CohortError

NAMED_IDS = 5


def named(ids: Iterable[Hashable]) -> str:
    """The first few ids and how many more there are, for a message."""
    ids = [str(i) for i in ids]
    rest = f" and {len(ids) - NAMED_IDS} more" if len(ids) > NAMED_IDS else ""
    return ", ".join(ids[:NAMED_IDS]) + rest


def column(targets: pd.DataFrame, name: str) -> pd.Series:
    values = targets.get(name)
    if not isinstance(values, pd.Series):
        have = ", ".join(map(str, targets.columns))
        raise CohortError(
            f"expected one column {name!r} among the targets, whose columns are {have}; correct "
            "the table, or the column named in the task's configuration"
        )
    return values


def class_names(targets: pd.DataFrame, label: str) -> pd.Series:
    """The label column as text; 1, 1.0 and '1' are the same class."""
    values = column(targets, label)
    empty = values.isna()
    if empty.any():
        raise CohortError(
            f"column {label!r}: no value for {named(targets.index[empty])}; fill it in or leave "
            "these out of the cohort"
        )
    return values.map(lambda v: str(int(v)) if isinstance(v, float) and v.is_integer() else str(v))


def survival_columns(
    targets: pd.DataFrame, *, time: str, event: str
) -> tuple[np.ndarray, np.ndarray]:
    """`time` (n,) float64, finite and > 0; `event` (n,) bool, True = observed."""
    times = _numbers(column(targets, time))
    bad = ~(np.isfinite(times) & (times > 0))
    if bad.any():
        raise CohortError(
            f"column {time!r}: expected times > 0, got {list(targets[time][bad])[:NAMED_IDS]} for "
            f"{named(targets.index[bad])}; correct them or leave these out of the cohort"
        )
    events = _numbers(column(targets, event))
    bad = ~np.isin(events, (0.0, 1.0))
    if bad.any():
        raise CohortError(
            f"column {event!r}: expected 1 (event observed) or 0 (censored), got "
            f"{list(targets[event][bad])[:NAMED_IDS]} for {named(targets.index[bad])}"
        )
    return times, events == 1.0


def _numbers(values: pd.Series) -> np.ndarray:
    """float64; what is no number becomes NaN, for the caller to refuse with its id."""
    numbers = pd.Series(pd.to_numeric(values, errors="coerce"))
    return numbers.to_numpy(dtype="float64", na_value=np.nan)
