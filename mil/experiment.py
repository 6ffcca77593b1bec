"""One task asked of one answerer: folds, the training of a member, and its sealed predictions."""

import json
from collections.abc import Callable

import numpy as np
import pandas as pd
import torch
from numpy.typing import NDArray

from mil.bags import CohortFeatures
from mil.baselines import BaselineData, Covariates, fit_baseline, mean_features
from mil.checkpoint import Checkpoint, save_checkpoint
from mil.config import BASELINES, StudyConfig
from mil.data import (
    cohort_path,
    current_splits,
    data_digest,
    patient_groups,
    shared_images,
    splits_path,
    task_cohort,
    task_features,
)
from mil.decisions import Decision, apply_decisions, fit_decisions
from mil.folds.split_files import read_split_files
from mil.folds.splits import Splits, make_splits, save_splits
from mil.heatmaps.scores import CohortScale
from mil.member import Member, run_id_of, settings_of
from mil.models.base import MilMethod
from mil.models.build import build_method
from mil.predictions import Answer, predict, write_csv
from mil.seals import is_sealed
from mil.tasks.base import Answers, Task
from mil.tasks.build import fit_task
from mil.tasks.columns import named
from mil.tasks.config import CoxConfig, SurvivalTarget
from mil.tasks.feasibility import refuse_impossible
from mil.tasks.strata import classes_held, strata
from mil.training.train import Part, answer, tile_evidence, train_method
from preprocessing.artefacts import whole_file


def split_task(study: StudyConfig, task: str) -> list[str]:
    """Makes and saves the folds of a task; returns what the cohort holds, a line each."""
    cohort = task_cohort(study, task)
    copies = shared_images(study, cohort)
    section, config = study.mil.tasks[task], study.mil.split
    bags = cohort.bags(section.bag)
    refuse_impossible(section, bags)
    held = classes_held(section.target, bags)
    splits, notes = make_splits(
        bags,
        strata(section.target, bags),
        config=config,
        groups=patient_groups(study, cohort),
        supplied=read_split_files(config.files, config.test_part) if config.files else None,
        classes=None if held is None else held.groupby(bags["patient_id"]).agg(_union),
        data=data_digest(study, task, cohort),
    )
    save_splits(splits, splits_path(study, task))
    lines = cohort.describe(section.target)
    facts = {"lines": lines, "report": {**cohort.report, **copies, **notes}}
    with whole_file(cohort_path(study, task)) as partial:
        partial.write_text(json.dumps(facts, indent=1))
    return [*lines, *(f"{k}: {len(v)} ({named(v)})" for k, v in facts["report"].items())]


def _union(held: pd.Series) -> set[str]:
    return set().union(*held)


def task_splits(study: StudyConfig, task: str) -> Splits:
    """The current folds. Opens every store: raises CohortError if labels, slides, features or
    splits changed since the folds were made.
    """
    return current_splits(study, task, task_cohort(study, task))


def member_runs(
    study: StudyConfig, task: str, answerer: str, splits: Splits | None = None
) -> tuple[Splits, dict[tuple[int, int], str]]:
    """The current folds, and the run id that the seal of every (fold, seed) has to carry.

    `splits`: the `task_splits`, where somebody has them.
    """
    splits = splits or task_splits(study, task)
    settings = settings_of(study, task, answerer)
    runs = {
        (fold, seed): run_id_of(settings, splits, fold=fold, seed=seed)
        for fold in range(len(splits.folds))
        for seed in study.seeds(answerer)
    }
    return splits, runs


def run_member(study: StudyConfig, task: str, answerer: str, *, fold: int, seed: int) -> None:
    """Trains one model, or fits one baseline; writes its predictions once and seals them.

    A member whose predictions of this very run are sealed already, and whose model is there, is
    left as it is.
    """
    member = Member(study, task, answerer, fold=fold, seed=seed)
    has_model = answerer in BASELINES or member.checkpoint.is_file()
    if has_model and is_sealed(member.folder, member.run_id):
        return
    features = task_features(study, member.cohort)
    if answerer in BASELINES:
        _run_baseline(member, features)
    else:
        _run_method(member, features)


def _run_method(member: Member, features: CohortFeatures) -> None:
    config = member.study.mil.methods[member.answerer]
    train = member.study.mil.train.model_copy(update={"seed": member.seed})
    fitted = fit_task(member.section.target, member.tables["train"])
    training, validation = (
        Part(member.tables[name], fitted.encode(member.tables[name]), features)
        for name in ("train", "validation")
    )
    torch.manual_seed(member.seed)  # initial weights
    model = build_method(config, features.dim, fitted.outputs, fitted.classes)
    history = train_method(
        model,
        fitted,
        (training, validation),
        config=train,
        state_dir=member.folder,
        run_id=member.run_id,
    )
    fitted = fitted.completed(
        *(Answers(answer(model, part), part.encoded) for part in (training, validation))
    )
    answers, decisions = _decided(member, _model_answer(model, features), fitted)
    checkpoint = Checkpoint(
        method=model,
        task=fitted,
        origin=features.origin,
        label=f"{member.task_name}, {member.answerer}, fold {member.number}, seed {member.seed}",
        scale=CohortScale.fit(tile_evidence(model, fitted, validation), fitted.evidence_name),
        section=member.section,
        decisions=decisions,
        seen=member.seen(features),
        notes={
            "settings": member.settings,
            "splits": member.splits.fingerprint,
            "fold": member.number,
            "run": member.run_id,
        },
    )
    save_checkpoint(checkpoint, config, features.dim, member.checkpoint)
    write_csv(history, member.folder / "history.csv")
    member.write(answers, fitted, decisions)
    for state in [*member.folder.glob("*.state.pt"), *member.folder.glob(".*.partial-*")]:
        state.unlink()


def _model_answer(model: MilMethod, features: CohortFeatures) -> Answer:
    return lambda bags: answer(model, Part(bags, torch.empty(len(bags)), features))


def _run_baseline(member: Member, features: CohortFeatures) -> None:
    target = member.section.target
    if isinstance(target, SurvivalTarget):  # baselines of survival are Cox models
        target = CoxConfig(time=target.time, event=target.event, times=target.times)
    fitted = fit_task(target, member.tables["train"])
    matrix = _baseline_matrix(member, features)
    parts = {
        name: BaselineData(matrix(member.tables[name]), fitted.encode(member.tables[name]))
        for name in ("train", "validation")
    }
    baseline = fit_baseline(member.kind, fitted, parts["train"], parts["validation"])
    fitted = fitted.completed(
        *(Answers(baseline.logits(part.features), part.encoded) for part in parts.values())
    )
    answers, decisions = _decided(member, lambda bags: baseline.logits(matrix(bags)), fitted)
    member.write(answers, fitted, decisions)


def _baseline_matrix(
    member: Member, features: CohortFeatures
) -> Callable[[pd.DataFrame], NDArray[np.float64]]:
    """What a baseline sees of a table of bags, as (bags, d)."""
    if member.kind == "mean_features":
        return lambda bags: mean_features(bags, features)
    return Covariates.fit(member.tables["train"], member.section.covariates).matrix


def _decided(member: Member, ask: Answer, task: Task) -> tuple[pd.DataFrame, dict[str, Decision]]:
    """All answers, by part, with what is called of them by decisions fitted inside the fold."""
    answers = predict(ask, task, member.section, member.cohort)
    answers.insert(0, "part", member.parts(answers["patient_id"]))
    decisions = fit_decisions(member.section.target, answers)
    return apply_decisions(decisions, answers), decisions
