"""Labels joined to slides: one table of targets, and a report of what matched and what did not."""

from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np
import pandas as pd
from lifelines import KaplanMeierFitter

from mil.cohorts.label_layout import whole_numbers
from mil.cohorts.label_table import LabelTable, looks_censored, read_label_table
from mil.cohorts.slide_ids import near_misses
from mil.config import LabelsConfig
from mil.tasks.columns import class_names, named, survival_columns
from mil.tasks.config import ClassificationConfig, TaskConfig
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
        lines = [f"{len(self.slides)} slides of {patients} patients"]
        if isinstance(target, ClassificationConfig):
            return lines + self._classes(target.label)
        return lines + self._follow_up(target.time, target.event)

    def _classes(self, label: str) -> list[str]:
        grouped = self.slides.groupby(class_names(self.slides, label))["patient_id"]
        counts = grouped.agg(["size", "nunique"])
        return [
            f"{label} {name}: {int(row['size'])} slides of {int(row['nunique'])} patients"
            for name, row in counts.iterrows()
        ]

    def _follow_up(self, time: str, event: str) -> list[str]:
        """Reverse Kaplan-Meier: the censored are the events (Schemper & Smith 1996)."""
        times, events = survival_columns(self.bags("patient"), time=time, event=event)
        unit = f"in the unit of {self.sources.get(time, time)}"
        median = float(KaplanMeierFitter().fit(times, ~events).median_survival_time_)
        known = f"{median:.4g}" if np.isfinite(median) else "not reached, too few are censored"
        return [
            f"{len(times)} patients: {events.sum()} events, {(~events).sum()} censored",
            f"median follow-up (reverse Kaplan-Meier): {known} ({unit})",
        ]


def read_cohort(
    rows: list[SlideRow],
    labels: LabelsConfig,
    columns: tuple[str, ...],
    *,
    patient_target: bool,
    covariates: tuple[str, ...] = (),
    group: str | None = None,
) -> Cohort:
    """Joins the manifest's slides to a label table keyed by slide_id or, lacking that, patient_id.

    `columns`: the targets; slides without them are left out and reported. `covariates` and `group`
    (a site) belong to the patient and may stand in the manifest instead; a covariate may be empty.
    `patient_target`: so does the target, slides of one patient that disagree are refused.
    """
    others = _other_columns(columns, covariates, group)
    table = read_label_table(labels)
    _refuse_absent(table, columns)
    known = [c for c in (*columns, *others) if c in table.frame]
    manifest = _manifest(rows, [c for c in others if c not in known], table)
    _refuse_other_patients(manifest, table)
    joined = manifest.merge(_one_row_per_id(table, known), on=table.key, how="left")
    joined = joined.set_index("slide_id")
    labelled = manifest[table.key].isin(table.frame[table.key]).to_numpy()
    complete = joined[list(columns)].notna().all(axis=1).to_numpy()
    empty = labelled & ~complete
    if not complete.any():
        raise CohortError(_no_slide(table, manifest, columns, matching=int(labelled.sum())))
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
    return Cohort(slides, columns, report, others, table.renamed(known))


def refuse_disagreement(slides: pd.DataFrame, columns: tuple[str, ...]) -> None:
    torn = _torn_patients(slides, columns)
    if torn:
        raise CohortError(
            f"slides of one patient disagree on {list(columns)}: {named(torn)}; give such patients "
            "one value, or ask the question of slides (bag: slide with aggregate: max)"
        )


def _torn_patients(slides: pd.DataFrame, columns: tuple[str, ...]) -> list[str]:
    values = slides.groupby("patient_id")[list(columns)].nunique()
    return values.index[(values > 1).any(axis=1)].tolist()


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


def _refuse_absent(table: LabelTable, columns: tuple[str, ...]) -> None:
    have = [str(c) for c in table.frame.columns]
    for name in columns:
        read_as = [canonical for canonical, source in table.sources.items() if source == name]
        if name not in have and "censorship" in read_as:
            read_as = ["event (1 = observed)"]
        if name not in have and read_as:
            raise CohortError(
                f"{table.name}: its column {name!r} is read as {read_as[0]}; name that in the task"
            )
    censored = [c for c in have if looks_censored(c)]
    if "event" in columns and "event" not in have and censored:
        raise CohortError(
            f"{table.name}: no column event, but {', '.join(censored)}; if 1 = censored there, set "
            f"labels.columns.censorship: {censored[0]}, and event will be 1 - {censored[0]}"
        )
    asked = [c for c in columns if looks_censored(c)]
    if asked:
        raise CohortError(
            f"{table.name}: the task asks for {asked[0]!r}, whose name says 1 = censored; set "
            f"labels.columns.censorship: {asked[0]} and ask for event (1 = observed)"
        )
    lacking = [c for c in columns if c not in have]
    if lacking:
        raise CohortError(f"{table.name}: no column {lacking}; it has {have}")


def _manifest(rows: list[SlideRow], extra: list[str], table: LabelTable) -> pd.DataFrame:
    """slide_id, patient_id and the columns that the label table lacks; empty text is NaN."""
    for name in extra:
        if not any(name in row.extra for row in rows):
            raise CohortError(
                f"{name!r} (a covariate or split.group): no such column in {table.name}, which has "
                f"{list(table.frame.columns)}, nor in the manifest, which has "
                f"{sorted({c for row in rows for c in row.extra})}"
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


def _refuse_other_patients(manifest: pd.DataFrame, table: LabelTable) -> None:
    if not {"slide_id", "patient_id"} <= set(table.frame.columns):
        return
    known = table.frame[["slide_id", "patient_id"]].dropna()
    both = manifest[["slide_id", "patient_id"]].merge(known, on="slide_id", suffixes=("", "_label"))
    torn = both[both["patient_id"] != both["patient_id_label"]]
    if len(torn):
        pairs = (f"{r.slide_id} ({r.patient_id_label}, {r.patient_id})" for r in torn.itertuples())
        raise CohortError(
            f"{table.name} and the manifest name different patients for slide(s) {named(pairs)}; "
            "correct one of them"
        )


def _no_slide(
    table: LabelTable, manifest: pd.DataFrame, columns: tuple[str, ...], *, matching: int
) -> str:
    key = table.key
    if matching:
        return (
            f"{table.name}: {matching} slides of the manifest have a row, but in each of them "
            f"{' or '.join(columns)} is empty"
        )
    labels, slides = table.frame[key].unique().tolist(), manifest[key].unique().tolist()
    hint = near_misses(labels, slides)
    if key == "slide_id" and "patient_id" in table.frame:
        shared = set(table.frame["patient_id"].dropna()) & set(manifest["patient_id"])
        hint += f"; patients do match ({len(shared)})" if shared else ""
    return (
        f"{table.name}: none of its {len(table.frame)} rows matches a slide of the manifest by "
        f"{key}: labels have {named(labels)}; slides have {named(slides)}{hint}"
    )


def _of_patients(slides: pd.DataFrame, others: tuple[str, ...], group: str | None) -> pd.DataFrame:
    """Covariates and group known of one slide hold for the patient's other slides."""
    if not others:
        return slides
    for name in others:
        torn = _torn_patients(slides, (name,))
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
