"""Regression: scale, loss and a linear model against scikit-learn; what is refused."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.linear_model import ElasticNet, Ridge
from sklearn.metrics import mean_squared_error
from sklearn.preprocessing import StandardScaler

from mil.baselines import CLINICAL_RIDGE, L1_RATIO, BaselineData, fit_baseline
from mil.tasks.base import Answers
from mil.tasks.build import fit_task, restore_task
from mil.tasks.config import RegressionConfig
from mil.tasks.regression import RegressionTask
from preprocessing.errors import CheckpointError, CohortError

CONFIG = RegressionConfig(column="hrd", unit="points")


def targets(values) -> pd.DataFrame:
    return pd.DataFrame({"hrd": values}, index=[f"p{i}" for i in range(len(values))])


@settings(max_examples=30)
@given(
    st.lists(st.floats(-1e5, 1e5), min_size=2, max_size=40).filter(lambda v: np.ptp(v) > 1e-2),
    st.integers(0, 99),
)
def test_scale_and_loss_are_sklearns_and_answers_come_back_in_the_unit(values, seed):
    table = targets(values)
    task = fit_task(CONFIG, table)
    encoded = task.encode(table)
    scaler = StandardScaler().fit(table[["hrd"]].to_numpy())
    z = scaler.transform(table[["hrd"]].to_numpy())
    assert encoded.numpy() == pytest.approx(z[:, 0], rel=1e-6, abs=1e-6)
    logits = torch.from_numpy(np.random.default_rng(seed).normal(size=(len(values), 1)))
    loss = task.loss(logits, encoded)
    assert loss.item() == pytest.approx(mean_squared_error(z[:, 0], logits[:, 0]), rel=1e-6)
    answers = task.predict(logits)["value"].to_numpy()
    expected = scaler.inverse_transform(logits.numpy())[:, 0]
    assert answers == pytest.approx(expected, rel=1e-6, abs=1e-6)
    perfect = task.predict(encoded[:, None])["value"].to_numpy()
    assert perfect == pytest.approx(np.array(values), rel=1e-9, abs=1e-6)


def test_the_scale_is_of_the_training_part_whatever_comes_later():
    task = fit_task(CONFIG, targets(["1", "3"]))
    assert isinstance(task, RegressionTask)
    assert (task.mean, task.sd) == (2, 1)
    assert task.encode(targets(["102"])).tolist() == [100]
    logits = torch.tensor([[0.5], [-1.0]])
    done = task.completed(Answers(logits, torch.zeros(2)), Answers(logits, torch.zeros(2)))
    assert done.state() == task.state()
    assert task.evidence(logits).tolist() == [0.5, -1]
    assert task.evidence_name == "hrd above the training mean, in standard deviations"
    assert task.labels(torch.zeros(2)) is None
    assert task.outputs == 1


def test_the_task_survives_json():
    table = targets(np.random.default_rng(0).normal(5, 3, 20))
    task = fit_task(CONFIG, table)
    restored = restore_task(json.loads(json.dumps(task.state())))
    logits = torch.randn(20, 1)
    assert torch.equal(
        restored.loss(logits, task.encode(table)), task.loss(logits, task.encode(table))
    )
    pd.testing.assert_frame_equal(restored.predict(logits), task.predict(logits))
    with pytest.raises(CheckpointError, match="a regression task lacks 'sd'"):
        restore_task({"name": "regression", "column": "hrd", "mean": 0.0})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        (["1", "high"], r"column 'hrd': expected numbers, got \['high'\] for p1; write numbers"),
        (["1", None], r"got \[None\] for p1; .* or leave the cell empty"),
        (["1", "2,5"], r"got \['2,5'\] for p1; write a decimal point \(3\.5\), not a comma"),
        (["1", "inf"], r"got \['inf'\] for p1"),
        (["3", "3.0"], "all 2 training cases have the value 3, there is nothing to learn"),
    ],
)
def test_unfit_values_are_refused_by_id(values, message):
    with pytest.raises(CohortError, match=message):
        fit_task(CONFIG, targets(values))


def cohort(n: int = 240, d: int = 12):
    rng = np.random.default_rng(0)
    features = rng.normal(size=(n, d)) * rng.uniform(0.1, 10, size=d) + 3
    value = 40 + 8 * features[:, 0] - 2 * features[:, 1] + rng.normal(0, 4, size=n)
    return features, targets(value)


def test_the_clinical_baseline_is_a_ridge():
    """mean + strength / 2 |w|^2 is sklearn's sum + alpha |w|^2 for alpha = n strength / 2."""
    features, table = cohort()
    task = fit_task(CONFIG, table)
    data = BaselineData(features, task.encode(table))
    answers = task.predict(fit_baseline("clinical", task, data, data).logits(features))["value"]
    z = StandardScaler().fit_transform(features)
    model = Ridge(alpha=len(table) * CLINICAL_RIDGE / 2).fit(z, data.encoded.numpy())
    expected = task.mean + task.sd * model.predict(z)
    assert answers.to_numpy() == pytest.approx(expected, abs=1e-3)


def test_mean_features_is_an_elastic_net_chosen_on_validation():
    """sklearn halves the squared error: its alpha is half of the strength."""
    features, table = cohort()
    task = fit_task(CONFIG, table[:160])
    parts = [
        BaselineData(features[s], task.encode(table[s])) for s in (slice(160), slice(160, 240))
    ]
    fitted = fit_baseline("mean_features", task, *parts)
    z = StandardScaler().fit(features[:160]).transform(features)
    model = ElasticNet(alpha=fitted.strength / 2, l1_ratio=L1_RATIO, tol=1e-10, max_iter=100_000)
    model.fit(z[:160], parts[0].encoded.numpy())
    expected = model.predict(z)
    assert fitted.logits(features)[:, 0].numpy() == pytest.approx(expected, abs=1e-4)
    assert fitted.strength == min(fitted.path, key=lambda step: step[1])[0]
