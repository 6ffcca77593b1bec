"""Columns of a target table, checked: every refusal names the rows by their index."""

from collections.abc import Hashable, Iterable

import numpy as np
import pandas as pd

from mil.tasks.config import TaskConfig
from preprocessing.errors import CohortError

NAMED_IDS = 5
DECIMAL_POINT = "write a decimal point (3.5), not a comma"


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


def label_values(targets: pd.DataFrame, labels: Iterable[str], *, where: str = "") -> np.ndarray:
    """(n, labels) float64: 1 yes, 0 no, NaN where the cell is empty; `where` opens a refusal."""
    columns = []
    for name in labels:
        given = column(targets, name)
        values = _numbers(given)
        bad = given.notna().to_numpy() & ~np.isin(values, (0.0, 1.0))
        if bad.any():
            raise CohortError(
                f"{where}column {name!r}: expected 1 (yes), 0 (no) or an empty cell (unknown), got "
                f"{list(given[bad])[:NAMED_IDS]} for {named(given.index[bad])}; correct the table"
            )
        columns.append(values)
    return np.stack(columns, axis=1)


def number_values(targets: pd.DataFrame, name: str, *, where: str = "") -> np.ndarray:
    """(n,) float64, all finite; `where` opens a refusal."""
    given = column(targets, name)
    values = _numbers(given)
    bad = ~np.isfinite(values)
    if bad.any():
        raise CohortError(
            f"{where}column {name!r}: expected numbers, got {list(given[bad])[:NAMED_IDS]} for "
            f"{named(given.index[bad])}; {_remedy_of_numbers(given[bad])}"
        )
    return values


def answered(targets: pd.DataFrame, columns: Iterable[str], target: TaskConfig | None) -> pd.Series:
    """(n,) bool: rows with an answer in each of the columns; of a multilabel target, in one."""
    known = targets[list(columns)].notna()
    several = target is not None and target.kind == "multilabel"
    return known.any(axis=1) if several else known.all(axis=1)


def survival_columns(
    targets: pd.DataFrame, *, time: str, event: str, where: str = ""
) -> tuple[np.ndarray, np.ndarray]:
    """`time` (n,) float64, finite and > 0; `event` (n,) bool, True = observed.

    `where` opens a refusal: the file, or the key that names the columns.
    """
    times = _numbers(column(targets, time))
    bad = ~(np.isfinite(times) & (times > 0))
    if bad.any():
        given = targets[time][bad]
        raise CohortError(
            f"{where}column {time!r}: expected times > 0, got {list(given)[:NAMED_IDS]} for "
            f"{named(given.index)}; {_remedy_of_times(given, times[bad])}"
        )
    events = _numbers(column(targets, event))
    bad = ~np.isin(events, (0.0, 1.0))
    if bad.any():
        given = targets[event][bad]
        raise CohortError(
            f"{where}column {event!r}: expected 1 (event observed) or 0 (censored), got "
            f"{list(given)[:NAMED_IDS]} for {named(given.index)}; {_remedy_of_events(events[bad])}"
        )
    return times, events == 1.0


def _remedy_of_times(given: pd.Series, times: np.ndarray) -> str:
    if _has_comma(given):
        return DECIMAL_POINT
    if (times <= 0).any():
        return (
            "a time of 0 or below is no follow-up: leave the cell empty, and the patient is left "
            "out and listed; or give the time that was meant, say half a day"
        )
    return "write numbers in one unit, or leave the cell empty: the patient is then left out"


def _remedy_of_numbers(given: pd.Series) -> str:
    if _has_comma(given):
        return DECIMAL_POINT
    return "write numbers in one unit, or leave the cell empty: that row is then left out"


def _has_comma(given: pd.Series) -> bool:
    return bool(given.astype(str).str.fullmatch(r"-?\d+,\d+").any())


def _remedy_of_events(events: np.ndarray) -> str:
    if np.isnan(events).all():
        return (
            "write 1 for dead and 0 for alive, or have the words read: labels.preset: stamp, and "
            "in labels.columns your names of patient_id, time and event"
        )
    return "code the event as 1, all others as 0, or leave the cell empty: the patient is left out"


def _numbers(values: pd.Series) -> np.ndarray:
    """float64; what is no number becomes NaN, for the caller to refuse with its id."""
    numbers = pd.Series(pd.to_numeric(values, errors="coerce"))
    return numbers.to_numpy(dtype="float64", na_value=np.nan)
