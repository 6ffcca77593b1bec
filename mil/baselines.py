"""Answers without MIL, so that one sees what it adds: a linear model with an elastic-net penalty.

    logits = [z, 1] W,  z = (x - mean) / sd of the training bags
    W minimises loss(logits) + strength (l1_ratio |W| + (1 - l1_ratio) / 2 |W|^2), intercepts free

`loss` is the task's own: (binary) cross-entropy, squared error, or the Cox partial likelihood as a
mean over events. The penalty is that of Zou & Hastie 2005, for Cox of Simon et al. 2011.

`mean_features` asks the mean of a bag's tile features; its strength is the one with the least loss
that the validation part adds. `clinical` asks the covariates alone, with a weak ridge (l1_ratio 0)
that is fixed. Solved by FISTA (Beck & Teboulle 2009) with backtracking and restart (O'Donoghue &
Candes 2015), from strong penalties to weak ones, each started at the last answer.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray
from torch import Tensor

from mil.bags import CohortFeatures
from mil.config import Baseline as Kind
from mil.tasks.base import Task
from mil.tasks.columns import column, named
from preprocessing.errors import CohortError

PATIENCE = 5  # weaker penalties in a row without a better validation loss before the path ends
MOST_STEPS = 1000  # for one strength; the path's weak end may stop before the last digit
TOLERANCE = 1e-6  # largest change of a weight in a step, of standardised features


L1_RATIO = 0.5  # of mean_features: of thousands, some are to be left out
WEAKEST, STRENGTHS = 1e-2, 30  # the path's end, as a share of where all weights are 0; its length
# Of clinical: per case, as a prior that 25 events outweigh; a few validation patients would choose
# so strong a ridge that the covariates hardly spoke.
CLINICAL_RIDGE = 0.01


@dataclass(frozen=True, eq=False)
class BaselineData:
    """`features` (bags, d), all finite; `encoded` (bags, ...), their targets by `Task.encode`."""

    features: NDArray[np.float64]
    encoded: Tensor

    def __post_init__(self) -> None:
        if self.features.ndim != 2 or len(self.features) != len(self.encoded):
            raise CohortError(
                f"baseline: expected features (bags, d) and as many targets, got "
                f"{self.features.shape} and {len(self.encoded)}"
            )
        if not np.isfinite(self.features).all():
            rows = np.flatnonzero(~np.isfinite(self.features).all(axis=1))
            raise CohortError(f"baseline: features of bag(s) number {named(rows)} are not finite")


@dataclass(frozen=True, eq=False)
class Baseline:
    """A fitted linear model; `weights` (d + 1, outputs) of standardised features, intercept last.

    `path`: strength and validation loss of every penalty that was tried.
    """

    mean: NDArray[np.float64]
    sd: NDArray[np.float64]
    weights: Tensor
    strength: float
    path: tuple[tuple[float, float], ...]

    def logits(self, features: NDArray[np.float64]) -> Tensor:
        """(n, outputs) float64 of features (n, d): what the task's `predict` takes."""
        return _design(features, self.mean, self.sd) @ self.weights


