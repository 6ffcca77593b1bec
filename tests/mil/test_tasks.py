"""Tasks: targets refused by name, losses and bins against independent computations."""

import json
import math

import numpy as np
import pandas as pd
import pytest
import torch
from pydantic import TypeAdapter, ValidationError
from sklearn.utils.class_weight import compute_class_weight
from torch.nn import functional

from mil.tasks.base import Answers
from mil.tasks.build import fit_task, restore_task
from mil.tasks.classification import ClassificationTask
from mil.tasks.config import (
    ClassificationConfig,
    CoxConfig,
    OperatingPointConfig,
    SurvivalConfig,
    TaskConfig,
)
from preprocessing.errors import CheckpointError, CohortError

SURVIVAL = SurvivalConfig(time="months", event="dead")


def labels(values, *, index=None):
    ids = [f"p{i}" for i in range(len(values))] if index is None else index
    return pd.DataFrame({"diagnosis": values}, index=ids)


def follow_up(times, events):
    index = [f"p{i}" for i in range(len(times))]
    return pd.DataFrame({"months": times, "dead": events}, index=index)


def random_follow_up(patients=80, *, seed=0):
    rng = np.random.default_rng(seed)
    return follow_up(rng.exponential(30, patients) + 0.1, rng.integers(0, 2, patients))


# --- configuration and restoring


def test_columns_must_be_named():
    adapter = TypeAdapter(TaskConfig)
    for section in (
        {"name": "classification"},
        {"name": "survival", "time": "months"},
        {"name": "cox", "event": "dead"},
    ):
        with pytest.raises(ValidationError, match="Field required"):
            adapter.validate_python(section)
    with pytest.raises(ValidationError, match="Extra inputs are not permitted"):
        adapter.validate_python({"name": "classification", "label": "x", "clases": ["a", "b"]})
    with pytest.raises(ValidationError, match="same column 'months'"):
        adapter.validate_python({"name": "survival", "time": "months", "event": "months"})


def test_classes_of_a_configuration_hold_together():
    numbered = ClassificationConfig.model_validate({"label": "grade", "classes": [1, 2, 3]})
    assert numbered.classes == ("1", "2", "3")
    with pytest.raises(ValidationError, match="two or more different names"):
        ClassificationConfig(label="grade", classes=("a", "a"))
    with pytest.raises(ValidationError, match="'c' is not one of the classes"):
        ClassificationConfig(label="grade", classes=("a", "b"), positive="c")


def test_ordered_classes_need_their_order():
    with pytest.raises(ValidationError, match="give the order in `classes`"):
        ClassificationConfig(label="grade", ordered=True)
    assert ClassificationConfig(label="grade", ordered=True, classes=("low", "high")).ordered


def test_an_operating_point_keeps_what_it_names():
    with pytest.raises(ValidationError, match="rule is 'sensitivity', least is None"):
        OperatingPointConfig(rule="sensitivity")
    with pytest.raises(ValidationError, match=r"youden takes none; .* least is 0.9"):
        OperatingPointConfig(least=0.9)
    assert OperatingPointConfig(rule="specificity", least=0.95).least == 0.95


@pytest.mark.parametrize("times", [(5.0, 1.0), (1.0, 1.0)])
def test_horizons_increase(times):
    with pytest.raises(ValidationError, match="expected increasing times"):
        CoxConfig(time="months", event="dead", times=times)


@pytest.mark.parametrize("times", [(0.0, 1.0), ()])
def test_horizons_are_later_than_the_start(times):
    with pytest.raises(ValidationError, match=r"greater than 0|at least 1 item"):
        SurvivalConfig(time="months", event="dead", times=times)


@pytest.mark.parametrize(
    ("config", "targets"),
    [
        (ClassificationConfig(label="diagnosis", positive="a"), labels(["b", "a", "c"])),
        (
            ClassificationConfig(label="diagnosis", class_weights="balanced"),
            labels(["b", "a", "c", "c"]),
        ),
        (SurvivalConfig(time="months", event="dead", alpha=0.4), random_follow_up()),
    ],
)
def test_a_task_survives_json(config, targets):
    fitted = fit_task(config, targets)
    encoded = fitted.encode(targets)
    logits = torch.randn(len(targets), fitted.outputs, generator=torch.Generator().manual_seed(0))
    task = fitted.completed(Answers(logits, encoded), Answers(logits, encoded))
    restored = restore_task(json.loads(json.dumps(task.state())))
    assert restored.state() == task.state() != fitted.state()
    assert torch.equal(restored.encode(targets), encoded)
    assert torch.equal(restored.loss(logits, encoded), task.loss(logits, encoded))
    assert torch.equal(restored.evidence(logits), task.evidence(logits))
    pd.testing.assert_frame_equal(restored.predict(logits), task.predict(logits))


def test_a_foreign_state_is_refused():
    with pytest.raises(CheckpointError, match=r"one of .*, regression, got .*'ranking'"):
        restore_task({"name": "ranking"})
    older = {"name": "survival", "cuts": [1.0], "alpha": 0.0}
    with pytest.raises(CheckpointError, match=r"a survival task lacks 'scale'.*another version"):
        restore_task(older)


# --- classification


def test_classes_are_sorted_or_as_configured():
    targets = labels(["tumour", "normal", "tumour"])
    task = fit_task(ClassificationConfig(label="diagnosis"), targets)
    assert isinstance(task, ClassificationTask)
    assert task.classes == ("normal", "tumour")
    assert task.positive == "tumour"
    assert task.encode(targets).tolist() == [1, 0, 1]
    config = ClassificationConfig(label="diagnosis", classes=("tumour", "normal"))
    task = fit_task(config, targets)
    assert task.encode(targets).tolist() == [0, 1, 0]
    assert task.encode(targets).dtype == torch.int64


