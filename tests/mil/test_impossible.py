"""What training would refuse is refused when the folds are made."""

import pandas as pd
import pytest

from mil.config import TaskSection
from mil.tasks.feasibility import refuse_impossible
from preprocessing.errors import CohortError

FOLLOW_UP = pd.DataFrame(
    {"time": ["1", "2", "3", "4"], "event": ["1", "1", "0", "1"]}, index=list("abcd")
)


def classes(*names: str) -> pd.DataFrame:
    return pd.DataFrame({"y": names}, index=[f"s{i}" for i in range(len(names))])


def section(target: dict, **settings: object) -> TaskSection:
    kind = {"name": "classification", "label": "y"} if "time" not in target else {}
    return TaskSection.model_validate({"target": kind | target, **settings})


@pytest.mark.parametrize(
    ("target", "settings", "names", "message"),
    [
        ({}, {}, "aaa", r"column 'y' of 3 slides: expected two or more classes, .* \['a'\]"),
        (
            {"positive": "tumor"},
            {},
            ["tumour", "normal"],
            r"no case of \['tumor'\], .* target\.positive .* did you mean 'tumour'\?",
        ),
        ({"classes": ["a", "b", "c"]}, {}, "ab", r"no case of \['c'\], .*target\.classes"),
        ({"classes": ["a", "c"]}, {}, "aab", r"one of target\.classes .* got \['b'\] for s2"),
        (
            {"positive": "c"},
            {"aggregate": "max"},
            "abc",
            r"aggregate: max joins slides of two classes, .*'y' has 3.*; use aggregate: none",
        ),
        (
            {"operating_point": {"rule": "sensitivity", "least": 0.9}},
            {"bag": "patient"},
            "abc",
            r"operating_point: a threshold separates two classes, .*'y' has 3",
        ),
        ({}, {}, ["a|b", "c"], r"'\|' separates the classes .* got \['a\|b'\]"),
    ],
)
def test_impossible_classes(target, settings, names, message):
    with pytest.raises(CohortError, match=message):
        refuse_impossible(section(target, **settings), classes(*names))


@pytest.mark.parametrize(
    ("name", "changes", "message"),
    [
        ("cox", {}, r"times: survival at 5, 6 is asked for, .*'time' is 4; give earlier"),
        ("survival", {"event": "0"}, r"not even the whole cohort .* 0 events"),
        ("cox", {"event": "0"}, r"not even the whole cohort .* 0 events"),
    ],
)
def test_impossible_follow_up(name, changes, message):
    target = {"name": name, "time": "time", "event": "event"}
    target |= {} if changes else {"times": [2, 5, 6]}
    with pytest.raises(CohortError, match=message):
        refuse_impossible(section(target), FOLLOW_UP.assign(**changes))


def test_what_can_be_trained_passes():
    operating = {"operating_point": {"rule": "sensitivity", "least": 0.9}}
    refuse_impossible(section({"positive": "b", **operating}, aggregate="max"), classes("a", "b"))
    refuse_impossible(section({"classes": ["b", "c", "a"]}), classes("a", "b", "c"))
    for name in ("survival", "cox"):
        target = {"name": name, "time": "time", "event": "event", "times": [2, 4]}
        refuse_impossible(section(target), FOLLOW_UP)