def fit_baseline(
    kind: Kind, task: Task, training: BaselineData, validation: BaselineData
) -> Baseline:
    """A linear model of `training`; of features as strongly penalised as suits `validation`."""
    mean, sd = training.features.mean(axis=0), training.features.std(axis=0)
    sd = np.where(sd > 1e-12 * np.abs(mean), sd, 1.0)
    x, x_validation = (_design(part.features, mean, sd) for part in (training, validation))

    def loss(weights: Tensor) -> Tensor:
        return task.loss(x @ weights, training.encoded)

    def judge(weights: Tensor) -> float:
        """What the validation bags add to the total loss: for Cox the cross-validated partial
        likelihood (Verweij & van Houwelingen 1993), which few validation patients can judge, too.
        """
        together = torch.cat([training.encoded, validation.encoded])
        whole = task.loss(torch.cat([x, x_validation]) @ weights, together)
        of_all, of_training = task.terms(together), task.terms(training.encoded)
        return float(of_all * whole - of_training * loss(weights))

    path: list[tuple[float, float]] = []
    best, best_place = torch.zeros(x.shape[1], task.outputs, dtype=torch.float64), 0
    with _one_thread():
        if kind == "clinical":
            best = _descend(loss, best, strength=CLINICAL_RIDGE, l1_ratio=0.0)
            return Baseline(mean, sd, best, CLINICAL_RIDGE, ((CLINICAL_RIDGE, judge(best)),))
        for strength, weights in _weaker_and_weaker(loss, best):
            judged = judge(weights)
            path.append((strength, judged))
            if judged < path[best_place][1] or len(path) == 1:
                best, best_place = weights, len(path) - 1
            if len(path) - 1 - best_place == PATIENCE:
                break
    return Baseline(mean, sd, best, path[best_place][0], tuple(path))


def mean_features(bags: pd.DataFrame, features: CohortFeatures) -> NDArray[np.float64]:
    """(bags, dim): the mean over the tiles of each bag (column slide_ids)."""
    return np.stack([features.bag(ids).mean(dim=0).double().numpy() for ids in bags["slide_ids"]])


@dataclass(frozen=True)
class _Number:
    """A covariate of numbers: the training median stands in for an empty cell."""

    name: str
    median: float
    indicated: bool

    @property
    def columns(self) -> tuple[str, ...]:
        return (self.name, f"{self.name} missing") if self.indicated else (self.name,)

    def matrix(self, values: pd.Series) -> NDArray[np.float64]:
        numbers = pd.to_numeric(values, errors="coerce")
        wrong = (numbers.isna() & values.notna()) | np.isinf(numbers)
        if wrong.any():
            raise CohortError(
                f"covariate {self.name!r}: expected numbers, as in the training part, got "
                f"{named(values[wrong])} for {named(values.index[wrong])}; correct them, leave the "
                "cells empty, or name categories by words throughout"
            )
        empty = numbers.isna()
        filled = numbers.fillna(self.median).to_numpy(dtype=float)
        return np.stack([filled, empty.to_numpy(dtype=float)][: len(self.columns)], axis=1)


@dataclass(frozen=True)
class _Category:
    """A covariate of categories, one indicator each but for the most frequent, the reference.

    An empty cell and a category that training lacks are all zero, and so count as the reference.
    """

    name: str
    levels: tuple[str, ...]
    indicated: bool

    @property
    def columns(self) -> tuple[str, ...]:
        missing = (f"{self.name} missing",) if self.indicated else ()
        return (*(f"{self.name}={level}" for level in self.levels), *missing)

    def matrix(self, values: pd.Series) -> NDArray[np.float64]:
        texts = values.astype(str).where(values.notna())
        matrix = np.zeros((len(values), len(self.columns)))
        for place, level in enumerate(self.levels):
            matrix[:, place] = texts == level
        if self.indicated:
            matrix[:, -1] = values.isna()
        return matrix


@dataclass(frozen=True)
class Covariates:
    """Columns of a table as a design matrix, laid out by the training part of a fold."""

    covariates: tuple[_Number | _Category, ...]

    @classmethod
    def fit(cls, frame: pd.DataFrame, names: tuple[str, ...]) -> Self:
        """Numbers where every filled training cell is one, otherwise categories.

        Raises CohortError for a column that is absent, empty, or mostly but not all numbers.
        """
        return cls(tuple(_fit_covariate(column(frame, name)) for name in names))

    @property
    def names(self) -> tuple[str, ...]:
        """The k columns of `matrix`; a covariate with empty training cells has one more."""
        return tuple(name for covariate in self.covariates for name in covariate.columns)

    def matrix(self, frame: pd.DataFrame) -> NDArray[np.float64]:
        """(n, k) without an empty cell."""
        return np.concatenate([c.matrix(column(frame, c.name)) for c in self.covariates], axis=1)


