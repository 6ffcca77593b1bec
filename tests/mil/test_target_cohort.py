"""Several labels and values from the label table to calls: cohort, folds, decisions."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from cohort_fakes import ROWS, SURVIVAL, labels
from target_fakes import label_rows, value_rows

from mil.cohorts.cohort import Cohort, read_cohort
from mil.config import SplitConfig, TaskSection, validate_study
from mil.decisions import (
    LabelDecision,
    NoDecision,
    apply_decisions,
    decisions_state,
    fit_decisions,
    restore_decisions,
)
from mil.folds.splits import make_splits
from mil.metrics.calibration import youden_threshold
from mil.predictions import aggregate, combine, read_predictions, write_csv
from mil.tasks.config import MultilabelConfig, RegressionConfig
from mil.tasks.feasibility import refuse_impossible
from mil.tasks.strata import classes_held, strata
from preprocessing.errors import CheckpointError, CohortError, ConfigError

MUTATIONS = MultilabelConfig(labels=("EGFR", "KRAS"))
SCORE = RegressionConfig(column="hrd", unit="points")


# --- configuration


def study(target: dict, **section) -> dict:
    return {
        "output": "out",
        "preprocessing": {"manifest": "slides.csv", "grid": {"mpp": 0.5}},
        "mil": {
            "labels": "labels.csv",
            "tasks": {"t": {"target": target, **section}},
            "methods": {"m": {"name": "abmil"}},
        },
    }


@pytest.mark.parametrize(
    ("target", "section", "message"),
    [
        ({"labels": ["prob_x", "y"]}, {}, r"t\.target\.labels: 'prob_x' is a column of the result"),
        ({"labels": ["a", "threshold_b"]}, {}, r"'threshold_b' is a column .* name the column oth"),
        ({"labels": ["a", "b"]}, {"aggregate": "max"}, "max needs a classification target"),
        ({"labels": ["a", "b"], "positive": "a"}, {"aggregate": "max"}, "needs a classification"),
        (
            {"column": "value"},
            {},
            r"labels\.columns: \{label: value\} and write target\.column: la",
        ),
        ({"column": "x"}, {"aggregate": "max"}, "max needs a classification target"),
    ],
)
def test_targets_that_cannot_be_meant_are_refused_by_key(target, section, message):
    name = "regression" if "column" in target else "multilabel"
    with pytest.raises(ConfigError, match=message):
        validate_study(study({"name": name, **target}, **section), source="x.yaml")


def test_slides_may_answer_for_themselves():
    for target in (MUTATIONS, SCORE):
        section = study(target.model_dump(), aggregate="none")
        assert validate_study(section, source="x").mil.tasks["t"].target == target


# --- cohort


def test_one_known_label_is_enough_and_none_is_reported(tmp_path):
    text = "slide_id,EGFR,KRAS\ns1,1,\ns2,,0.0\ns3,,\n"
    cohort = read_cohort(
        ROWS, labels(tmp_path, text), MUTATIONS.columns, patient_target=True, target=MUTATIONS
    )
    assert cohort.slides.index.tolist() == ["s1", "s2"]
    assert cohort.report == {"slides of which none of EGFR, KRAS is known": ["s3"]}
    assert cohort.bags("patient").loc["007", ["EGFR", "KRAS"]].tolist() == ["1", "0"]
    assert cohort.bags("slide")["KRAS"].isna().tolist() == [True, False]
    assert cohort.describe(MUTATIONS) == [
        "2 slides of 1 patient",
        "EGFR = 1: 1 slide of 1 patient",
        "EGFR = unknown: 1 slide of 1 patient",
        "KRAS = 0: 1 slide of 1 patient",
        "KRAS = unknown: 1 slide of 1 patient",
    ]


def test_a_patient_whose_slides_disagree_on_one_label_is_refused(tmp_path):
    config = labels(tmp_path, "slide_id,EGFR,KRAS\ns1,1,0\ns2,1,1\ns3,0,\n")
    told = r"disagree on KRAS: 007 \(0, 1\); .* \(bag: slide\) with aggregate: none \(slides"
    with pytest.raises(CohortError, match=told):
        read_cohort(ROWS, config, MUTATIONS.columns, patient_target=True, target=MUTATIONS)


def test_values_are_compared_as_numbers(tmp_path):
    """Of the slides of a patient, and of repeated rows of a slide."""
    text = "slide_id,hrd\ns1,48.50\ns2,4.85e1\ns2,48.5\ns3,7.0\n"
    given = {"patient_target": True, "target": SCORE}
    cohort = read_cohort(ROWS, labels(tmp_path, text), SCORE.columns, **given)
    assert cohort.slides["hrd"].tolist() == ["48.5", "48.5", "7"]
    two = labels(tmp_path, "slide_id,hrd\ns1,48.50\ns2,48.51\n")
    told = r"disagree on hrd: 007 \(48\.5, 48\.51\); .* with aggregate: none"
    with pytest.raises(CohortError, match=told) as caught:
        read_cohort(ROWS, two, SCORE.columns, **given)
    assert "max" not in str(caught.value)
    follow_up = labels(tmp_path, "slide_id,time,event\ns1,3.50,1\ns2,3.5,1\n")
    cohort = read_cohort(ROWS, follow_up, SURVIVAL.columns, patient_target=True, target=SURVIVAL)
    assert cohort.slides["time"].tolist() == ["3.5", "3.5"]


@pytest.mark.parametrize(
    ("target", "text", "message"),
    [
        (
            MUTATIONS,
            "EGFR,KRAS\n1,wt\n0,1\n",
            r"labels\.csv \(k\): column 'KRAS': .*\['wt'\] for s1",
        ),
        (SCORE, "hrd\n1.5\nhigh\n", r"labels\.csv \(k\): column 'hrd': expected numbers.* for s3"),
        (MUTATIONS, "EGFR,BRAF\n1,0\n0,1\n", r"k\.labels: no column 'KRAS'"),
        (SCORE, "HRD\n1\n2\n", r"k\.column: no column 'hrd'; did you mean 'HRD'\?"),
    ],
)
def test_cells_and_columns_are_refused_by_id_and_key(tmp_path, target, text, message):
    head, *lines = text.splitlines()
    rows = [f"{slide},{line}" for slide, line in zip(("s1", "s3"), lines, strict=True)]
    config = labels(tmp_path, "\n".join([f"slide_id,{head}", *rows]))
    with pytest.raises(CohortError, match=message):
        read_cohort(ROWS, config, target.columns, patient_target=False, target=target, key="k")


def test_values_are_described_in_their_unit(tmp_path):
    config = labels(tmp_path, "slide_id,hrd\ns1,10\ns2,20\ns3,\n")
    cohort = read_cohort(ROWS, config, ("hrd",), patient_target=False, target=SCORE)
    (line,) = cohort.describe(SCORE)[1:]
    told = "hrd (points) of slides: median 15, quartiles 12.5 to 17.5, from 10 to 20"
    assert line == told
    assert cohort.report == {"slides whose hrd is empty": ["s3"]}


def test_what_training_would_refuse_is_refused_before_folds():
    bags = pd.DataFrame({"EGFR": ["1", "1", None], "KRAS": ["0", "1", "1"], "hrd": ["7"] * 3})
    told = r"^column 'EGFR' of 3 slides: 2 yes, 0 no, 1 unknown: .* leave it out of target\.labels"
    with pytest.raises(CohortError, match=told) as caught:
        refuse_impossible(TaskSection(target=MUTATIONS), bags)
    assert "fold" not in str(caught.value)
    with pytest.raises(CohortError, match=r"'KRAS' of 3 slides: 0 yes, 3 no, 0 unknown"):
        refuse_impossible(
            TaskSection(target=MUTATIONS), bags.assign(EGFR=["1", "0", None], KRAS="0")
        )
    with pytest.raises(CohortError, match=r"not even the whole cohort .* all 3 .* the value 7"):
        refuse_impossible(TaskSection(target=SCORE), bags)


# --- folds


def patients(n: int, **columns) -> pd.DataFrame:
    table = pd.DataFrame({"patient_id": [f"p{i:03}" for i in range(n)], **columns})
    return table.set_index("patient_id", drop=False).assign(
        slide_ids=[(f"s{i}",) for i in range(n)]
    )


def test_labels_are_balanced_together_where_all_combinations_are_frequent():
    number = np.arange(80)
    bags = patients(80, EGFR=(number % 2).astype(str), KRAS=(number // 2 % 2).astype(str))
    splits, _ = make_splits(bags, strata(MUTATIONS, bags), SplitConfig(folds=4))
    for fold in splits.folds:
        tested = bags.loc[list(fold.test)]
        assert (tested[["EGFR", "KRAS"]].value_counts() == 5).all()


def test_a_rare_label_stands_in_every_part_though_combinations_are_too_rare():
    number = np.arange(100)
    egfr = np.where(number < 12, "1", "0")
    kras = np.where((number > 10) & (number < 45), "1", "0")  # one patient has both
    bags = patients(100, EGFR=egfr, KRAS=pd.Series(kras).where(number % 10 != 9))
    splits, _ = make_splits(bags, strata(MUTATIONS, bags), SplitConfig(folds=4))
    for fold in splits.folds:
        for part in (fold.train, fold.validation, fold.test):
            assert {"0", "1"} <= set(bags.loc[list(part), "EGFR"])
            assert {"0", "1"} <= set(bags.loc[list(part), "KRAS"].dropna())
        assert (bags.loc[list(fold.test), "EGFR"] == "1").sum() == 3


def test_the_last_resort_is_the_most_balanced_label():
    egfr = ["1"] + ["0"] * 39
    bags = patients(40, EGFR=egfr, KRAS=["1", "0", "0", "0"] * 10)
    candidates = strata(MUTATIONS, bags)
    assert set(candidates[-1]) == {"KRAS = 1", "others"}
    splits, _ = make_splits(bags, candidates, SplitConfig(folds=5))
    counts = [(bags.loc[list(fold.test), "KRAS"] == "1").sum() for fold in splits.folds]
    assert counts == [2] * 5


def test_values_are_balanced_by_their_quarters_and_halves_of_few():
    bags = patients(40, hrd=np.random.default_rng(0).permutation(40).astype(str))
    for number, parts in ((40, 4), (12, 2)):
        mine = bags[:number]
        value = mine["hrd"].astype(float)
        place = pd.qcut(value, parts, labels=False)
        splits, _ = make_splits(
            mine, strata(SCORE, mine), SplitConfig(folds=4 if parts == 4 else 5)
        )
        for fold in splits.folds:
            assert set(place[list(fold.test)]) == set(range(parts))


def test_classes_that_every_fold_needs_are_the_known_answers():
    bags = patients(3, EGFR=["1", "0", None], KRAS=["1", None, "0"], hrd=["1", "2", "3"])
    held = classes_held(MUTATIONS, bags)
    assert held is not None
    assert held.tolist() == [{"EGFR = 1", "KRAS = 1"}, {"EGFR = 0"}, {"KRAS = 0"}]
    assert classes_held(SCORE, bags) is None


# --- decisions and predictions


def by_part(table: pd.DataFrame) -> pd.DataFrame:
    return table.assign(part=np.array(["train", "validation", "test"])[np.arange(len(table)) % 3])


def test_thresholds_are_of_known_validation_labels_alone():
    table = by_part(label_rows())
    decisions = fit_decisions(MUTATIONS, table)
    mine = table[(table["part"] == "validation") & table["KRAS"].notna()]
    expected = youden_threshold(mine["KRAS"] == "1", mine["prob_KRAS"])
    assert decisions["patient"].thresholds["KRAS"] == expected
    other = table.copy()
    strange = (table["part"] != "validation") | table["KRAS"].isna()
    other.loc[strange, "prob_KRAS"] = 0.5
    other.loc[table["part"] != "validation", "KRAS"] = "1"
    assert fit_decisions(MUTATIONS, other) == decisions
    called = apply_decisions(decisions, table)
    above = called["prob_KRAS"] >= expected
    assert ((called["predicted_KRAS"] == "1") == above).all()
    restored = restore_decisions(json.loads(json.dumps(decisions_state(decisions))))
    assert restored == decisions


def test_a_rule_keeps_the_sensitivity_of_every_label():
    point = {"rule": "sensitivity", "least": 0.9}
    target = MultilabelConfig(labels=("EGFR", "KRAS"), operating_point=point)
    table = by_part(label_rows(patients=300))
    called = apply_decisions(fit_decisions(target, table), table)
    for name in target.labels:
        yes = called[(called["part"] == "validation") & (called[name] == "1")]
        assert (yes[f"predicted_{name}"] == "1").mean() >= 0.9


@pytest.mark.parametrize("known", ["0", None])
def test_a_label_without_threshold_is_called_from_a_half_on(known):
    table = by_part(label_rows()).assign(KRAS=known)
    decisions = fit_decisions(MUTATIONS, table)
    assert math.isnan(decisions["patient"].thresholds["KRAS"])
    restored = restore_decisions(json.loads(json.dumps(decisions_state(decisions))))
    called = apply_decisions(restored, table)
    assert ((called["predicted_KRAS"] == "1") == (table["prob_KRAS"] >= 0.5)).all()


def test_values_are_not_called_and_strange_decisions_are_refused():
    table = by_part(value_rows())
    decisions = fit_decisions(SCORE, table)
    assert decisions == {"patient": NoDecision()}
    assert restore_decisions(json.loads(json.dumps(decisions_state(decisions)))) == decisions
    pd.testing.assert_frame_equal(apply_decisions(decisions, table), table)
    with pytest.raises(CheckpointError, match=r"got \{'cut': 1\}.*another version"):
        restore_decisions({"patient": {"cut": 1}})


def test_members_answer_together_with_the_mean_threshold():
    one, two = label_rows(seed=0), label_rows(seed=0)
    two["prob_KRAS"] = 1 - two["prob_KRAS"]
    two["threshold_KRAS"] = np.nan
    joint = combine([one, two], MUTATIONS)
    assert joint["prob_KRAS"].to_numpy() == pytest.approx(0.5)
    assert joint["threshold_KRAS"].equals(one["threshold_KRAS"])
    assert ((joint["predicted_KRAS"] == "1") == (one["threshold_KRAS"] <= 0.5)).all()
    assert joint["spread_KRAS"].to_numpy() == pytest.approx((one["prob_KRAS"] - 0.5).abs())
    assert (joint["spread_EGFR"] == 0).all()
    three = value_rows().assign(value=1.0)
    values = combine([three, three.assign(value=4.0)], SCORE)
    assert set(values["value"]) == {2.5}
    assert set(values["spread_value"]) == {1.5}


def test_patients_are_the_mean_of_their_slides_and_keep_what_is_unknown(tmp_path):
    index = pd.Index(["a1", "a2", "b1"], name="slide_id")
    given = {"EGFR": ["1", np.nan, "0"], "KRAS": [np.nan, np.nan, "1"]}
    slides = pd.DataFrame({"patient_id": ["a", "a", "b"], **given}, index=index)
    answers = {"prob_EGFR": [0.2, 0.6, 0.1], "prob_KRAS": [0.9, 0.8, 0.7]}
    table = slides.rename_axis("id").reset_index().assign(**answers)
    cohort = Cohort(slides, MUTATIONS.columns)
    joint = aggregate(table, TaskSection(target=MUTATIONS), cohort).set_index("id")
    assert joint["prob_EGFR"].tolist() == pytest.approx([0.4, 0.1])
    assert joint["EGFR"].tolist() == ["1", "0"]
    assert joint["KRAS"].isna().tolist() == [True, False]
    joint = joint.where(joint.notna(), np.nan).reset_index(drop=True)
    called = LabelDecision({"EGFR": 0.3, "KRAS": math.nan}).apply(joint)
    write_csv(called.assign(seen=False), tmp_path / "predictions.csv")
    back = read_predictions(tmp_path / "predictions.csv").drop(columns="seen")
    pd.testing.assert_frame_equal(back, called, check_dtype=False)
    assert back["predicted_EGFR"].tolist() == ["1", "0"]
    assert back["threshold_KRAS"].dtype == float
