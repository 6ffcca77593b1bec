import json
from dataclasses import replace

import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from mil.config import SplitConfig
from mil.folds.split_files import SuppliedFold
from mil.folds.splits import (
    Fold,
    Splits,
    copied_slides,
    load_splits,
    make_splits,
    refuse_unlike_classes,
    save_splits,
)
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
    return bag_table(bags)


def bag_table(rows: list[tuple[str, str]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["patient_id", "label"])
    table["slide_ids"] = [(f"slide{i}",) for i in range(len(table))]
    return table


@settings(max_examples=30)
@given(cohorts(), st.integers(2, 5), st.integers(1, 3), st.integers(0, 100))
def test_every_patient_is_tested_once_a_repeat_and_parts_never_overlap(bags, folds, repeats, seed):
    config = SplitConfig(folds=folds, repeats=repeats, seed=seed)
    splits, notes = make_splits(bags, [bags["label"]], config)
    assert notes == {}
    everyone = set(bags["patient_id"])
    assert [fold.repeat for fold in splits.folds] == sorted([*range(repeats)] * folds)
    for repeat in range(repeats):
        tested = [p for fold in splits.folds if fold.repeat == repeat for p in fold.test]
        assert sorted(tested) == sorted(everyone)
    for fold in splits.folds:
        assert_parts(fold, everyone)
        training = bags[bags["patient_id"].isin(fold.train)]
        assert set(training["label"]) == set(bags["label"])
    assert all(len(splits.folds_testing(p)) == repeats for p in everyone)
    assert all(splits.fold_testing(p) == splits.folds_testing(p)[0] for p in everyone)


def assert_parts(fold: Fold, everyone: set[str]) -> None:
    parts = [set(fold.train), set(fold.validation), set(fold.test)]
    assert sum(map(len, parts)) == len(everyone)
    assert set.union(*parts) == everyone


@settings(max_examples=30)
@given(cohorts(), st.sampled_from([0.1, 0.2, 0.3, 0.45]), st.integers(0, 100))
def test_monte_carlo_draws_the_share_of_every_class(bags, share, seed):
    config = SplitConfig(scheme="monte_carlo", folds=4, test_share=share, seed=seed)
    splits, _ = make_splits(bags, [bags["label"]], config)
    label = bags.groupby("patient_id")["label"].first()
    assert [fold.repeat for fold in splits.folds] == [0, 1, 2, 3]
    for fold in splits.folds:
        assert_parts(fold, set(label.index))
        for name, count in label.value_counts().items():
            drawn = (label[list(fold.test)] == name).sum()
            assert abs(drawn - max(1, share * count)) <= 0.5
            rest = count - drawn
            validated = (label[list(fold.validation)] == name).sum()
            assert abs(validated - max(1, 0.2 * rest)) <= 0.5


def test_monte_carlo_draws_differ():
    bags = bag_table([(f"p{i}", "ab"[i % 2]) for i in range(60)])
    splits, _ = make_splits(
        bags, [bags["label"]], SplitConfig(scheme="monte_carlo", folds=20, test_share=0.25)
    )
    assert len({fold.test for fold in splits.folds}) == 20
    often = pd.Series([p for fold in splits.folds for p in fold.test]).value_counts()
    assert len(often) == 60  # 20 draws of a quarter miss a given patient once in 300 times
    assert often.max() <= 12


def test_same_seed_same_folds_other_seed_and_other_repeat_others():
    bags = bag_table([(f"p{i}", "abb"[i % 3]) for i in range(30)])

    def splits(seed: int) -> Splits:
        return make_splits(bags, [bags["label"]], SplitConfig(folds=3, repeats=2, seed=seed))[0]

    assert splits(1).fingerprint == splits(1).fingerprint
    assert splits(1).fingerprint != splits(2).fingerprint
    tests = [set(fold.test) for fold in splits(1).folds]
    assert all(first not in tests[3:] for first in tests[:3])


@settings(max_examples=20)
@given(cohorts(), st.randoms(use_true_random=False))
def test_folds_do_not_depend_on_the_order_of_the_bags(bags, random):
    order = random.sample(range(len(bags)), len(bags))
    shuffled = bags.iloc[order]
    for config in (SplitConfig(folds=3), SplitConfig(scheme="monte_carlo", folds=2)):
        first, _ = make_splits(bags, [bags["label"]], config)
        again, _ = make_splits(shuffled, [shuffled["label"]], config)
        assert first == again


@pytest.mark.parametrize(
    ("folds", "message"),
    [
        ([Fold(("a",), ("b",), ("a",))], r"fold 0: patient\(s\) a stand in both train and test"),
        ([Fold(("a",), ("a",), ("b",))], "a stand in both train and validation"),
        ([Fold(("a",), ("b",), ("b",))], "b stand in both validation and test"),
        ([Fold(("a",), (), ("b",))], "fold 0 has no validation patients"),
        (
            [Fold(("a",), ("b",), ("c",)), Fold(("b",), ("a",), ("c",))],
            r"patient\(s\) c are tested in more than one fold of repeat 0: 0 and 1",
        ),
    ],
)
def test_leaking_splits_are_refused(folds, message):
    with pytest.raises(CohortError, match=message):
        Splits(tuple(folds))


def test_another_repeat_tests_a_patient_again():
    first = Fold(("a",), ("b",), ("c",))
    splits = Splits((first, replace(first, repeat=1)))
    assert splits.folds_testing("c") == (0, 1)
    assert splits.fold_testing("a") is None


def test_saved_splits_come_back_and_edited_ones_are_refused(tmp_path):
    splits = Splits((Fold(("a", "d"), ("b",), ("c",), repeat=3),), data="d1")
    path = tmp_path / "splits.json"
    save_splits(splits, path)
    assert load_splits(path) == splits
    content = json.loads(path.read_text())
    for key, value in (("train", ["a"]), ("repeat", 2)):
        edited = {**content, "folds": [{**content["folds"][0], key: value}]}
        path.write_text(json.dumps(edited))
        with pytest.raises(CohortError, match="was edited"):
            load_splits(path)
    for broken in ("{", "[]", json.dumps({**content, "folds": [{"train": ["a"]}]})):
        path.write_text(broken)
        with pytest.raises(CohortError, match="holds no splits"):
            load_splits(path)
    assert [p.name for p in tmp_path.iterdir()] == ["splits.json"]


def test_one_image_under_two_patients_is_refused():
    assert copied_slides({"s1": "a", "s2": "a"}, {"s1": "f", "s2": "f"}) == ["s2 (of s1)"]
    assert copied_slides({"s1": "a", "s2": "a"}, {"s1": "f", "s2": "g"}) == []
    with pytest.raises(CohortError, match=r"'s1' \(patient 'a'\) and 's2' \(patient 'b'\)"):
        copied_slides({"s1": "a", "s2": "b"}, {"s1": "f", "s2": "f"})


@st.composite
def supplied_cohorts(draw):
    """A cohort, and the patients of the three parts of 1-3 folds of it."""
    bags = draw(cohorts())
    patients = sorted(set(bags["patient_id"]))
    folds = []
    for _ in range(draw(st.integers(1, 3))):
        order = draw(st.permutations(patients))
        cut = draw(st.integers(3, len(patients) - 2))
        folds.append((set(order[:cut]), set(order[cut : cut + 1]), set(order[cut + 1 :])))
    return bags, folds


@settings(max_examples=30)
@given(supplied_cohorts(), st.booleans())
def test_supplied_folds_are_taken_over_as_they_are(cohort, by_slide):
    bags, folds = cohort

    def ids(patients: set[str]) -> frozenset[str]:
        if not by_slide:
            return frozenset(patients)
        mine = bags["patient_id"].isin(patients)
        return frozenset(slide for (slide,) in bags["slide_ids"][mine])

    given_folds = [SuppliedFold(*map(ids, parts), source="file") for parts in folds]
    config = SplitConfig(scheme="supplied", folds=len(folds), files=("file",))
    splits, notes = make_splits(bags, [bags["label"]], config, supplied=given_folds)
    assert notes == {}
    for fold, (train, validation, test) in zip(splits.folds, folds, strict=True):
        assert set(fold.train) == train
        assert set(fold.validation) == validation
        assert set(fold.test) == test
    repeats = [fold.repeat for fold in splits.folds]
    assert repeats == sorted(repeats)


SUPPLIED = SplitConfig(scheme="supplied", folds=1, files=("file",))


def supplied_fold(train: str, validation: str, test: str) -> SuppliedFold:
    return SuppliedFold(*(frozenset(ids.split()) for ids in (train, validation, test)), source="f")


def test_validation_is_cut_from_supplied_training_patients_alone():
    bags = bag_table([(f"p{i}", "ab"[i % 2]) for i in range(30)])
    train, test = (" ".join(f"p{i}" for i in r) for r in (range(20), range(20, 25)))
    given_fold = supplied_fold(train, "", test)
    splits, notes = make_splits(bags, [bags["label"]], SUPPLIED, supplied=[given_fold])
    (fold,) = splits.folds
    assert set(fold.test) == set(test.split())
    assert set(fold.train) | set(fold.validation) == set(train.split())
    assert [sum(int(p[1:]) % 2 == k for p in fold.validation) for k in (0, 1)] == [2, 2]
    assert notes == {"fold 0: patients in no part of f": [f"p{i}" for i in range(25, 30)]}


def test_supplied_leaks_are_refused_by_name():
    bags = bag_table([(f"p{i // 2}", "ab"[i % 2]) for i in range(24)])
    label = [bags["label"]]
    torn = supplied_fold("slide0 slide2", "slide6", "slide3 slide4")
    with pytest.raises(CohortError, match=r"f: patient\(s\) p1 stand in both train and test"):
        make_splits(bags, label, SUPPLIED, supplied=[torn])
    site = pd.Series({f"p{i}": f"site{i // 2}" for i in range(12)}, name="site")
    sited = SUPPLIED.model_copy(update={"group": "site"})
    torn = supplied_fold("p0 p1 p2", "p3", "p4 p5")
    with pytest.raises(CohortError, match=r"site\(s\) site1 stand in both train and validation"):
        make_splits(bags, label, sited, groups=site, supplied=[torn])


def test_the_number_of_supplied_folds_is_the_configured_one():
    bags = bag_table([(f"p{i}", "ab"[i % 2]) for i in range(12)])
    two = SUPPLIED.model_copy(update={"folds": 2})
    one = [supplied_fold("p0", "p1", "p2")]
    with pytest.raises(CohortError, match=r"hold 1 folds, mil.split.folds is 2: set folds: 1"):
        make_splits(bags, [bags["label"]], two, supplied=one)


def test_every_fold_trains_on_the_same_classes_and_judges_by_no_other():
    classes = pd.Series({p: {p[0]} for p in ("a1", "a2", "a3", "b1", "b2", "b3", "c1", "c2")})
    whole = Fold(("a1", "b1", "c1"), ("a2",), ("b2", "c2"))
    refuse_unlike_classes(Splits((whole,)), classes)
    unknown = Fold(("a1", "b1"), ("a2",), ("c1",))
    with pytest.raises(CohortError, match=r"fold 0: class\(es\) c stand in its test part"):
        refuse_unlike_classes(Splits((unknown,)), classes)
    bags = bag_table([(patient, patient[0]) for patient in classes.index])
    given = [supplied_fold("a1", "a2", "c1")]
    with pytest.raises(CohortError, match=r"class\(es\) c stand in its test .* the split files"):
        make_splits(bags, [bags["label"]], SUPPLIED, supplied=given, classes=classes)
    other = Fold(("a2", "b2"), ("b1",), ("a1",))
    told = r"fold 1 trains on the classes a, b, fold 0 on a, b, c: .*; correct the split files, or"
    with pytest.raises(CohortError, match=told):
        refuse_unlike_classes(Splits((whole, other)), classes)


def test_dealt_folds_that_lack_a_class_are_dealt_anew_and_a_lone_patients_class_is_refused():
    """Balanced by `label` alone, as many labels are; two patients have the rare class."""
    bags = bag_table([(f"p{i:02}", "ab"[i % 2]) for i in range(24)])
    config = SplitConfig(folds=3)
    plain = make_splits(bags, [bags["label"]], config)[0]
    patients = pd.Index(bags["patient_id"])

    def held(*rare: str) -> pd.Series:
        return pd.Series([{"x", *("rare",) * (p in rare)} for p in patients], patients)

    lone = plain.folds[1].test[0]
    beside = plain.folds[1].test[1]  # both stand in one test part: none is left to train on
    rare = held(lone, beside)
    with pytest.raises(CohortError, match=r"class\(es\) rare stand in its test part"):
        refuse_unlike_classes(plain, rare)
    splits, notes = make_splits(bags, [bags["label"]], config, classes=rare)
    refuse_unlike_classes(splits, rare)
    ((told, refused),) = notes.items()
    assert told.startswith("deal(s) of the folds refused")
    assert "class(es) rare stand in its test part" in refused[0]
    again = make_splits(bags, [bags["label"]], config, classes=rare)
    assert again == (splits, notes)
    assert make_splits(bags, [bags["label"]], config, classes=held()) == (plain, {})
    told = r"in none of 10 deals of the folds: .*rare.*; use another split\.seed or fewer folds"
    with pytest.raises(CohortError, match=told) as caught:
        make_splits(bags, [bags["label"]], config, classes=held(lone))
    assert "split files" not in str(caught.value)
