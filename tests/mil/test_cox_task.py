"""The Cox task against lifelines, statsmodels, a published fit and plain float64 sums."""

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lifelines import CoxPHFitter
from lifelines.datasets import load_rossi
from statsmodels.duration.hazard_regression import PHReg

from mil.outcomes import Outcomes
from mil.tasks.base import Answers
from mil.tasks.build import fit_task
from mil.tasks.config import CoxConfig
from mil.tasks.cox import Baseline, CoxTask, cox_loss
from preprocessing.errors import CohortError, TrainingError

COVARIATES = ["fin", "age", "race", "wexp", "mar", "paro", "prio"]
# Fox & Weisberg, Cox Proportional-Hazards Regression (appendix), R's coxph, Efron
PUBLISHED = [-0.37942, -0.05744, 0.31390, -0.14980, -0.43370, -0.08487, 0.09150]
TIES = pytest.mark.parametrize("ties", ["efron", "breslow"])


@pytest.fixture(scope="module")
def rossi():
    """432 released prisoners, weeks to the next arrest; many weeks have several arrests."""
    return load_rossi()


def follow_up(times, events):
    index = [f"p{i}" for i in range(len(times))]
    return pd.DataFrame({"months": times, "dead": events}, index=index)


def summed(risk, times, events, ties):
    """Events x mean loss: the negative log partial likelihood."""
    loss = cox_loss(
        torch.as_tensor(risk),
        torch.as_tensor(times, dtype=torch.float64),
        torch.as_tensor(events, dtype=torch.bool),
        ties=ties,
    )
    return float(loss) * int(np.sum(events))


def plain(risk, times, events, ties):
    """The same by plain sums, for risks that do not overflow."""
    weight, total = np.exp(risk), 0.0
    for time in np.unique(times[events]):
        tied = events & (times == time)
        for number in range(tied.sum()):
            share = number / tied.sum() if ties == "efron" else 0
            total += np.log(weight[times >= time].sum() - share * weight[tied].sum())
        total -= risk[tied].sum()
    return total


def tied_cohort(seed, size):
    rng = np.random.default_rng(seed)
    return rng.normal(0, 2, size), rng.integers(1, 8, size).astype(float), rng.random(size) < 0.6


# --- the loss


@settings(max_examples=100)
@given(seed=st.integers(0, 2**31), size=st.integers(1, 40))
@TIES
def test_loss_is_the_partial_likelihood(ties, seed, size):
    risk, times, events = tied_cohort(seed, size)
    ours = summed(risk, times, events, ties)
    assert ours == pytest.approx(plain(risk, times, events, ties), rel=1e-10, abs=1e-10)


def test_loss_is_that_of_lifelines(rossi):
    fitted = CoxPHFitter().fit(rossi, "week", "arrest")  # Efron
    risk = rossi[COVARIATES].to_numpy(float) @ fitted.params_[COVARIATES].to_numpy()
    ours = summed(risk, rossi["week"], rossi["arrest"], "efron")
    assert -ours == pytest.approx(fitted.log_likelihood_, rel=1e-9)


@TIES
def test_loss_and_score_are_those_of_statsmodels(rossi, ties):
    """At a point away from the maximum, so that the score is not zero."""
    design = rossi[COVARIATES].to_numpy(float)
    model = PHReg(rossi["week"], design, rossi["arrest"], ties=ties)
    beta = torch.linspace(-0.1, 0.1, len(COVARIATES), dtype=torch.float64, requires_grad=True)
    time, event = torch.tensor(rossi["week"].to_numpy()), torch.tensor(rossi["arrest"] == 1)
    loss = cox_loss(torch.from_numpy(design) @ beta, time, event, ties=ties) * event.sum()
    loss.backward()
    at = beta.detach().numpy()
    assert -float(loss.detach()) == pytest.approx(model.loglike(at), rel=1e-10)
    assert -beta.grad.numpy() == pytest.approx(model.score(at), rel=1e-8)


def test_published_coefficients_are_where_the_loss_is_least(rossi):
    beta = torch.tensor(PUBLISHED, dtype=torch.float64, requires_grad=True)
    design = torch.from_numpy(rossi[COVARIATES].to_numpy(float))
    time, event = torch.tensor(rossi["week"].to_numpy()), torch.tensor(rossi["arrest"] == 1)
    loss = cox_loss(design @ beta, time, event) * event.sum()
    assert -loss.item() == pytest.approx(-658.75, abs=0.005)
    (score,) = torch.autograd.grad(loss, beta)
    spread = design.std(dim=0)
    assert (score / spread).abs().max() < 0.05  # five printed digits away from zero


