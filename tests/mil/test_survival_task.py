"""Discrete-time survival against independent computations: plain products, Kaplan-Meier."""

import math

import numpy as np
import pandas as pd
import pytest
import torch
from follow_ups import follow_up, random_follow_up
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import KaplanMeierFitter

from mil.tasks.base import Answers
from mil.tasks.build import fit_task
from mil.tasks.config import SurvivalConfig
from mil.tasks.discrete import DiscreteSurvivalTask
from mil.tasks.survival import FollowUp
from preprocessing.errors import CohortError

SURVIVAL = SurvivalConfig(time="months", event="dead")


def task_of(*cuts, alpha=0.0, longest=None):
    follow_up = FollowUp(
        "months", "dead", times=cuts, horizons=cuts[:1], longest=longest or cuts[-1] + 1
    )
    return DiscreteSurvivalTask(cuts, follow_up, alpha=alpha)


def likelihood(logits, bins, events):
    """-log P(event in bin) or -log P(no event up to the end of bin), by plain products."""
    hazards = 1 / (1 + np.exp(-logits))
    losses = []
    for h, y, event in zip(hazards, bins, events, strict=True):
        alive = np.prod(1 - h[:y])
        losses.append(-np.log(alive * h[y] if event else alive * (1 - h[y])))
    return np.array(losses)


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), outputs=st.integers(2, 6), alpha=st.floats(0, 1))
def test_loss_is_the_discrete_likelihood(seed, outputs, alpha):
    rng = np.random.default_rng(seed)
    logits = rng.normal(0, 2, (12, outputs))
    bins, events = rng.integers(0, outputs, 12), rng.integers(0, 2, 12)
    task = task_of(*map(float, range(1, outputs)), alpha=alpha)
    per_bag = task.loss_per_bag(
        torch.from_numpy(logits), torch.from_numpy(np.stack([bins, events], axis=1))
    )
    expected = likelihood(logits, bins, events) * np.where(events, 1, 1 - alpha)
    assert per_bag.numpy() == pytest.approx(expected, rel=1e-9)


def test_kaplan_meier_is_where_the_loss_is_least():
    """With the same logits for everyone, the likelihood peaks at lifelines' Kaplan-Meier curve."""
    targets = random_follow_up(200)
    task = fit_task(SURVIVAL, targets)
    encoded = task.encode(targets)
    curve = KaplanMeierFitter().fit(encoded[:, 0].numpy(), encoded[:, 1].numpy())
    survival = curve.survival_function_at_times(list(range(task.outputs - 1))).to_numpy()
    hazards = 1 - survival / np.concatenate([[1.0], survival[:-1]])
    logits = torch.tensor(np.log(hazards / (1 - hazards)), requires_grad=True)
    last = torch.zeros(1, dtype=torch.float64)  # its hazard is 1 in the curve: left out
    everyone = torch.cat([logits, last]).expand(len(targets), -1)
    task.loss(everyone, encoded).backward()
    assert logits.grad.abs().max() < 1e-12
    assert task.survival_at(everyone, task.cuts)[0] == pytest.approx(survival)


@pytest.mark.parametrize("event", [0, 1])
def test_extreme_logits_keep_a_finite_loss_and_their_gradient(event):
    task = task_of(1.0, 2.0, 3.0)
    for value in (-40.0, 40.0, -1e4, 1e4):
        logits = torch.full((1, 4), value, requires_grad=True)
        loss = task.loss(logits, torch.tensor([[2, event]]))
        loss.backward()
        assert torch.isfinite(loss)
        assert torch.isfinite(logits.grad).all()
        wrong = value > 0 or event == 1
        assert (logits.grad.abs().max().item() > 0.9) == wrong


def test_bins_are_quartiles_of_event_times_and_later_times_are_clipped():
    times = [1, 2, 3, 4, 5, 6, 7, 8, 100, 0.5]
    targets = follow_up(times, [1] * 8 + [0, 0])
    task = fit_task(SURVIVAL, targets)
    assert isinstance(task, DiscreteSurvivalTask)
    assert task.cuts == (2.75, 4.5, 6.25)
    later = follow_up([0.01, 2.75, 4.49, 4.5, 6.3, 9999], [1, 0, 1, 0, 1, 0])
    assert task.encode(later).tolist() == [[0, 1], [1, 0], [1, 1], [2, 0], [3, 1], [3, 0]]


