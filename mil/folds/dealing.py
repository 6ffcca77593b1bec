"""Dealing patients, or whole groups of them, to the parts of a split, balanced by strata.

Folds come from scikit-learn's StratifiedGroupKFold. A single share is drawn in a random order: a
unit is taken if that brings the number of taken patients nearer to the share in all strata, by

    sum_s ((taken_s - wanted_s) / patients_s)^2

so that for single patients every stratum gives round(share x patients), at least one. A stratum of
which nobody was taken, since only large groups hold it, then gives the group that fits best.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import combinations
from typing import Self, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from sklearn.model_selection import StratifiedGroupKFold

from mil.tasks.columns import named
from preprocessing.errors import CohortError

ATTEMPTS = 50  # random orders before units as coarse as sites are said not to be divisible
Taken = NDArray[np.bool_]
Dealt = TypeVar("Dealt")


@dataclass(frozen=True)
class Units:
    """What is dealt whole. `patients`: patient -> unit. `strata`: the choices of strata, the finest
    first, each a table (units, strata) of numbers of patients. `name`: what a unit is.
    """

    patients: pd.Series
    strata: tuple[pd.DataFrame, ...]
    name: str

    @classmethod
    def of(
        cls,
        bags: pd.DataFrame,
        candidates: Sequence[pd.Series],
        *,
        groups: pd.Series | None,
        name: str,
    ) -> Self:
        """Units of the patients of `bags`: themselves, or their value in `groups`."""
        patient = bags["patient_id"].reset_index(drop=True)
        unit = patient if groups is None else groups_of(patient, groups)
        tables = []
        for candidate in candidates:
            stratum = candidate.reset_index(drop=True)
            each = pd.DataFrame({"patient": patient, "unit": unit, "stratum": stratum})
            each = each.drop_duplicates()
            tables.append(pd.crosstab(each["unit"], each["stratum"]))
        return cls(
            pd.Series(unit.to_numpy(), index=patient).groupby(level=0).first(), tuple(tables), name
        )

    def only(self, units: Collection[str]) -> "Units":
        tables = tuple(_without_empty(t[t.index.isin(list(units))]) for t in self.strata)
        return replace(self, patients=self.patients[self.patients.isin(list(units))], strata=tables)

    def without(self, units: Collection[str]) -> "Units":
        return self.only(set(self.patients) - set(units))

    @property
    def patient_ids(self) -> tuple[str, ...]:
        return tuple(sorted(self.patients.index))


def refuse_overlap(parts: Mapping[str, Collection[str]], what: str) -> None:
    """Raises CohortError naming what stands in two of the parts."""
    for (name, ids), (other, other_ids) in combinations(parts.items(), 2):
        both = sorted(set(ids) & set(other_ids))
        if both:
            raise CohortError(f"{what} {named(both)} stand in both {name} and {other}")


def groups_of(patients: pd.Series, groups: pd.Series) -> pd.Series:
    """The group of every patient; raises CohortError naming patients that have none."""
    found = patients.map(groups)
    if found.isna().any():
        nameless = sorted(set(patients[found.isna()]))
        raise CohortError(
            f"no value of the group for patient(s) {named(nameless)}: fill it in, leave them out "
            "of the cohort, or split without `group`"
        )
    return found.astype(str)


def deal_folds(units: Units, folds: int, rng: np.random.Generator) -> list[frozenset[str]]:
    """Disjoint test parts that together hold every unit; two of each stratum are left to train."""

    def attempt(table: pd.DataFrame) -> list[frozenset[str]] | None:
        numbers = table.to_numpy()
        row, stratum = (np.repeat(i, numbers[numbers > 0]) for i in np.nonzero(numbers))
        seed = int(rng.integers(2**31))
        splitter = StratifiedGroupKFold(n_splits=folds, shuffle=True, random_state=seed)
        tests = [
            np.isin(np.arange(len(table)), row[test])
            for _, test in splitter.split(row, stratum, groups=row)
        ]
        if not all(_covers(table, test, leave=2) for test in tests):
            return None
        return [frozenset(table.index[test]) for test in tests]

    enough = 4 if folds == 2 else folds  # of 3, one of 2 folds would leave but one
    return _first_that_fits(units, enough, attempt, f"{folds} folds")


def deal_share(
    units: Units, share: float, *, leave: int, what: str, rng: np.random.Generator
) -> frozenset[str]:
    """About `share` of the patients of every stratum; `leave` units of each stay behind."""

    def attempt(table: pd.DataFrame) -> frozenset[str] | None:
        taken = _draw(table.to_numpy(dtype=float), share, leave, rng)
        return frozenset(table.index[taken]) if _covers(table, taken, leave=leave) else None

    return _first_that_fits(units, leave + 1, attempt, what)


def _draw(
    numbers: NDArray[np.float64], share: float, leave: int, rng: np.random.Generator
) -> Taken:
    """Which units to take, of their `numbers` (units, strata) of patients."""
    held = (numbers > 0).astype(int)
    patients = numbers.sum(axis=0)
    wanted = np.maximum(share * patients, 1)
    taken = np.zeros(len(numbers), dtype=bool)
    have, stay = np.zeros_like(patients), held.sum(axis=0)

    def miss(number: NDArray[np.float64]) -> float:
        return float((((number - wanted) / patients) ** 2).sum())

    def miss_with(unit: np.intp) -> float:
        """Infinite if without the unit too few of a stratum would stay behind."""
        enough = (stay - held[unit] >= leave).all()
        return miss(have + numbers[unit]) if enough else np.inf

    def take(unit: np.intp) -> None:
        nonlocal have, stay
        taken[unit] = True
        have, stay = have + numbers[unit], stay - held[unit]

    for unit in rng.permutation(len(numbers)):
        if miss_with(unit) < miss(have):
            take(unit)
    for stratum in range(len(patients)):  # nobody of it, where only large units hold it
        if have[stratum] == 0:
            take(min(np.flatnonzero(held[:, stratum]), key=miss_with))
    return taken


def _covers(table: pd.DataFrame, taken: Taken, *, leave: int) -> bool:
    """Whether every stratum has a unit among the taken and `leave` among the others."""
    held = table.to_numpy() > 0
    return bool(held[taken].any(axis=0).all() and (held[~taken].sum(axis=0) >= leave).all())


def _first_that_fits(
    units: Units, enough: int, attempt: Callable[[pd.DataFrame], Dealt | None], what: str
) -> Dealt:
    """The first deal that works, over the choices of strata and then over random orders."""
    for table in units.strata:
        if ((table > 0).sum() >= enough).all():
            for _ in range(ATTEMPTS):
                dealt = attempt(table)
                if dealt is not None:
                    return dealt
    raise _too_few(units, enough, what)


def _too_few(units: Units, enough: int, what: str) -> CohortError:
    table = units.strata[-1]
    places = {str(s): table.index[table[s] > 0].tolist() for s in table}
    scarce = {name: ids for name, ids in places.items() if len(ids) < enough}
    if not scarce:
        sizes = units.patients.value_counts().head(5)
        largest = ", ".join(f"{name!r} ({count} patients)" for name, count in sizes.items())
        return CohortError(
            f"{what}: no way in {ATTEMPTS} random orders to give every part patients of every "
            f"stratum without dividing a {units.name}; the largest are {largest}: use another "
            "number of folds, or a finer group"
        )
    listed = ", ".join(f"{name!r} has {len(ids)} ({named(ids)})" for name, ids in scarce.items())
    return CohortError(
        f"{what} need at least {enough} {units.name}s in every stratum, but {listed}; use fewer "
        "folds, or merge or drop the rare class"
    )


def _without_empty(table: pd.DataFrame) -> pd.DataFrame:
    return table.loc[:, (table > 0).any()]