@TIES
def test_gradient_is_that_of_finite_differences(ties):
    risk, times, events = tied_cohort(3, 12)
    value = torch.tensor(risk, requires_grad=True)
    time, event = torch.from_numpy(times), torch.from_numpy(events)
    assert torch.autograd.gradcheck(lambda r: cox_loss(r, time, event, ties=ties), (value,))


@TIES
@pytest.mark.parametrize("scale", [1.0, 100.0, 1e4])
def test_extreme_float32_risks_keep_value_and_gradient(ties, scale):
    """Against float64 sums after the shift by the highest risk at risk, one event at a time."""
    rng = np.random.default_rng(0)
    risk = (rng.uniform(-1, 1, 60) * scale).astype(np.float32)
    times, events = rng.integers(1, 20, 60).astype(float), rng.random(60) < 0.6
    value = torch.tensor(risk, requires_grad=True)
    loss = cox_loss(value, torch.from_numpy(times), torch.from_numpy(events), ties=ties)
    loss.backward()
    assert loss.dtype == torch.float32
    assert torch.isfinite(value.grad).all()
    assert value.grad.sum().item() == pytest.approx(0, abs=1e-5)  # a shift changes nothing
    total = 0.0
    for time in np.unique(times[events]):
        tied = events & (times == time)
        top = risk[times >= time].max().astype(float)
        at_risk = np.exp(risk[times >= time].astype(float) - top).sum()
        own = np.exp(risk[tied].astype(float) - top).sum()
        shares = np.arange(tied.sum()) / tied.sum() * (ties == "efron")
        total += (top + np.log(at_risk - shares * own)).sum() - risk[tied].astype(float).sum()
    assert float(loss.detach()) == pytest.approx(total / events.sum(), rel=1e-6)


@TIES
def test_the_worst_and_the_best_order_of_risks_keep_their_gradient(ties):
    time = torch.arange(1.0, 51)
    event = torch.ones(50, dtype=torch.bool)
    for sign, least in ((1, 1e3), (-1, 0.0)):
        risk = (sign * torch.linspace(-1e4, 1e4, 50)).requires_grad_()
        loss = cox_loss(risk, time, event, ties=ties)
        loss.backward()
        assert least <= loss.item() < 2e4
        assert torch.isfinite(risk.grad).all()
        assert (risk.grad.abs().max().item() > 0.01) == (sign == 1)


@TIES
def test_without_an_event_the_loss_is_zero_and_keeps_its_graph(ties):
    risk = torch.randn(5, requires_grad=True)
    loss = cox_loss(risk, torch.rand(5) + 1, torch.zeros(5, dtype=torch.bool), ties=ties)
    loss.backward()
    assert loss.item() == 0
    assert torch.equal(risk.grad, torch.zeros(5))


@settings(max_examples=50)
@given(seed=st.integers(0, 2**31), shift=st.floats(-1e3, 1e3))
@TIES
def test_loss_ignores_a_shift_and_the_order_of_patients(ties, seed, shift):
    risk, times, events = tied_cohort(seed, 20)
    order = np.random.default_rng(seed).permutation(20)
    same = summed(risk[order] + shift, times[order], events[order], ties)
    assert same == pytest.approx(summed(risk, times, events, ties), rel=1e-9, abs=1e-8)


def test_without_ties_both_rules_agree():
    risk, _, events = tied_cohort(0, 30)
    times = np.random.default_rng(1).permutation(30) + 1.0
    assert summed(risk, times, events, "efron") == pytest.approx(
        summed(risk, times, events, "breslow"), rel=1e-12
    )


# --- the baseline hazard and survival


def test_baseline_and_survival_are_those_of_lifelines(rossi):
    """lifelines fits by Efron and takes Breslow's baseline hazard at the mean covariates."""
    fitted = CoxPHFitter(baseline_estimation_method="breslow").fit(rossi, "week", "arrest")
    risk = rossi[COVARIATES].to_numpy(float) @ fitted.params_[COVARIATES].to_numpy()
    logits = torch.from_numpy(risk)[:, None]
    task = fit_task(CoxConfig(time="week", event="arrest"), rossi)
    answers = Answers(logits, task.encode(rossi))
    task = task.completed(answers, answers)
    assert isinstance(task, CoxTask)
    assert task.baseline is not None
    weeks = fitted.baseline_cumulative_hazard_.index.to_numpy()
    hazard = np.exp(task.baseline.log_hazard_at(weeks))
    expected = fitted.baseline_cumulative_hazard_.iloc[:, 0].to_numpy()
    assert hazard == pytest.approx(expected, rel=1e-10)
    survival = np.exp(-hazard)
    assert survival == pytest.approx(fitted.baseline_survival_.iloc[:, 0].to_numpy(), rel=1e-10)
    ours = task.survival_at(logits, weeks)
    theirs = fitted.predict_survival_function(rossi[COVARIATES]).to_numpy().T
    assert ours == pytest.approx(theirs, rel=1e-10)


