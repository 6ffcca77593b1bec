"""Several labels: losses, weights, temperatures and a linear model against other packages."""

import json

import numpy as np
import pandas as pd
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from pydantic import ValidationError
from sklearn.linear_model import LogisticRegression
from sklearn.metrics import log_loss
from sklearn.preprocessing import StandardScaler
from sklearn.utils.class_weight import compute_sample_weight
from torch.nn import functional

from mil.baselines import CLINICAL_RIDGE, BaselineData, fit_baseline
from mil.tasks.base import Answers
from mil.tasks.build import fit_task, restore_task
from mil.tasks.classification import ClassificationTask
from mil.tasks.config import CoxConfig, MultilabelConfig
from mil.tasks.cox import CoxTask
from mil.tasks.multilabel import MultilabelTask
from preprocessing.errors import CohortError

LABELS = ("EGFR", "KRAS", "TP53")
CONFIG = MultilabelConfig(labels=LABELS)


def cohort(n: int = 60, *, unknown: float = 0.3, seed: int = 0) -> pd.DataFrame:
    """Text as a cohort holds it: 1, 0 or nothing, with a rare first and a frequent last label."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame(index=[f"p{i}" for i in range(n)])
    for name, share in zip(LABELS, (0.2, 0.4, 0.7), strict=True):
        values = pd.Series(np.where(rng.random(n) < share, "1", "0"), index=table.index)
        table[name] = values.where(rng.random(n) >= unknown)
    return table


def logits_of(n: int = 60, seed: int = 1) -> torch.Tensor:
    return torch.randn(
        n, 3, generator=torch.Generator().manual_seed(seed), dtype=torch.float64
    ).requires_grad_()


def test_labels_of_a_configuration_hold_together():
    for few in (("EGFR",), ()):
        with pytest.raises(ValidationError, match="labels: one label is a classification: write"):
            MultilabelConfig(labels=few)
    with pytest.raises(ValidationError, match=r"a number is no name, .* got \['1'\]; rename"):
        MultilabelConfig(labels=("EGFR", "1"))
    with pytest.raises(ValidationError, match="expected different columns"):
        MultilabelConfig(labels=("EGFR", "EGFR"))
    with pytest.raises(ValidationError, match="positive: 'BRAF' is not one of the labels"):
        MultilabelConfig(labels=LABELS, positive="BRAF")
    assert CONFIG.columns == LABELS


def test_unknown_labels_stay_unknown():
    task = fit_task(CONFIG, cohort())
    encoded = task.encode(pd.DataFrame({"EGFR": ["1", None], "KRAS": ["0", "1"], "TP53": [1.0, 0]}))
    assert torch.equal(encoded.isnan(), torch.tensor([[False] * 3, [True, False, False]]))
    assert encoded.nan_to_num(9).tolist() == [[1, 0, 1], [9, 1, 0]]
    assert task.labels(encoded).tolist() == [[True, False, True], [False, True, False]]
    assert task.terms(encoded) == 5


def test_the_loss_is_the_mean_of_sklearns_over_all_known_labels():
    table, logits = cohort(), logits_of()
    task = fit_task(CONFIG, table)
    encoded = task.encode(table)
    loss = task.loss(logits, encoded)
    known = ~np.isnan(encoded.numpy())
    probability = 1 / (1 + np.exp(-logits.detach().numpy()))
    assert loss.item() == pytest.approx(log_loss(encoded.numpy()[known], probability[known]))
    loss.backward()
    assert (logits.grad.numpy() != 0).tolist() == known.tolist()
    single = task.loss(logits[3:4].float(), encoded[3:4])
    chosen = known[3]
    expected = functional.binary_cross_entropy_with_logits(
        logits[3, chosen].float(), encoded[3, chosen].float()
    )
    assert single.item() == pytest.approx(expected.item())
    assert single.dtype == torch.float32


def test_a_step_without_any_known_label_has_a_loss_of_zero_and_a_gradient():
    logits = logits_of(2)
    loss = MultilabelTask(LABELS).loss(logits, torch.full((2, 3), torch.nan))
    loss.backward()
    assert loss.item() == 0
    assert (logits.grad == 0).all()


@settings(max_examples=40)
@given(seed=st.integers(0, 10**6), rubbish=st.floats(-1e4, 1e4))
def test_what_is_answered_for_unknown_labels_never_matters(seed, rubbish):
    table, logits = cohort(20, seed=seed), logits_of(20).detach()
    task = MultilabelTask(LABELS, weights=((1.0, 3.0), (0.5, 2.0), (1.5, 0.7)))
    encoded = task.encode(table)
    other = torch.where(encoded.isnan(), torch.tensor(rubbish, dtype=torch.float64), logits)
    assert torch.equal(task.loss(logits, encoded), task.loss(other, encoded))
    done = [
        task.completed(Answers(given, encoded), Answers(given, encoded))
        for given in (logits, other)
    ]
    assert done[0].state() == done[1].state()


def test_balanced_labels_give_yes_and_no_the_same_say():
    table, logits = cohort(), logits_of().detach()
    task = fit_task(MultilabelConfig(labels=LABELS, label_weights="balanced"), table)
    encoded = task.encode(table)
    losses = functional.binary_cross_entropy_with_logits(
        logits, encoded.nan_to_num(), reduction="none"
    ).numpy()
    total = 0.0
    for place in range(3):
        known = ~np.isnan(encoded[:, place].numpy())
        weights = compute_sample_weight("balanced", encoded[known, place].numpy())
        total += float((losses[known, place] * weights).sum())
        yes = encoded[known, place].numpy() == 1
        assert weights[yes].sum() == pytest.approx(weights[~yes].sum())
    known = int((~encoded.isnan()).sum())
    assert task.loss(logits, encoded).item() == pytest.approx(total / known)


def test_every_label_has_its_own_temperature():
    """Logits 3 times as sure as the truth is for one label, half as sure for another."""
    rng = np.random.default_rng(0)
    honest = rng.normal(0, 1.5, (6000, 3))
    truth = (rng.uniform(size=honest.shape) < 1 / (1 + np.exp(-honest))).astype(float)
    truth[rng.uniform(size=truth.shape) < 0.2] = np.nan
    answers = Answers(torch.from_numpy(honest * (3, 1, 0.5)), torch.from_numpy(truth))
    task = MultilabelTask(LABELS, positive="TP53")
    done = task.completed(Answers(torch.zeros(1, 3), torch.zeros(1, 3)), answers)
    assert done.temperatures == pytest.approx((3, 1, 0.5), rel=0.1)
    table = done.predict(answers.logits)
    for place, name in enumerate(LABELS):
        expected = (answers.logits[:, place] / done.temperatures[place]).sigmoid()
        assert table[f"prob_{name}"].to_numpy() == pytest.approx(expected.numpy())
    plain = task.predict(answers.logits)
    assert plain["prob_EGFR"].equals(table["uncalibrated_EGFR"].rename("prob_EGFR"))
    log_odds = np.log(table["prob_TP53"] / (1 - table["prob_TP53"]))
    assert done.evidence(answers.logits).numpy() == pytest.approx(log_odds.to_numpy(), abs=1e-9)
    assert (table.filter(like="prob_").sum(axis=1) - 1).abs().max() > 0.5
    assert done.evidence_name == "log-odds of TP53"


@pytest.mark.parametrize("known", [torch.nan, 0.0, 1.0])
def test_a_label_of_which_validation_tells_nothing_or_one_answer_keeps_its_probabilities(known):
    logits = logits_of(8).detach() + (1 if known == 1 else -1)  # a fit would make it surer
    answers = Answers(logits, torch.full((8, 3), known))
    assert MultilabelTask(LABELS).completed(answers, answers).temperatures == (1, 1, 1)


@pytest.mark.parametrize("weighted", ["none", "balanced"])
def test_the_task_survives_json(weighted):
    table = cohort()
    config = MultilabelConfig(labels=LABELS, positive="KRAS", label_weights=weighted)
    fitted = fit_task(config, table)
    encoded, logits = fitted.encode(table), logits_of().detach()
    task = fitted.completed(Answers(logits, encoded), Answers(logits, encoded))
    restored = restore_task(json.loads(json.dumps(task.state())))
    assert restored.state() == task.state() != fitted.state()
    assert torch.equal(restored.loss(logits, encoded), task.loss(logits, encoded))
    pd.testing.assert_frame_equal(restored.predict(logits), task.predict(logits))
    assert torch.equal(restored.evidence(logits), task.evidence(logits))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"KRAS": "yes"}, r"column 'KRAS': expected 1 \(yes\), 0 \(no\) or an empty .*\['yes'"),
        ({"KRAS": "2"}, r"column 'KRAS': expected 1 .* for p0, p1, p2, p3, p4 and 55 more"),
        ({"TP53": "1"}, r"column 'TP53': 60 training cases are 1 and 0 are 0, a label needs both"),
        ({"EGFR": None}, r"column 'EGFR': 0 training cases are 1 and 0 are 0"),
    ],
)
def test_unfit_labels_are_refused_by_column(changes, message):
    with pytest.raises(CohortError, match=message):
        fit_task(CONFIG, cohort().assign(**changes))


def test_classes_of_a_bag_are_told_by_tasks_that_have_classes():
    classes = ClassificationTask(("a", "b", "c"), label="y")
    assert classes.labels(torch.tensor([2, 0])).tolist() == [
        [False, False, True],
        [True] + [False] * 2,
    ]
    follow_up = pd.DataFrame({"t": [1.0, 2, 3], "e": [1, 0, 1]})
    cox = CoxTask.fit(follow_up, CoxConfig(time="t", event="e"))
    assert cox.labels(cox.encode(follow_up)) is None
    assert cox.terms(cox.encode(follow_up)) == 2


def test_the_clinical_baseline_is_a_logistic_ridge_of_each_label():
    """The same penalty beside a mean over all known labels: C = 1 / (strength x known labels)."""
    table = cohort(200)
    rng = np.random.default_rng(3)
    features = rng.normal(size=(200, 4)) + (table["EGFR"] == "1").to_numpy()[:, None]
    task = fit_task(CONFIG, table)
    encoded = task.encode(table)
    data = BaselineData(features, encoded)
    fitted = fit_baseline("clinical", task, data, data)
    z = StandardScaler().fit_transform(features)
    strength = CLINICAL_RIDGE * int((~encoded.isnan()).sum())
    for place in range(3):
        known = ~np.isnan(encoded[:, place].numpy())
        model = LogisticRegression(C=1 / strength, tol=1e-10, max_iter=1000)
        model.fit(z[known], encoded[known, place].numpy())
        expected = z @ model.coef_[0] + model.intercept_[0]
        assert fitted.logits(features)[:, place].numpy() == pytest.approx(expected, abs=1e-4)
