import numpy as np
import pandas as pd
import pytest
from statsmodels.duration.hazard_regression import PHReg

from mil.evaluation.hazard import hazard_ratios
from mil.tasks.config import SurvivalConfig

TARGET = SurvivalConfig(time="t", event="e")


def patients(count: int = 300, seed: int = 0, effect: float = 0.7) -> pd.DataFrame:
    """Hazard = exp(effect x risk + 0.03 x age + 0.5 x stage II); another baseline in each fold."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"risk_sd": rng.normal(size=count), "fold": np.arange(count) % 4})
    table["age"] = rng.normal(60, 10, count).round(1)
    table["stage"] = rng.choice(["I", "II"], count, p=[0.6, 0.4])
    log_hazard = effect * table["risk_sd"] + 0.03 * table["age"] + 0.5 * (table["stage"] == "II")
    event_time = rng.exponential(np.exp(-log_hazard) * 20 * (1 + table["fold"]))
    censored = rng.exponential(15, count)
    table["t"] = np.minimum(event_time, censored).clip(0.01).round(2)
    table["e"] = (event_time <= censored).astype(int).astype(str)
    table["risk_group"] = np.where(table["risk_sd"] > 0, "high", "low")
    table["age"] = table["age"].astype(str)
    return table


def term(table: pd.DataFrame, model: str, name: str) -> pd.Series:
    rows = table[(table["model"] == model) & (table["term"] == name)]
    assert len(rows) >= 1
    return rows.iloc[0]


def test_adjusted_and_stratified_ratios_are_statsmodels():
    table = patients()
    found = hazard_ratios(table, TARGET, ("age", "stage"))
    design = np.c_[table["risk_sd"], table["age"].astype(float), table["stage"] == "II"]
    fitted = PHReg(
        table["t"],
        design.astype(float),
        status=table["e"].astype(int),
        strata=table["fold"],
        ties="efron",
    ).fit()
    for place, name in enumerate(["risk, per SD", "age", "stage: II"]):
        row = term(found, "adjusted", name)
        assert row["hr"] == pytest.approx(np.exp(fitted.params[place]), rel=1e-4)
        assert row["p"] == pytest.approx(fitted.pvalues[place], abs=1e-4)


def test_the_interval_holds_the_truth_and_proportional_hazards_are_not_refused():
    row = term(hazard_ratios(patients(800), TARGET, ("age", "stage")), "adjusted", "risk, per SD")
    assert row["low"] < np.exp(0.7) < row["high"]
    assert row["ph_p"] > 0.05


def test_time_is_ranked_over_all_folds():
    """Hazards of two groups that cross at one time in every fold, whatever lifelines counts."""
    refused = 0
    for seed in range(10):
        table = patients(200, seed=seed, effect=0.0)
        rng = np.random.default_rng(seed)
        high = table["risk_group"] == "high"
        early, late = rng.weibull(0.7, 200) * 10, rng.weibull(1.6, 200) * 10
        table["t"] = np.where(high, early, late).clip(0.01)
        table["e"] = "1"
        row = term(hazard_ratios(table, TARGET, ()), "alone", "high against low")
        refused += row["ph_p"] < 0.05
    assert refused >= 9


def test_a_long_newton_step_does_not_hide_an_estimate():
    """25 events and a term that nearly separates: lifelines' first step diverges."""
    rng = np.random.default_rng(3)
    found = []
    for _ in range(20):
        table = patients(36, seed=int(rng.integers(1000)), effect=1.5)
        table["stage"] = np.where(np.arange(36) < 4, "IV", rng.choice(["I", "II", "III"], 36))
        rows = hazard_ratios(table, TARGET, ("stage",))
        found.append(rows["hr"].notna().all())
    assert np.mean(found) > 0.7


def test_few_events_a_term_are_told():
    found = hazard_ratios(patients(24), TARGET, ("age", "stage"))
    assert found.loc[found["model"] == "adjusted", "note"].str.contains("events for 3 terms").all()


def test_a_covariate_may_be_called_event():
    table = patients().rename(columns={"age": "event"})
    assert "event" in hazard_ratios(table, TARGET, ("event",))["term"].tolist()


def test_hazards_that_cross_are_told():
    table = patients(600, effect=0.0)
    rng = np.random.default_rng(1)
    high = table["risk_group"] == "high"
    table["t"] = np.where(high, rng.weibull(4, 600) * 10, rng.weibull(0.6, 600) * 10).clip(0.01)
    table["e"] = "1"
    row = term(hazard_ratios(table, TARGET, ()), "alone", "high against low")
    assert row["ph_p"] < 0.001


def test_patients_without_a_covariate_are_counted_and_left_out():
    table = patients()
    table.loc[:9, "stage"] = np.nan
    found = hazard_ratios(table, TARGET, ("stage",))
    assert set(found["n"]) == {290}
    assert found["note"].str.contains(r"10 patient\(s\) with an empty covariate left out").all()


def test_what_cannot_be_estimated_is_said_and_not_made_up():
    table = patients(8)
    table["risk_sd"] = np.where(table["e"] == "1", 5.0, -5.0)
    table["t"] = np.where(table["e"] == "1", 1.0, 9.0)
    table["risk_group"] = np.where(table["e"] == "1", "high", "low")
    found = hazard_ratios(table, TARGET, ())
    assert found["hr"].isna().all()
    assert found["note"].str.startswith("no estimate: ").all()
