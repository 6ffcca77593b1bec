"""Answers as tables: every slide as a bag of its own, and every patient.

Columns: level ('slide' or 'patient'), id, patient_id, the targets and what rides along, then the
task's answers (`prob_<class>`, `prob_<label>`, `value`, or `risk`, `risk_sd` and `survival_<j>`)
and what is called of them (mil.decisions). Of trained models asked about another cohort also
`seen`: whether every model that answered was trained or validated on the patient.
"""

import re
from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np
import pandas as pd
from torch import Tensor

from mil.cohorts.cohort import Cohort
from mil.config import TaskSection
from mil.decisions import (
    classes_of,
    members_of_sets,
    positive_class,
    with_calls,
    with_label_calls,
    with_risk_groups,
)
from mil.tasks.base import Task
from mil.tasks.config import ClassificationConfig, Kind, TaskConfig
from preprocessing.artefacts import whole_file
from preprocessing.errors import CohortError

Answer = Callable[[pd.DataFrame], Tensor]
"""Logits (bags, outputs) of a table of bags, as Cohort.bags makes it."""

_NUMBER = re.compile(
    r"(prob|uncalibrated|spread|threshold)_.+|survival_\d+|risk|risk_sd|risk_cut|threshold|value",
    re.DOTALL,
)


def is_number(column: object) -> bool:
    """Whether a column of a prediction table is one of the numbers that this program writes."""
    return _NUMBER.fullmatch(str(column)) is not None


def predict(answer: Answer, task: Task, section: TaskSection, cohort: Cohort) -> pd.DataFrame:
    """Predictions of all slides and patients; of slides alone where nothing joins them."""
    slides = _answers(answer, task, cohort.bags("slide"))
    if section.bag == "slide" and section.aggregate == "none":
        return slides.assign(level="slide")
    if section.bag == "patient":
        patients = _answers(answer, task, cohort.bags("patient"))
    else:
        patients = aggregate(slides, section, cohort)
    return pd.concat(
        [slides.assign(level="slide"), patients.assign(level="patient")], ignore_index=True
    )


def _answers(answer: Answer, task: Task, bags: pd.DataFrame) -> pd.DataFrame:
    answers = task.predict(answer(bags))
    known = bags.drop(columns="slide_ids").rename_axis("id").reset_index()
    return pd.concat([known, answers.set_axis(known.index)], axis=1)


def aggregate(slides: pd.DataFrame, section: TaskSection, cohort: Cohort) -> pd.DataFrame:
    """Patient rows from slide rows, by the section's rule (see TaskSection.aggregate).

    A patient whose slides disagree on a target has none, unless the rule is for such patients.
    """
    known = [*cohort.target_columns, *cohort.other_columns]
    answers = [str(c) for c in slides.columns if c not in {"id", "patient_id", *known}]
    grouped = slides.groupby("patient_id", sort=True)
    patients = grouped[known].first().join(grouped[answers].mean())
    for name in cohort.target_columns:
        patients[name] = patients[name].where(grouped[name].nunique() <= 1)
    if section.aggregate == "max":
        patients = _any_positive(patients, slides, section.target, answers)
    return patients.rename_axis("patient_id").reset_index().assign(id=lambda t: t["patient_id"])


def _any_positive(
    patients: pd.DataFrame, slides: pd.DataFrame, target: object, answers: list[str]
) -> pd.DataFrame:
    """A patient is positive if one slide is, and as probably as the most suspect of them."""
    assert isinstance(target, ClassificationConfig)  # TaskSection refuses others
    assert target.positive is not None
    (negative,) = [c for c in classes_of(slides) if c != target.positive]
    grouped = slides.groupby("patient_id", sort=True)
    changed = {}
    for prefix in ("prob_", "uncalibrated_"):
        if prefix + negative in answers:
            most = grouped[prefix + target.positive].max()
            changed |= {prefix + target.positive: most, prefix + negative: 1 - most}
    if target.label in patients:
        labels = grouped[target.label]
        is_positive = labels.agg(lambda given: (given == target.positive).any())
        all_given = labels.agg(lambda given: given.notna().all())  # a slide without may be positive
        known = is_positive.map({True: target.positive, False: negative})
        changed[target.label] = known.where(is_positive | all_given)
    return patients.assign(**changed)


def combine(members: Sequence[pd.DataFrame], target: TaskConfig) -> pd.DataFrame:
    """Several models' predictions of the same rows as one: means, and between them the spread.

    Probabilities, values, standardised risks, survival and thresholds are averaged. A class belongs
    to the conformal set if more than half of the members' sets hold it, which covers at least
    1 - 2 (1 - coverage) where theirs cover `coverage` (Gasparin & Ramdas 2024).
    """
    first = members[0]
    if len(members) == 1:
        return first
    keys = ["level", "id"]
    for other in members[1:]:
        if not other[keys].reset_index(drop=True).equals(first[keys].reset_index(drop=True)):
            raise CohortError("members of an ensemble answered different slides or patients")
    numeric = [str(c) for c in first if is_number(c)]
    stacked = np.stack([member[numeric].to_numpy(dtype=float) for member in members])
    joint = first.assign(**dict(zip(numeric, stacked.mean(axis=0).T, strict=True)))
    for name in [c for c in numeric if c.startswith("threshold")]:
        # a member without one (NaN) leaves the call to the others
        joint[name] = pd.concat([m[name] for m in members], axis=1).mean(axis=1)
    spread = dict(zip(numeric, stacked.std(axis=0).T, strict=True))
    told = {f"prob_{c}": f"spread_{c}" for c in classes_of(first)}
    told |= {name: f"spread_{name}" for name in ("value", "risk_sd") if name in spread}
    spreads = {column: spread[answer] for answer, column in told.items()}
    return _CALLS[target.kind](joint, members, target).assign(**spreads)


def _joint_classes(
    joint: pd.DataFrame, members: Sequence[pd.DataFrame], target: ClassificationConfig
) -> pd.DataFrame:
    majority = np.mean([members_of_sets(member) for member in members], axis=0) > 0.5
    return with_calls(joint, positive_class(target, classes_of(joint)), majority)


# What several members call together, of their joint answers.
_CALLS: dict[Kind, Callable[..., pd.DataFrame]] = {
    "classification": _joint_classes,
    "multilabel": lambda joint, *_: with_label_calls(joint),
    "regression": lambda joint, *_: joint,
    "survival": lambda joint, *_: with_risk_groups(joint),
}


def read_predictions(path: Path) -> pd.DataFrame:
    """Ids and labels stay text, so that '007', '1' and 'NA' come back as they went."""
    table = pd.read_csv(path, dtype=str, keep_default_na=False, na_values=[""])
    numeric = [c for c in table if is_number(c)]
    whole = [c for c in ("fold", "repeat", "seed") if c in table]
    table = table.astype({**dict.fromkeys(whole, int), **dict.fromkeys(numeric, float)})
    if "seen" in table:
        table["seen"] = table["seen"] == "True"
    if "abstain" in table:
        table["abstain"] = table["abstain"] == "True"
        table["conformal_set"] = table["conformal_set"].fillna("")
    return table


def write_csv(table: pd.DataFrame, path: Path) -> None:
    with whole_file(path) as partial:
        table.to_csv(partial, index=False)