def _fit_covariate(values: pd.Series) -> _Number | _Category:
    name, filled = str(values.name), values.dropna()
    if filled.empty:
        raise CohortError(
            f"covariate {name!r} is empty for all {len(values)} training bags: fill it in or leave "
            "it out"
        )
    indicated = len(filled) < len(values)
    numbers = pd.to_numeric(filled, errors="coerce")
    if numbers.notna().all():
        return _Number(name, float(numbers.median()), indicated)
    if numbers.notna().mean() > 0.5:
        wrong = filled[numbers.isna()]
        raise CohortError(
            f"covariate {name!r}: expected numbers or categories, got mostly numbers but "
            f"{named(wrong)} for {named(wrong.index)}; correct these, or leave the cells empty"
        )
    levels = filled.astype(str).value_counts()
    reference = min(levels.index[levels == levels.max()])
    return _Category(name, tuple(sorted(set(levels.index) - {reference})), indicated)


def _design(
    features: NDArray[np.float64], mean: NDArray[np.float64], sd: NDArray[np.float64]
) -> Tensor:
    """Standardised features (n, d) and a last column of ones."""
    z = (features - mean) / sd
    return torch.from_numpy(np.concatenate([z, np.ones((len(z), 1))], axis=1))


@contextmanager
def _one_thread() -> Iterator[None]:
    """Steps take a millisecond: threads that wait for each other would take twenty."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _weaker_and_weaker(
    loss: Callable[[Tensor], Tensor], start: Tensor
) -> Iterator[tuple[float, Tensor]]:
    """Strengths from the one at which all weights are 0, each with its weights."""
    weights = _descend(loss, start, strength=np.inf, l1_ratio=1.0)  # intercepts alone
    steepest = float(_slope(loss, weights)[1][:-1].abs().max())
    for strength in steepest / L1_RATIO * np.geomspace(1, WEAKEST, STRENGTHS):
        weights = _descend(loss, weights, strength=float(strength), l1_ratio=L1_RATIO)
        yield float(strength), weights


def _slope(loss: Callable[[Tensor], Tensor], weights: Tensor) -> tuple[float, Tensor]:
    weights = weights.clone().requires_grad_()
    value = loss(weights)
    (gradient,) = torch.autograd.grad(value, weights)
    return float(value.detach()), gradient


def _descend(
    loss: Callable[[Tensor], Tensor], start: Tensor, *, strength: float, l1_ratio: float
) -> Tensor:
    """The weights of least loss and penalty; an infinite strength leaves intercepts alone."""
    step, momentum, weights, look = 1.0, 1.0, start, start
    for _ in range(MOST_STEPS):
        value, gradient = _slope(loss, look)
        while True:
            new = _shrunk(look - step * gradient, step * strength, l1_ratio)
            move = new - look
            bound = value + float((gradient * move).sum() + (move**2).sum() / (2 * step))
            if float(loss(new)) <= bound + 1e-12:
                break
            step /= 2
        if float(((look - new) * (new - weights)).sum()) > 0:
            momentum = 1.0
        following = (1 + (1 + 4 * momentum**2) ** 0.5) / 2
        look = new + (momentum - 1) / following * (new - weights)
        moved = float((new - weights).abs().max())
        weights, momentum = new, following
        if moved < TOLERANCE:
            break
    return weights


def _shrunk(weights: Tensor, strength: float, l1_ratio: float) -> Tensor:
    """The proximal map of the elastic net: all rows but the last, the intercepts."""
    if strength == np.inf:
        return torch.cat([torch.zeros_like(weights[:-1]), weights[-1:]])
    slopes = weights[:-1]
    soft = slopes.sign() * (slopes.abs() - strength * l1_ratio).clamp(min=0)
    return torch.cat([soft / (1 + strength * (1 - l1_ratio)), weights[-1:]])
