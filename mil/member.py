"""One fold and seed of an answerer: its bags by part, the id of its run, and its sealed answers."""

import json
from collections.abc import Iterable
from pathlib import Path
from typing import cast

import numpy as np
import pandas as pd

from mil.bags import CohortFeatures
from mil.checkpoint import Seen
from mil.config import BASELINES, Baseline, StudyConfig, digest
from mil.data import current_splits, task_cohort
from mil.decisions import Decision, decisions_state
from mil.ensemble_files import CHECKPOINT
from mil.folds.splits import PARTS, Splits
from mil.models.config import resolved
from mil.predictions import write_csv
from mil.seals import enter, seal
from mil.tasks.base import Task
from mil.tasks.survival import SurvivalTask
from preprocessing.artefacts import whole_file


def settings_of(study: StudyConfig, task: str, answerer: str) -> str:
    """A digest of all that was chosen; two looks at a test part differ where this differs."""
    method = study.mil.methods.get(answerer)
    config = answerer if method is None else resolved(method)
    section = study.mil.tasks[task].model_dump(mode="json", exclude={"truth", "baselines"})
    train = study.mil.train.settings()
    return digest(config, section, {} if answerer in BASELINES else train)


def run_id_of(settings: str, splits: Splits, *, fold: int, seed: int) -> str:
    return digest(settings, splits.fingerprint, fold, seed)


class Member:
    """One fold and seed of an answerer: its bags by part, and where its files go."""

    def __init__(
        self, study: StudyConfig, task: str, answerer: str, *, fold: int, seed: int
    ) -> None:
        self.study, self.task_name, self.answerer = study, task, answerer
        self.number, self.seed = fold, seed
        self.section = study.mil.tasks[task]
        self.folder = study.member_dir(task, answerer, fold, seed)
        cohort = task_cohort(study, task)
        self.splits = current_splits(study, task, cohort)
        self.fold = self.splits.folds[fold]
        used = {patient for ids in self.fold.parts().values() for patient in ids}
        mine = cohort.slides.index[cohort.slides["patient_id"].isin(used)]
        self.cohort = cohort.only(set(mine), "slides of patients in no part of the fold")
        bags = self.cohort.bags(self.section.bag)
        part_of = self.parts(bags["patient_id"])
        self.tables = {name: bags[part_of == name] for name in PARTS}

    def parts(self, patients: Iterable[str]) -> np.ndarray:
        """The part of the fold that each patient is in."""
        part_of = {patient: part for part, ids in self.fold.parts().items() for patient in ids}
        return np.array([part_of[patient] for patient in patients])

    @property
    def checkpoint(self) -> Path:
        return self.folder / CHECKPOINT

    @property
    def kind(self) -> Baseline:
        """Which baseline this is."""
        return cast("Baseline", self.answerer)

    @property
    def settings(self) -> str:
        return settings_of(self.study, self.task_name, self.answerer)

    @property
    def run_id(self) -> str:
        return run_id_of(self.settings, self.splits, fold=self.number, seed=self.seed)

    def seen(self, features: CohortFeatures) -> Seen:
        """Whom the model is fitted or chosen on."""
        slides = self.cohort.slides[self.parts(self.cohort.slides["patient_id"]) != "test"]
        return Seen.of(
            slides["patient_id"].unique(), (features.fingerprints[s] for s in slides.index)
        )

    def write(self, answers: pd.DataFrame, task: Task, decisions: dict[str, Decision]) -> None:
        """predictions.csv and fitted.json, sealed; the look at the test part is counted first."""
        place = {"fold": self.number, "repeat": self.fold.repeat, "seed": self.seed}
        enter(self.study, {**self._look(), **place})
        table = answers.assign(splits=self.splits.fingerprint)
        for position, (name, value) in enumerate(place.items()):
            table.insert(position, name, value)
        fitted = {**place, "task": task.state(), "decisions": decisions_state(decisions)}
        if isinstance(task, SurvivalTask):
            fitted |= {"times": list(task.times), "horizons": list(task.horizons)}
        write_csv(table, self.folder / "predictions.csv")
        with whole_file(self.folder / "fitted.json") as partial:
            partial.write_text(json.dumps(fitted, indent=1))
        seal(self.folder, self.run_id)

    def _look(self) -> dict[str, object]:
        """What makes a look at the test parts another one than those before (see mil.seals)."""
        seeds = self.study.seeds(self.answerer)
        return {
            "task": self.task_name,
            "answerer": self.answerer,
            "settings": self.settings,
            "splits": self.splits.fingerprint,
            "seeds": [seeds.start, len(seeds)],
            "run": self.run_id,
        }
