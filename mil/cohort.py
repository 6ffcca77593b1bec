"""Labels joined to slides: one table of targets, and a report of what matched and what did not."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pandas as pd

from preprocessing.errors import CohortError
from preprocessing.manifest import SlideRow


@dataclass(frozen=True)
class Cohort:
    """`slides`: index slide_id; columns patient_id and the targets, complete in every row."""

    slides: pd.DataFrame
    target_columns: tuple[str, ...]
    report: dict[str, list[str]] = field(default_factory=dict)

    def bags(self, unit: Literal["slide", "patient"]) -> pd.DataFrame:
        """One row a bag: index bag id; columns patient_id, slide_ids (tuple) and the targets."""
        key = self.slides.index if unit == "slide" else self.slides["patient_id"]
        grouped = self.slides.assign(slide_id=self.slides.index).groupby(key, sort=True)
        table = grouped[["patient_id", *self.target_columns]].first()
        table["slide_ids"] = grouped["slide_id"].agg(tuple)
        table.index.name = "bag_id"
        return table

    def only(self, slide_ids: set[str], reason: str) -> "Cohort":
        """The slides that are in `slide_ids`; the others are reported under `reason`."""
        kept = self.slides.index.isin(list(slide_ids))
        lost = self.slides.index[~kept].tolist()
        if not kept.any():
            raise CohortError(f"no labelled slide is left: {reason} ({_some(lost)})")
        report = {**self.report, reason: lost} if lost else self.report
        return Cohort(self.slides[kept], self.target_columns, report)


def read_cohort(
    rows: list[SlideRow], labels: Path, columns: tuple[str, ...], *, patient_target: bool
) -> Cohort:
    """Joins the manifest's slides to a label table keyed by slide_id or, lacking that, patient_id.

    Rows with an empty target are left out and reported. `patient_target`: the target belongs to the
    patient, so slides of one patient that disagree are refused.
    """
    table = _read_labels(labels, columns)
    key = "slide_id" if "slide_id" in table else "patient_id"
    _refuse_duplicates(table, key, columns, labels)
    manifest = pd.DataFrame(
        {"slide_id": [r.slide_id for r in rows], "patient_id": [r.patient_id for r in rows]}
    )
    if key == "slide_id" and "patient_id" in table:
        _refuse_other_patients(manifest, table, labels)
    wanted = table.drop_duplicates(key)[[key, *columns]]
    joined = manifest.merge(wanted, on=key, how="left").set_index("slide_id")
    complete = joined[list(columns)].notna().all(axis=1)
    report = {
        "slides without a label": joined.index[~complete].tolist(),
        "labels without a slide": sorted(set(table[key]) - set(manifest[key])),
    }
    slides = joined[complete]
    if slides.empty:
        raise CohortError(
            f"{labels}: none of its {len(table)} rows matches a slide of the manifest by {key}: "
            f"labels have {_some(table[key].tolist())}; slides have {_some(manifest[key].tolist())}"
        )
    if patient_target:
        refuse_disagreement(slides, columns)
    return Cohort(slides, columns, {k: v for k, v in report.items() if v})


def refuse_disagreement(slides: pd.DataFrame, columns: tuple[str, ...]) -> None:
    values = slides.groupby("patient_id")[list(columns)].nunique()
    torn = values.index[(values > 1).any(axis=1)].tolist()
    if torn:
        raise CohortError(
            f"slides of one patient disagree on {list(columns)}: {_some(torn)}; give such patients "
            "one value, or ask the question of slides (bag: slide with aggregate: max)"
        )


def _read_labels(labels: Path, columns: tuple[str, ...]) -> pd.DataFrame:
    if not labels.is_file():
        raise CohortError(f"the label table {labels} does not exist")
    try:
        # Ids keep leading zeros, and only an empty cell is a missing value: 'None' may be a grade.
        table = pd.read_csv(labels, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except (ValueError, UnicodeDecodeError) as error:  # pandas' parser errors are ValueErrors
        raise CohortError(f"{labels}: expected a CSV in UTF-8, got {error}") from error
    table = table.rename(columns=str.strip).apply(lambda column: column.str.strip())
    table = table.mask(table == "")
    if not {"slide_id", "patient_id"} & set(table.columns):
        raise CohortError(
            f"{labels}: expected a column slide_id or patient_id, found {list(table.columns)}"
        )
    lacking = [c for c in columns if c not in table.columns]
    if lacking:
        raise CohortError(f"{labels}: no column {lacking}; it has {list(table.columns)}")
    for column in columns:  # spreadsheets write 1 as 1.0 where the column has empty cells
        table[column] = table[column].str.replace(r"^(-?\d+)\.0+$", r"\1", regex=True)
    return table


def _refuse_duplicates(
    table: pd.DataFrame, key: str, columns: tuple[str, ...], labels: Path
) -> None:
    nameless = table.index[table[key].isna()].tolist()
    if nameless:
        raise CohortError(f"{labels}: empty {key} in line(s) {[i + 2 for i in nameless][:5]}")
    distinct = table.drop_duplicates([key, *columns])
    torn = distinct.loc[distinct[key].duplicated(), key].tolist()
    if torn:
        raise CohortError(f"{labels}: rows of one {key} differ: {_some(torn)}")


def _refuse_other_patients(manifest: pd.DataFrame, table: pd.DataFrame, labels: Path) -> None:
    named = table[["slide_id", "patient_id"]].dropna()
    both = manifest.merge(named, on="slide_id", suffixes=("", "_label"))
    torn = both.loc[both["patient_id"] != both["patient_id_label"], "slide_id"].tolist()
    if torn:
        raise CohortError(
            f"{labels} and the manifest name different patients for slide(s) {_some(torn)}"
        )


def _some(ids: list[str], most: int = 5) -> str:
    shown = ", ".join(str(i) for i in ids[:most])
    return shown if len(ids) <= most else f"{shown} and {len(ids) - most} more"
