"""One task asked by one method: splits, training of a fold, and its predictions."""

from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

import pandas as pd
import torch

from mil.bags import SlideFeatures, load_features
from mil.checkpoint import Checkpoint, save_checkpoint
from mil.cohort import Cohort, read_cohort, refuse_disagreement
from mil.config import StudyConfig, TaskSection, digest
from mil.models.build import build_method
from mil.splits import Fold, load_splits, make_splits, refuse_shared_slides, save_splits
from mil.tasks.build import fit_task
from mil.tasks.columns import class_names, survival_columns
from mil.tasks.config import SurvivalConfig, TaskConfig
from mil.train import Part, answer, train_method
from preprocessing.artefacts import whole_file
from preprocessing.errors import CohortError
from preprocessing.manifest import SlideRow, read_manifest
from preprocessing.process_list import read_process_list


def task_cohort(study: StudyConfig, task: str) -> Cohort:
    """The labelled slides whose features are there."""
    section = study.mil.tasks[task]
    if study.mil.labels is None:
        raise CohortError(f"task {task!r} needs a label table: set mil.labels")
    cohort = read_cohort(
        read_manifest(study.preprocessing.manifest),
        study.mil.labels,
        section.target.columns,
        patient_target=section.bag == "patient" or isinstance(section.target, SurvivalConfig),
    )
    if section.bag == "slide" and section.aggregate == "mean":
        refuse_disagreement(cohort.slides, cohort.target_columns)
    extracted = {row.slide_id for row in rows_with_features(study)}
    return cohort.only(extracted, "slides without features")


def rows_with_features(study: StudyConfig) -> list[SlideRow]:
    """The manifest's slides that did not fail: an old store of one that now fails is not used."""
    statuses = read_process_list(study.features_dir)
    good = {status.slide_id for status in statuses if status.status != "failed"}
    return [row for row in read_manifest(study.preprocessing.manifest) if row.slide_id in good]


def splits_path(study: StudyConfig, task: str) -> Path:
    return study.output / "splits" / f"{task}.json"


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
    )
    save_splits(splits, splits_path(study, task))
    return cohort


def strata(target: TaskConfig, bags: pd.DataFrame) -> pd.Series:
    """One value a bag to balance folds by: the class; for survival the event and early or late."""
    if not isinstance(target, SurvivalConfig):
        return class_names(bags, target.label)
    times, events = survival_columns(bags, time=target.time, event=target.event)
    table = pd.DataFrame({"time": times, "event": events}, index=bags.index)
    late = table["time"] > table.groupby("event")["time"].transform("median")
    names = {True: "event", False: "censored"}
    return table["event"].map(names) + late.map({True: ", late", False: ", early"})


def run_fold(study: StudyConfig, task: str, method: str, fold: int) -> None:
    """Trains `method` on one fold of `task`; writes checkpoint, history and predictions."""
    section, config = study.mil.tasks[task], study.mil.methods[method]
    folder = study.fold_dir(task, method, fold)
    cohort = task_cohort(study, task)
    features = _features(study, cohort)
    splits = load_splits(splits_path(study, task))
    bags = cohort.bags(section.bag)
    part_of = _part_of_patient(splits.folds[fold], bags["patient_id"])
    parts = {name: bags[bags["patient_id"].map(part_of) == name] for name in splits.parts}

    fitted = fit_task(section.target, parts["train"])
    torch.manual_seed(study.mil.train.seed)  # initial weights
    model = build_method(config, dim=features.dim, outputs=fitted.outputs)
    training, validation = (
        Part(parts[name], fitted.encode(parts[name]), features) for name in ("train", "validation")
    )
    everything = (config, study.mil.train, asdict(splits.folds[fold]), bags.to_csv())
    run_id = digest(*everything, asdict(features.origin), features.fingerprints)
    history = train_method(
        model, fitted, (training, validation),
        config=study.mil.train, state_dir=folder, run_id=run_id,
    )  # fmt: skip
    checkpoint = Checkpoint(
        method=model,
        task=fitted.centred(answer(model, training)),
        origin=features.origin,
        label=f"{task}, {method}, fold {fold}",
        notes={"splits": splits.fingerprint, "fold": fold, "run": run_id},
    )
    save_checkpoint(checkpoint, config, features.dim, folder / "checkpoint.safetensors")
    _write_csv(history, folder / "history.csv")
    predictions = predict(checkpoint, section, cohort, features)
    predictions.insert(0, "part", predictions["patient_id"].map(part_of))
    predictions.insert(0, "fold", fold)
    _write_csv(predictions, folder / "predictions.csv")
    for state in folder.glob("*.state.pt"):
        state.unlink()


def _features(study: StudyConfig, cohort: Cohort) -> SlideFeatures:
    encoder = study.preprocessing.encoder.name
    features = load_features(study.features_dir, cohort.slides.index, encoder)
    patient_of = {str(slide): str(of) for slide, of in cohort.slides["patient_id"].items()}
    refuse_shared_slides(patient_of, features.fingerprints)
    return features


def _write_csv(table: pd.DataFrame, path: Path) -> None:
    with whole_file(path) as partial:
        table.to_csv(partial, index=False)


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


def predict(
    checkpoint: Checkpoint, section: TaskSection, cohort: Cohort, features: SlideFeatures
) -> pd.DataFrame:
    """Predictions of every slide as a bag of its own, and of every patient.

    Columns level ('slide' or 'patient'), id, patient_id, the targets, and the task's answers.
    """
    slides = _answers(checkpoint, cohort.bags("slide"), features)
    if section.bag == "patient":
        patients = _answers(checkpoint, cohort.bags("patient"), features)
    else:
        patients = aggregate(slides, section, cohort.target_columns)
    return pd.concat(
        [slides.assign(level="slide"), patients.assign(level="patient")], ignore_index=True
    )


def _answers(checkpoint: Checkpoint, bags: pd.DataFrame, features: SlideFeatures) -> pd.DataFrame:
    part = Part(bags, torch.empty(len(bags)), features)
    answers = checkpoint.task.predict(answer(checkpoint.method, part))
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
    negative = [c for c in answers if c != f"prob_{positive}"]
    if len(negative) != 1:
        raise CohortError(
            f"aggregate: max joins two classes only, but {label!r} has {len(answers)}; use mean"
        )
    grouped = slides.groupby("patient_id", sort=True)
    patients = grouped[[f"prob_{positive}"]].max()
    patients[negative[0]] = 1 - patients[f"prob_{positive}"]
    is_positive = grouped[label].agg(lambda labels: (labels == positive).any())
    patients[label] = is_positive.map({True: positive, False: negative[0].removeprefix("prob_")})
    return patients
