"""The only list of tasks: from a configuration section, or from a checkpoint, to a task."""

from collections.abc import Mapping
from typing import Any, assert_never

import pandas as pd

from mil.tasks.base import Task
from mil.tasks.classification import ClassificationTask
from mil.tasks.config import ClassificationConfig, SurvivalConfig, TaskConfig
from mil.tasks.survival import DiscreteSurvivalTask
from preprocessing.errors import CheckpointError


def fit_task(config: TaskConfig, training_targets: pd.DataFrame) -> Task:
    """The task as the training part of a fold defines it: class order, time bins."""
    match config:
        case ClassificationConfig():
            return ClassificationTask.fit(
                training_targets,
                label=config.label,
                classes=config.classes,
                positive=config.positive,
            )
        case SurvivalConfig():
            return DiscreteSurvivalTask.fit(
                training_targets,
                time=config.time,
                event=config.event,
                bins=config.bins,
                alpha=config.alpha,
            )
        case _:
            assert_never(config)


def restore_task(state: Mapping[str, Any]) -> Task:
    """The task whose `state` a checkpoint holds."""
    match state:
        case {"name": "classification", "classes": classes, "label": label, "positive": positive}:
            return ClassificationTask(tuple(classes), label=label, positive=positive)
        case {
            "name": "survival",
            "cuts": cuts,
            "time": time,
            "event": event,
            "alpha": alpha,
            "reference": reference,
        }:
            return DiscreteSurvivalTask(
                tuple(cuts), time=time, event=event, alpha=alpha, reference=reference
            )
        case _:
            raise CheckpointError(
                f"expected the state of a classification or survival task, got {dict(state)}; "
                "was the checkpoint written by another version?"
            )
