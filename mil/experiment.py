"""One task asked by one method: folds, the training of one, and its predictions."""

from collections.abc import Iterable

import pandas as pd
import torch

from mil.checkpoint import Checkpoint, save_checkpoint
from mil.cohort import Cohort
from mil.config import StudyConfig, digest
from mil.data import current_splits, data_digest, splits_path, task_cohort, task_features
from mil.heatmaps.scores import CohortScale
from mil.models.build import build_method
from mil.predictions import predict, refuse_many_classes, write_csv
from mil.splits import PARTS, Fold, make_splits, save_splits
from mil.tasks.build import fit_task
from mil.tasks.columns import class_names, survival_columns
from mil.tasks.config import SurvivalConfig, TaskConfig
from mil.train import Part, answer, tile_evidence, train_method
from preprocessing.errors import CohortError


def split_task(study: StudyConfig, task: str) -> Cohort:
    """Makes and saves the folds of a task; returns the cohort that they divide."""
    cohort = task_cohort(study, task)
    bags = cohort.bags(study.mil.tasks[task].bag)
    section = study.mil.split
    splits = make_splits(
        bags,
        strata(study.mil.tasks[task].target, bags),
        folds=section.folds,
        validation_share=section.validation_share,
        seed=section.seed,
        data=data_digest(study, task, cohort),
    )
    save_splits(splits, splits_path(study, task))
    return cohort


def strata(target: TaskConfig, bags: pd.DataFrame) -> list[pd.Series]:
    """Values to balance folds by, the finest first: the class; or event and early or late.

    A survival cohort may do without censored patients, so the coarsest choice is then no balance.
    """
    if not isinstance(target, SurvivalConfig):
        return [class_names(bags, target.label)]
    times, events = survival_columns(bags, time=target.time, event=target.event)
    table = pd.DataFrame({"time": times, "event": events}, index=bags.index)
    late = table["time"] > table.groupby("event")["time"].transform("median")
    by_event = table["event"].map({True: "event", False: "censored"})
    by_both = by_event + late.map({True: ", late", False: ", early"})
    few_censored = (by_event == "censored").sum() < (by_event == "event").sum()
    anyone = pd.Series("anyone", index=bags.index)
    return [by_both, by_event, anyone] if few_censored else [by_both, by_event]


def run_fold(study: StudyConfig, task: str, method: str, fold: int) -> None:
    """Trains `method` on one fold of `task`; writes checkpoint, history and predictions."""
    section, config = study.mil.tasks[task], study.mil.methods[method]
    folder = study.fold_dir(task, method, fold)
    cohort = task_cohort(study, task)
    splits = current_splits(study, task, cohort)
    features = task_features(study, cohort)
    bags = cohort.bags(section.bag)
    part_of = _part_of_patient(splits.folds[fold], bags["patient_id"])
    tables = {name: bags[bags["patient_id"].map(part_of) == name] for name in PARTS}

    fitted = fit_task(section.target, tables["train"])
    refuse_many_classes(section, fitted)
    training, validation = (
        Part(tables[name], fitted.encode(tables[name]), features)
        for name in ("train", "validation")
    )
    torch.manual_seed(study.mil.train.seed)  # initial weights
    model = build_method(config, dim=features.dim, outputs=fitted.outputs)
    run_id = digest(config, study.mil.train, fitted.state(), splits.fingerprint, fold)
    history = train_method(
        model,
        fitted,
        (training, validation),
        config=study.mil.train,
        state_dir=folder,
        run_id=run_id,
    )
    fitted = fitted.centred(answer(model, training))
    checkpoint = Checkpoint(
        method=model,
        task=fitted,
        origin=features.origin,
        label=f"{task}, {method}, fold {fold}",
        scale=CohortScale.fit(tile_evidence(model, fitted, validation), fitted.evidence_name),
        notes={"splits": splits.fingerprint, "fold": fold, "run": run_id},
    )
    save_checkpoint(checkpoint, config, features.dim, folder / "checkpoint.safetensors")
    write_csv(history, folder / "history.csv")
    predictions = predict((model, fitted), section, cohort, features)
    predictions.insert(0, "part", predictions["patient_id"].map(part_of))
    predictions.insert(0, "fold", fold)
    predictions["splits"] = splits.fingerprint
    write_csv(predictions, folder / "predictions.csv")
    for state in [*folder.glob("*.state.pt"), *folder.glob(".*.partial-*")]:
        state.unlink()


def _part_of_patient(fold: Fold, patients: Iterable[str]) -> dict[str, str]:
    """Patient -> part; a patient that the saved splits do not know is refused."""
    part_of = {patient: part for part, ids in fold.parts().items() for patient in ids}
    unknown = sorted(set(patients) - set(part_of))
    if unknown:
        raise CohortError(
            f"patient(s) {unknown[:5]} are in the cohort but in no part of the saved splits: the "
            "cohort has changed since; make the splits anew"
        )
    return part_of
