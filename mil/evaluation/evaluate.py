"""Sealed test predictions of all folds -> metrics and figures. Nothing is fitted here."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from mil.config import StudyConfig, TaskSection
from mil.data import splits_path
from mil.decisions import LEVELS, class_indices, classes_of, positive_class
from mil.ensemble import applied_dir
from mil.evaluation.hazard import hazard_ratios
from mil.evaluation.statistics import (
    FoldFit,
    bootstrap_intervals,
    draws_of,
    metrics_for,
    outcomes_of,
    whole,
)
from mil.figures.common import first_tests
from mil.figures.draw import draw_figures
from mil.folds.splits import Splits, load_splits
from mil.metrics.classification import auroc, delong_interval
from mil.predictions import combine, read_predictions, write_csv
from mil.seals import refuse_unsealed
from mil.tasks.config import ClassificationConfig, SurvivalTarget, TaskConfig
from preprocessing.artefacts import whole_file
from preprocessing.errors import CohortError


@dataclass(frozen=True)
class TestRows:
    """Test predictions of one answerer, seeds joined, and the `fits` of the folds (survival)."""

    __test__ = False  # not a test, whatever pytest makes of the name

    table: pd.DataFrame
    fits: dict[int, FoldFit]
    fitted: list[dict]

    def level(self, level: str) -> pd.DataFrame:
        rows = self.table[self.table["level"] == level]
        return rows.sort_values(["repeat", "fold", "id"], ignore_index=True)


def evaluation_dir(study: StudyConfig, task: str, answerer: str) -> Path:
    return study.output / "evaluation" / task / answerer


def evaluate_answerer(study: StudyConfig, task: str, answerer: str) -> pd.DataFrame:
    """Writes predictions, what was fitted, hazard ratios, figures and metrics; returns metrics."""
    section = study.mil.tasks[task]
    target, folder = section.target, evaluation_dir(study, task, answerer)
    test = read_test_rows(study, task, answerer)
    write_csv(test.table, folder / "predictions.csv")
    with whole_file(folder / "fitted.json") as partial:
        partial.write_text(json.dumps({"folds": test.fitted}, indent=1))
    survival = isinstance(target, SurvivalTarget)
    levels = ("patient",) if survival else LEVELS  # an event happens to a patient
    metrics = pd.concat(
        [metric_rows(test, level, target, study.mil.bootstrap) for level in levels],
        ignore_index=True,
    )
    if isinstance(target, SurvivalTarget):
        ratios = hazard_ratios(first_tests(test.level("patient")), target, section.covariates)
        write_csv(ratios, folder / "hazard_ratios.csv")
    title = f"{task}, {answerer}"
    draw_figures(test.table, metrics, target, folder, fits=test.fits, title=title)
    write_csv(metrics, folder / "metrics.csv")
    return metrics


def read_test_rows(study: StudyConfig, task: str, answerer: str) -> TestRows:
    """Reads every member's sealed predictions; refuses unsealed ones and those of other splits."""
    splits = load_splits(splits_path(study, task))
    target = study.mil.tasks[task].target
    tables, fits, fitted = [], {}, []
    for number in range(study.mil.split.number_of_folds):
        folders = [study.member_dir(task, answerer, number, s) for s in study.seeds(answerer)]
        for folder in folders:
            refuse_unsealed(folder)
        members = [read_predictions(folder / "predictions.csv") for folder in folders]
        for member, folder in zip(members, folders, strict=True):
            _refuse_other_folds(member, number, splits, str(folder))
        fold = combine(members, target)
        states = [json.loads((folder / "fitted.json").read_text()) for folder in folders]
        fitted += states
        if isinstance(target, SurvivalTarget):
            training = fold[(fold["part"] == "train") & (fold["level"] == "patient")]
            times, horizons = tuple(states[0]["times"]), tuple(states[0]["horizons"])
            fits[number] = FoldFit(outcomes_of(training, target), times, horizons)
        tables.append(fold[fold["part"] == "test"].drop(columns=["part", "splits", "seed"]))
    return TestRows(pd.concat(tables, ignore_index=True), fits, fitted)


def _refuse_other_folds(table: pd.DataFrame, number: int, splits: Splits, where: str) -> None:
    """A fold's predictions are of the splits as they stand: no patient twice, none missing."""
    tested = set(table.loc[table["part"] == "test", "patient_id"])
    if set(table["splits"]) != {splits.fingerprint} or tested != set(splits.folds[number].test):
        raise CohortError(
            f"{where}: predictions are of other splits or other data than now; train that fold anew"
        )


