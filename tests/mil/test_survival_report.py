"""What discrete and Cox survival report alike: the grid of times, risk on its scale, survival."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from follow_ups import follow_up, random_follow_up

from mil.tasks.base import Answers
from mil.tasks.build import fit_task, restore_task
from mil.tasks.config import CoxConfig, SurvivalConfig
from mil.tasks.survival import SurvivalTask
from preprocessing.errors import CohortError

SURVIVAL = SurvivalConfig(time="months", event="dead")


BOTH = pytest.mark.parametrize(
    "config", [SURVIVAL, CoxConfig(time="months", event="dead")], ids=["discrete", "cox"]
)


def completed(task, targets, *, seed=0):
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(len(targets), task.outputs, generator=generator)
    answers = Answers(logits, task.encode(targets))
    return task.completed(answers, answers), logits


@BOTH
def test_the_grid_is_the_training_quantiles_and_the_horizons(config):
    targets = random_follow_up(200)
    events = targets.loc[targets["dead"] == 1, "months"]
    task = fit_task(config, targets)
    assert isinstance(task, SurvivalTask)
    assert task.horizons == tuple(events.quantile([0.25, 0.5, 0.75]))
    assert task.times == pytest.approx(events.quantile(np.arange(5, 100, 5) / 100).to_numpy())
    asked = fit_task(config.model_copy(update={"times": (1.5, 12.0)}), targets)
    assert isinstance(asked, SurvivalTask)
    assert asked.horizons == (1.5, 12.0)
    assert len(asked.times) == 21
    assert set(asked.times) > set(asked.horizons)


@BOTH
def test_equal_times_of_the_grid_are_one(config):
    targets = follow_up([1] * 30 + [2] * 10 + [3], [1] * 40 + [0])
    task = fit_task(config, targets)
    assert isinstance(task, SurvivalTask)
    assert task.times == (1.0, 1.25, 2.0)
    assert task.horizons == (1.0, 1.0, 1.25)  # in their places, to be compared between folds


@BOTH
def test_a_horizon_beyond_the_follow_up_is_refused(config):
    beyond = config.model_copy(update={"times": (12.0, 1825.0)})
    with pytest.raises(
        CohortError, match=r"survival at 1825 .* longest follow-up .* is 3; .*'months'"
    ):
        fit_task(beyond, follow_up([1, 2, 3], [1, 1, 0]))


@BOTH
def test_predictions_are_risk_its_standard_form_and_survival_on_the_grid(config):
    targets = random_follow_up(60)
    task, logits = completed(fit_task(config, targets), targets)
    table = task.predict(logits)
    assert list(table.columns) == ["risk", "risk_sd"] + [f"survival_{j:02d}" for j in range(19)]
    assert table["risk_sd"].mean() == pytest.approx(0, abs=1e-12)
    assert table["risk_sd"].std(ddof=0) == pytest.approx(1)
    assert table["risk"].corr(table["risk_sd"]) == pytest.approx(1)
    survival = table.filter(like="survival_").to_numpy()
    assert (np.diff(survival, axis=1) <= 0).all()
    assert ((survival >= 0) & (survival <= 1)).all()
    assert task.evidence(logits).mean().item() == pytest.approx(0, abs=1e-6)


@BOTH
def test_a_completed_task_survives_json(config):
    targets = random_follow_up(60)
    task, logits = completed(fit_task(config, targets), targets)
    restored = restore_task(json.loads(json.dumps(task.state())))
    assert restored.state() == task.state()
    pd.testing.assert_frame_equal(restored.predict(logits), task.predict(logits), check_exact=True)


@BOTH
def test_equal_training_risks_have_no_standard_form(config):
    targets = random_follow_up(60)
    task = fit_task(config, targets)
    same = torch.full((60, task.outputs), 0.1)
    answers = Answers(same, task.encode(targets))
    table = task.completed(answers, answers).predict(torch.randn(4, task.outputs))
    assert (table["risk_sd"] == 0).all()


@BOTH
def test_completing_uses_training_answers_only(config):
    """The validation part chose the epoch already; what is reported is fitted on training."""
    targets = random_follow_up(60)
    task = fit_task(config, targets)
    training, other = (
        Answers(torch.randn(60, task.outputs), task.encode(targets)) for _ in range(2)
    )
    assert task.completed(training, other).state() == task.completed(training, training).state()
    assert task.state()["scale"] is None  # and the task itself is left as it was


@BOTH
def test_another_grid_tells_the_same_curve(config):
    targets = random_follow_up(60)
    task, logits = completed(fit_task(config, targets), targets)
    other = task.on_grid(task.times[3:6])
    ours, theirs = task.predict(logits), other.predict(logits)
    assert theirs["survival_00"].to_numpy() == pytest.approx(ours["survival_03"].to_numpy())
    assert list(theirs) == ["risk", "risk_sd", "survival_00", "survival_01", "survival_02"]
    assert task.times != other.times
