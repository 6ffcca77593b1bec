"""Metrics of tables: which rows and columns reach which metric; metrics have their own tests."""

import numpy as np
import pandas as pd
import pytest
from lifelines.utils import concordance_index
from result_fakes import by_fold, class_rows, survival_rows
from sklearn.metrics import (
    average_precision_score,
    balanced_accuracy_score,
    brier_score_loss,
    f1_score,
    recall_score,
    roc_auc_score,
)
from sksurv.metrics import concordance_index_ipcw, cumulative_dynamic_auc, integrated_brier_score
from sksurv.util import Surv

from mil.evaluation.statistics import (
    FoldFit,
    bootstrap_intervals,
    draws_of,
    metrics_for,
    whole,
)
from mil.outcomes import Outcomes
from mil.tasks.config import ClassificationConfig, SurvivalConfig

TUMOUR = ClassificationConfig(label="y", positive="tumour")
SURVIVAL = SurvivalConfig(time="months", event="died")


def patients(table: pd.DataFrame) -> pd.DataFrame:
    return table[table["level"] == "patient"].reset_index(drop=True)


def of(table: pd.DataFrame, target=TUMOUR, fits=None) -> dict[str, float]:
    return {name: metric(whole(table)) for name, metric in metrics_for(table, target, fits).items()}


def training(seed: int) -> FoldFit:
    rng = np.random.default_rng(seed)
    time, censored = rng.exponential(30, 200) + 0.01, rng.uniform(3, 90, 200)
    outcomes = Outcomes(np.minimum(time, censored), time <= censored)
    return FoldFit(outcomes, times=(6.0, 12.0, 24.0), horizons=(6.0, 24.0))


def surv(outcomes: Outcomes) -> np.ndarray:
    return Surv.from_arrays(outcomes.event, outcomes.time)


def test_classification_metrics_are_sklearns_of_the_right_columns():
    table = patients(class_rows())
    found = of(table)
    ill, called = table["y"] == "tumour", table["predicted"]
    score = table["prob_tumour"]
    assert found["auroc"] == pytest.approx(by_fold(roc_auc_score, ill, score, table))
    assert found["auprc"] == pytest.approx(average_precision_score(ill, score))
    assert found["balanced_accuracy"] == pytest.approx(balanced_accuracy_score(table["y"], called))
    assert found["macro_f1"] == pytest.approx(f1_score(table["y"], called, average="macro"))
    assert found["sensitivity"] == pytest.approx(recall_score(ill, called == "tumour"))
    assert found["specificity"] == pytest.approx(recall_score(~ill, called != "tumour"))
    assert found["brier"] == pytest.approx(brier_score_loss(ill, table["prob_tumour"]))
    assert found["brier_uncalibrated"] == pytest.approx(
        brier_score_loss(ill, table["uncalibrated_tumour"])
    )
    assert found["conformal_coverage"] == pytest.approx((table["y"] == table["predicted"]).mean())
    assert found["conformal_set_size"] == 1
    assert "kappa" not in found


def test_several_classes_are_averaged_and_grades_have_a_kappa():
    classes = ("I", "II", "III")
    table = patients(class_rows(classes))
    found = of(table, ClassificationConfig(label="y", classes=classes, ordered=True))
    each = [by_fold(roc_auc_score, table["y"] == c, table[f"prob_{c}"], table) for c in classes]
    assert found["auroc"] == pytest.approx(np.mean(each))
    assert 0 < found["kappa"] < 1
    assert "sensitivity" not in found


def test_survival_metrics_are_scikit_survivals_fold_by_fold():
    table = patients(survival_rows())
    fits = {fold: training(fold) for fold in range(4)}
    found = of(table, SURVIVAL, fits)
    scores, sizes = [], []
    for fold, fit in fits.items():
        mine = table[table["fold"] == fold]
        test = surv(Outcomes(mine["months"].to_numpy(), mine["died"].to_numpy()))
        survival = mine[[f"survival_{j:02}" for j in range(3)]].to_numpy()
        train = surv(fit.training)
        alone = of(mine.reset_index(drop=True), SURVIVAL, {fold: fit})
        uno = concordance_index_ipcw(train, test, mine["risk_sd"], 24)[0]
        area = cumulative_dynamic_auc(train, test, 1 - survival[:, 2], [24.0])[0][0]
        scores.append(integrated_brier_score(train, test, survival, list(fit.times)))
        assert [alone[n] for n in ("uno_c", "td_auc_2", "ibs")] == pytest.approx(
            [uno, area, scores[-1]], abs=1e-9
        )
        sizes.append(len(mine))
    assert found["ibs"] == pytest.approx(np.average(scores, weights=sizes), abs=1e-9)
    assert found["ibs_skill"] < 1


