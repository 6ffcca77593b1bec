"""The typed configuration of a study: one YAML, two roots, checked once at each door.

    output: runs/demo            every result goes below this folder
    preprocessing: {...}         slides to features (preprocessing.config)
    mil: {...}                   features to models, metrics and heatmaps

The Snakefile and every subcommand validate with the same classes; paths are relative to the working
directory.
"""

import hashlib
import json
import re
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BeforeValidator, Field, StringConstraints, ValidationError, model_validator
from pydantic_core import to_jsonable_python

from mil.cohorts.config import LabelsConfig
from mil.config_messages import explain
from mil.models.config import ClamConfig, MethodConfig
from mil.tasks.config import ClassificationConfig, CoxConfig, SurvivalTarget, TaskConfig
from mil.training.config import TrainConfig
from preprocessing.config import PreprocessingConfig, Section
from preprocessing.errors import ConfigError

# Columns of the prediction tables; a target of such a name would be overwritten.
RESERVED = {"fold", "repeat", "seed", "part", "level", "id", "splits", "seen", "value"}
RESERVED |= {"patient_id", "slide_id", "slide_ids", "risk", "risk_sd", "risk_cut", "risk_group"}
RESERVED |= {"threshold", "predicted", "conformal_set", "abstain"}
RESERVED_FORM = re.compile(r"(prob|uncalibrated|spread|threshold|predicted)_.+|survival_\d+")
Baseline = Literal["mean_features", "clinical"]
BASELINES = get_args(Baseline)
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


def _refuse_reserved(key: str, column: str | None, canonical: str | None) -> None:
    """`canonical`: the name under which labels.columns can read such a column instead."""
    if column is None or not (column in RESERVED or RESERVED_FORM.fullmatch(column)):
        return
    remedy = f"name the column otherwise in its table ({column}_at_entry)"
    if canonical:
        remedy = f"set labels.columns: {{{canonical}: {column}}} and write {key}: {canonical}"
    raise ValueError(f"{key}: {column!r} is a column of the result tables; {remedy}")


class TruthConfig(Section):
    """Outlines of what the positive answer should find; models never see them."""

    folder: Path = Field(description="<slide_id>.geojson, polygons in openslide's level-0 pixels")
    min_overlap: float = Field(
        default=0.25, gt=0, le=1, description="share of a tile inside that makes it positive"
    )


class TaskSection(Section):
    """One question, the bag that it is asked of, and how slides answer for their patient."""

    target: TaskConfig
    bag: Literal["slide", "patient"] = Field(
        default="slide", description="patient: all tiles of all slides of a patient form one bag"
    )
    aggregate: Literal["mean", "max", "none"] = Field(
        default="mean",
        description="slide bags only: a patient's probability is the mean over slides (labels must "
        "agree), or the maximum of the positive class (a patient is positive if one slide is); "
        "none: slides answer for themselves, and patients get no answer",
    )
    covariates: tuple[str, ...] = Field(
        default=(), description="columns (age, stage, ...) to adjust for, and the clinical baseline"
    )
    baselines: tuple[Baseline, ...] | None = Field(
        default=None,
        description="answers without MIL, beside the methods; None: mean_features, and clinical "
        "where covariates are given",
    )
    truth: TruthConfig | None = Field(
        default=None, description="outlines to draw on the task's heatmaps and to score tiles by"
    )

    @property
    def asked_baselines(self) -> tuple[Baseline, ...]:
        default: tuple[Baseline, ...] = ("mean_features", "clinical")
        if self.baselines is None:
            return default if self.covariates else default[:1]
        return self.baselines

    @model_validator(mode="after")
    def _clinical_needs_covariates(self) -> "TaskSection":
        if "clinical" in (self.baselines or ()) and not self.covariates:
            raise ValueError("baselines: clinical needs `covariates`")
        return self

    @model_validator(mode="after")
    def _columns_are_not_ours(self) -> "TaskSection":
        for key in ("label", "time", "event", "column"):
            canonical = "label" if key == "column" else key
            _refuse_reserved(f"target.{key}", getattr(self.target, key, None), canonical)
        for column in getattr(self.target, "labels", ()):
            _refuse_reserved("target.labels", column, None)
        for column in self.covariates:
            _refuse_reserved("covariates", column, None)
        return self

    @model_validator(mode="after")
    def _aggregate_has_a_meaning(self) -> "TaskSection":
        if self.aggregate != "mean" and self.bag == "patient":
            msg = (
                f"aggregate: {self.aggregate} joins answers of slides; leave it out, or bag: slide"
            )
            raise ValueError(msg)
        if self.aggregate == "none" and isinstance(self.target, SurvivalTarget):
            msg = (
                "aggregate: none is for questions about slides; follow-up is a patient's: use mean"
            )
            raise ValueError(msg)
        binary = isinstance(self.target, ClassificationConfig) and self.target.positive is not None
        if self.aggregate == "max" and not binary:
            msg = "aggregate: max needs a classification target that names its `positive` class"
            raise ValueError(msg)
        return self


