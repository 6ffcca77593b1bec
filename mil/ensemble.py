"""Trained models asked about another cohort, labelled or not, with the files of an evaluation."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from tqdm import tqdm

from mil.bags import load_features
from mil.checkpoint import Checkpoint, load_ensemble, refuse_other_origin
from mil.cohorts.cohort import Cohort, read_cohort
from mil.config import StudyConfig
from mil.data import rows_with_features
from mil.decisions import apply_decisions
from mil.predictions import combine, predict, write_csv
from mil.tasks.base import Task
from mil.tasks.config import SurvivalTarget
from mil.tasks.survival import FollowUp, SurvivalTask
from mil.train import Part, answer
from preprocessing.artefacts import whole_file
from preprocessing.errors import CohortError


def applied_dir(study: StudyConfig, name: str) -> Path:
    return study.output / "applied" / name


def predict_cohort(study: StudyConfig, name: str) -> pd.DataFrame:
    """Writes predictions.csv and fitted.json below `applied/<name>`; returns the predictions of all
    slides and patients.

    Targets stand in the table where the study's labels have them; no label is needed. Features are
    read patient by patient.
    """
    members = load_ensemble(study.mil.apply[name])
    first = next(iter(members.values()))
    cohort = _cohort(study, first)
    grid = _common_grid([member.task for member in members.values()])
    parts = []
    for patient in tqdm(sorted(set(cohort.slides["patient_id"])), unit="patient", mininterval=2):
        slides = cohort.slides.index[cohort.slides["patient_id"] == patient]
        mine = cohort.only(set(slides), "other patients")
        answers = [_ask(study, path, member, mine, grid) for path, member in members.items()]
        parts.append(combine(answers, first.section.target))
    table = pd.concat(parts).sort_values(["level", "id"], ignore_index=True)
    folder = applied_dir(study, name)
    write_csv(table, folder / "predictions.csv")
    about: dict[str, Any] = {"models": [str(path) for path in members]}
    about["section"] = first.section.model_dump(mode="json", exclude={"truth"})
    if grid is not None:
        about |= {"times": list(grid.times), "horizons": list(grid.horizons)}
    with whole_file(folder / "fitted.json") as partial:
        partial.write_text(json.dumps(about, indent=1))
    return table


def _cohort(study: StudyConfig, model: Checkpoint) -> Cohort:
    """All slides with features; targets where the study has labels of the model's question."""
    rows = rows_with_features(study)
    if not rows:
        raise CohortError(f"no slide of {study.preprocessing.manifest} has features to ask about")
    slides = pd.DataFrame(
        {"patient_id": [row.patient_id for row in rows]},
        index=pd.Index([row.slide_id for row in rows], name="slide_id"),
    )
    if study.mil.labels is None:
        return Cohort(slides, ())
    target = model.section.target
    labelled = read_cohort(
        rows,
        study.mil.labels,
        target.columns,
        patient_target=model.section.bag == "patient" or isinstance(target, SurvivalTarget),
    )
    known = labelled.slides[list(target.columns)]
    return Cohort(slides.join(known), target.columns, labelled.report)


def _common_grid(tasks: list[Task]) -> FollowUp | None:
    """One grid and one set of horizons; where the training patients of the models gave them
    different ones, the means, place by place.
    """
    each = [task.follow_up for task in tasks if isinstance(task, SurvivalTask)]
    if not each:
        return None
    if len({(one.times, one.horizons) for one in each}) == 1:
        return each[0]
    most = min(len(one.horizons) for one in each)
    horizons = np.mean([one.horizons[:most] for one in each], axis=0)
    shares = np.linspace(0, 1, min(len(one.times) for one in each))
    times = np.mean([np.quantile(one.times, shares) for one in each], axis=0)
    grid = np.union1d(times, horizons)
    return replace(each[0], times=tuple(grid.tolist()), horizons=tuple(horizons.tolist()))


def _ask(
    study: StudyConfig,
    path: Path,
    model: Checkpoint,
    cohort: Cohort,
    grid: FollowUp | None,
) -> pd.DataFrame:
    encoder = study.preprocessing.encoder.name
    features = load_features(study.features_dir, cohort.slides.index, encoder)
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
