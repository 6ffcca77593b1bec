"""Tables and figures of several labels and of values: which rows reach which metric."""

import numpy as np
import pandas as pd
import pytest
from figure_fakes import Drawn
from result_fakes import by_fold
from scipy.stats import spearmanr
from sklearn.metrics import (
    auc,
    average_precision_score,
    brier_score_loss,
    mean_absolute_error,
    r2_score,
    recall_score,
    roc_auc_score,
)
from target_fakes import LABELS, label_rows, value_rows

from mil.evaluation.held_out import HeldOut
from mil.evaluation.metric_table import metric_rows, positive_scores
from mil.evaluation.statistics import draws_of, metrics_for, whole
from mil.figures import calibration, curves, values
from mil.glossary import entry, explained
from mil.metrics.classification import wilson_interval
from mil.metrics.ranking import newcombe_interval
from mil.tasks.config import MultilabelConfig, RegressionConfig

MUTATIONS = MultilabelConfig(labels=LABELS)
SCORE = RegressionConfig(column="hrd", unit="points")


@pytest.fixture
def drawn(monkeypatch) -> Drawn:
    return Drawn(monkeypatch)


def of(table: pd.DataFrame, target) -> dict[str, float]:
    return {name: metric(whole(table)) for name, metric in metrics_for(table, target).items()}


def overall(table: pd.DataFrame, target, resamples: int = 100) -> pd.DataFrame:
    rows = metric_rows(HeldOut(table, {}, []), "patient", target, resamples)
    return rows[rows["fold"] == "all"].set_index("metric")


def test_every_label_is_measured_where_it_is_known_as_sklearn_does():
    table = label_rows()
    found = of(table, MUTATIONS)
    for name in LABELS:
        rows = table[table[name].notna()].reset_index(drop=True)
        truth, score = rows[name] == "1", rows[f"prob_{name}"]
        called = rows[f"predicted_{name}"] == "1"
        expected = {
            "auroc": by_fold(roc_auc_score, truth, score, rows),
            "auprc": average_precision_score(truth, score),
            "brier": brier_score_loss(truth, score),
            "sensitivity": recall_score(truth, called),
            "specificity": recall_score(~truth, ~called),
        }
        for metric, value in expected.items():
            assert found[f"{metric}_{name}"] == pytest.approx(value)
    for metric in ("auroc", "auprc", "brier", "sensitivity", "specificity"):
        each = [found[f"{metric}_{name}"] for name in LABELS]
        assert found[metric] == pytest.approx(np.mean(each))


def test_what_is_called_and_answered_for_unknown_labels_is_in_no_metric():
    table = label_rows()
    other = table.copy()
    unknown = table["KRAS"].isna()
    other.loc[unknown, ["prob_KRAS", "predicted_KRAS"]] = [0.999, "1"]
    assert of(other, MUTATIONS) == of(table, MUTATIONS)
    for rows in draws_of(table, 20):
        for name, metric in metrics_for(table, MUTATIONS).items():
            assert metrics_for(other, MUTATIONS)[name](rows) == pytest.approx(metric(rows))


def test_rows_count_who_is_known_and_intervals_hold_the_value():
    rows = overall(label_rows(), MUTATIONS)
    assert rows.loc["auroc_EGFR", "n"] == rows.loc["auroc", "n"] == 120
    assert rows.loc["auroc_KRAS", "n"] == rows.loc["auroc_KRAS", "patients"] == 90
    assert (rows["low"] <= rows["value"]).all()
    assert (rows["value"] <= rows["high"]).all()
    assert positive_scores(label_rows(), MUTATIONS) is None  # no single question for DeLong
    single = metric_rows(HeldOut(label_rows(), {}, []), "patient", MUTATIONS, 10)
    folds = single[(single["metric"] == "auroc_KRAS") & (single["fold"] != "all")]
    assert folds["n"].sum() == 90


def test_a_label_of_one_answer_is_left_out_of_the_mean_and_named():
    table = label_rows().assign(KRAS="0")
    rows = overall(table, MUTATIONS)
    assert np.isnan(rows.loc["auroc_KRAS", "value"])
    assert rows.loc["auroc", "value"] == rows.loc["auroc_EGFR", "value"]
    assert rows.loc["auroc", "note"] == "without KRAS, of which it is undefined"
    brier = rows["value"][["brier_EGFR", "brier_KRAS"]].mean()
    assert rows.loc["brier", "value"] == pytest.approx(brier)
    assert rows.loc["brier", "note"] == ""
    unknown = overall(table.assign(EGFR=np.nan, KRAS=np.nan), MUTATIONS)
    assert unknown["value"].isna().all()


def test_where_a_label_had_no_threshold_is_noted_beside_what_was_called():
    table = label_rows()
    table.loc[table["fold"] == 2, "threshold_KRAS"] = np.nan
    rows = overall(table, MUTATIONS)
    told = "no threshold in 1 of 4 folds: called from 0.5 on"
    assert rows.loc[["sensitivity_KRAS", "specificity_KRAS"], "note"].tolist() == [told] * 2
    assert rows.loc[["sensitivity_EGFR", "auroc_KRAS", "brier_KRAS"], "note"].tolist() == [""] * 3


