"""Does the model's risk matter beside what is known anyway? Cox regression on test patients.

The hazard ratio of the standardised risk (per standard deviation of the training patients' risk)
and of the high against the low group, alone and adjusted for covariates, stratified by fold, each
with the test of proportional hazards (Schoenfeld residuals against ranked time; Grambsch & Therneau
1994). All by lifelines.
"""

import warnings
from typing import Any, cast

import numpy as np
import pandas as pd
from lifelines import CoxPHFitter
from lifelines.exceptions import ConvergenceError
from lifelines.statistics import proportional_hazard_test

from mil.tasks.columns import survival_columns
from mil.tasks.config import SurvivalTarget

MOST_STANDARD_ERROR = 10.0  # of a log hazard ratio: such an interval spans e^39, it says nothing
EVENTS_PER_TERM = 10  # fewer make unstable estimates (Peduzzi et al. 1995)
STEPS = (0.95, 0.5, 0.1)  # of Newton's, the first as lifelines has it
TIME, EVENT, FOLD = "follow-up time", "event observed", "fold of the test"  # no covariate's names
COLUMNS = ["exposure", "model", "term", "hr", "low", "high", "p", "ph_p", "n", "events", "note"]


def hazard_ratios(
    patients: pd.DataFrame, target: SurvivalTarget, covariates: tuple[str, ...]
) -> pd.DataFrame:
    """One row a term of each regression; `patients` are the test rows of level patient.

    Patients with an empty covariate are left out of all regressions, so that they are of the same
    patients; the note says how many. A regression that does not converge has NaN and a note.
    """
    time, event = survival_columns(patients, time=target.time, event=target.event)
    base = pd.DataFrame(
        {TIME: time, EVENT: event, FOLD: patients["fold"].to_numpy()}, index=patients.index
    )
    known = _design(patients[list(covariates)])
    complete = known.notna().all(axis=1)
    dropped = int((~complete).sum())
    note = f"{dropped} patient(s) with an empty covariate left out" if dropped else ""
    base, known = base[complete], known[complete].astype(float)
    known = known.loc[:, known.nunique() > 1]
    exposures = {
        "risk, per SD": patients.loc[complete, "risk_sd"].astype(float),
        "high against low": (patients.loc[complete, "risk_group"] == "high").astype(float),
    }
    rows = []
    for name, exposure in exposures.items():
        alone = base.assign(**{name: exposure})
        rows += [{"exposure": name, "model": "alone", **row} for row in _regress(alone, note)]
        if len(known.columns):
            both = alone.join(known)
            rows += [{"exposure": name, "model": "adjusted", **r} for r in _regress(both, note)]
    return pd.DataFrame(rows, columns=COLUMNS)


def _design(covariates: pd.DataFrame) -> pd.DataFrame:
    """Numbers as they are; categories as indicators against the most frequent one."""
    columns = []
    for name, values in covariates.items():
        numbers = pd.to_numeric(values, errors="coerce")
        if numbers.notna().sum() == values.notna().sum():
            columns.append(numbers.rename(str(name)))
            continue
        reference = values.mode().iloc[0]
        columns += [
            (values == level).astype(float).where(values.notna()).rename(f"{name}: {level}")
            for level in sorted(set(values.dropna()) - {reference})
        ]
    return pd.concat(columns, axis=1) if columns else pd.DataFrame(index=covariates.index)


def _regress(table: pd.DataFrame, note: str) -> list[dict[str, object]]:
    terms = [str(c) for c in table.columns if c not in {TIME, EVENT, FOLD}]
    events = int(table[EVENT].sum())
    counts = {"n": len(table), "events": events}
    fitted = _fit(table)
    if fitted is None:
        failed = "no estimate: the regression did not converge; events in one group only, or too "
        failed += f"few ({events} for {len(terms)} terms)" + (f"; {note}" if note else "")
        return [{"term": term, **counts, "note": failed} for term in terms]
    if events < EVENTS_PER_TERM * len(terms):
        few = f"{events} events for {len(terms)} terms: estimates are unstable"
        note = f"{few}; {note}" if note else few
    summary, proportional = fitted
    return [
        {
            "term": term,
            "hr": summary.loc[term, "exp(coef)"],
            "low": summary.loc[term, "exp(coef) lower 95%"],
            "high": summary.loc[term, "exp(coef) upper 95%"],
            "p": summary.loc[term, "p"],
            "ph_p": proportional.loc[term],
            **counts,
            "note": note,
        }
        for term in terms
    ]


def _fit(table: pd.DataFrame) -> tuple[pd.DataFrame, pd.Series] | None:
    """Summary and p of proportional hazards, by term; None where the likelihood has no maximum."""
    for step in STEPS:
        try:
            with warnings.catch_warnings():
                # On its way to no maximum lifelines overflows; standard errors tell, below.
                warnings.simplefilter("ignore")
                fitter = CoxPHFitter()
                fitter.fit(table, TIME, EVENT, strata=[FOLD], fit_options={"step_size": step})
                if (fitter.standard_errors_ > MOST_STANDARD_ERROR).any():
                    return None
                # lifelines takes a function, too, whatever its annotation says
                ranked = cast("Any", _ranked)
                tested = proportional_hazard_test(fitter, table, time_transform=ranked)
        except (ConvergenceError, ValueError, np.linalg.LinAlgError):
            continue  # Newton's step was too long: a shorter one may still find the maximum
        return fitter.summary, tested.summary["p"]
    return None


def _ranked(time: pd.Series, event: pd.Series, _: pd.Series) -> pd.Series:
    """Ranks of the event times over all folds (lifelines' own "rank" counts rows within strata)."""
    return time.where(event.astype(bool)).rank()
