"""Discrete-time survival against arrays of the published implementation (float64)."""

import numpy as np
import pandas as pd
import pytest
import torch

from mil.tasks.config import SurvivalConfig
from mil.tasks.discrete import DiscreteSurvivalTask
from mil.tasks.survival import FollowUp

TOLERANCE = 1e-10


def assert_close(ours, golden, what):
    difference = float(np.abs(np.asarray(ours) - golden).max())
    assert difference <= TOLERANCE, f"{what}: max abs difference {difference}"


@pytest.fixture
def arrays(shared):
    with np.load(shared / "golden" / "survival.npz") as archive:
        return dict(archive)


def task_with_bins(bins, *, alpha=0.0):
    """A task whose cuts do not matter here: the golden arrays give the bins themselves."""
    cuts = tuple(float(j) for j in range(1, bins))
    follow_up = FollowUp("time", "event", times=cuts, horizons=cuts[:1], longest=float(bins))
    return DiscreteSurvivalTask(cuts, follow_up, alpha=alpha)


@pytest.fixture
def logits(arrays):
    return torch.from_numpy(arrays["logits"])


@pytest.fixture
def encoded(arrays):
    observed = 1 - arrays["censored"].astype(np.int64)
    return torch.from_numpy(np.stack([arrays["y"], observed], axis=1))


def test_losses_equal_the_golden_arrays(arrays, logits, encoded):
    prefix = "loss_alpha_"
    alphas = [name.removeprefix(prefix) for name in arrays if name.startswith(prefix)]
    assert alphas
    for alpha in alphas:
        task = task_with_bins(logits.shape[1], alpha=float(alpha))
        assert_close(task.loss(logits, encoded), arrays[prefix + alpha], prefix + alpha)
    per_bag = task_with_bins(logits.shape[1]).loss_per_bag(logits, encoded)
    assert_close(per_bag, arrays["loss_alpha0_per_case"], "loss_alpha0_per_case")


def test_survival_risk_and_hazards_equal_the_golden_arrays(arrays, logits):
    task = task_with_bins(logits.shape[1])
    table = task.predict(logits)
    assert_close(table["risk"], arrays["risk"], "risk")
    survival = task.survival_at(logits, task.ends)
    assert_close(survival, arrays["S"], "S")
    before = np.concatenate([np.ones((len(survival), 1)), survival[:, :-1]], axis=1)
    assert_close(1 - survival / before, arrays["hazards"], "hazards")
    assert_close(task.evidence(logits) + task.reference, arrays["risk"], "evidence")


def test_fitted_bins_and_labels_equal_the_golden_arrays(arrays):
    targets = pd.DataFrame({"months": arrays["time"], "dead": arrays["status"]})
    bins = len(arrays["label_bins"]) - 1
    config = SurvivalConfig(time="months", event="dead", bins=bins)
    task = DiscreteSurvivalTask.fit(targets, config)
    assert_close(task.cuts, arrays["label_bins"][1:-1], "label_bins")
    encoded = task.encode(targets)
    assert np.array_equal(encoded[:, 0].numpy(), arrays["label"])
    assert np.array_equal(encoded[:, 1].numpy(), arrays["status"])
