"""The only list of tasks: from a configuration section, or from a checkpoint, to a task."""

from typing import Any, assert_never

import pandas as pd

from mil.tasks.base import Task
from mil.tasks.classification import ClassificationTask
from mil.tasks.config import (
    ClassificationConfig,
    CoxConfig,
    MultilabelConfig,
    RegressionConfig,
    SurvivalConfig,
    TaskConfig,
)
from mil.tasks.cox import CoxTask
from mil.tasks.discrete import DiscreteSurvivalTask
from mil.tasks.multilabel import MultilabelTask
from mil.tasks.regression import RegressionTask
from preprocessing.errors import CheckpointError

_TASKS = {
    "classification": ClassificationTask,
    "survival": DiscreteSurvivalTask,
    "cox": CoxTask,
    "multilabel": MultilabelTask,
    "regression": RegressionTask,
}


def fit_task(config: TaskConfig, training_targets: pd.DataFrame) -> Task:
    """The task as the training part of a fold defines it: class order, time bins, mean and sd."""
    match config:
        case ClassificationConfig():
            return ClassificationTask.fit(
                training_targets,
                label=config.label,
                classes=config.classes,
                positive=config.positive,
                weighted=config.class_weights == "balanced",
            )
        case SurvivalConfig():
            return DiscreteSurvivalTask.fit(training_targets, config)
        case CoxConfig():
            return CoxTask.fit(training_targets, config, ties=config.ties)
        case MultilabelConfig():
            return MultilabelTask.fit(training_targets, config)
        case RegressionConfig():
            return RegressionTask.fit(training_targets, config.column)
        case _:
            assert_never(config)


def restore_task(state: dict[str, Any]) -> Task:
    """The task whose `state` a checkpoint holds."""
    task = _TASKS.get(state.get("name", ""))
    if task is None:
        raise CheckpointError(
            f"expected the state of a task, one of {', '.join(_TASKS)}, got {state}; was the "
            "checkpoint written by another version?"
        )
    try:
        return task.restore(state)
    except (KeyError, TypeError) as error:
        raise CheckpointError(
            f"the state of a {state['name']} task lacks {error}, it is {state}; was the checkpoint "
            "written by another version? Train it anew"
        ) from error
