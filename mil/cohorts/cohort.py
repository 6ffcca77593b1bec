"""Labels joined to slides: one table of targets, and a report of what matched and what did not."""

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any, Literal

import numpy as np
import pandas as pd
from lifelines import KaplanMeierFitter

from mil.cohorts.config import LabelsConfig
from mil.cohorts.label_layout import plain_numbers, whole_numbers
from mil.cohorts.label_table import LabelTable, read_label_table
from mil.cohorts.refusals import (
    no_slide,
    refuse_absent,
    refuse_disagreement,
    refuse_other_patients,
    torn_patients,
)
from mil.config_messages import meant
from mil.tasks.columns import (
    answered,
    class_names,
    label_values,
    named,
    number_values,
    survival_columns,
)
from mil.tasks.config import (
    ClassificationConfig,
    Kind,
    MultilabelConfig,
    RegressionConfig,
    SurvivalTarget,
    TaskConfig,
)
from preprocessing.errors import CohortError, ConfigError
from preprocessing.manifest import SlideRow


@dataclass(frozen=True)
class Cohort:
    """`slides`: index slide_id; columns patient_id, the targets and the other columns.

    Targets are complete in every row, or of several labels one at least; covariates may be empty
    (NaN), all is text. `report`: reason -> ids left out. `sources`: column -> the label table's own
    name of it, where it differs.
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
        """What the cohort holds, a line each: slides, patients, and what is known of them."""
        patients = self.slides["patient_id"].nunique()
        lines = [_counted(len(self.slides), patients)]
        return lines + _LINES[target.kind](self, target)


def _class_lines(cohort: Cohort, target: ClassificationConfig) -> list[str]:
    return _values_counted(cohort.slides, class_names(cohort.slides, target.label))


def _label_lines(cohort: Cohort, target: MultilabelConfig) -> list[str]:
    slides, lines = cohort.slides, []
    values = label_values(slides, target.labels)
    for name, known in zip(target.labels, values.T, strict=True):
        told = pd.Series(known, index=slides.index, name=name).map({1.0: "1", 0.0: "0"})
        lines += _values_counted(slides, told.fillna("unknown"))
    return lines


def _values_counted(slides: pd.DataFrame, values: pd.Series) -> list[str]:
    counts = slides.groupby(values)["patient_id"].agg(["size", "nunique"])
    return [
        f"{values.name} = {name}: {_counted(int(row['size']), int(row['nunique']))}"
        for name, row in counts.iterrows()
    ]


def _number_lines(cohort: Cohort, target: RegressionConfig) -> list[str]:
    values = number_values(cohort.slides, target.column)
    low, median, high = np.quantile(values, (0.25, 0.5, 0.75))
    unit = "" if target.unit is None else f" ({target.unit})"
    return [
        f"{target.column}{unit} of slides: median {median:.4g}, quartiles {low:.4g} to {high:.4g}, "
        f"from {values.min():.4g} to {values.max():.4g}"
    ]


def _follow_up_lines(cohort: Cohort, target: SurvivalTarget) -> list[str]:
    """Reverse Kaplan-Meier: the censored are the events (Schemper & Smith 1996)."""
    time = target.time
    times, events = survival_columns(cohort.bags("patient"), time=time, event=target.event)
    unit = target.unit or f"in the unit of {cohort.sources.get(time, time)}"
    median = float(KaplanMeierFitter().fit(times, ~events).median_survival_time_)
    known = f"{median:.4g} ({unit})"
    if not np.isfinite(median):
        known = f"not reached; the longest is {times.max():.4g} ({unit})"
    return [
        f"{len(times)} patients: {events.sum()} events, {(~events).sum()} censored",
        f"median follow-up (reverse Kaplan-Meier): {known}",
    ]


_LINES: dict[Kind, Callable[..., list[str]]] = {
    "classification": _class_lines,
    "multilabel": _label_lines,
    "regression": _number_lines,
    "survival": _follow_up_lines,
}


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

    `columns`: the targets; slides without them (without any, of the labels of a multilabel target)
    are left out and reported. `covariates` and `group` (a site) belong to the patient and may stand
    in the manifest instead; a covariate may be empty. `patient_target`: so does the target, slides
    of one patient that disagree are refused. `target` has its values checked, too; `key`, where it
    stands (mil.tasks.x.target), is for messages.
    """
    others = _other_columns(columns, covariates, group)
    table = read_label_table(labels)
    refuse_absent(table, columns, _keys(target, key))
    known = [c for c in (*columns, *others) if c in table.frame]
    manifest = _manifest(rows, [c for c in others if c not in known], table)
    refuse_other_patients(manifest, table)
    told = _one_row_per_id(table, known, _columns_of_numbers(target))
    joined = manifest.merge(told, on=table.key, how="left").set_index("slide_id")
    labelled = manifest[table.key].isin(table.frame[table.key]).to_numpy()
    complete = answered(joined, columns, target).to_numpy()
    empty = labelled & ~complete
    if not complete.any():
        raise CohortError(no_slide(table, manifest, columns, matching=int(labelled.sum())))
    report = {
        **table.notes,
        "slides without a label": joined.index[~labelled].tolist(),
        _empty_cells(columns, target): joined.index[empty].tolist(),
        "labels without a slide": sorted(set(table.frame[table.key]) - set(manifest[table.key])),
    }
    slides = joined.loc[complete, ["patient_id", *columns, *others]]
    if patient_target:
        refuse_disagreement(slides, columns, target)
    slides = _of_patients(slides, others, group)
    report = {reason: ids for reason, ids in report.items() if ids}
    cohort = Cohort(slides, columns, report, others, table.renamed(known))
    if target is not None and (check := _CHECKS.get(target.kind)):
        check(cohort, target, _where(table.name, cohort.sources, key))
    return cohort


# What refuses cells that are not what a target asks for; any text may be a class.
_CHECKS: dict[Kind, Callable[[Cohort, Any, str], object]] = {
    "multilabel": lambda c, t, where: label_values(c.slides, t.labels, where=where),
    "regression": lambda c, t, where: number_values(c.slides, t.column, where=where),
    "survival": lambda c, t, where: survival_columns(
        c.bags("patient"), time=t.time, event=t.event, where=where
    ),
}


def _empty_cells(columns: tuple[str, ...], target: TaskConfig | None) -> str:
    if isinstance(target, MultilabelConfig):
        return f"slides of which none of {', '.join(columns)} is known"
    return f"slides whose {' or '.join(columns)} is empty"


def _keys(target: TaskConfig | None, key: str) -> dict[str, str]:
    """Column -> the key of the configuration that names it."""
    named_by = {getattr(target, name, None): name for name in ("label", "time", "event", "column")}
    named_by |= dict.fromkeys(getattr(target, "labels", ()), "labels")
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


def _columns_of_numbers(target: TaskConfig | None) -> set[str]:
    return {str(getattr(target, key, "")) for key in ("column", "time")}


def _one_row_per_id(table: LabelTable, columns: list[str], measured: set[str]) -> pd.DataFrame:
    """Repeated rows of an id become one; refused where two of their values differ."""
    frame = table.frame[[table.key, *columns]].copy()
    for name in columns:
        values = plain_numbers(frame[name]) if name in measured else frame[name]
        frame[name] = whole_numbers(values)
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
