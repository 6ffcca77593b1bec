"""A model's answers as tables: every slide as a bag of its own, and every patient."""

from pathlib import Path

import pandas as pd
import torch

from mil.bags import CohortFeatures
from mil.cohort import Cohort
from mil.config import TaskSection
from mil.models.base import MilMethod
from mil.tasks.base import Task
from mil.tasks.config import SurvivalConfig
from mil.train import Part, answer
from preprocessing.artefacts import whole_file
from preprocessing.errors import CohortError


def predict(
    model: tuple[MilMethod, Task], section: TaskSection, cohort: Cohort, features: CohortFeatures
) -> pd.DataFrame:
    """Predictions of all slides and patients of the cohort.

    Columns level ('slide' or 'patient'), id, patient_id, the targets, and the task's answers.
    """
    slides = _answers(model, cohort.bags("slide"), features)
    if section.bag == "patient":
        patients = _answers(model, cohort.bags("patient"), features)
    else:
        patients = aggregate(slides, section, cohort.target_columns)
    return pd.concat(
        [slides.assign(level="slide"), patients.assign(level="patient")], ignore_index=True
    )


def _answers(
    model: tuple[MilMethod, Task], bags: pd.DataFrame, features: CohortFeatures
) -> pd.DataFrame:
    method, task = model
    part = Part(bags, torch.empty(len(bags)), features)
    answers = task.predict(answer(method, part))
    known = bags.drop(columns="slide_ids").rename_axis("id").reset_index()
    return pd.concat([known, answers.set_axis(known.index)], axis=1)


def aggregate(
    slides: pd.DataFrame, section: TaskSection, target_columns: tuple[str, ...]
) -> pd.DataFrame:
    """Patient rows from slide rows, by the section's rule (see TaskSection.aggregate)."""
    answers = [str(c) for c in slides.columns if c not in {"id", "patient_id", *target_columns}]
    grouped = slides.groupby("patient_id", sort=True)
    if section.aggregate == "mean":
        patients = grouped[[*target_columns]].first().join(grouped[answers].mean())
    else:
        patients = _any_positive(slides, section, answers)
    return patients.rename_axis("patient_id").reset_index().assign(id=lambda t: t["patient_id"])


def _any_positive(slides: pd.DataFrame, section: TaskSection, answers: list[str]) -> pd.DataFrame:
    assert not isinstance(section.target, SurvivalConfig)  # TaskSection refuses it
    label, positive = section.target.label, section.target.positive
    (negative,) = [c for c in answers if c != f"prob_{positive}"]
    grouped = slides.groupby("patient_id", sort=True)
    patients = grouped[[f"prob_{positive}"]].max()
    patients[negative] = 1 - patients[f"prob_{positive}"]
    is_positive = grouped[label].agg(lambda labels: (labels == positive).any())
    patients[label] = is_positive.map({True: positive, False: negative.removeprefix("prob_")})
    return patients


def refuse_many_classes(section: TaskSection, task: Task) -> None:
    """The maximum over slides has a meaning for two classes alone; asked before training."""
    if section.aggregate == "max" and task.outputs != 2:
        raise CohortError(
            f"aggregate: max joins slides of two classes, but there are {task.outputs}; use mean, "
            "or merge classes"
        )


def read_predictions(path: Path) -> pd.DataFrame:
    """Ids and labels stay text, so that '007', '1' and 'NA' come back as they went."""
    if not path.is_file():
        raise CohortError(f"no predictions at {path}: train that fold first")
    table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    numeric = [c for c in table if c == "risk" or str(c).startswith(("prob_", "survival_"))]
    return table.astype({"fold": int, **dict.fromkeys(numeric, float)})


def write_csv(table: pd.DataFrame, path: Path) -> None:
    with whole_file(path) as partial:
        table.to_csv(partial, index=False)
