"""What the figures draw, read back from their lines and texts and compared with other packages."""

import numpy as np
import pandas as pd
import pytest
import result_fakes
from figure_fakes import Drawn
from matplotlib.figure import Figure
from sklearn.metrics import auc, average_precision_score, confusion_matrix, roc_auc_score
from sksurv.nonparametric import kaplan_meier_estimator

from mil.figures import calibration, classification, curves, survival
from mil.figures.common import first_tests, interval_text, p_text
from mil.tasks.config import ClassificationConfig, SurvivalConfig

BINARY = ClassificationConfig(label="y", classes=("benign", "tumour"))
GRADES = ClassificationConfig(label="y", classes=("I", "II", "III"))
SURVIVAL = SurvivalConfig(name="survival", time="months", event="died")
CLASS_FIGURES = [
    curves.roc_figure,
    curves.precision_recall_figure,
    classification.confusion_figure,
    calibration.calibration_figure,
]


@pytest.fixture
def drawn(monkeypatch) -> Drawn:
    return Drawn(monkeypatch)


def patients_of(table: pd.DataFrame) -> pd.DataFrame:
    return first_tests(table[table["level"] == "patient"])


def calibration_tables(rows: pd.DataFrame) -> dict[float, pd.DataFrame]:
    low = pd.DataFrame({"predicted": [0.2, 0.5, 0.9], "observed": [0.3, 0.5, 1.0]})
    table = low.assign(low=[0.1, 0.3, np.nan], high=[0.5, 0.7, np.nan], n=len(rows) // 3)
    return {6.0: table, 12.5: table, 24.0: table.assign(observed=np.nan)}


def draw_survival(rows: pd.DataFrame, folder, **options) -> None:
    patients = rows[rows["level"] == "patient"]
    path = folder / "kaplan_meier.png"
    survival.kaplan_meier_figure(patients, SURVIVAL, path, title="t", **options)


def test_roc_has_the_area_that_sklearn_finds_and_marks_what_was_called(tmp_path, drawn):
    rows = result_fakes.class_rows()
    curves.roc_figure(rows, BINARY, tmp_path / "roc.png", title="tumour, abmil")
    patients = patients_of(rows)
    truth, score = patients["y"] == "tumour", patients["prob_tumour"]
    area = roc_auc_score(truth, score)
    assert auc(*drawn.line("120 patients").T) == pytest.approx(area)
    within = result_fakes.by_fold(roc_auc_score, truth, score, patients)
    assert any(f"tumour, 120 patients: {within:.2f} (" in label for label in drawn.labels)
    matrix = confusion_matrix(truth, patients["predicted"] == "tumour", normalize="true")
    assert drawn.line("operating point")[0] == pytest.approx(matrix[:, 1])
    assert auc(*drawn.line("160 slides").T) != pytest.approx(area)
    grey = [line for line in drawn.figure.axes[0].get_lines() if line.get_color() == "0.6"]
    assert len(grey) == 4
    assert "probability of 0.42 to 0.54 over folds: largest Youden index" in drawn.note
    assert (tmp_path / "roc.png").stat().st_size > 10_000


def test_average_precision_is_sklearns(tmp_path, drawn):
    rows = result_fakes.class_rows(("I", "II", "III"))
    curves.precision_recall_figure(rows, GRADES, tmp_path / "pr.png", title="t")
    patients = patients_of(rows)
    for name in GRADES.classes or ():
        truth = patients["y"] == name
        value = average_precision_score(truth, patients[f"prob_{name}"])
        expected = f"{name}, 120 patients: {value:.2f}, prevalence {truth.mean():.2f}"
        assert expected in drawn.labels


def test_confusion_counts_are_sklearns(tmp_path, drawn):
    rows = result_fakes.class_rows(("I", "II", "III"))
    classification.confusion_figure(rows, GRADES, tmp_path / "confusion.png", title="t")
    patients = patients_of(rows)
    expected = confusion_matrix(patients["y"], patients["predicted"], labels=["I", "II", "III"])
    assert [int(text.split("\n")[0]) for text in drawn.texts] == expected.ravel().tolist()
    share = expected[0, 0] / expected[0].sum()
    assert drawn.texts[0].endswith(f"{share:.0%}")
    assert "the most probable class" in drawn.note


def test_calibration_shows_the_scaled_and_the_unscaled_probabilities(tmp_path, drawn):
    rows = result_fakes.class_rows(patients=360)
    calibration.calibration_figure(rows, BINARY, tmp_path / "calibration.png", title="t")
    patients = patients_of(rows)
    before = drawn.line("before temperature")
    assert len(before) == 10
    # bins of equal count: their means have the mean of all
    assert before[:, 0].mean() == pytest.approx(patients["uncalibrated_tumour"].mean())
    assert before[:, 1].mean() == pytest.approx((patients["y"] == "tumour").mean())
    bars = [patch.get_height() for patch in drawn.figure.axes[1].patches]
    assert sum(abs(height) for height in bars) == 360
    assert "Brier score" in drawn.note


def test_curves_and_numbers_at_risk_are_those_of_the_survivors(tmp_path, drawn):
    rows = result_fakes.survival_rows()
    draw_survival(rows, tmp_path, logrank=(12.3, 0.00046))
    patients = patients_of(rows)
    high = patients[patients["risk_group"] == "high"]
    curve = drawn.line("high risk")
    times, expected = kaplan_meier_estimator(high["died"] == 1, high["months"])
    assert curve[0].tolist() == [0, 1]
    assert curve[1:, 0] == pytest.approx(times)
    assert curve[1:, 1] == pytest.approx(expected)
    curves, counts = drawn.figure.axes
    shown = {(text.get_position()[0], text.get_position()[1]): text for text in counts.texts}
    for tick in curves.get_xticks():
        left = int((high["months"] >= tick).sum())
        assert shown[tick, -1].get_text() == str(left)
    assert curves.get_position().x0 == counts.get_position().x0
    assert curves.get_xlim() == counts.get_xlim()
    assert curves.get_title(loc="right").endswith("χ² = 12.30, p < 0.001")
    assert curves.get_xlabel() == "months"


def test_a_single_risk_group_is_drawn_without_a_test(tmp_path, drawn):
    rows = result_fakes.survival_rows(patients=36).assign(risk_group="high")
    draw_survival(rows, tmp_path, logrank=(float("nan"), float("nan")))
    assert "All test patients are in the high group" in drawn.note
    assert drawn.figure.axes[0].get_title(loc="right") == ""


def test_repeats_count_every_patient_once(tmp_path, drawn):
    rows = result_fakes.class_rows(repeats=3)
    first = rows[rows["repeat"] == 0]
    shuffled = rows.sample(frac=1, random_state=0)
    chosen = first_tests(shuffled).sort_index()
    pd.testing.assert_frame_equal(chosen, first)
    curves.roc_figure(shuffled, BINARY, tmp_path / "roc.png", title="t")
    patients = patients_of(first)
    area = roc_auc_score(patients["y"] == "tumour", patients["prob_tumour"])
    assert auc(*drawn.line("120 patients").T) == pytest.approx(area)
    assert "12 folds; each patient counted once, by the first fold" in drawn.note
    draw_survival(result_fakes.survival_rows(repeats=3), tmp_path)
    assert any("events" in label for label in drawn.labels)
    total = [int(text) for text in drawn.texts if text.isdigit()]
    assert max(total) < 160


def test_a_fold_or_a_cohort_of_one_class_has_no_curve(tmp_path, drawn):
    rows = result_fakes.class_rows(patients=40)
    lone = rows.assign(y=rows["y"].where(rows["fold"] != 1, "tumour"))
    curves.roc_figure(lone, BINARY, tmp_path / "roc.png", title="t")
    grey = [line for line in drawn.figure.axes[0].get_lines() if line.get_color() == "0.6"]
    assert len(grey) == 3
    for draw in CLASS_FIGURES:
        draw(rows.assign(y="tumour"), BINARY, tmp_path / "one.png", title="t")
    curves.roc_figure(rows.assign(y="tumour"), BINARY, tmp_path / "roc.png", title="t")
    assert "tumour, patients: undefined, one class only" in drawn.labels


def test_auc_over_time_leaves_out_what_is_undefined(tmp_path, drawn):
    rows = pd.DataFrame({"time": [24.0, 12.0, 60.0], "value": [0.7, 0.8, np.nan]})
    rows = rows.assign(low=rows["value"] - 0.1, high=rows["value"] + 0.1)
    survival.time_dependent_auc_figure(rows, SURVIVAL, tmp_path / "auc.png", title="t")
    assert drawn.texts == ["0.80", "0.70"]
    assert "Undefined at 60" in drawn.note
    assert drawn.figure.axes[0].get_xlabel() == "months"


def test_survival_calibration_has_a_panel_a_horizon_named_with_the_time_column(tmp_path, drawn):
    rows = result_fakes.survival_rows()
    path = tmp_path / "calibration.png"
    tables = calibration_tables(patients_of(rows))
    survival.survival_calibration_figure(rows, SURVIVAL, tables, path, title="t")
    titles = [axes.get_title() for axes in drawn.figure.axes if axes.get_visible()]
    assert titles == ["at 6 (months)", "at 12.5 (months)"]  # nothing is known at 24
    assert drawn.texts == ["53"] * 6
    survival.survival_calibration_figure(rows, SURVIVAL, {}, path, title="t")
    assert "No horizon" in drawn.note


def test_nothing_overlaps(tmp_path, drawn):
    """Title, panels and note stand below each other, whatever the names."""
    names = ("in situ, with $ and microinvasion", "b_c", "normal")
    of_many = result_fakes.class_rows(names, patients=36)
    of_two = result_fakes.class_rows(patients=36)
    rows = result_fakes.survival_rows(patients=36)
    mine = rows[rows["level"] == "patient"]
    path = tmp_path / "figure.png"
    tables = calibration_tables(mine)
    jobs = [
        (draw, (table, target))
        for draw in CLASS_FIGURES
        for table, target in ((of_two, BINARY), (of_many, ClassificationConfig(label="y")))
    ]
    jobs += [(survival.kaplan_meier_figure, (mine, SURVIVAL))]
    jobs += [(survival.survival_calibration_figure, (mine, SURVIVAL, tables))]
    for draw, arguments in jobs:
        draw(*arguments, path, title="a_long_task_name, a_long_method_name")
        top, middle, bottom = _heights(drawn.figure)
        assert bottom[1] <= middle[0]
        assert middle[1] <= top[0]
        assert bottom[0] >= 0


def _heights(figure: Figure) -> list[tuple[float, float]]:
    """Lower and upper edge in pixels of the title, of all panels, and of the note."""
    panels = [axes.get_tightbbox() for axes in figure.axes if axes.get_visible()]
    boxes = [box for box in panels if box is not None and box.height > 0]
    title, note = figure._suptitle, figure._supxlabel
    whole = (min(box.y0 for box in boxes), max(box.y1 for box in boxes))
    return [
        (title.get_window_extent().y0, title.get_window_extent().y1),
        whole,
        (note.get_window_extent().y0, note.get_window_extent().y1),
    ]


def test_numbers_as_text():
    assert p_text(0.0341) == "p = 0.034"
    assert p_text(0.00046) == "p < 0.001"
    assert p_text(0.994) == "p = 0.99"
    assert p_text(float("nan")) == "p undefined"
    assert interval_text(0.8149, 0.7, 0.9) == "0.81 (0.70–0.90)"
    assert interval_text(0.8149, float("nan"), 0.9) == "0.81"
