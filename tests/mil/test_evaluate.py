"""From sealed predictions to tables: what is read, refused, pooled and compared."""

import numpy as np
import pandas as pd
import pytest
from result_fakes import class_rows, survival_rows
from sealed_fakes import CLASSES, FOLDS, SURVIVAL, runs, study, write_members  # noqa: F401

from mil.config import StudyConfig
from mil.evaluation import held_out
from mil.evaluation.compare import compare_answerers
from mil.evaluation.evaluate import evaluate_answerer
from mil.evaluation.held_out import evaluation_dir, read_held_out
from mil.metrics.ranking import (
    delong_test,
)
from mil.seals import seal
from preprocessing.errors import CohortError

pytestmark = pytest.mark.usefixtures("runs")


def test_metrics_of_all_folds_and_of_each(tmp_path):
    setting = study(tmp_path, CLASSES)
    write_members(setting, "m", class_rows())
    metrics = evaluate_answerer(setting, "t", "m")
    for level, rows in (("patient", 120), ("slide", 160)):
        overall = metrics[(metrics["fold"] == "all") & (metrics["level"] == level)]
        assert set(overall["n"]) == {rows}
        assert set(overall["patients"]) == {120}
    assert set(metrics["fold"]) == {"all", "0", "1", "2", "3"}
    coverage = metrics[(metrics["metric"] == "conformal_coverage") & (metrics["fold"] == "all")]
    assert coverage["note"].str.contains("sets of 1 of 4 models: validation too small").all()
    auroc = metrics[(metrics["metric"] == "auroc") & (metrics["level"] == "patient")]
    overall = auroc[auroc["fold"] == "all"].iloc[0]
    assert overall["low"] < overall["value"] < overall["high"]
    assert auroc.loc[auroc["fold"] != "all", "n"].sum() == 120
    folder = evaluation_dir(setting, "t", "m")
    written = pd.read_csv(folder / "predictions.csv", dtype=str)
    assert set(written["fold"]) == {"0", "1", "2", "3"}
    assert not written.duplicated(["level", "id"]).any()
    for name in ("roc", "precision_recall", "confusion", "calibration"):
        assert (folder / f"{name}.png").stat().st_size > 5000


def test_survival_is_told_of_patients_with_horizons_hazards_and_figures(tmp_path):
    setting = study(tmp_path, SURVIVAL)
    write_members(setting, "m", survival_rows())
    metrics = evaluate_answerer(setting, "t", "m")
    assert set(metrics["level"]) == {"patient"}
    overall = metrics[metrics["fold"] == "all"].set_index("metric")
    assert overall.loc["td_auc_1", "note"].startswith("at 12 (months), mean of the folds' 25 %")
    assert (overall["low"] <= overall["value"]).all()
    assert 0.6 < overall.loc["c_index", "value"] < 0.9
    folder = evaluation_dir(setting, "t", "m")
    ratios = pd.read_csv(folder / "hazard_ratios.csv")
    assert (ratios["hr"] > 1).all()
    for name in ("kaplan_meier", "survival_calibration", "time_dependent_auc"):
        assert (folder / f"{name}.png").stat().st_size > 5000


def test_predictions_of_another_run_are_refused(tmp_path):
    setting = study(tmp_path, CLASSES)
    write_members(setting, "m", class_rows())
    seal(setting.member_dir("t", "m", 1, 0), "another run")
    with pytest.raises(CohortError, match=r"fold1/seed0.* train that fold anew"):
        evaluate_answerer(setting, "t", "m")


def test_perfect_answers_of_few_patients_have_an_interval(tmp_path):
    setting = study(tmp_path, CLASSES)
    table = class_rows(patients=40)
    sure = (table["y"] == "tumour").astype(float) * 0.98 + 0.01
    table = table.assign(prob_tumour=sure, prob_benign=1 - sure, predicted=table["y"])
    write_members(setting, "m", table)
    metrics = evaluate_answerer(setting, "t", "m")
    rows = metrics[(metrics["level"] == "patient") & (metrics["fold"] == "all")]
    rows = rows.set_index("metric")
    for name in ("auroc", "accuracy", "sensitivity", "auroc_delong"):
        assert rows.loc[name, "value"] == rows.loc[name, "high"] == 1
        assert 0.7 < rows.loc[name, "low"] < 0.95
    assert "Wilson" in rows.loc["sensitivity", "note"]
    assert "Newcombe" in rows.loc["auroc", "note"]