def test_baseline_of_equal_risks_is_nelson_aalen_by_hand():
    """1 event of 5, 2 of 4, 1 of 1: H = 1/5, + 2/4, + 1."""
    times = np.array([1.0, 2, 2, 3, 4])
    outcomes = Outcomes(times, np.array([1, 1, 1, 0, 1], dtype=bool))
    baseline = Baseline.breslow(outcomes, np.zeros(5))
    assert baseline.times == (1, 2, 4)
    assert np.exp(baseline.log_hazard_at([0.5, 1, 1.9, 2, 3.9, 4, 99])) == pytest.approx(
        [0, 0.2, 0.2, 0.7, 0.7, 1.7, 1.7]
    )


def completed_task(risk, targets):
    task = fit_task(CoxConfig(time="months", event="dead"), targets)
    logits = torch.as_tensor(risk)[:, None]
    answers = Answers(logits, task.encode(targets))
    return task.completed(answers, answers), logits


def test_extreme_risks_give_survival_within_zero_and_one():
    risk = np.array([-1e4, -50, 0, 50, 1e4])
    task, logits = completed_task(risk, follow_up([5, 4, 3, 2, 1], [0, 1, 1, 1, 1]))
    survival = task.survival_at(logits, [0.5, 1, 2, 3, 4, 5])
    assert np.isfinite(survival).all()
    assert (survival[:, 0] == 1).all()
    assert (np.diff(survival, axis=0) <= 0).all()
    assert (np.diff(survival, axis=1) <= 0).all()


def test_a_shift_of_all_log_risks_changes_the_risk_alone():
    rng = np.random.default_rng(0)
    targets = follow_up(rng.exponential(10, 30) + 0.1, rng.integers(0, 2, 30))
    risk = rng.normal(0, 1, 30)
    task, logits = completed_task(risk, targets)
    moved, moved_logits = completed_task(risk + 7, targets)
    ours, theirs = task.predict(logits), moved.predict(moved_logits)
    assert theirs["risk"].to_numpy() == pytest.approx(ours["risk"].to_numpy() + 7)
    columns = [name for name in ours if name != "risk"]
    assert theirs[columns].to_numpy() == pytest.approx(ours[columns].to_numpy())
    assert moved.evidence(moved_logits).numpy() == pytest.approx(task.evidence(logits).numpy())


def test_survival_before_completion_is_refused():
    task = fit_task(CoxConfig(time="months", event="dead"), follow_up([1, 2, 3], [1, 1, 0]))
    with pytest.raises(TrainingError, match="needs a baseline hazard"):
        task.predict(torch.zeros(2, 1))


# --- what it refuses


@pytest.mark.parametrize(
    ("targets", "message"),
    [
        (follow_up([1, 2, 3], [0, 0, 0]), "'dead': 0 events among the 3 training cases"),
        (follow_up([1, 2, 3], [0, 0, 1]), "1 events among the 3 training cases, none of them"),
        (follow_up([1, 3, 3], [0, 1, 1]), "2 events among the 3 training cases, none of them"),
        (follow_up([1, 0, 3], [1, 1, 1]), r"'months': expected times > 0, got \[0\] for p1"),
        (follow_up([1, 2, 3], [1, 2, 0]), r"'dead': expected 1 .* or 0 .*, got \[2\] for p1"),
    ],
)
def test_unfit_training_follow_up_is_refused(targets, message):
    with pytest.raises(CohortError, match=message):
        fit_task(CoxConfig(time="months", event="dead"), targets)


def test_a_validation_part_without_a_comparison_is_refused():
    task = fit_task(CoxConfig(time="months", event="dead"), follow_up([1, 2, 3], [1, 1, 0]))
    task.refuse_validation(task.encode(follow_up([5, 5], [1, 0])))  # censored then: outlived
    with pytest.raises(CohortError, match=r"1 events among the 2 validation .* larger validation"):
        task.refuse_validation(task.encode(follow_up([4, 5], [0, 1])))
