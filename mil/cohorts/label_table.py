"""Label tables of other tools, read into one form and joined: canonical columns, event = observed.

A table is read by its preset (mil.cohorts.presets) and by labels.columns, which goes before the
preset. What could be meant in two ways is refused; what is left out is listed under its reason.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import reduce
from pathlib import Path

import pandas as pd

from mil.cohorts.config import LabelsConfig
from mil.cohorts.label_layout import FOLLOW_UP, IDS, Layout, Notes, read_layout
from mil.cohorts.presets import CANONICAL, PLAIN, PRESETS, VITAL, Preset
from mil.cohorts.slide_ids import near_misses, tissue_source_site
from mil.cohorts.table_files import read_table
from mil.config_messages import meant
from mil.tasks.columns import named
from preprocessing.errors import CohortError, ConfigError


@dataclass(frozen=True)
class LabelTable:
    """One or more label files in one form.

    `frame`: text or NaN; rows of one id may repeat, `key` is never empty. `notes`: reason -> the
    ids (or columns) that it concerns. `sources`: canonical name -> the column it was read from.
    """

    name: str
    frame: pd.DataFrame
    notes: Notes
    sources: dict[str, str]

    @property
    def key(self) -> str:
        return "slide_id" if "slide_id" in self.frame else "patient_id"

    def renamed(self, columns: Iterable[str]) -> dict[str, str]:
        """The table's own names of those columns that have another here."""
        return {c: self.sources[c] for c in columns if self.sources.get(c, c) != c}


def read_label_table(labels: LabelsConfig) -> LabelTable:
    """The table and those joined to it; `event` is 1 = observed also where a file says censorship.

    With a preset, `site` is filled in with the tissue source site of TCGA barcodes where the tables
    have none. Raises ConfigError for a mapping that cannot be meant, CohortError for a table.
    """
    preset = PRESETS[labels.preset] if labels.preset else PLAIN
    bare_ids = preset.bare_ids or labels.bare_ids
    layout = Layout(replace(preset, bare_ids=bare_ids), labels.columns)
    _check_mapping(layout.columns, layout.preset)
    paths = (labels.table, *labels.join)
    files = [read_table(path, header=layout.preset.header) for path in paths]
    _refuse_absent(layout.columns, paths, [frame for frame, _ in files])
    tables = []
    for path, (raw, sheets) in zip(paths, files, strict=True):
        frame, sources, notes = read_layout(raw, layout, path)
        if sheets:
            notes[f"sheets of {path.name} that were not read"] = sheets
        tables.append(LabelTable(str(path), frame, notes, sources))
    table = reduce(_joined, tables)
    if labels.preset and "site" not in table.frame:
        sites = table.frame[table.key].map(tissue_source_site)
        if sites.notna().any():
            return replace(table, frame=table.frame.assign(site=sites))
    return table


def looks_censored(column: str) -> bool:
    """A column that by its name is 1 for the censored; never read as an event."""
    return "censor" in column.lower()


def _check_mapping(columns: Mapping[str, str], preset: Preset) -> None:
    vital = VITAL if set(VITAL) <= set(preset.columns) else ()
    strange = sorted(set(columns) - set(CANONICAL) - set(vital))
    if strange:
        raise ConfigError(
            f"labels.columns: {', '.join(strange)} is no canonical name; these are "
            f"{', '.join((*CANONICAL, *vital))}. Other columns keep their names and need no entry"
        )
    mapped = set(FOLLOW_UP) & set(columns)
    if len(mapped) == 1 and {"time", *VITAL} & set(preset.columns):
        raise ConfigError(
            f"labels.columns: {mapped.pop()} is given alone, the preset would read the other half "
            "of the follow-up from another endpoint; give time together with event or censorship"
        )
    source = columns.get("event", "")
    if looks_censored(source):
        raise ConfigError(
            f"labels.columns: event is read from {source!r}, whose name says 1 = censored; if so, "
            f"write censorship: {source}; if 1 does mean an observed event, rename the column"
        )


def _refuse_absent(
    columns: Mapping[str, str], paths: Iterable[Path], frames: Iterable[pd.DataFrame]
) -> None:
    found = [str(name) for frame in frames for name in frame.columns]
    for name, source in columns.items():
        if source not in found:
            raise ConfigError(
                f"labels.columns.{name}: no column {source!r} in {', '.join(map(str, paths))}; "
                f"there are {', '.join(found)}{meant(source, found)}"
            )


def _joined(left: LabelTable, right: LabelTable) -> LabelTable:
    """`right`'s columns beside `left`'s rows, by slide where both know slides, else by patient.

    Rows of one id may repeat on both sides; whether they agree is asked of the columns in use. Only
    where `right` brings the slides, rows of `left` without one are left out.
    """
    key = next((k for k in IDS if k in left.frame and k in right.frame), None)
    if key is None:
        raise CohortError(
            f"{left.name} and {right.name} share neither slide_id nor patient_id; name the id "
            "columns of both in labels.columns"
        )
    brings_slides = "slide_id" in right.frame and "slide_id" not in left.frame
    mine, theirs = set(left.frame[key].dropna()), set(right.frame[key].dropna())
    if not mine & theirs:
        raise CohortError(
            f"{right.name}: none of its {len(theirs)} {key}s is in {left.name}: it has "
            f"{named(sorted(theirs))}, the other {named(sorted(mine))}{near_misses(theirs, mine)}"
        )
    frame = left.frame.merge(
        right.frame.dropna(subset=[key]),
        on=key,
        how="inner" if brings_slides else "left",
        suffixes=("", "\n"),  # no column ends so
    )
    for name in [c for c in frame.columns if c.endswith("\n")]:
        frame[name[:-1]] = _agreed(frame, key, name[:-1], tables=(left.name, right.name))
        del frame[name]
    notes = {
        **{
            r: left.notes.get(r, []) + right.notes.get(r, []) for r in {**left.notes, **right.notes}
        },
        f"{key}s of {left.name} without a row in {right.name}": sorted(mine - theirs),
        f"{key}s of {right.name} without a row in {left.name}": sorted(theirs - mine),
    }
    notes = {reason: ids for reason, ids in notes.items() if ids}
    return LabelTable(left.name, frame, notes, {**right.sources, **left.sources})


def _agreed(frame: pd.DataFrame, key: str, column: str, *, tables: tuple[str, str]) -> pd.Series:
    mine, theirs = frame[column], frame[f"{column}\n"]
    torn = mine.notna() & theirs.notna() & (mine != theirs)
    if torn.any():
        raise CohortError(
            f"{' and '.join(tables)} disagree on {column} of {named(frame[key][torn].unique())}; "
            "keep the column in one of them"
        )
    return mine.where(mine.notna(), theirs)
