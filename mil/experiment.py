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
from mil.folds.splits import Splits, make_splits, refuse_unlike_classes, save_splits
from mil.heatmaps.scores import CohortScale
from mil.member import Member, run_id_of, settings_of
from mil.models.base import MilMethod
from mil.models.build import build_method
from mil.predictions import Answer, predict, write_csv
from mil.seals import is_sealed
from mil.tasks.base import Answers, Task
from mil.tasks.build import fit_task
from mil.tasks.columns import class_names, named, survival_columns
from mil.tasks.config import CoxConfig, SurvivalTarget, TaskConfig
from mil.tasks.feasibility import refuse_impossible
from mil.train import Part, answer, tile_evidence, train_method
from preprocessing.artefacts import whole_file


def split_task(study: StudyConfig, task: str) -> list[str]:
    """Makes and saves the folds of a task; returns what the cohort holds, a line each."""
    cohort = task_cohort(study, task)
    copies = shared_images(study, cohort)
    section, config = study.mil.tasks[task], study.mil.split
    bags = cohort.bags(section.bag)
    refuse_impossible(section, bags)
    splits, notes = make_splits(
        bags,
        strata(section.target, bags),
        config=config,
        groups=patient_groups(study, cohort),
        supplied=read_split_files(config.files, config.test_part) if config.files else None,
        data=data_digest(study, task, cohort),
    )
    if not isinstance(section.target, SurvivalTarget):
        classes = class_names(bags, section.target.label)
        refuse_unlike_classes(splits, classes.groupby(bags["patient_id"]).agg(set))
    save_splits(splits, splits_path(study, task))
    lines = cohort.describe(section.target)
    facts = {"lines": lines, "report": {**cohort.report, **copies, **notes}}
    with whole_file(cohort_path(study, task)) as partial:
        partial.write_text(json.dumps(facts, indent=1))
    return [*lines, *(f"{k}: {len(v)} ({named(v)})" for k, v in facts["report"].items())]


def strata(target: TaskConfig, bags: pd.DataFrame) -> list[pd.Series]:
    """Values to balance folds by, the finest first: the class; or event and early or late.

    A survival cohort may do without censored patients, so the coarsest choice is then no balance.
    """
    if not isinstance(target, SurvivalTarget):
        return [class_names(bags, target.label)]
    times, events = survival_columns(bags, time=target.time, event=target.event)
    table = pd.DataFrame({"time": times, "event": events}, index=bags.index)
    late = table["time"] > table.groupby("event")["time"].transform("median")
    by_event = table["event"].map({True: "event", False: "censored"})
    by_both = by_event + late.map({True: ", late", False: ", early"})
    few_censored = (by_event == "censored").sum() < (by_event == "event").sum()
    anyone = pd.Series("anyone", index=bags.index)
    return [by_both, by_event, anyone] if few_censored else [by_both, by_event]


def member_runs(
    study: StudyConfig, task: str, answerer: str
) -> tuple[Splits, dict[tuple[int, int], str]]:
    """The current folds, and the run id that the seal of every (fold, seed) has to carry.

    Raises CohortError if labels, slides, features or splits changed since the folds were made.
    """
    splits = current_splits(study, task, task_cohort(study, task))
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
    model = build_method(config, dim=features.dim, outputs=fitted.outputs)
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
