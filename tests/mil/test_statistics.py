import numpy as np
import pandas as pd
import pytest
from lifelines.utils import concordance_index
from sklearn.metrics import roc_auc_score

from mil.statistics import bootstrap_intervals, metrics_for
from mil.tasks.config import ClassificationConfig, SurvivalConfig

TUMOUR = ClassificationConfig(label="y", positive="b")
SURVIVAL = SurvivalConfig(time="t", event="e")


def predictions(n: int, signal: float, seed: int = 0) -> pd.DataFrame:
    """`n` patients with two slides each; the score of class b is shifted by `signal`."""
    rng = np.random.default_rng(seed)
    truth = rng.random(n) < 0.4
    table = pd.DataFrame(
        {
            "fold": np.arange(n) % 3,
            "patient_id": [f"p{i}" for i in range(n)],
            "y": np.where(truth, "b", "a"),
        }
    )
    table = pd.concat([table, table], ignore_index=True)
    score = rng.normal(size=2 * n) + signal * (table["y"] == "b")
    table["prob_b"] = 1 / (1 + np.exp(-score))
    table["prob_a"] = 1 - table["prob_b"]
    return table


def test_auroc_is_sklearns_and_the_same_without_a_positive_class():
    table = predictions(60, 1.0)
    expected = roc_auc_score(table["y"] == "b", table["prob_b"])
    assert metrics_for(TUMOUR)["auroc"](table) == pytest.approx(expected)
    both = metrics_for(ClassificationConfig(label="y"))["auroc"](table)
    assert both == pytest.approx(expected)


def test_balanced_accuracy_and_macro_f1_by_hand():
    # truth a a a b; answers a a b b: recalls 2/3 and 1; F1 of a 4/5, of b 2/3
    table = pd.DataFrame({"y": list("aaab"), "prob_a": [0.9, 0.6, 0.4, 0.1]})
    table["prob_b"] = 1 - table["prob_a"]
    metrics = metrics_for(TUMOUR)
    assert metrics["balanced_accuracy"](table) == pytest.approx((2 / 3 + 1) / 2)
    assert metrics["macro_f1"](table) == pytest.approx((4 / 5 + 2 / 3) / 2)


def test_auroc_of_one_class_is_undefined():
    table = predictions(20, 1.0)
    assert np.isnan(metrics_for(TUMOUR)["auroc"](table[table["y"] == "a"]))


def test_c_index_is_lifelines_within_folds():
    rng = np.random.default_rng(1)
    table = pd.DataFrame(
        {
            "fold": np.repeat([0, 1], 30),
            "patient_id": [f"p{i}" for i in range(60)],
            "t": rng.integers(1, 20, 60).astype(str),
            "e": (rng.random(60) < 0.6).astype(int).astype(str),
            "risk": rng.normal(size=60),
        }
    )
    table.loc[table["fold"] == 1, "risk"] += 100  # another model, another scale
    expected = [
        concordance_index(f["t"].astype(float), -f["risk"], f["e"].astype(int))
        for _, f in table.groupby("fold")
    ]
    assert metrics_for(SURVIVAL)["c_index"](table) == pytest.approx(np.mean(expected))


def test_c_index_without_comparable_patients_is_undefined():
    table = pd.DataFrame({"fold": [0, 0], "t": ["3", "5"], "e": ["0", "0"], "risk": [1.0, 2.0]})
    assert np.isnan(metrics_for(SURVIVAL)["c_index"](table))


def test_bootstrap_draws_patients_with_all_their_rows():
    table = predictions(30, 1.0)
    sizes = {"rows": lambda t: float(len(t)), "pairs": lambda t: float(_pairs(t))}
    intervals = bootstrap_intervals(table, sizes, resamples=100)
    assert intervals["rows"] == (60, 60)
    assert intervals["pairs"] == (0, 0)


def _pairs(table: pd.DataFrame) -> int:
    """How many patients lack one of their two slides in a resample."""
    return int((table.groupby("patient_id").size() % 2 != 0).sum())


def test_bootstrap_interval_has_about_the_width_of_theory():
    # A mean of n independent values of variance 1: standard error 1/sqrt(n).
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"fold": 0, "patient_id": range(400), "x": rng.normal(size=400)})
    means = {"mean": lambda t: float(t["x"].mean())}
    low, high = bootstrap_intervals(table, means, resamples=2000)["mean"]
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_undefined_resamples_do_not_count():
    table = predictions(30, 1.0)
    never = {"never": lambda _: float("nan")}
    assert np.isnan(bootstrap_intervals(table, never, resamples=100)["never"]).all()
