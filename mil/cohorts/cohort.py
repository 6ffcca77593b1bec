"""Labels joined to slides: one table of targets, and a report of what matched and what did not."""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
from lifelines import KaplanMeierFitter

from mil.cohorts.config import LabelsConfig
from mil.cohorts.label_layout import whole_numbers
from mil.cohorts.label_table import LabelTable, read_label_table
from mil.cohorts.refusals import (
    no_slide,
    refuse_absent,
    refuse_disagreement,
    refuse_other_patients,
    torn_patients,
)
from mil.config_messages import meant
from mil.tasks.columns import class_names, named, survival_columns
from mil.tasks.config import ClassificationConfig, SurvivalTarget, TaskConfig
from preprocessing.errors import CohortError, ConfigError
from preprocessing.manifest import SlideRow


@dataclass(frozen=True)
class Cohort:
    """`slides`: index slide_id; columns patient_id, the targets and the other columns.

    Targets are complete in every row, covariates may be empty (NaN), all is text. `report`: reason
    -> ids left out. `sources`: column -> the label table's own name of it, where it differs.
    """

    slides: pd.DataFrame
    target_columns: tuple[str, ...]
    report: dict[str, list[str]] = field(default_factory=dict)
    other_columns: tuple[str, ...] = ()
    sources: dict[str, str] = field(default_factory=dict)

    def bags(self, unit: Literal["slide", "patient"]) -> pd.DataFrame:
        """One row a bag: index bag id; patient_id, targets, other columns, slide_ids (tuple)."""
        key = self.slides.index if unit == "slide" else self.slides["patient_id"]
        grouped = self.slides.assign(slide_id=self.slides.index).groupby(key, sort=True)
        table = grouped[["patient_id", *self.target_columns, *self.other_columns]].first()
        table["slide_ids"] = grouped["slide_id"].agg(tuple)
        table.index.name = "bag_id"
        return table

    def only(self, slide_ids: set[str], reason: str) -> "Cohort":
        """The slides that are in `slide_ids`; the others are reported under `reason`."""
        kept = self.slides.index.isin(list(slide_ids))
        lost = self.slides.index[~kept].tolist()
        if not kept.any():
            raise CohortError(f"no labelled slide is left: {reason} ({named(lost)})")
        report = {**self.report, reason: lost} if lost else self.report
        return replace(self, slides=self.slides[kept], report=report)

    def describe(self, target: TaskConfig) -> list[str]:
        """What the cohort holds, a line each: slides, patients, classes or follow-up."""
        patients = self.slides["patient_id"].nunique()
        lines = [_counted(len(self.slides), patients)]
        if isinstance(target, ClassificationConfig):
            return lines + self._classes(target.label)
        return lines + self._follow_up(target)

    def _classes(self, label: str) -> list[str]:
        grouped = self.slides.groupby(class_names(self.slides, label))["patient_id"]
        counts = grouped.agg(["size", "nunique"])
        return [
            f"{label} = {name}: {_counted(int(row['size']), int(row['nunique']))}"
            for name, row in counts.iterrows()
        ]

    def _follow_up(self, target: SurvivalTarget) -> list[str]:
        """Reverse Kaplan-Meier: the censored are the events (Schemper & Smith 1996)."""
        time = target.time
        times, events = survival_columns(self.bags("patient"), time=time, event=target.event)
        unit = target.unit or f"in the unit of {self.sources.get(time, time)}"
        median = float(KaplanMeierFitter().fit(times, ~events).median_survival_time_)
        known = f"{median:.4g} ({unit})"
        if not np.isfinite(median):
            known = f"not reached; the longest is {times.max():.4g} ({unit})"
        return [
            f"{len(times)} patients: {events.sum()} events, {(~events).sum()} censored",
            f"median follow-up (reverse Kaplan-Meier): {known}",
        ]


def _counted(slides: int, patients: int) -> str:
    """'1 slide of 1 patient', '2 slides of 1 patient'."""
    return f"{slides} slide{'s' * (slides != 1)} of {patients} patient{'s' * (patients != 1)}"


