"""All answerers of a task on the same test patients, and paired differences between two of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Self

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.config import StudyConfig
from mil.evaluation.held_out import HeldOut, read_held_out
from mil.evaluation.label_metrics import of_one_label
from mil.evaluation.metric_table import at_the_boundary, measured, positive_scores
from mil.evaluation.statistics import Interval, draws_of, metrics_for, whole
from mil.experiment import task_splits
from mil.folds.splits import Splits
from mil.metrics.ranking import delong_test
from mil.metrics.resampling import bootstrap_p, percentile_interval
from mil.tasks.config import MultilabelConfig, TaskConfig
from preprocessing.errors import CohortError

COMPARED = ("auroc", "auprc", "balanced_accuracy", "brier", "c_index", "uno_c", "ibs")
COMPARED += ("r2", "mae", "spearman")


@dataclass(frozen=True)
class Answered:
    """What one answerer said: `table`, the rows that are compared, and for each metric `values`
    (1 + draws,): on the whole table, then on every draw of patients.
    """

    table: pd.DataFrame
    values: dict[str, NDArray[np.float64]]

    def interval(self, metric: str, target: TaskConfig) -> Interval:
        """The interval of metrics.csv."""
        values = self.values[metric]
        found = Interval(*percentile_interval(values[1:]), float(np.isnan(values[1:]).mean()))
        low, high, _ = at_the_boundary(metric, values[0], found, self.table, target)
        return Interval(low, high, found.undefined)


@dataclass(frozen=True)
class Paired:
    """A difference of two answerers, 95 % interval and p-value, and by which test."""

    difference: float
    low: float
    high: float
    p: float
    test: str


@dataclass(frozen=True)
class Contest:
    """All answerers of a task: patients, or slides where these stand alone (`level`), in one order,
    and one set of draws for all, so that differences are paired.
    """

    study: StudyConfig
    task: str
    splits: Splits
    level: str
    answers: dict[str, Answered]

    @classmethod
    def read(cls, study: StudyConfig, task: str) -> Self:
        """From the sealed predictions."""
        target = study.mil.tasks[task].target
        splits = task_splits(study, task)
        tests = {n: read_held_out(study, task, n, splits) for n in study.answerers(task)}
        level = next(iter(tests.values())).levels(target)[-1]
        tables = {name: test.level(level) for name, test in tests.items()}
        first, *others = tables
        for name in others:
            if not tables[name][["fold", "id"]].equals(tables[first][["fold", "id"]]):
                raise CohortError(
                    f"task {task!r}: {name} and {first} answered for different {level}s or folds, "
                    "which cannot be paired: train both anew"
                )
        draws = draws_of(tables[first], study.mil.bootstrap)
        answers = {
            name: Answered(tables[name], _on_draws(test, tables[name], target, draws))
            for name, test in tests.items()
        }
        return cls(study, task, splits, level, answers)

    @property
    def target(self) -> TaskConfig:
        return self.study.mil.tasks[self.task].target

    @property
    def metrics(self) -> list[str]:
        """Of the table: of several labels the means alone."""
        return [name for name in self.paired_metrics if name in COMPARED]

    @property
    def paired_metrics(self) -> list[str]:
        """Of all pairs: those of the table, and the AUROC of each of several labels."""
        return list(next(iter(self.answers.values())).values)

    def paired(self, a: str, b: str, *, metric: str) -> Paired:
        """Of `a` minus `b`, on the same draws; the AUROC by DeLong's test where it applies."""
        one, other = self.answers[a], self.answers[b]
        differences = one.values[metric] - other.values[metric]
        if _base(metric, self.target) == "auroc":
            found = _delong(metric, one.table, other.table, self.target)
            if found is not None:
                return found
        low, high = percentile_interval(differences[1:])
        p = bootstrap_p(differences[1:])
        return Paired(float(differences[0]), low, high, p, "paired bootstrap")

    def undefined(self, answerer: str, metric: str) -> float:
        """The share of the draws in which its difference to the reference is undefined; of the
        reference itself, the metric.
        """
        ours, theirs = (self.answers[a].values[metric] for a in (answerer, self.study.reference))
        return float(np.isnan(ours[1:] - theirs[1:]).mean())

    def seed_spread(self, answerer: str) -> dict[str, float]:
        """Metric -> standard deviation (n - 1) over seeds of what the models of one seed reach
        alone; nothing where there is one seed.
        """
        seeds = self.study.seeds(answerer)
        if len(seeds) == 1:
            return {}
        alone = [
            read_held_out(_of_seed(self.study, seed), self.task, answerer, self.splits)
            for seed in seeds
        ]
        each = [_on_draws(t, t.level(self.level), self.target, draws=()) for t in alone]
        return {m: float(np.std([v[m][0] for v in each], ddof=1)) for m in self.metrics}


def _on_draws(
    test: HeldOut, table: pd.DataFrame, target: TaskConfig, draws: Sequence[NDArray[np.intp]]
) -> dict[str, NDArray[np.float64]]:
    """Each compared metric on the whole table, then on every draw."""
    metrics = metrics_for(table, target, test.fits)
    labels = target.labels if isinstance(target, MultilabelConfig) else ()
    asked = [*COMPARED, *(f"auroc_{label}" for label in labels)]
    return {
        name: np.array([metrics[name](rows) for rows in (whole(table), *draws)])
        for name in asked
        if name in metrics
    }


def _base(metric: str, target: TaskConfig) -> str:
    """What is measured: of auroc_EGFR auroc."""
    return of_one_label(metric, target)[0] if isinstance(target, MultilabelConfig) else metric


def _delong(
    metric: str, one: pd.DataFrame, other: pd.DataFrame, target: TaskConfig
) -> Paired | None:
    """None where slides of a patient are not independent, or there is no variance."""
    label = of_one_label(metric, target)[1] if isinstance(target, MultilabelConfig) else None
    ours, theirs = (positive_scores(table, target, label) for table in (one, other))
    if ours is None or theirs is None or one["patient_id"].duplicated().any():
        return None
    strata = one["fold"].to_numpy()[measured(metric, one, target)]
    found = delong_test(ours[0], ours[1], theirs[1], strata=strata)
    if not np.isfinite(found.p):  # folds with a single patient of a class have no variance
        return None
    return Paired(found.value, found.low, found.high, found.p, "DeLong")


def _of_seed(study: StudyConfig, seed: int) -> StudyConfig:
    """The study with the models of one seed only; what they were trained by is the same."""
    train = study.mil.train.model_copy(update={"seed": seed, "seeds": 1})
    return study.model_copy(update={"mil": study.mil.model_copy(update={"train": train})})
