"""Calls are fitted on validation and training rows; test rows touch nothing."""

import json
import math

import numpy as np
import pandas as pd
import pytest

from mil.decisions import (
    ClassDecision,
    RiskDecision,
    apply_decisions,
    decisions_state,
    fit_decisions,
    restore_decisions,
)
from mil.tasks.config import ClassificationConfig, SurvivalConfig

TUMOUR = ClassificationConfig(label="y", positive="b")
SURVIVAL = SurvivalConfig(time="t", event="e")


def classified(rows: int = 400, seed: int = 0) -> pd.DataFrame:
    """Rows of both levels and all parts; class b has higher scores."""
    rng = np.random.default_rng(seed)
    truth = rng.random(rows) < 0.5
    score = 1 / (1 + np.exp(-(rng.normal(size=rows) + 2 * truth - 1)))
    return pd.DataFrame(
        {
            "level": np.where(np.arange(rows) % 2, "patient", "slide"),
            "part": np.array(["train", "validation", "test", "validation"])[
                (np.arange(rows) // 2) % 4
            ],
            "y": np.where(truth, "b", "a"),
            "prob_a": 1 - score,
            "prob_b": score,
        }
    )


def test_test_and_training_rows_do_not_move_a_threshold():
    table = classified()
    before = fit_decisions(TUMOUR, table)
    other = table.copy()
    strange = table["part"] != "validation"
    other.loc[strange, "y"] = "a"
    other.loc[strange, ["prob_a", "prob_b"]] = 0.5
    assert fit_decisions(TUMOUR, other) == before
    other.loc[~strange, "prob_b"] **= 2
    other["prob_a"] = 1 - other["prob_b"]
    assert fit_decisions(TUMOUR, other) != before


def test_levels_are_fitted_apart():
    table = classified()
    decisions = fit_decisions(TUMOUR, table)
    assert decisions["slide"] != decisions["patient"]
    alone = fit_decisions(TUMOUR, table[table["level"] == "slide"].assign(level="patient"))
    assert alone["patient"] == decisions["slide"]


def test_threshold_decides_and_the_order_of_rows_stays():
    table = classified()
    decisions = {
        "slide": ClassDecision("b", 0.9, 0.5),
        "patient": ClassDecision("b", 0.1, 0.5),
    }
    called = apply_decisions(decisions, table)
    assert called.index.equals(table.index)
    limit = np.where(table["level"] == "slide", 0.9, 0.1)
    assert ((called["predicted"] == "b") == (table["prob_b"] >= limit)).all()


def test_conformal_sets_cover_as_stated_on_fresh_rows():
    target = TUMOUR.model_copy(update={"coverage": 0.8})
    covered = []
    for seed in range(30):
        table = classified(800, seed)
        called = apply_decisions(fit_decisions(target, table), table)
        test = called[called["part"] == "test"]
        sets = test["conformal_set"].str.split("|")
        covered += [y in held for y, held in zip(test["y"], sets, strict=True)]
        sizes = sets.map(lambda held: len([c for c in held if c]))
        assert ((sizes != 1) == test["abstain"]).all()
    assert np.mean(covered) == pytest.approx(0.8, abs=0.03)


def test_too_small_a_validation_part_puts_every_class_into_the_set():
    table = classified(24)
    decisions = fit_decisions(TUMOUR, table)
    assert math.isinf(decisions["slide"].quantile)
    called = apply_decisions(decisions, table)
    assert set(called["conformal_set"]) == {"a|b"}
    assert called["abstain"].all()


def test_one_class_in_validation_leaves_the_most_probable_class():
    table = classified()
    table = table[(table["part"] != "validation") | (table["y"] == "a")]
    decisions = fit_decisions(TUMOUR, table)
    assert math.isnan(decisions["slide"].threshold)
    called = apply_decisions(decisions, table)
    assert ((called["predicted"] == "b") == (table["prob_b"] > 0.5)).all()


@pytest.mark.parametrize("rule", ["sensitivity", "specificity"])
def test_a_rule_keeps_what_it_promises_on_validation(rule):
    target = ClassificationConfig(
        label="y", positive="b", operating_point={"rule": rule, "least": 0.95}
    )
    table = classified()
    called = apply_decisions(fit_decisions(target, table), table)
    validation = called[(called["part"] == "validation") & (called["level"] == "patient")]
    kept = validation[validation["y"] == ("b" if rule == "sensitivity" else "a")]
    assert (kept["predicted"] == kept["y"]).mean() >= 0.95
    assert (validation["predicted"] != validation["y"]).any()


def test_risk_is_cut_at_the_training_median():
    rng = np.random.default_rng(0)
    table = pd.DataFrame(
        {
            "level": "patient",
            "part": np.array(["train", "validation", "test"])[np.arange(90) % 3],
            "risk_sd": rng.normal(size=90),
        }
    )
    both = pd.concat([table, table.assign(level="slide")], ignore_index=True)
    decisions = fit_decisions(SURVIVAL, both)
    median = table.loc[table["part"] == "train", "risk_sd"].median()
    assert decisions["patient"] == RiskDecision(median)
    called = apply_decisions(decisions, both)
    assert ((called["risk_group"] == "high") == (both["risk_sd"] > median)).all()


def test_decisions_travel_as_json():
    decisions = {
        "slide": ClassDecision(None, math.nan, math.inf),
        "patient": ClassDecision("b", 0.25, 0.5),
    }
    restored = restore_decisions(json.loads(json.dumps(decisions_state(decisions))))
    assert str(restored) == str(decisions)  # NaN is not equal to itself
    risk = {"patient": RiskDecision(0.1)}
    assert restore_decisions(json.loads(json.dumps(decisions_state(risk)))) == risk
