"""Survival on cohorts whose hazard is known: ranking near the truth's, and calibrated curves.

    log-risk x ~ N(0, 1);  S(t | x) = exp(-(t / 30)^1.5 e^x);  censoring uniform, independent

A share of each bag's tiles is marked by its first feature and carries x in its second; the other
features and tiles are noise. Models see 300 patients, and are stopped on 150 others.
"""

from dataclasses import dataclass

import numpy as np
import pandas as pd
import pytest
import torch
from lifelines import KaplanMeierFitter
from lifelines.utils import concordance_index

from mil.bags import CohortFeatures, TileOrigin
from mil.config import TrainConfig
from mil.models.build import build_method
from mil.models.config import AbmilConfig, AcmilConfig, MhimConfig
from mil.tasks.base import Answers
from mil.tasks.build import fit_task
from mil.tasks.config import CoxConfig, SurvivalConfig
from mil.tasks.survival import SurvivalTask
from mil.training.train import Part, answer, train_method

ORIGIN = TileOrigin("fake", "0", "none", 0.5, 224)
DIM = 12
SCALE, SHAPE = 30.0, 1.5
COLUMNS = {"time": "months", "event": "dead"}
METHODS = {
    "abmil": AbmilConfig(hidden_dim=16, attention_dim=8),
    "acmil": AcmilConfig(hidden_dim=16, attention_dim=8, branches=3, top_k=3),
    "mhim": MhimConfig(hidden_dim=16, attention_dim=8, momentum=0.99),
}
DISCRETE = (SurvivalConfig(**COLUMNS), 4, 2e-3)
COX = (CoxConfig(**COLUMNS), 16, 5e-3)
COX_EPOCH = (CoxConfig(**COLUMNS), "epoch", 3e-2)
HORIZONS = [10.0, 20.0, 35.0]


@dataclass(frozen=True)
class Simulated:
    table: pd.DataFrame
    features: CohortFeatures
    log_risk: np.ndarray

    def part(self, task):
        return Part(self.table, task.encode(self.table), self.features)

    def c_index(self, risk):
        return concordance_index(self.table["months"], -np.asarray(risk), self.table["dead"])


def simulate(patients, seed):
    rng = np.random.default_rng(seed)
    log_risk = rng.normal(0, 1, patients)
    tiles = {}
    for i in range(patients):
        count = rng.integers(8, 25)
        bag = rng.normal(0, 1, (count, DIM))
        marked = rng.random(count) < 0.3
        marked[0] = True
        bag[marked, 0] += 3
        bag[marked, 1] += 2 * log_risk[i]
        tiles[f"s{i}"] = torch.from_numpy(bag).half()
    time = SCALE * (rng.exponential(1, patients) / np.exp(log_risk)) ** (1 / SHAPE)
    censoring = rng.uniform(5, 120, patients)
    table = pd.DataFrame(
        {
            "patient_id": list(tiles),
            "slide_ids": [(slide,) for slide in tiles],
            "months": np.minimum(time, censoring) + 1e-3,
            "dead": (time <= censoring).astype(int),
        },
        index=list(tiles),
    )
    return Simulated(table, CohortFeatures(tiles, {s: s for s in tiles}, ORIGIN), log_risk)


def calibration(table, risk, survival, horizons):
    """Per third of risk and horizon: predicted mean, and Kaplan-Meier's 95 % interval."""
    third = pd.Series(risk).rank(method="first").to_numpy() * 3 // (len(risk) + 1)
    rows = []
    for group in range(3):
        mine = third == group
        curve = KaplanMeierFitter().fit(table["months"][mine], table["dead"][mine])
        limits = curve.confidence_interval_
        for j, horizon in enumerate(horizons):
            low, high = limits[limits.index <= horizon].iloc[-1]
            rows.append((survival[mine, j].mean(), low, high))
    return np.array(rows)


def excess(rows):
    """How far each prediction lies outside its interval; 0 inside."""
    predicted, low, high = rows.T
    return np.maximum(np.maximum(low - predicted, predicted - high), 0)


def is_calibrated(rows):
    """The intervals tell the noise of the held-out third alone, not that of 300 training patients:
    the truth itself is in 8 of these 9, and models in 6 or more for each of five seeds tried.
    """
    outside = excess(rows)
    return bool((outside == 0).sum() >= 6 and outside.max() < 0.1)


def true_survival(log_risk):
    return np.exp(-((np.array(HORIZONS) / SCALE) ** SHAPE) * np.exp(log_risk)[:, None])


def test_the_check_accepts_the_truth_and_refuses_other_curves():
    held_out = simulate(300, seed=3)
    truth = held_out.log_risk
    shapes = {"truth": truth, "same": np.zeros(300), "too sure": 2 * truth, "reversed": -truth}
    accepted = {
        name: is_calibrated(calibration(held_out.table, truth, true_survival(shape), HORIZONS))
        for name, shape in shapes.items()
    }
    assert accepted == {"truth": True, "same": False, "too sure": False, "reversed": False}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "run"),
    [
        ("abmil", DISCRETE),
        ("acmil", DISCRETE),
        ("mhim", DISCRETE),
        ("abmil", COX),
        ("acmil", COX),
        ("mhim", COX),
        ("abmil", COX_EPOCH),
    ],
    ids=lambda value: value if isinstance(value, str) else f"{value[0].name}-{value[1]}",
)
def test_ranking_is_near_the_truth_and_curves_are_calibrated(tmp_path, name, run):
    target, bags_per_step, learning_rate = run
    training, validation, held_out = (simulate(n, s) for n, s in ((300, 1), (150, 2), (300, 3)))
    task = fit_task(target, training.table)
    torch.manual_seed(0)
    method = build_method(METHODS[name], DIM, task.outputs)
    config = TrainConfig(
        epochs=30, learning_rate=learning_rate, bags_per_step=bags_per_step, device="cpu"
    )
    parts = (training.part(task), validation.part(task))
    train_method(method, task, parts, config=config, state_dir=tmp_path, run_id="x")
    task = task.completed(*(Answers(answer(method, part), part.encoded) for part in parts))
    assert isinstance(task, SurvivalTask)

    logits = answer(method, held_out.part(task))
    risk = task.predict(logits)["risk"]
    found, oracle = held_out.c_index(risk), held_out.c_index(held_out.log_risk)
    survival = task.survival_at(logits, task.horizons)
    rows = calibration(held_out.table, risk, survival, task.horizons)
    outside = excess(rows)
    measured = (
        f"C {found:.3f} of {oracle:.3f}; {(outside == 0).sum()} of 9 inside, "
        f"the worst {outside.max():.3f} outside"
    )
    assert found > oracle - 0.06, measured
    assert is_calibrated(rows), measured
