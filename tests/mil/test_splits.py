import json

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.experiment import strata
from mil.splits import Fold, Splits, load_splits, make_splits, refuse_shared_slides, save_splits
from mil.tasks.config import SurvivalConfig
from preprocessing.errors import CohortError


@st.composite
def cohorts(draw):
    """Bags of 12-40 patients with 1-3 slides and at least 6 patients of each of 2-3 classes."""
    classes = draw(st.integers(2, 3))
    patients = [f"p{i}" for i in range(draw(st.integers(6 * classes, 40)))]
    bags = [
        (patient, f"class{i % classes}")
        for i, patient in enumerate(patients)
        for _ in range(draw(st.integers(1, 3)))
    ]
    return pd.DataFrame(bags, columns=["patient_id", "label"])


@settings(max_examples=30, deadline=None)
@given(cohorts(), st.integers(2, 5), st.integers(0, 100))
def test_every_patient_is_tested_once_and_parts_never_overlap(bags, folds, seed):
    splits = make_splits(bags, [bags["label"]], folds=folds, validation_share=0.2, seed=seed)
    everyone = set(bags["patient_id"])
    assert sorted(p for fold in splits.folds for p in fold.test) == sorted(everyone)
    for fold in splits.folds:
        parts = [set(fold.train), set(fold.validation), set(fold.test)]
        assert sum(map(len, parts)) == len(everyone)
        assert set.union(*parts) == everyone
        training = bags[bags["patient_id"].isin(fold.train)]
        assert set(training["label"]) == set(bags["label"])


def test_same_seed_same_folds_other_seed_others():
    bags = pd.DataFrame({"patient_id": [f"p{i}" for i in range(30)], "label": ["a", "b", "b"] * 10})

    def fingerprint(seed: int) -> str:
        return make_splits(
            bags, [bags["label"]], folds=3, validation_share=0.2, seed=seed
        ).fingerprint

    assert fingerprint(1) == fingerprint(1)
    assert fingerprint(1) != fingerprint(2)


def test_folds_are_stratified():
    bags = pd.DataFrame(
        {"patient_id": [f"p{i}" for i in range(50)], "label": ["rare"] * 10 + ["common"] * 40}
    )
    splits = make_splits(bags, [bags["label"]], folds=5, validation_share=0.2, seed=0)
    rare = {f"p{i}" for i in range(10)}
    assert [len(rare & set(fold.test)) for fold in splits.folds] == [2] * 5
    assert all(rare & set(fold.validation) for fold in splits.folds)


def test_too_few_patients_of_a_class_are_named():
    bags = pd.DataFrame({"patient_id": list("abcdefgh"), "label": ["x"] * 6 + ["y"] * 2})
    with pytest.raises(CohortError, match="at least 3 patients in every stratum, but 'y' has 2"):
        make_splits(bags, [bags["label"]], folds=3, validation_share=0.2, seed=0)


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([Fold(("a",), ("b",), ("a",))], r"fold 0: patient\(s\) \['a'\] .* both train and test"),
        ([Fold(("a",), ("a",), ("b",))], "both train and validation"),
        ([Fold(("a",), (), ("b",))], "fold 0 has no validation patients"),
        (
            [Fold(("a",), ("b",), ("c",)), Fold(("b",), ("a",), ("c",))],
            r"\['c'\] are tested in more than one fold",
        ),
    ],
)
def test_leaking_splits_are_refused(folds, message):
    with pytest.raises(CohortError, match=message):
        Splits(tuple(folds))


def test_saved_splits_come_back_and_edited_ones_are_refused(tmp_path):
    splits = Splits((Fold(("a", "d"), ("b",), ("c",)),))
    path = tmp_path / "splits.json"
    save_splits(splits, path)
    assert load_splits(path) == splits
    content = json.loads(path.read_text())
    content["folds"][0]["train"] = ["a"]
    path.write_text(json.dumps(content))
    with pytest.raises(CohortError, match="was edited"):
        load_splits(path)
    assert [p.name for p in tmp_path.iterdir()] == ["splits.json"]


def test_one_image_under_two_patients_is_refused():
    refuse_shared_slides({"s1": "a", "s2": "a"}, {"s1": "f", "s2": "f"})
    with pytest.raises(CohortError, match=r"'s1' \(patient 'a'\) and 's2' \(patient 'b'\)"):
        refuse_shared_slides({"s1": "a", "s2": "b"}, {"s1": "f", "s2": "f"})


def follow_up(events: list[int]) -> pd.DataFrame:
    patients = [f"p{i}" for i in range(len(events))]
    return pd.DataFrame({"patient_id": patients, "t": range(1, len(events) + 1), "e": events})


SURVIVAL = SurvivalConfig(time="t", event="e")


@pytest.mark.parametrize("censored", [0, 1, 2, 5, 12])
def test_survival_folds_need_events_but_no_censored_patients(censored):
    bags = follow_up([1] * 13 + [0] * censored)
    splits = make_splits(bags, strata(SURVIVAL, bags), folds=3, validation_share=0.25, seed=0)
    events = set(bags.loc[bags["e"] == 1, "patient_id"])
    assert all(len(events & set(fold.test)) >= 2 for fold in splits.folds)


def test_too_few_events_are_refused():
    bags = follow_up([1] * 2 + [0] * 20)
    with pytest.raises(CohortError, match="'event' has 2"):
        make_splits(bags, strata(SURVIVAL, bags), folds=3, validation_share=0.25, seed=0)


def test_values_that_are_no_event_are_named_before_folds_are_made():
    bags = follow_up([1, 0, 2, 1]).set_index("patient_id", drop=False)
    with pytest.raises(CohortError, match=r"expected 1 .* for p2"):
        strata(SURVIVAL, bags)
