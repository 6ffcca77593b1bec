"""Balance of the parts: classes, and events early and late; and cohorts too small for it."""

import pandas as pd
import pytest

from mil.config import SplitConfig
from mil.experiment import strata
from mil.folds.splits import make_splits
from mil.tasks.config import SurvivalConfig
from preprocessing.errors import CohortError

SURVIVAL = SurvivalConfig(time="t", event="e")


def bag_table(rows: list[tuple[str, str]]) -> pd.DataFrame:
    table = pd.DataFrame(rows, columns=["patient_id", "label"])
    table["slide_ids"] = [(f"slide{i}",) for i in range(len(table))]
    return table


def test_folds_are_stratified():
    bags = bag_table([(f"p{i}", "rare" if i < 10 else "common") for i in range(50)])
    splits, _ = make_splits(bags, [bags["label"]], SplitConfig(folds=5))
    rare = {f"p{i}" for i in range(10)}
    assert [len(rare & set(fold.test)) for fold in splits.folds] == [2] * 5
    assert [len(rare & set(fold.validation)) for fold in splits.folds] == [2] * 5
    assert [len(fold.validation) for fold in splits.folds] == [8] * 5


def test_patients_count_alike_however_many_slides_they_have():
    rows = [(f"p{i}", "ab"[i % 2]) for i in range(20) for _ in range(30 if i < 2 else 1)]
    splits, _ = make_splits(bag_table(rows), [bag_table(rows)["label"]], SplitConfig(folds=5))
    assert [len(fold.test) for fold in splits.folds] == [4] * 5


@pytest.mark.parametrize(("folds", "least"), [(2, 4), (3, 3), (5, 5)])
def test_as_few_patients_of_a_class_as_are_said_to_do(folds, least):
    """So many reach every part of every fold; with one fewer the message tells the number."""
    for number in (least - 1, least):
        bags = bag_table([(f"p{i}", "x" if i < 20 else "y") for i in range(20 + number)])
        config = SplitConfig(folds=folds)
        if number < least:
            with pytest.raises(CohortError, match=f"at least {least} patients .* 'y' has {number}"):
                make_splits(bags, [bags["label"]], config)
            continue
        rare = {f"p{i}" for i in range(20, 20 + number)}
        for fold in make_splits(bags, [bags["label"]], config)[0].folds:
            assert all(rare & set(part) for part in fold.parts().values())


def test_too_few_patients_of_a_class_are_named():
    bags = bag_table([(p, "x" if p < "g" else "y") for p in "abcdefgh"])
    message = r"3 folds need at least 3 patients in every stratum, but 'y' has 2 \(g, h\)"
    with pytest.raises(CohortError, match=message):
        make_splits(bags, [bags["label"]], SplitConfig(folds=3))
    config = SplitConfig(scheme="monte_carlo", folds=3)
    with pytest.raises(CohortError, match=r"draws of test_share 0.2 need at least 3 patients"):
        make_splits(bags, [bags["label"]], config)


def follow_up(events: list[int]) -> pd.DataFrame:
    patients = [f"p{i}" for i in range(len(events))]
    return pd.DataFrame({"patient_id": patients, "t": range(1, len(events) + 1), "e": events})


@pytest.mark.parametrize("censored", [0, 1, 2, 5, 12])
def test_survival_folds_need_events_but_no_censored_patients(censored):
    bags = follow_up([1] * 13 + [0] * censored)
    splits, _ = make_splits(bags, strata(SURVIVAL, bags), SplitConfig(folds=3))
    events = set(bags.loc[bags["e"] == 1, "patient_id"])
    assert all(len(events & set(fold.test)) >= 2 for fold in splits.folds)
    assert all(events & set(fold.validation) for fold in splits.folds)


def test_too_few_events_are_refused():
    bags = follow_up([1] * 2 + [0] * 20)
    with pytest.raises(CohortError, match="'event' has 2"):
        make_splits(bags, strata(SURVIVAL, bags), SplitConfig(folds=3))


def test_values_that_are_no_event_are_named_before_folds_are_made():
    bags = follow_up([1, 0, 2, 1]).set_index("patient_id", drop=False)
    with pytest.raises(CohortError, match=r"expected 1 .* for p2"):
        strata(SURVIVAL, bags)