class SplitConfig(Section):
    """Patient-level stratified folds, each with a validation part inside its training part."""

    scheme: Literal["kfold", "monte_carlo", "supplied"] = Field(
        default="kfold",
        description="kfold: everyone is tested once a repeat; monte_carlo: `folds` random draws of "
        "`test_share`; supplied: from `files`",
    )
    folds: int = Field(default=5, ge=1)
    repeats: int = Field(default=1, ge=1, description="kfold only: so many different k-folds")
    test_share: float = Field(default=0.2, gt=0, le=0.5, description="monte_carlo only")
    validation_share: float = Field(default=0.2, gt=0, le=1 / 3)
    group: str | None = Field(
        default=None,
        description="a column, e.g. site: patients of one value are never split between parts",
    )
    files: tuple[Path, ...] = Field(
        default=(), description="supplied only: one file a fold, or one"
    )
    test_part: Literal["test", "val"] = Field(
        default="test", description="supplied only: the part that is held out"
    )
    seed: int = 0

    @property
    def number_of_folds(self) -> int:
        return self.folds * self.repeats

    @model_validator(mode="after")
    def _group_is_not_ours(self) -> "SplitConfig":
        _refuse_reserved("group", self.group, "site")
        return self

    @model_validator(mode="after")
    def _keys_fit_the_scheme(self) -> "SplitConfig":
        if self.scheme == "kfold" and self.folds < 2:
            msg = f"folds: cross-validation needs 2 or more, got {self.folds}"
            raise ValueError(msg)
        if self.scheme != "kfold" and self.repeats != 1:
            msg = f"repeats: only scheme kfold is repeated, this is {self.scheme}"
            raise ValueError(msg)
        if (self.scheme == "supplied") != bool(self.files):
            msg = "files: give the split files with scheme: supplied, and only then"
            raise ValueError(msg)
        return self


def _table_alone(value: object) -> object:
    """`labels: labels.csv` is short for `labels: {table: labels.csv}`."""
    return {"table": value} if isinstance(value, str | Path) else value


