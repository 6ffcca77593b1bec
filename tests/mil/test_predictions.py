"""Tables of answers: joint calls of several models, patients from slides, numbers and text."""

import numpy as np
import pandas as pd
import pytest
import torch

from mil.cohorts.cohort import Cohort
from mil.config import TaskSection
from mil.predictions import aggregate, combine, predict, read_predictions, write_csv
from mil.tasks.classification import ClassificationTask
from mil.tasks.config import ClassificationConfig

TUMOUR = ClassificationConfig(label="y", positive="b")


def answered(threshold: float, probability: float) -> pd.DataFrame:
    return pd.DataFrame(
        {
            "level": ["patient"],
            "id": ["x"],
            "patient_id": ["x"],
            "prob_a": [1 - probability],
            "prob_b": [probability],
            "threshold": [threshold],
            "predicted": ["b"],
            "conformal_set": ["b"],
            "abstain": [False],
        }
    )


def test_a_member_without_a_threshold_leaves_the_call_to_the_others():
    joint = combine([answered(0.1, 0.3), answered(0.2, 0.3), answered(np.nan, 0.3)], TUMOUR)
    assert joint["threshold"].tolist() == pytest.approx([0.15])
    assert joint["predicted"].tolist() == ["b"]
    without = combine([answered(np.nan, 0.3), answered(np.nan, 0.3)], TUMOUR)
    assert without["threshold"].isna().all()
    assert without["predicted"].tolist() == ["a"]


def cohort_of(labels: dict[str, str | float]) -> Cohort:
    """Slides p0-1, p0-2, ... of the patients before the hyphen."""
    index = pd.Index(list(labels), name="slide_id")
    patients = [slide.split("-")[0] for slide in labels]
    slides = pd.DataFrame({"patient_id": patients, "y": list(labels.values())}, index=index)
    return Cohort(slides, ("y",))


def slides_of(cohort: Cohort) -> pd.DataFrame:
    known = cohort.slides.rename_axis("id").reset_index()
    half = dict.fromkeys(("prob_a", "prob_b", "uncalibrated_a", "uncalibrated_b"), 0.5)
    return known.assign(**half)


def test_a_patient_whose_slides_disagree_has_no_label_under_the_mean():
    cohort = cohort_of({"p0-1": "a", "p0-2": "b", "p1-1": "b", "p1-2": np.nan})
    section = TaskSection(target=TUMOUR)
    patients = aggregate(slides_of(cohort), section, cohort).set_index("patient_id")
    assert patients["y"].isna().tolist() == [True, False]
    assert patients.loc["p1", "y"] == "b"
    suspect = aggregate(slides_of(cohort), TaskSection(target=TUMOUR, aggregate="max"), cohort)
    assert suspect["y"].tolist() == ["b", "b"]


def test_slides_that_answer_for_themselves_have_no_patient_rows():
    cohort = cohort_of({"p0-1": "a", "p0-2": "b", "p1-1": "b"})
    task = ClassificationTask(("a", "b"), label="y")
    table = predict(
        lambda bags: torch.zeros(len(bags), 2),
        task,
        TaskSection(target=TUMOUR, aggregate="none"),
        cohort,
    )
    assert set(table["level"]) == {"slide"}
    assert table["y"].tolist() == ["a", "b", "b"]


def test_only_the_columns_of_this_program_are_read_as_numbers(tmp_path):
    texts = {"thresholds": "1", "survival_months": "007", "risk_score": "1.0", "level": "slide"}
    numbers = {"threshold": 0.5, "survival_00": 0.5, "prob_a": 1.0, "risk": 2.0, "risk_cut": 0.0}
    table = pd.DataFrame([{**texts, **numbers, "seen": True}, {**texts, **numbers, "seen": False}])
    write_csv(table, tmp_path / "predictions.csv")
    back = read_predictions(tmp_path / "predictions.csv")
    pd.testing.assert_frame_equal(back, table, check_dtype=False)
    assert back["seen"].dtype == bool
