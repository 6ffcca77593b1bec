"""Trained models asked about another cohort, labelled or not, with the files of an evaluation."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from mil.bags import CohortFeatures, load_features
from mil.checkpoint import Checkpoint, load_ensemble, refuse_other_origin, unseen_members
from mil.cohorts.cohort import Cohort, read_cohort
from mil.cohorts.label_table import LabelTable, read_label_table
from mil.cohorts.refusals import torn_patients
from mil.config import StudyConfig, TaskSection
from mil.data import rows_with_features
from mil.decisions import apply_decisions
from mil.predictions import combine, predict, write_csv
from mil.tasks.base import Task
from mil.tasks.columns import answered, named
from mil.tasks.config import MultilabelConfig, SurvivalTarget, TaskConfig
from mil.tasks.survival import FollowUp, SurvivalTask
from mil.training.train import Part, answer
from preprocessing.artefacts import whole_file
from preprocessing.errors import CohortError
from preprocessing.manifest import SlideRow

_log = logging.getLogger(__name__)


def applied_dir(study: StudyConfig, name: str) -> Path:
    return study.output / "applied" / name


def predict_cohort(study: StudyConfig, name: str) -> pd.DataFrame:
    """Writes predictions.csv and fitted.json below `applied/<name>`; returns the predictions of all
    slides and patients.

    Targets stand in the table where the study's labels have them; no label is needed. A patient is
    answered by the models that were neither trained nor validated on it; where there is no such
    model by all of them, and its rows are marked: `seen`. Features are read patient by patient.
    """
    members = load_ensemble(study.mil.apply[name])
    first = next(iter(members.values()))
    cohort, notes = _cohort(study, first.section)
    grid = _common_grid([member.task for member in members.values()])
    parts = []
    for patient in tqdm(sorted(set(cohort.slides["patient_id"])), unit="patient", mininterval=2):
        slides = cohort.slides.index[cohort.slides["patient_id"] == patient]
        mine = cohort.only(set(slides), "other patients")
        features = load_features(
            study.features_dir,
            slides,
            study.preprocessing.encoder.name,
            limits=study.preprocessing.quality,
        )
        chosen, seen = unseen_members(members, patient, features.fingerprints.values())
        answers = [_ask(path, model, mine, (features, grid)) for path, model in chosen.items()]
        parts.append(combine(answers, first.section.target).assign(seen=seen))
    table = pd.concat(parts).sort_values(["level", "id"], ignore_index=True)
    folder = applied_dir(study, name)
    write_csv(table, folder / "predictions.csv")
    notes += _notes_on_seen(table)
    for note in notes:
        _log.info(note)
    about: dict[str, Any] = {"models": [str(path) for path in members], "notes": notes}
    about["section"] = first.section.model_dump(mode="json", exclude={"truth"})
    if grid is not None:
        about |= {"times": list(grid.times), "horizons": list(grid.horizons)}
    with whole_file(folder / "fitted.json") as partial:
        partial.write_text(json.dumps(about, indent=1))
    return table


def _notes_on_seen(table: pd.DataFrame) -> list[str]:
    patients = table.groupby("patient_id")["seen"].any()
    known = patients.index[patients]
    if known.empty:
        return []
    return [
        f"{len(known)} of {len(patients)} patients were seen in training or validation by every "
        f"model (column seen) and are left out of the metrics: {named(known)}"
    ]


def _cohort(study: StudyConfig, section: TaskSection) -> tuple[Cohort, list[str]]:
    """All slides with features, with targets where the study has labels of the models' question;
    and what is to be said of the labels.
    """
    rows = rows_with_features(study)
    if not rows:
        raise CohortError(f"no slide of {study.preprocessing.manifest} has features to ask about")
    slides = pd.DataFrame(
        {"patient_id": [row.patient_id for row in rows]},
        index=pd.Index([row.slide_id for row in rows], name="slide_id"),
    )
    labels, target = study.mil.labels, section.target
    if labels is None:
        return Cohort(slides, ()), []
    table = read_label_table(labels)
    asked, notes = _answerable(target, table)
    if unusable := _no_labels(table, rows, asked):
        return Cohort(slides, ()), [unusable]
    of_patients = section.bag == "patient" or isinstance(target, SurvivalTarget)
    labelled = read_cohort(rows, labels, asked.columns, patient_target=of_patients, target=asked)
    known = labelled.slides.reindex(columns=list(target.columns))
    cohort = Cohort(slides.join(known), target.columns, labelled.report)
    return cohort, notes + _notes_on_labels(labelled, section)


def _answerable(target: TaskConfig, table: LabelTable) -> tuple[TaskConfig, list[str]]:
    """Of several labels those that the table has, and a note of the others; all if it has none."""
    if not isinstance(target, MultilabelConfig):
        return target, []
    there = tuple(name for name in target.labels if name in table.frame)
    lacking = [name for name in target.labels if name not in there]
    if not there or not lacking:
        return target, []
    note = (
        f"{', '.join(lacking)}: unknown of everyone, for {table.name} has no such column; if it "
        "has one under another name, rename that; its columns are "
        f"{', '.join(map(str, table.frame))}"
    )
    return target.model_copy(update={"labels": there}), [note]


def _no_labels(table: LabelTable, rows: list[SlideRow], target: TaskConfig) -> str | None:
    """Why no slide has a target, where the table has rows of the slides; None if some may have."""
    columns = target.columns
    lacking = [name for name in columns if name not in table.frame]
    if lacking:
        return (
            f"no metrics: {table.name} has no column {', '.join(lacking)}; name it in "
            f"labels.columns, its columns are {', '.join(map(str, table.frame))}"
        )
    mine = table.frame[table.frame[table.key].isin([getattr(row, table.key) for row in rows])]
    if len(mine) and not answered(mine, columns, target).any():
        return f"no metrics: {' or '.join(columns)} is empty in every row of {table.name}"
    return None


def _notes_on_labels(labelled: Cohort, section: TaskSection) -> list[str]:
    """Patients of whom the models' rule makes one answer, though their slides' labels differ; of
    each column of the target.
    """
    if section.bag == "patient" or section.aggregate != "mean":
        return []
    torn = {name: torn_patients(labelled.slides, (name,)) for name in labelled.target_columns}
    return [
        f"{len(patients)} patients are left without {name}, since their slides disagree on it: "
        f"{named(patients)}"
        for name, patients in torn.items()
        if patients
    ]


def _common_grid(tasks: list[Task]) -> FollowUp | None:
    """One grid and one set of horizons; where the training patients of the models gave them
    different ones, the means, place by place.
    """
    each = [task.follow_up for task in tasks if isinstance(task, SurvivalTask)]
    if not each:
        return None
    if len({(one.times, one.horizons) for one in each}) == 1:
        return each[0]
    horizons = np.mean([one.horizons for one in each], axis=0)
    shares = np.linspace(0, 1, min(len(one.times) for one in each))
    times = np.mean([np.quantile(one.times, shares) for one in each], axis=0)
    grid = np.union1d(times, horizons)
    return replace(each[0], times=tuple(grid.tolist()), horizons=tuple(horizons.tolist()))


def _ask(
    path: Path,
    model: Checkpoint,
    cohort: Cohort,
    given: tuple[CohortFeatures, FollowUp | None],
) -> pd.DataFrame:
    """Answers and calls of one model; `given`: the features, and the grid of survival."""
    features, grid = given
    refuse_other_origin(model, features.origin, path)
    task = model.task
    if isinstance(task, SurvivalTask) and grid is not None:
        task = task.on_grid(grid.times)
    table = predict(
        lambda bags: answer(model.method, Part(bags, torch.empty(len(bags)), features)),
        task,
        model.section,
        cohort,
    )
    return apply_decisions(model.decisions, table)
