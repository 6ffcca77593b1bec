"""The sealed test predictions of an answerer, joined over folds and seeds."""

import json
from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from mil.config import StudyConfig
from mil.decisions import LEVELS, with_risk_groups
from mil.evaluation.survival_metrics import FoldFit, outcomes_of
from mil.experiment import member_runs
from mil.folds.splits import Splits
from mil.predictions import combine, read_predictions
from mil.seals import refuse_unsealed
from mil.tasks.config import SurvivalTarget, TaskConfig
from preprocessing.errors import CohortError


@dataclass(frozen=True)
class HeldOut:
    """Test predictions of one answerer, seeds joined, and the `fits` of the folds (survival)."""

    table: pd.DataFrame
    fits: dict[int, FoldFit]
    fitted: list[dict]

    def levels(self, target: TaskConfig) -> list[str]:
        """The levels to measure: an event happens to a patient, and slides may stand alone."""
        there = [level for level in LEVELS if (self.table["level"] == level).any()]
        return there[-1:] if isinstance(target, SurvivalTarget) else there

    def level(self, level: str) -> pd.DataFrame:
        rows = self.table[self.table["level"] == level]
        return rows.sort_values(["repeat", "fold", "id"], ignore_index=True)


def evaluation_dir(study: StudyConfig, task: str, answerer: str) -> Path:
    return study.output / "evaluation" / task / answerer


def read_held_out(
    study: StudyConfig, task: str, answerer: str, splits: Splits | None = None
) -> HeldOut:
    """Reads every member's sealed predictions; refuses unsealed ones, and those of other settings,
    labels or splits than the study has now (see member_runs).
    """
    splits, runs = member_runs(study, task, answerer, splits)
    target = study.mil.tasks[task].target
    tables, fits, fitted = [], {}, []
    for number in range(len(splits.folds)):
        seeds = [seed for fold, seed in runs if fold == number]
        folders = [study.member_dir(task, answerer, number, seed) for seed in seeds]
        for folder, seed in zip(folders, seeds, strict=True):
            refuse_unsealed(folder, runs[number, seed])
        members = [read_predictions(folder / "predictions.csv") for folder in folders]
        for member, folder in zip(members, folders, strict=True):
            _refuse_other_folds(member, number, splits, str(folder))
        fold = combine(members, target)
        if isinstance(target, SurvivalTarget) and len(members) > 1:
            fold = restandardised(fold)
        states = [json.loads((folder / "fitted.json").read_text()) for folder in folders]
        fitted += states
        if isinstance(target, SurvivalTarget):
            training = fold[(fold["part"] == "train") & (fold["level"] == "patient")]
            times, horizons = tuple(states[0]["times"]), tuple(states[0]["horizons"])
            fits[number] = FoldFit(outcomes_of(training, target), times, horizons)
        tables.append(fold[fold["part"] == "test"].drop(columns=["part", "splits", "seed"]))
    return HeldOut(pd.concat(tables, ignore_index=True), fits, fitted)


def restandardised(fold: pd.DataFrame) -> pd.DataFrame:
    """Joint risks on the scale of the fold's training rows, level by level, and their median cut.

    The mean of several standardised risks has a smaller deviation than each of them.
    """
    parts = []
    for _, rows in fold.groupby("level", sort=False):
        training = rows.loc[rows["part"] == "train", "risk_sd"]
        spread = training.std(ddof=0)
        risk = (rows["risk_sd"] - training.mean()) / (spread if spread > 0 else 1.0)
        cut = risk[rows["part"] == "train"].median()
        parts.append(with_risk_groups(rows.assign(risk_sd=risk, risk_cut=cut)))
    return pd.concat(parts).sort_index()


def _refuse_other_folds(table: pd.DataFrame, number: int, splits: Splits, where: str) -> None:
    """A fold's predictions are of the splits as they stand: no patient twice, none missing."""
    tested = set(table.loc[table["part"] == "test", "patient_id"])
    if set(table["splits"]) != {splits.fingerprint} or tested != set(splits.folds[number].test):
        raise CohortError(
            f"{where}: predictions are of other splits or other data than now; train that fold anew"
        )