class MilConfig(Section):
    labels: Annotated[LabelsConfig, BeforeValidator(_table_alone)] | None = Field(
        default=None, description="a table keyed by slide_id or patient_id, or a section"
    )
    tasks: dict[Name, TaskSection] = Field(default={})
    methods: dict[Name, MethodConfig] = Field(default={})
    split: SplitConfig = SplitConfig()
    train: TrainConfig = TrainConfig()
    bootstrap: int = Field(default=1000, ge=100, description="patient bootstrap resamples")
    reference: Name | None = Field(
        default=None,
        description="whom the comparison table tests all others against; None: the first method",
    )
    apply: dict[Name, Path] = Field(
        default={},
        description="trained models to ask about this archive's slides: a checkpoint, or a folder "
        "models/<task>/<method>, whose folds and seeds then answer together",
    )

    @model_validator(mode="after")
    def _baselines_keep_their_names(self) -> "MilConfig":
        if taken := sorted(set(self.methods) & set(BASELINES)):
            msg = f"methods: {taken[0]!r} is the name of a baseline; choose another"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _reference_answers_every_task(self) -> "MilConfig":
        for name, task in self.tasks.items():
            known = (*self.methods, *task.asked_baselines)
            if self.reference not in (None, *known):
                msg = f"reference: {self.reference!r} is not of task {name!r}: {', '.join(known)}"
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _tasks_have_what_they_need(self) -> "MilConfig":
        if self.tasks and self.labels is None:
            msg = "tasks are configured but `labels` names no table"
            raise ValueError(msg)
        if bool(self.tasks) != bool(self.methods):
            msg = "`tasks` and `methods` go together: give both, or neither (features only)"
            raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _training_suits_the_tasks(self) -> "MilConfig":
        for name, task in self.tasks.items():
            target, train = task.target, self.train
            if isinstance(target, CoxConfig) and train.bags_per_step == 1:
                raise ValueError(
                    f"train.bags_per_step: task {name!r} compares patients; use epoch, or 2 or more"
                )
            if train.sampling != "balanced":
                continue
            weights = {"classification": "class_weights", "multilabel": "label_weights"}
            if target.kind not in weights:
                raise ValueError(
                    f"train.sampling: balanced, but the answer of task {name!r} has no classes; "
                    "use shuffle"
                )
            if getattr(target, weights[target.kind]) == "balanced":
                raise ValueError(
                    f"train.sampling: balanced, and {weights[target.kind]}: balanced of task "
                    f"{name!r} would correct for rare classes twice; choose one"
                )
        return self

    @model_validator(mode="after")
    def _methods_suit_the_tasks(self) -> "MilConfig":
        several = [name for name, task in self.tasks.items() if task.target.kind == "multilabel"]
        for name, method in self.methods.items():
            if several and isinstance(method, ClamConfig) and method.subtyping:
                raise ValueError(
                    f"methods.{name}.subtyping: classes that exclude one another, but task "
                    f"{several[0]!r} has several labels a case; set it to false"
                )
        return self


class StudyConfig(Section):
    output: Path
    preprocessing: PreprocessingConfig
    mil: MilConfig = MilConfig()

    @property
    def features_dir(self) -> Path:
        return self.output / "features"

    def answerers(self, task: str) -> list[str]:
        """Who answers a task: the methods, then the baselines without MIL."""
        return [*self.mil.methods, *self.mil.tasks[task].asked_baselines]

    @property
    def reference(self) -> str:
        """Against whom the comparison table tests all others of a task."""
        return self.mil.reference or next(iter(self.mil.methods))

    def seeds(self, answerer: str) -> range:
        """One model a seed; a baseline is not random."""
        first = self.mil.train.seed
        return range(first, first + (1 if answerer in BASELINES else self.mil.train.seeds))

    def member_dir(self, task: str, answerer: str, fold: int, seed: int) -> Path:
        return self.output / "models" / task / answerer / f"fold{fold}" / f"seed{seed}"


def load_study(path: Path) -> StudyConfig:
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path} is not UTF-8 text: {error}; save it as UTF-8") from error
    try:
        values = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    return validate_study(values, source=str(path))


def validate_study(values: object, *, source: str) -> StudyConfig:
    """The study that `values` describe; raises ConfigError with one line for each wrong key."""
    try:
        return StudyConfig.model_validate(values)
    except ValidationError as error:
        lines = explain(error, StudyConfig, values)
        raise ConfigError(f"{source}: {len(lines)} problem(s)\n  " + "\n  ".join(lines)) from error


def digest(*sections: Any) -> str:
    """A short digest of sections, dataclasses or JSON values, the same in every process."""
    values = to_jsonable_python(sections)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def dump_study(study: StudyConfig) -> str:
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)