def evaluate_applied(study: StudyConfig, name: str) -> pd.DataFrame | None:
    """Metrics and figures of trained models on a cohort of their own, where it is labelled.

    Slides and patients without a label are left out; None if no patient has one. Censoring weights
    are of this cohort itself: the models' training patients are not at hand.
    """
    folder = applied_dir(study, name)
    table = read_predictions(folder / "predictions.csv")
    about = json.loads((folder / "fitted.json").read_text())
    target = TaskSection.model_validate(about["section"]).target
    if not set(target.columns) <= set(table):
        return None
    known = table[table[list(target.columns)].notna().all(axis=1)].assign(fold=0, repeat=0)
    patients = known[known["level"] == "patient"]
    if patients.empty:
        return None
    fits, levels = {}, LEVELS
    if isinstance(target, SurvivalTarget):
        levels = ("patient",)
        fits[0] = FoldFit(
            outcomes_of(patients, target), tuple(about["times"]), tuple(about["horizons"])
        )
    test = TestRows(known, fits, [])
    metrics = pd.concat(
        [metric_rows(test, level, target, study.mil.bootstrap) for level in levels],
        ignore_index=True,
    )
    draw_figures(known, metrics, target, folder, fits=fits, title=name)
    write_csv(metrics, folder / "metrics.csv")
    return metrics


def metric_rows(test: TestRows, level: str, target: TaskConfig, resamples: int) -> pd.DataFrame:
    """One row a metric over all folds, with its interval, and one row a metric and fold."""
    table = test.level(level)
    metrics = metrics_for(table, target, test.fits)
    intervals = bootstrap_intervals(metrics, draws_of(table, resamples))
    fold = table["fold"].to_numpy()
    rows = []
    for name, metric in metrics.items():
        low, high = intervals[name]
        note = _horizon_note(name, test.fits, target) or _conformal_note(name, level, test.fitted)
        everyone = whole(table)
        row = _row(level, name, "all", metric(everyone), table)
        rows.append(row | {"low": low, "high": high, "note": note})
        for number in np.unique(fold):
            mine = everyone[fold == number]
            rows.append(_row(level, name, str(number), metric(mine), table.iloc[mine]))
    if level == "patient" and isinstance(target, ClassificationConfig):
        rows += _delong_row(table, target)
    return pd.DataFrame(rows)


def _row(level: str, name: str, fold: str, value: float, table: pd.DataFrame) -> dict[str, object]:
    return {
        "level": level,
        "metric": name,
        "fold": fold,
        "value": value,
        "n": len(table),
        "patients": table["patient_id"].nunique(),
    }


def _conformal_note(metric: str, level: str, fitted: list[dict]) -> str:
    """Where a validation part was too small, its conformal sets hold every class."""
    if metric not in ("conformal_coverage", "conformal_set_size", "abstained"):
        return ""
    decisions = [state["decisions"][level] for state in fitted if "decisions" in state]
    small = sum(d.get("quantile") == "inf" for d in decisions)
    if not small:
        return ""
    return f"all classes in the sets of {small} of {len(decisions)} folds: validation too small"


def _horizon_note(metric: str, fits: dict[int, FoldFit], target: TaskConfig) -> str:
    """Of what time a metric at a horizon speaks; each fold has its own where none were given."""
    if not isinstance(target, SurvivalTarget) or not metric.startswith(("td_auc_", "brier_")):
        return ""
    place = int(metric.rsplit("_", 1)[1]) - 1
    times = [fit.horizons[place] for fit in fits.values() if place < len(fit.horizons)]
    if target.times is not None:
        return f"at {times[0]:g} ({target.time})"
    return (
        f"at {np.mean(times):.3g} ({target.time}; mean of the folds' {(place + 1) * 25} % quantile)"
    )


def _delong_row(table: pd.DataFrame, target: ClassificationConfig) -> list[dict[str, object]]:
    """AUROC with DeLong's interval, where patients are independent rows: no repeats."""
    positive = positive_scores(table, target)
    if positive is None:
        return []
    truth, score = positive
    low, high = delong_interval(truth, score)
    value = auroc(truth, score)
    return [_row("patient", "auroc_delong", "all", value, table) | {"low": low, "high": high}]


def positive_scores(
    table: pd.DataFrame, target: TaskConfig
) -> tuple[NDArray[np.bool_], NDArray[np.float64]] | None:
    """Truth and score of the positive class; None where DeLong does not apply."""
    if not isinstance(target, ClassificationConfig) or table["repeat"].nunique() > 1:
        return None
    classes = classes_of(table)
    positive = positive_class(target, classes)
    if positive is None:
        return None
    truth = class_indices(table, target.label) == classes.index(positive)
    both = 0 < truth.sum() < len(truth)
    return (truth, table[f"prob_{positive}"].to_numpy(dtype=float)) if both else None
