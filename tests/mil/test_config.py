import copy
from pathlib import Path

import pytest
import yaml

from mil.config import digest, dump_study, load_study, validate_study
from preprocessing.errors import ConfigError

ROOT = Path(__file__).parents[2]
STUDY = {
    "output": "runs/x",
    "preprocessing": {"manifest": "slides.csv", "grid": {"mpp": 0.5}},
    "mil": {
        "labels": "labels.csv",
        "tasks": {"t": {"target": {"name": "classification", "label": "y", "positive": "a"}}},
        "methods": {"acmil": {"name": "acmil"}},
    },
}


def changed(*path: str, value: object) -> dict:
    study = copy.deepcopy(STUDY)
    section = study
    for key in path[:-1]:
        section = section[key]
    section[path[-1]] = value
    return study


def test_every_shipped_configuration_is_valid():
    paths = sorted((ROOT / "configs").glob("*.yaml"))
    assert paths
    for path in paths:
        load_study(path)


def test_resolved_configuration_is_the_same_study():
    study = validate_study(STUDY, source="test")
    assert validate_study(yaml.safe_load(dump_study(study)), source="dump") == study


@pytest.mark.parametrize(
    ("study", "message"),
    [
        (changed("mil", "trian", value={}), r"mil\.trian: unknown key; did you mean 'train'\?"),
        (
            changed("preprocessing", "grid", value={"mpp": 0.5, "tile_pixels": 3}),
            r"preprocessing\.grid\.tile_pixels: unknown key",
        ),
        (
            changed("preprocessing", "grid", value={}),
            r"preprocessing\.grid\.mpp: required, but absent",
        ),
        (
            changed("preprocessing", "grid", value={"mpp": "half"}),
            r"preprocessing\.grid\.mpp: .*number.*got 'half'",
        ),
        (
            changed("mil", "methods", value={"x": {"name": "acmill"}}),
            r"mil\.methods\.x: .*'acmill'.*",
        ),
        (
            changed("mil", "methods", value={"x": {"name": "acmil", "brances": 3}}),
            r"brances: unknown key; did you mean 'branches'\?",
        ),
        (changed("mil", "labels", value=None), "tasks are configured but `labels` names no table"),
        (changed("mil", "methods", value={}), "`tasks` and `methods` go together"),
        ([1, 2], r"\(top level\)"),
    ],
)
def test_what_is_wrong_is_named(study, message):
    with pytest.raises(ConfigError, match=message):
        validate_study(study, source="x.yaml")


def test_maximum_over_slides_needs_a_positive_class():
    target = {"name": "classification", "label": "y"}
    study = changed("mil", "tasks", "t", value={"target": target, "aggregate": "max"})
    with pytest.raises(ConfigError, match="names its `positive` class"):
        validate_study(study, source="x.yaml")


def test_missing_file_and_bad_yaml(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*none\.yaml"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"bad\.yaml is not valid YAML"):
        load_study(tmp_path / "bad.yaml")


def test_digest_follows_the_settings():
    study = validate_study(STUDY, source="a")
    other = validate_study(changed("mil", "train", value={"seed": 1}), source="b")
    assert digest(study.mil.train) != digest(other.mil.train)
    assert digest(study.mil.tasks["t"]) == digest(other.mil.tasks["t"])