def test_perfect_answers_have_an_interval_of_their_own_cases():
    table = label_rows()
    sure = (table["KRAS"] == "1").astype(float) * 0.98 + 0.01
    table = table.assign(prob_KRAS=sure, predicted_KRAS=table["KRAS"].fillna("0"))
    rows = overall(table, MUTATIONS)
    known = table[table["KRAS"].notna()]
    truth = (known["KRAS"] == "1").to_numpy()
    low, high = newcombe_interval(1.0, truth, strata=known["fold"].to_numpy())
    assert rows.loc["auroc_KRAS", ["low", "high"]].tolist() == pytest.approx([low, high])
    low, _ = wilson_interval(1.0, truth.sum())
    assert rows.loc["sensitivity_KRAS", "low"] == pytest.approx(float(low))
    low, _ = wilson_interval(1.0, (~truth).sum())
    assert rows.loc["specificity_KRAS", "low"] == pytest.approx(float(low))


def test_values_are_measured_as_sklearn_and_scipy_do():
    table = value_rows()
    truth = table["hrd"].astype(float)
    found = of(table, SCORE)
    assert found["r2"] == pytest.approx(r2_score(truth, table["value"]))
    assert found["mae"] == pytest.approx(mean_absolute_error(truth, table["value"]))
    one = table[table["fold"] == 2].reset_index(drop=True)
    alone = spearmanr(one["hrd"].astype(float), one["value"])[0]
    assert of(one, SCORE)["spearman"] == pytest.approx(alone)
    shifted = table.assign(value=table["value"] + 100 * table["fold"])
    for name in ("pearson", "spearman", "calibration_slope"):  # within folds
        assert of(shifted, SCORE)[name] == pytest.approx(found[name])
    rows = overall(table, SCORE)
    assert rows.loc["mae", "note"] == "in points"
    assert rows.loc["r2", "note"] == ""
    assert (rows["low"] < rows["value"]).all()
    assert (rows["value"] < rows["high"]).all()


def test_metrics_of_labels_and_values_have_names_and_meanings():
    assert entry("auroc_EGFR").name == "AUROC, EGFR"
    assert entry("sensitivity_TP53_hotspot").name == "sensitivity, TP53_hotspot"
    assert entry("brier_2").name == "Brier score at horizon 2"
    assert entry("auroc_delong").name == "AUROC, DeLong's interval"
    assert entry("mae").better == "low"
    metrics = [*of(label_rows(), MUTATIONS), *of(value_rows(), SCORE)]
    assert all(entry(name).meaning for name in metrics)
    names = [one.name for one in explained(metrics)]
    assert len(names) == len(set(names)) == 12
    assert "AUROC, EGFR" not in names


def test_every_label_has_its_curve_of_those_who_are_known(tmp_path, drawn):
    table = label_rows()
    curves.roc_figure(table, MUTATIONS, tmp_path / "roc.png", title="t")
    for name, known in (("EGFR", 120), ("KRAS", 90)):
        rows = table[table[name].notna()]
        area = roc_auc_score(rows[name] == "1", rows[f"prob_{name}"])
        assert auc(*drawn.line(f"{name}, {known} patients").T) == pytest.approx(area)
    assert "Patients; each label where it is known. Interval: DeLong" in drawn.note
    curves.precision_recall_figure(table, MUTATIONS, tmp_path / "pr.png", title="t")
    assert len(drawn.line("KRAS, 90 patients")) > 10
    curves.roc_figure(table.assign(KRAS=np.nan), MUTATIONS, tmp_path / "roc.png", title="t")
    assert len(drawn.line("KRAS, patients: undefined, one class only")) == 0


def test_calibration_has_a_panel_a_label(tmp_path, drawn):
    table = label_rows()
    calibration.calibration_figure(table, MUTATIONS, tmp_path / "c.png", title="t")
    panels = [axes for axes in drawn.figure.axes if axes.get_visible()]
    assert [axes.get_ylabel() for axes in panels[:2]] == [f"observed share of {n}" for n in LABELS]
    heights = [sum(abs(p.get_height()) for p in axes.patches) for axes in panels[2:]]
    assert heights == [120, 90]
    known = table[table["KRAS"].notna()]
    each = [
        brier_score_loss(table["EGFR"] == "1", table["prob_EGFR"]),
        brier_score_loss(known["KRAS"] == "1", known["prob_KRAS"]),
    ]
    assert f"→ {np.mean(each):.3f}." in drawn.note


def test_values_are_drawn_in_their_unit_beside_the_diagonal(tmp_path, drawn):
    table = value_rows().sort_values("fold", kind="stable")
    values.predicted_observed_figure(table, SCORE, tmp_path / "v.png", title="t")
    axes = drawn.figure.axes[0]
    assert axes.get_xlabel() == "predicted hrd, points"
    assert axes.get_xlim() == axes.get_ylim()
    points = drawn.line("patients")
    assert points[:, 0] == pytest.approx(table["value"].to_numpy())
    assert points[:, 1] == pytest.approx(table["hrd"].astype(float).to_numpy())
    assert f"R² {r2_score(points[:, 1], points[:, 0]):.2f}" in drawn.note
    constant = table.assign(value=50.0)
    values.predicted_observed_figure(constant, SCORE, tmp_path / "v.png", title="t")
    assert "Pearson undefined" in drawn.note


def test_slides_that_stand_for_themselves_are_drawn(tmp_path, drawn):
    values.predicted_observed_figure(
        value_rows().assign(level="slide"), SCORE, tmp_path / "v.png", title="t"
    )
    assert len(drawn.line("slides")) == 120
    curves.roc_figure(label_rows().assign(level="slide"), MUTATIONS, tmp_path / "r.png", title="t")
    assert len(drawn.line("EGFR, 120 slides")) > 10
    assert "DeLong" not in drawn.note