def test_pairs_of_all_folds_are_counted_together():
    """A fold with one control weighs as its pairs do, and one without any weighs nothing."""
    table = patients(survival_rows())
    fits = {fold: training(fold) for fold in range(4)}
    late = (table["fold"] == 0) & (table["months"] > 24)
    fewer = table[~late].reset_index(drop=True)
    others = table[table["fold"] != 0].reset_index(drop=True)
    kept = {fold: fits[fold] for fold in (1, 2, 3)}
    expected = of(others, SURVIVAL, kept)["td_auc_2"]
    assert of(fewer, SURVIVAL, fits)["td_auc_2"] == pytest.approx(expected)


def test_risks_of_two_folds_are_never_compared():
    table = patients(survival_rows())
    fits = {fold: training(fold) for fold in range(4)}
    before = of(table, SURVIVAL, fits)["c_index"]
    moved = table.assign(risk_sd=table["risk_sd"] + 100 * table["fold"])
    assert of(moved, SURVIVAL, fits)["c_index"] == before
    one = table[table["fold"] == 1].reset_index(drop=True)
    expected = concordance_index(one["months"], -one["risk_sd"], one["died"])
    assert of(one, SURVIVAL, {1: fits[1]})["c_index"] == pytest.approx(expected)


def test_folds_may_tell_survival_on_grids_of_other_lengths():
    table = patients(survival_rows())
    fits = {fold: training(fold) for fold in range(4)}
    shorter = FoldFit(fits[0].training, times=(6.0, 12.0), horizons=(6.0, 12.0))
    table.loc[table["fold"] == 0, "survival_02"] = np.nan
    found = of(table, SURVIVAL, fits | {0: shorter})
    assert np.isfinite(found["ibs"])
    assert np.isfinite(found["td_auc_2"])


def test_repeats_are_averaged_and_not_pooled():
    table = patients(class_rows(repeats=3))
    each = [
        of(part.reset_index(drop=True))["auroc"] for _, part in table.groupby("repeat", sort=True)
    ]
    assert len(set(each)) == 3
    assert of(table)["auroc"] == pytest.approx(np.mean(each))


def test_auroc_of_one_class_is_undefined():
    table = patients(class_rows())
    metric = metrics_for(table, TUMOUR)["auroc"]
    assert np.isnan(metric(np.flatnonzero(table["y"] == "benign")))


def test_draws_keep_the_folds_sizes_and_all_rows_of_a_patient():
    table = class_rows()
    slides = table[table["level"] == "slide"].reset_index(drop=True)
    per_patient = slides["patient_id"].value_counts()
    for rows in draws_of(slides, 20):
        drawn = slides.iloc[rows]
        times = drawn["patient_id"].value_counts() / per_patient[drawn["patient_id"].unique()]
        assert (times == times.round()).all()
    singles = patients(table)
    sizes = singles["fold"].value_counts().sort_index()
    for rows in draws_of(singles, 20):
        assert singles.iloc[rows]["fold"].value_counts().sort_index().equals(sizes)


def test_repeated_folds_draw_a_patient_in_all_repeats_at_once():
    table = patients(class_rows(repeats=2))
    for rows in draws_of(table, 20):
        drawn = table.iloc[rows].groupby(["patient_id", "repeat"]).size().unstack()
        assert (drawn[0] == drawn[1]).all()


def test_bootstrap_interval_has_about_the_width_of_theory():
    # A mean of n independent values of variance 1: standard error 1/sqrt(n).
    rng = np.random.default_rng(0)
    table = pd.DataFrame({"fold": 0, "repeat": 0, "patient_id": range(400)})
    values = rng.normal(size=400)
    means = {"mean": lambda rows: float(values[rows].mean())}
    found = bootstrap_intervals(means, draws_of(table, 2000))["mean"]
    assert found.undefined == 0
    assert found.high - found.low == pytest.approx(2 * 1.96 / 20, rel=0.15)


def test_draws_without_a_value_are_counted():
    table = pd.DataFrame({"fold": 0, "repeat": 0, "patient_id": range(40)})
    half = {"half": lambda rows: float("nan") if rows[0] % 2 else 1.0}
    found = bootstrap_intervals(half, draws_of(table, 400))["half"]
    assert found.undefined == pytest.approx(0.5, abs=0.1)
    assert (found.low, found.high) == (1, 1)
