"""The typed configuration of a study: one YAML, two roots, checked once at each door.

    output: runs/demo            every result goes below this folder
    preprocessing: {...}         slides to features (preprocessing.config)
    mil: {...}                   features to models, metrics and heatmaps

The Snakefile and every subcommand validate with the same classes; paths are relative to the working
directory.
"""

import difflib
import hashlib
import json
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import Field, StringConstraints, ValidationError, model_validator
from pydantic_core import to_jsonable_python

from mil.models.config import MethodConfig
from mil.tasks.config import TaskConfig
from preprocessing.config import PreprocessingConfig, Section
from preprocessing.errors import ConfigError

# Columns of the prediction tables; a target of such a name would be overwritten.
RESERVED = {"fold", "part", "level", "id", "splits", "patient_id", "slide_id", "slide_ids"}
RESERVED |= {"risk", "risk_cut", "risk_group"}
Name = Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9][A-Za-z0-9_-]*$")]


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
    aggregate: Literal["mean", "max"] = Field(
        default="mean",
        description="slide bags only: a patient's probability is the mean over slides (labels must "
        "agree), or the maximum of the positive class (a patient is positive if one slide is)",
    )
    truth: TruthConfig | None = Field(
        default=None, description="outlines to draw on the task's heatmaps and to score tiles by"
    )

    @model_validator(mode="after")
    def _columns_are_not_ours(self) -> "TaskSection":
        for column in self.target.columns:
            if column in RESERVED or column.startswith(("prob_", "survival_")):
                msg = f"column {column!r} is a name of the result tables; rename it"
                raise ValueError(msg)
        return self

    @model_validator(mode="after")
    def _max_needs_a_positive_class(self) -> "TaskSection":
        if self.aggregate == "max" and getattr(self.target, "positive", None) is None:
            msg = "aggregate: max needs a classification target that names its `positive` class"
            raise ValueError(msg)
        return self


class SplitConfig(Section):
    """Patient-level stratified folds, each with a validation part inside its training part."""

    folds: int = Field(default=5, ge=2)
    validation_share: float = Field(default=0.2, gt=0, le=1 / 3)
    seed: int = 0


class TrainConfig(Section):
    epochs: int = Field(default=50, ge=1)
    learning_rate: float = Field(default=2e-4, gt=0)
    weight_decay: float = Field(default=1e-5, ge=0)
    bags_per_step: int = Field(default=1, ge=1)
    patience: int = Field(
        default=15, ge=1, description="epochs without a better validation loss before stopping"
    )
    min_epochs: int = Field(default=10, ge=1, description="no early stop before this epoch")
    seed: int = 0
    device: Literal["auto", "cpu", "cuda"] = "auto"


class MilConfig(Section):
    labels: Path | None = Field(
        default=None, description="CSV keyed by slide_id or patient_id with the target columns"
    )
    tasks: dict[Name, TaskSection] = Field(default={})
    methods: dict[Name, MethodConfig] = Field(default={})
    split: SplitConfig = SplitConfig()
    train: TrainConfig = TrainConfig()
    bootstrap: int = Field(default=1000, ge=100, description="patient bootstrap resamples")
    apply: dict[Name, Path] = Field(
        default={}, description="trained checkpoints to paint this archive's slides with"
    )

    @model_validator(mode="after")
    def _tasks_need_labels_and_methods(self) -> "MilConfig":
        if self.tasks and self.labels is None:
            msg = "tasks are configured but `labels` names no table"
            raise ValueError(msg)
        if bool(self.tasks) != bool(self.methods):
            msg = "`tasks` and `methods` go together: give both, or neither (features only)"
            raise ValueError(msg)
        return self


class StudyConfig(Section):
    output: Path
    preprocessing: PreprocessingConfig
    mil: MilConfig = MilConfig()

    @property
    def features_dir(self) -> Path:
        return self.output / "features"

    def fold_dir(self, task: str, method: str, fold: int) -> Path:
        return self.output / "models" / task / method / f"fold{fold}"


def load_study(path: Path) -> StudyConfig:
    try:
        text = path.read_text()
    except OSError as error:
        raise ConfigError(f"cannot read the configuration {path}: {error.strerror}") from error
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
        lines = [_explain(problem) for problem in error.errors()]
        raise ConfigError(f"{source}: {len(lines)} problem(s)\n  " + "\n  ".join(lines)) from error


def _explain(problem: Any) -> str:
    where = ".".join(str(part) for part in problem["loc"]) or "(top level)"
    if problem["type"] == "extra_forbidden":
        close = difflib.get_close_matches(str(problem["loc"][-1]), _known_keys(), n=1)
        hint = f"; did you mean {close[0]!r}?" if close else ""
        return f"{where}: unknown key{hint}"
    if problem["type"] == "missing":
        return f"{where}: required, but absent"
    return f"{where}: {problem['msg']}, got {problem['input']!r}"


def _known_keys() -> set[str]:
    """Every key of every section reachable from StudyConfig."""
    keys: set[str] = set()

    def visit(schema: Any) -> None:
        if isinstance(schema, dict):
            keys.update(schema.get("properties", {}))
            for value in schema.values():
                visit(value)
        elif isinstance(schema, list):
            for value in schema:
                visit(value)

    visit(StudyConfig.model_json_schema())
    return keys


def digest(*sections: Any) -> str:
    """A short digest of sections, dataclasses or JSON values, the same in every process."""
    values = to_jsonable_python(sections)
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()[:16]


def dump_study(study: StudyConfig) -> str:
    return yaml.safe_dump(study.model_dump(mode="json"), sort_keys=False)