@settings(max_examples=100)
@given(
    times=st.lists(st.integers(1, 6), min_size=1, max_size=20),
    bins=st.integers(2, 6),
    seed=st.integers(0, 1000),
)
def test_every_fitted_bin_has_a_training_event(times, bins, seed):
    events = np.random.default_rng(seed).integers(0, 2, len(times))
    targets = follow_up(times, events)
    distinct = len({t for t, e in zip(times, events, strict=True) if e})
    config = SurvivalConfig(time="months", event="dead", bins=bins)
    if distinct < 2:
        with pytest.raises(CohortError, match=f"events at {distinct} different times"):
            fit_task(config, targets)
        return
    task = fit_task(config, targets)
    encoded = task.encode(targets)
    assert 2 <= task.outputs <= bins
    observed = set(encoded[encoded[:, 1] == 1, 0].tolist())
    assert observed == set(range(task.outputs))


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (follow_up([1, 0, 3], [1, 1, 1]), r"'months': expected times > 0, got \[0\] for p1"),
        (follow_up([1, -2, 3], [1, 1, 1]), r"got \[-2\] for p1"),
        (follow_up([1.0, np.nan, np.inf], [1, 1, 1]), "for p1, p2"),
        (follow_up(["1", "soon", "3"], [1, 1, 1]), r"got \['soon'\] for p1"),
        (follow_up([1, 2, 3], [1, 2, 0]), r"'dead': expected 1 .* or 0 .*, got \[2\] for p1"),
        (follow_up([1, 2, 3], [1, None, 0]), "for p1"),
        (follow_up([1, 2, 3], [0, 0, 0]), "0 events at 0 different times among 3"),
        (
            follow_up([1, 2], [1, 1]).rename(columns={"dead": "status"}),
            "columns are months, status",
        ),
    ],
)
def test_unfit_follow_up_is_refused_by_id(targets, message):
    with pytest.raises(CohortError, match=message):
        fit_task(SURVIVAL, targets)
    if "events at" not in message:
        task = task_of(2.0)
        with pytest.raises(CohortError, match=message):
            task.encode(targets)


def test_event_may_be_boolean_or_nullable():
    task = task_of(2.0)
    assert task.encode(follow_up([1, 3], [True, False])).tolist() == [[0, 1], [1, 0]]
    nullable = follow_up([1, 3], pd.array([1, 0], dtype="Int64"))
    assert task.encode(nullable).tolist() == [[0, 1], [1, 0]]
    missing = follow_up([1, 3], pd.array([1, None], dtype="Int64"))
    with pytest.raises(CohortError, match="for p1"):
        task.encode(missing)


def test_evidence_is_zero_for_an_undecided_model_and_grows_with_hazard():
    task = task_of(1.0, 2.0, 3.0)
    evidence = task.evidence(torch.tensor([[-1.0] * 4, [0.0] * 4, [1.0] * 4], dtype=torch.float64))
    assert evidence[0] < 0 < evidence[2]
    assert evidence[1].item() == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("cuts", [(2.0, 1.0), (1.0, 1.0), (math.nan, 1.0)])
def test_cuts_must_increase(cuts):
    with pytest.raises(CohortError, match="increasing cuts"):
        task_of(*cuts)


# --- survival at any time


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), outputs=st.integers(2, 6))
def test_survival_between_bin_ends_has_a_constant_hazard(seed, outputs):
    """Against scipy's piecewise exponential by hand: S(t) = exp(-integral of the hazard)."""
    rng = np.random.default_rng(seed)
    ends = np.cumsum(rng.uniform(0.1, 5, outputs))
    task = task_of(*map(float, ends[:-1]), longest=float(ends[-1]))
    logits = torch.from_numpy(rng.normal(0, 2, (3, outputs)))
    widths = np.diff(np.concatenate([[0.0], ends]))
    rates = -np.log(1 - 1 / (1 + np.exp(-logits.numpy()))) / widths
    times = rng.uniform(0, ends[-1] * 1.5, 20)
    starts = ends - widths
    exposure = np.clip(times[:, None] - starts, 0, widths)  # times, bins
    expected = np.exp(-(rates @ exposure.T))
    assert task.survival_at(logits, times) == pytest.approx(expected, rel=1e-9, abs=1e-300)


def test_survival_starts_at_one_falls_and_is_held_after_the_longest_time():
    task = task_of(1.0, 2.0, longest=5.0)
    logits = torch.tensor([[0.0, 0.0, 0.0], [1e4, -1e4, 3.0]])
    survival = task.survival_at(logits, [0.0, 1.0, 2.0, 5.0, 1e6])
    assert survival[0] == pytest.approx([1, 0.5, 0.25, 0.125, 0.125])
    assert survival[1] == pytest.approx([1, 0, 0, 0, 0])


def test_a_last_bin_of_no_width_is_a_step():
    task = fit_task(SURVIVAL, follow_up([1, 1, 1, 2, 2], [1] * 5))
    assert isinstance(task, DiscreteSurvivalTask)
    assert task.cuts[-1] == 2.0  # also the longest training time
    survival = task.survival_at(torch.zeros(1, task.outputs), [task.cuts[-1], 2.1])[0]
    assert survival[0] == pytest.approx(2 * survival[1])


def test_discrete_evidence_is_measured_from_the_mean_training_risk():
    task = task_of(1.0, 2.0, alpha=0.3)
    logits = torch.tensor([[0.5, -1.0, 0.2]], dtype=torch.float64)
    moved = task.completed(*[Answers(logits, torch.tensor([[0, 1]]))] * 2)
    assert moved.evidence(logits).item() == pytest.approx(0, abs=1e-12)
    assert moved.reference == pytest.approx(task.predict(logits)["risk"][0])