def test_an_edited_prediction_stops_the_evaluation(tmp_path):
    setting = study(tmp_path, CLASSES)
    write_members(setting, "m", class_rows())
    path = setting.member_dir("t", "m", 2, 0) / "predictions.csv"
    table = pd.read_csv(path, dtype=str)
    table.loc[0, "prob_tumour"] = "0.999"
    table.to_csv(path, index=False)
    with pytest.raises(CohortError, match=r"fold2/seed0: predictions\.csv changed after the seal"):
        evaluate_answerer(setting, "t", "m")


def test_predictions_of_other_folds_or_other_data_are_refused(tmp_path):
    setting = study(tmp_path, CLASSES)
    write_members(setting, "m", class_rows())
    folder = setting.member_dir("t", "m", 1, 0)
    table = pd.read_csv(folder / "predictions.csv", dtype=str)
    moved = table.copy()
    tested = moved.loc[moved["part"] == "test", "patient_id"].iloc[0]
    moved.loc[moved["patient_id"] == tested, "part"] = "train"
    for changed in (moved, table.assign(part="test"), table.assign(splits="of last week")):
        changed.to_csv(folder / "predictions.csv", index=False)
        seal(folder, "run")
        with pytest.raises(CohortError, match=r"fold1/seed0: predictions are of other splits"):
            evaluate_answerer(setting, "t", "m")


def test_seeds_of_a_fold_answer_together(tmp_path):
    setting = study(tmp_path, CLASSES, seeds=2)
    one, two = class_rows(seed=0), class_rows(seed=0)
    rng = np.random.default_rng(5)
    two["prob_tumour"] = np.clip(two["prob_tumour"] + 0.2 * rng.normal(size=len(two)), 0.01, 0.99)
    two["prob_benign"] = 1 - two["prob_tumour"]
    write_members(setting, "m", one, seed=0)
    write_members(setting, "m", two, seed=1)
    test = read_held_out(setting, "t", "m").level("patient")
    mean = pd.concat([one, two]).query("level == 'patient'").groupby("id")["prob_tumour"].mean()
    assert test.set_index("id")["prob_tumour"].to_numpy() == pytest.approx(
        mean[test["id"]].to_numpy()
    )
    assert (test["spread_tumour"] > 0).mean() > 0.9
    above = test["prob_tumour"] >= test["threshold"]
    assert ((test["predicted"] == "tumour") == above).all()


def test_methods_are_compared_on_the_same_patients(tmp_path):
    setting = study(tmp_path, CLASSES)
    good = class_rows(seed=0)
    bad = good.copy()
    shuffled = bad.groupby("level")["prob_tumour"].transform(
        lambda values: np.random.default_rng(0).permutation(values.to_numpy())
    )
    bad = bad.assign(prob_tumour=shuffled, prob_benign=1 - shuffled)
    write_members(setting, "m", good)
    write_members(setting, "n", bad)
    table = compare_answerers(setting, "t").set_index("metric")
    row = table.loc["auroc"]
    assert (row["answerer_a"], row["answerer_b"], row["test"]) == ("m", "n", "DeLong")
    rows = good[good["level"] == "patient"]
    other = bad[bad["level"] == "patient"]
    expected = delong_test(
        rows["y"] == "tumour", rows["prob_tumour"], other["prob_tumour"], strata=rows["fold"]
    )
    assert row["difference"] == pytest.approx(expected.value)
    assert row["p"] == pytest.approx(expected.p)
    assert row["low"] > 0
    assert row["p_holm"] == row["p"]  # one pair alone
    same = compare_answerers(setting.model_copy(update={"mil": _same(setting)}), "t")
    assert same.empty


def _same(setting: StudyConfig):
    """The study's section with one method: nothing to compare."""
    return setting.mil.model_copy(update={"methods": {"m": setting.mil.methods["m"]}})


def test_joint_risks_are_on_the_scale_of_the_training_patients(tmp_path):
    setting = study(tmp_path, SURVIVAL, seeds=3)
    for seed in range(3):
        rows = survival_rows(seed=0)
        noise = np.random.default_rng(seed).normal(size=len(rows))
        write_members(setting, "m", rows.assign(risk_sd=rows["risk_sd"] + noise), seed=seed)
    test = held_out.read_held_out(setting, "t", "m")
    assert set(test.level("patient")["risk_group"]) == {"high", "low"}
    joint = pd.DataFrame(
        {"level": "patient", "part": ["train"] * 4 + ["test"], "risk_sd": [0.1, 0.2, 0.3, 0.4, 9]}
    )
    scaled = held_out.restandardised(joint)
    training = scaled.loc[scaled["part"] == "train", "risk_sd"]
    assert training.mean() == pytest.approx(0)
    assert training.std(ddof=0) == pytest.approx(1)
    assert scaled["risk_cut"].unique() == pytest.approx([0])
    assert scaled["risk_group"].tolist() == ["low", "low", "high", "high", "high"]