def test_numbers_and_their_text_are_the_same_class():
    task = ClassificationTask.fit(labels([0, 1, 1]), label="diagnosis")
    assert task.encode(labels(["1", "0"])).tolist() == [1, 0]
    assert task.encode(labels([1.0, 0.0])).tolist() == [1, 0]


@pytest.mark.parametrize(
    ("targets", "options", "message"),
    [
        (labels(["a", "a"]), {}, r"'diagnosis': expected two or more different classes"),
        (labels(["a", None]), {}, "no value for p1"),
        (labels(["a", "b", "c"]), {"classes": ("a", "b")}, r"got \['c'\] for p2"),
        (labels(["a", "b"]), {"classes": ("a", "b", "c")}, r"no training case of class \['c'\]"),
        (labels(["a", "b"]), {"positive": "z"}, "positive class 'z'"),
        (labels(["a", "b"]).rename(columns=str.upper), {}, "columns are DIAGNOSIS"),
    ],
)
def test_unfit_labels_are_refused_by_id(targets, options, message):
    with pytest.raises(CohortError, match=message):
        ClassificationTask.fit(targets, label="diagnosis", **options)


def test_an_unknown_class_at_test_time_is_refused_by_id():
    task = ClassificationTask(("a", "b"), label="diagnosis")
    with pytest.raises(CohortError, match=r"got \['c'\] for s9"):
        task.encode(labels(["a", "c"], index=["s8", "s9"]))


def test_many_bad_rows_are_counted_not_listed():
    task = ClassificationTask(("a", "b"), label="diagnosis")
    with pytest.raises(CohortError, match="p0, p1, p2, p3, p4 and 3 more"):
        task.encode(labels(["x"] * 8))


def test_cross_entropy_and_probabilities_by_hand():
    task = ClassificationTask(("a", "b", "c"), label="diagnosis")
    logits = torch.tensor([[math.log(2), math.log(3), math.log(5)], [0.0, 0.0, 0.0]])
    table = task.predict(logits)
    columns = [f"{kind}_{name}" for kind in ("prob", "uncalibrated") for name in "abc"]
    assert list(table.columns) == columns
    assert table.loc[0].to_numpy() == pytest.approx([0.2, 0.3, 0.5] * 2)
    loss = task.loss(logits, torch.tensor([1, 2]))
    assert loss.item() == pytest.approx(-(math.log(0.3) + math.log(1 / 3)) / 2)


def test_evidence_is_the_log_odds_of_the_positive_class():
    task = ClassificationTask(("a", "b", "c"), label="diagnosis", positive="b")
    logits = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    probability = task.predict(logits)["prob_b"].to_numpy()
    assert task.evidence(logits).numpy() == pytest.approx(np.log(probability / (1 - probability)))
    assert task.evidence_name == "log-odds of b against the rest"
    two = ClassificationTask(("normal", "tumour"), label="diagnosis")
    assert two.evidence(torch.tensor([[1.0, 3.0], [2.0, 2.0]])).tolist() == [2.0, 0.0]
    assert two.evidence_name == "log-odds of tumour against normal"


def test_balanced_weights_give_every_class_the_same_say():
    targets = labels(["a"] * 6 + ["b"] * 3 + ["c"])
    config = ClassificationConfig(label="diagnosis", class_weights="balanced")
    task, plain = (
        fit_task(config, targets),
        fit_task(ClassificationConfig(label="diagnosis"), targets),
    )
    encoded = task.encode(targets)
    logits = torch.randn(10, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    per_bag = functional.cross_entropy(logits, encoded, reduction="none")
    means = [per_bag[encoded == c].mean().item() for c in range(3)]
    assert task.loss(logits, encoded).item() == pytest.approx(np.mean(means))
    # sklearn's weights, and they act in a step of one bag
    weights = compute_class_weight(
        "balanced", classes=np.array(["a", "b", "c"]), y=targets["diagnosis"].to_numpy()
    )
    for i in (0, 9):
        one = slice(i, i + 1)
        expected = plain.loss(logits[one], encoded[one]).item() * weights[encoded[i]]
        assert task.loss(logits[one], encoded[one]).item() == pytest.approx(expected)


def test_the_temperature_is_learnt_on_validation_and_divides_the_evidence():
    """Logits three times as sure as the truth is: T near 3, and log-odds divided by it."""
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 1.5, (4000, 2))
    odds = honest[:, 1] - honest[:, 0]
    truth = torch.from_numpy((rng.uniform(size=4000) < 1 / (1 + np.exp(-odds))).astype(np.int64))
    logits = torch.from_numpy(3 * honest)
    task = ClassificationTask(("a", "b"), label="diagnosis")
    training = Answers(torch.zeros(2, 2), torch.tensor([0, 1]))
    done = task.completed(training, Answers(logits, truth))
    assert done.temperature == pytest.approx(3, rel=0.1)
    table = done.predict(logits)
    assert table["prob_b"].to_numpy() == pytest.approx(1 / (1 + np.exp(-odds)), abs=0.05)
    uncalibrated = task.predict(logits)["uncalibrated_b"]
    pd.testing.assert_series_equal(table["uncalibrated_b"], uncalibrated)
    evidence = done.evidence(logits).numpy()
    assert evidence == pytest.approx(task.evidence(logits).numpy() / done.temperature)
    assert task.temperature == 1
