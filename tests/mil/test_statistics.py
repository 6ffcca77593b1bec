import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines.utils import concordance_index
from sklearn.metrics import f1_score, recall_score, roc_auc_score

from mil.statistics import bootstrap_intervals, metrics_for, whole
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


def of(table: pd.DataFrame, target=TUMOUR) -> dict[str, float]:
    return {name: metric(whole(table)) for name, metric in metrics_for(table, target).items()}


def test_auroc_is_sklearns_and_the_same_without_a_positive_class():
    table = predictions(60, 1.0)
    expected = roc_auc_score(table["y"] == "b", table["prob_b"])
    assert of(table)["auroc"] == pytest.approx(expected)
    both = of(table, ClassificationConfig(label="y"))["auroc"]
    assert both == pytest.approx(expected)


def test_balanced_accuracy_and_macro_f1_by_hand():
    # truth a a a b; answers a a b b: recalls 2/3 and 1; F1 of a 4/5, of b 2/3
    table = pd.DataFrame({"y": list("aaab"), "prob_a": [0.9, 0.6, 0.4, 0.1]})
    table["prob_b"] = 1 - table["prob_a"]
    assert of(table)["balanced_accuracy"] == pytest.approx((2 / 3 + 1) / 2)
    assert of(table)["macro_f1"] == pytest.approx((4 / 5 + 2 / 3) / 2)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=40))
@settings(deadline=None, max_examples=50)
def test_balanced_accuracy_and_macro_f1_are_sklearns(pairs):
    truth, answers = np.array(pairs).T
    table = pd.DataFrame(np.eye(3)[answers], columns=["prob_0", "prob_1", "prob_2"])
    table["y"] = truth.astype(str)
    values = of(table, ClassificationConfig(label="y"))
    occurring = sorted(set(truth))
    recall = recall_score(truth, answers, labels=occurring, average="macro", zero_division=0)
    assert values["balanced_accuracy"] == pytest.approx(recall)
    assert values["macro_f1"] == pytest.approx(f1_score(truth, answers, average="macro"))


def test_auroc_of_one_class_is_undefined():
    table = predictions(20, 1.0)
    metric = metrics_for(table, TUMOUR)["auroc"]
    assert np.isnan(metric(np.flatnonzero(table["y"] == "a")))


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
    assert of(table, SURVIVAL)["c_index"] == pytest.approx(np.mean(expected))


def test_c_index_without_comparable_patients_is_undefined():
    table = pd.DataFrame({"fold": [0, 0], "t": ["3", "5"], "e": ["0", "0"], "risk": [1.0, 2.0]})
    assert np.isnan(of(table, SURVIVAL)["c_index"])


def test_bootstrap_draws_patients_with_all_their_rows():
    table = predictions(30, 1.0)
    patients = table["patient_id"].to_numpy()

    def halves(rows) -> float:
        """How many patients came along with one of their two slides."""
        return float((np.unique(patients[rows], return_counts=True)[1] % 2).sum())

    sizes = {"rows": lambda rows: float(len(rows)), "pairs": halves}
    intervals = bootstrap_intervals(table, sizes, resamples=100)
    assert intervals["rows"] == (60, 60)
    assert intervals["pairs"] == (0, 0)


def test_bootstrap_interval_has_about_the_width_of_theory():
    # A mean of n independent values of variance 1: standard error 1/sqrt(n).
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"fold": 0, "patient_id": range(400), "x": rng.normal(size=400)})
    values = table["x"].to_numpy()
    means = {"mean": lambda rows: float(values[rows].mean())}
    low, high = bootstrap_intervals(table, means, resamples=2000)["mean"]
    assert high - low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_undefined_resamples_do_not_count():
    table = predictions(30, 1.0)
    never = {"never": lambda _: float("nan")}
    assert np.isnan(bootstrap_intervals(table, never, resamples=100)["never"]).all()
