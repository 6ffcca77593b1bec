"""The labelled slides of a task, their features, and a digest of both."""

from hashlib import sha256
from pathlib import Path

import pandas as pd

from mil.bags import CohortFeatures, TileOrigin, load_features
from mil.cohorts.cohort import Cohort, read_cohort, refuse_disagreement
from mil.config import StudyConfig, digest
from mil.folds.splits import Splits, copied_slides, load_splits, refuse_shared_groups
from mil.tasks.columns import class_names
from mil.tasks.config import ClassificationConfig, SurvivalTarget
from preprocessing.errors import CohortError
from preprocessing.manifest import SlideRow, read_manifest
from preprocessing.process_list import read_process_list
from preprocessing.stores.store import FeatureStore, open_store, store_path


def task_cohort(study: StudyConfig, task: str) -> Cohort:
    """The labelled slides whose features are there."""
    section = study.mil.tasks[task]
    if study.mil.labels is None:
        raise CohortError(f"task {task!r} needs a label table: set mil.labels")
    rows = read_manifest(study.preprocessing.manifest)
    cohort = read_cohort(
        rows,
        study.mil.labels,
        section.target.columns,
        patient_target=section.bag == "patient" or isinstance(section.target, SurvivalTarget),
        covariates=section.covariates,
        group=study.mil.split.group,
        target=section.target,
        key=f"mil.tasks.{task}.target",
    )
    if section.bag == "slide" and section.aggregate == "mean":
        refuse_disagreement(cohort.slides, cohort.target_columns, section.target)
    extracted = {row.slide_id for row in rows_with_features(study)}
    usable = cohort.only(extracted, "slides without features")
    if section.bag == "patient" or section.aggregate != "max":
        return usable
    assert isinstance(section.target, ClassificationConfig)  # TaskSection refuses others
    return usable.only(
        _with_known_patients(usable, cohort, rows, section.target),
        "slides of patients who may be positive: no slide with features is, one without a label "
        "or without features may be",
    )


def _with_known_patients(
    usable: Cohort, labelled: Cohort, rows: list[SlideRow], target: ClassificationConfig
) -> set[str]:
    """The usable slides of patients with a positive one among them, or with all slides known to
    be negative: that no labelled slide of a patient is positive says nothing of one without.
    """
    positive = class_names(labelled.slides, target.label) == target.positive
    suspect = {row.patient_id for row in rows if row.slide_id not in labelled.slides.index}
    suspect |= set(labelled.slides.loc[positive, "patient_id"])
    slides = usable.slides
    shown = set(slides.loc[positive[slides.index], "patient_id"])
    return set(slides.index[~slides["patient_id"].isin(suspect - shown)])


def rows_with_features(study: StudyConfig) -> list[SlideRow]:
    """The manifest's slides that did not fail: an old store of one that now fails is not used."""
    statuses = read_process_list(study.features_dir)
    good = {status.slide_id for status in statuses if status.status != "failed"}
    return [row for row in read_manifest(study.preprocessing.manifest) if row.slide_id in good]


def slide_store(study: StudyConfig, slide_id: str) -> FeatureStore:
    """Its usable tiles are those within the study's `preprocessing.quality`."""
    return open_store(store_path(study.features_dir, slide_id), study.preprocessing.quality)


def splits_path(study: StudyConfig, task: str) -> Path:
    return study.output / "splits" / f"{task}.json"


def cohort_path(study: StudyConfig, task: str) -> Path:
    """What the cohort of a task holds, and what did not match and why."""
    return splits_path(study, task).with_suffix(".cohort.json")


def task_features(study: StudyConfig, cohort: Cohort) -> CohortFeatures:
    """All features of the cohort."""
    return load_features(
        study.features_dir,
        cohort.slides.index,
        study.preprocessing.encoder.name,
        study.mil.train.features,
        limits=study.preprocessing.quality,
    )


def shared_images(study: StudyConfig, cohort: Cohort) -> dict[str, list[str]]:
    """What to report of slides that are copies; one image under two patients is refused."""
    patient_of = {str(slide): str(of) for slide, of in cohort.slides["patient_id"].items()}
    found = {s: slide_store(study, s).provenance.slide_fingerprint for s in patient_of}
    copies = copied_slides(patient_of, found)
    return {"slides that repeat another slide of their patient": copies} if copies else {}


def data_digest(study: StudyConfig, task: str, cohort: Cohort) -> str:
    """Changes with every label, tile and feature that training on `cohort` would see, and with how
    its patients are to be divided.
    """
    section = study.mil.tasks[task]
    encoder = study.preprocessing.encoder.name
    tiles = {str(s): _tiles(slide_store(study, str(s)), encoder) for s in cohort.slides.index}
    asked = section.model_dump(mode="json", exclude={"truth", "baselines"})
    config = study.mil.split
    given = {str(path): _split_file_digest(path) for path in config.files}
    return digest(asked, cohort.bags(section.bag).to_csv(), tiles, config, given)


def _split_file_digest(path: Path) -> str:
    try:
        return sha256(path.read_bytes()).hexdigest()
    except OSError as error:
        raise CohortError(
            f"cannot read the split file {path} of mil.split.files: {error.strerror}; put it back, "
            "or change the setting and make the splits anew"
        ) from error


def patient_groups(study: StudyConfig, cohort: Cohort) -> pd.Series | None:
    """Patient -> value of the column that `split.group` names; None where it names none."""
    if study.mil.split.group is None:
        return None
    return cohort.slides.groupby("patient_id")[study.mil.split.group].first()


def current_splits(study: StudyConfig, task: str, cohort: Cohort) -> Splits:
    """The saved folds; refused if labels, tiles or features have changed since they were made."""
    path = splits_path(study, task)
    splits = load_splits(path)
    if splits.data != data_digest(study, task, cohort):
        raise CohortError(
            f"labels, slides, features or splits of task {task!r} have changed since {path} was "
            "made: make the splits anew (histomil split), then train"
        )
    groups = patient_groups(study, cohort)
    if groups is not None:
        refuse_shared_groups(splits, groups)
    return splits


def _tiles(store: FeatureStore, encoder: str) -> list[object]:
    made = store.provenance
    return [
        made.slide_fingerprint,
        TileOrigin.of(store, encoder),
        store.encoder_record(encoder).precision,
        made.extraction_version,
        [made.mpp_x, made.mpp_y],
        made.tissue.model_dump(mode="json"),
        made.grid.model_dump(mode="json"),
        store.content(encoder),
    ]