def read_cohort(
    rows: list[SlideRow],
    labels: LabelsConfig,
    columns: tuple[str, ...],
    *,
    patient_target: bool,
    covariates: tuple[str, ...] = (),
    group: str | None = None,
    target: TaskConfig | None = None,
    key: str = "",
) -> Cohort:
    """Joins the manifest's slides to a label table keyed by slide_id or, lacking that, patient_id.

    `columns`: the targets; slides without them are left out and reported. `covariates` and `group`
    (a site) belong to the patient and may stand in the manifest instead; a covariate may be empty.
    `patient_target`: so does the target, slides of one patient that disagree are refused. `target`
    has follow-up checked, too; `key`, where it stands (mil.tasks.x.target), is for messages.
    """
    others = _other_columns(columns, covariates, group)
    table = read_label_table(labels)
    refuse_absent(table, columns, _keys(target, key))
    known = [c for c in (*columns, *others) if c in table.frame]
    manifest = _manifest(rows, [c for c in others if c not in known], table)
    refuse_other_patients(manifest, table)
    joined = manifest.merge(_one_row_per_id(table, known), on=table.key, how="left")
    joined = joined.set_index("slide_id")
    labelled = manifest[table.key].isin(table.frame[table.key]).to_numpy()
    complete = joined[list(columns)].notna().all(axis=1).to_numpy()
    empty = labelled & ~complete
    if not complete.any():
        raise CohortError(no_slide(table, manifest, columns, matching=int(labelled.sum())))
    report = {
        **table.notes,
        "slides without a label": joined.index[~labelled].tolist(),
        f"slides whose {' or '.join(columns)} is empty": joined.index[empty].tolist(),
        "labels without a slide": sorted(set(table.frame[table.key]) - set(manifest[table.key])),
    }
    slides = joined.loc[complete, ["patient_id", *columns, *others]]
    if patient_target:
        refuse_disagreement(slides, columns)
    slides = _of_patients(slides, others, group)
    report = {reason: ids for reason, ids in report.items() if ids}
    cohort = Cohort(slides, columns, report, others, table.renamed(known))
    if isinstance(target, SurvivalTarget):
        where = _where(table.name, cohort.sources, key)
        survival_columns(cohort.bags("patient"), time=target.time, event=target.event, where=where)
    return cohort


def _keys(target: TaskConfig | None, key: str) -> dict[str, str]:
    """Column -> the key of the configuration that names it."""
    named_by = {getattr(target, name, None): name for name in ("label", "time", "event")}
    return {column: f"{key}.{name}" for column, name in named_by.items() if column and key}


def _where(table: str, sources: dict[str, str], key: str) -> str:
    """The file, the key that asks for its columns, and what these are called there."""
    own = [f"{name} is its column {source}" for name, source in sources.items()]
    told = "; ".join([*([key] if key else []), *own])
    return f"{table} ({told}): " if told else f"{table}: "


def _other_columns(
    columns: tuple[str, ...], covariates: tuple[str, ...], group: str | None
) -> tuple[str, ...]:
    others = tuple(dict.fromkeys((*covariates, *((group,) if group else ()))))
    targets = [c for c in others if c in columns]
    ids = [c for c in others if c in ("slide_id", "patient_id")]
    if targets:
        raise ConfigError(
            f"{', '.join(targets)}: a target cannot be a covariate or the group of its own question"
        )
    if ids:
        raise ConfigError(
            f"{', '.join(ids)}: expected a covariate or a group of patients (split.group: site), "
            "got an id; a patient's slides stay together anyway, so leave it out"
        )
    return others


def _manifest(rows: list[SlideRow], extra: list[str], table: LabelTable) -> pd.DataFrame:
    """slide_id, patient_id and the columns that the label table lacks; empty text is NaN."""
    for name in extra:
        if not any(name in row.extra for row in rows):
            offered = sorted({c for row in rows for c in row.extra})
            raise CohortError(
                f"{name!r} (a covariate or split.group): no such column in {table.name}, which has "
                f"{list(table.frame.columns)}, nor in the manifest, which has {offered}"
                f"{meant(name, (*offered, *map(str, table.frame.columns)))}"
            )
    manifest = pd.DataFrame(
        {
            "slide_id": [row.slide_id for row in rows],
            "patient_id": [row.patient_id for row in rows],
            **{name: [row.extra.get(name, "") for row in rows] for name in extra},
        },
        dtype=object,
    )
    return manifest.mask(manifest == "")


def _one_row_per_id(table: LabelTable, columns: list[str]) -> pd.DataFrame:
    """Repeated rows of an id become one; refused where two of their values differ."""
    frame = table.frame[[table.key, *columns]].copy()
    for name in columns:
        frame[name] = whole_numbers(frame[name])
    grouped = frame.groupby(table.key)[columns]
    differ = grouped.nunique() > 1
    torn = differ.index[differ.any(axis=1)].tolist()
    if torn:
        raise CohortError(
            f"{table.name}: rows of one {table.key} differ: {named(torn)} (columns "
            f"{differ.columns[differ.any()].tolist()}); give each one value"
        )
    return grouped.first().reset_index()


def _of_patients(slides: pd.DataFrame, others: tuple[str, ...], group: str | None) -> pd.DataFrame:
    """Covariates and group known of one slide hold for the patient's other slides."""
    if not others:
        return slides
    for name in others:
        torn = torn_patients(slides, (name,))
        if torn:
            raise CohortError(
                f"slides of one patient differ in {name!r}: {named(torn)}; a covariate or a group "
                "belongs to the patient: give each one value"
            )
    filled = slides.groupby("patient_id")[list(others)].transform("first")
    slides = slides.assign(**{name: filled[name] for name in others})
    if group:
        empty = slides.index[slides[group].isna()]
        if len(empty):
            raise CohortError(
                f"split.group: {group!r} is empty for slide(s) {named(empty)}; fill it in, or "
                "leave these slides out of the manifest"
            )
    return slides
