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
            r"mil\.methods\.x\.name: 'acmill' is not known; .*; did you mean 'acmil'\?",
        ),
        (
            changed("mil", "methods", value={"x": {"name": "acmil", "brances": 3}}),
            r"brances: unknown key; did you mean 'branches'\?",
        ),
        (
            changed("preprocessing", "grid", value={"mpp": 0.5, "patience": 3}),
            r"grid\.patience: unknown key(?!; did you mean 'patience')",
        ),
        (changed("mil", "labels", value=None), "tasks are configured but `labels` names no table"),
        (changed("mil", "methods", value={}), "`tasks` and `methods` go together"),
        ([1, 2], r"\(top level\): expected a section \(keys and values\), got \[1, 2\]"),
        (
            changed("mil", "tasks", "t", "target", value={"name": "cox", "time": "t"}),
            r"mil\.tasks\.t\.target\.event: required, but absent",
        ),
        (
            changed("mil", "tasks", "t", "target", value={"time": "t", "event": "e"}),
            r"mil\.tasks\.t\.target\.name: required, but absent",
        ),
        (
            changed("mil", "tasks", "t", "covariates", value="age"),
            r"mil\.tasks\.t\.covariates: expected a list, got 'age'",
        ),
        (
            changed("mil", "train", value={"bags_per_step": 0}),
            r"1 problem\(s\)\n  mil\.train\.bags_per_step: .* 1, got 0, or .*'epoch', got 0$",
        ),
        (
            changed("mil", "train", value={"bags_per_step": [1]}),
            r"mil\.train\.bags_per_step: .*, got \[1\]",
        ),
        (
            changed(
                "mil", "tasks", "t", "target", value={"name": "cox", "time": "t", "event": "t"}
            ),
            r"mil\.tasks\.t\.target: time and event name the same column 't'$",
        ),
        (
            changed("mil", "apply", value={"a b": "models"}),
            r"mil\.apply\.a b: .*match pattern",
        ),
        (
            changed("mil", "labels", value={"table": "a.csv", "preset": "survpaht"}),
            r"mil\.labels\.preset: 'survpaht' is not known; .*; did you mean 'survpath'\?$",
        ),
        (
            changed(
                "mil", "tasks", "t", "target", value={"name": "cox", "time": "t", "event": "e"}
            ),
            r"^x\.yaml: 1 problem\(s\)\n  mil\.train\.bags_per_step: task 't' .* 2 or more$",
        ),
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


@pytest.mark.parametrize(
    ("section", "message"),
    [
        ({"bag": "patient", "aggregate": "none"}, r"t\.aggregate: none joins answers of slides"),
        (
            {"target": {"name": "survival", "time": "t", "event": "e"}, "aggregate": "none"},
            r"t\.aggregate: none is for questions about slides; follow-up is a patient's",
        ),
    ],
)
def test_slides_answer_for_themselves_only_where_that_means_something(section, message):
    target = {"name": "classification", "label": "y"}
    study = changed("mil", "tasks", "t", value={"target": target, "aggregate": "none"})
    assert validate_study(study, source="x.yaml").mil.tasks["t"].aggregate == "none"
    study["mil"]["tasks"]["t"] |= section
    with pytest.raises(ConfigError, match=message):
        validate_study(study, source="x.yaml")


@pytest.mark.parametrize("column", ["survival_months", "survival_", "probable", "spreads", "risks"])
def test_columns_that_only_look_like_ours_are_free(column):
    target = {"name": "survival", "time": column, "event": "event", "unit": "months"}
    study = changed("mil", "tasks", "t", value={"target": target, "covariates": [column + "_2"]})
    study["mil"]["split"] = {"group": column}
    mil = validate_study(study, source="x.yaml").mil
    assert mil.tasks["t"].target.columns == (column, "event")
    assert mil.tasks["t"].target.unit == "months"


@pytest.mark.parametrize("column", ["survival_07", "prob_a", "uncalibrated_b", "spread_c", "seen"])
def test_columns_of_the_result_tables_are_refused_with_a_remedy(column):
    target = {"name": "classification", "label": column}
    study = changed("mil", "tasks", "t", value={"target": target})
    remedy = rf"'{column}' is a column of the result tables; set labels\.columns: "
    with pytest.raises(ConfigError, match=rf"mil\.tasks\.t\.target\.label: {remedy}{{label: "):
        validate_study(study, source="x.yaml")
    study = changed("mil", "split", value={"group": column})
    with pytest.raises(ConfigError, match=rf"mil\.split\.group: {remedy}{{site: .*group: site"):
        validate_study(study, source="x.yaml")
    study = changed("mil", "tasks", "t", "covariates", value=[column])
    with pytest.raises(ConfigError, match=r"t\.covariates: .*; name the column otherwise"):
        validate_study(study, source="x.yaml")


def test_missing_file_and_bad_yaml(tmp_path):
    with pytest.raises(ConfigError, match=r"cannot read the configuration .*none\.yaml"):
        load_study(tmp_path / "none.yaml")
    (tmp_path / "bad.yaml").write_text("a: [1")
    with pytest.raises(ConfigError, match=r"bad\.yaml is not valid YAML"):
        load_study(tmp_path / "bad.yaml")
    (tmp_path / "latin.yaml").write_bytes("label: Färbung".encode("latin-1"))
    with pytest.raises(ConfigError, match=r"latin\.yaml is not UTF-8 text.*save it as UTF-8"):
        load_study(tmp_path / "latin.yaml")


def test_digest_follows_the_settings():
    study = validate_study(STUDY, source="a")
    other = validate_study(changed("mil", "train", value={"seed": 1}), source="b")
    assert digest(study.mil.train) != digest(other.mil.train)
    assert digest(study.mil.tasks["t"]) == digest(other.mil.tasks["t"])


def test_every_example_of_the_documentation_is_valid():
    blocks = (ROOT / "configs/README.md").read_text().split("```yaml\n")[1:]
    examples = [yaml.safe_load(block.split("```")[0]) for block in blocks]
    assert len(examples) == 3
    for example in examples:
        study = copy.deepcopy(STUDY)
        study["mil"] |= {"tasks": example["tasks"]} if "tasks" in example else {}
        study |= {key: value for key, value in example.items() if key != "tasks"}
        validate_study(study, source="configs/README.md")
