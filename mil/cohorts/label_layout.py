"""One label table read by its preset: canonical columns, bare ids, event = 1 where observed."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mil.cohorts.presets import PRESETS, VITAL, Preset
from mil.cohorts.slide_ids import bare_id
from mil.tasks.columns import NAMED_IDS, named
from preprocessing.errors import CohortError, ConfigError

IDS = ("slide_id", "patient_id")
FOLLOW_UP = ("time", "event", "censorship")
_ID_WORDS = {"slide_id": ("slide", "wsi", "image"), "patient_id": ("patient", "case", "subject")}
Notes = dict[str, list[str]]


@dataclass(frozen=True)
class Layout:
    """How a table is read; `columns` (canonical name -> column) goes before the preset."""

    preset: Preset
    columns: Mapping[str, str]

    def sources(self, raw: pd.DataFrame, where: Path) -> dict[str, str]:
        """Canonical name -> the column of this table, for those that it has."""
        taken = set(self.columns)
        if taken & set(FOLLOW_UP):  # time and event are of one endpoint
            taken |= {*FOLLOW_UP, *VITAL}
        sources = {name: source for name, source in self.columns.items() if source in raw}
        for name, candidates in self.preset.columns.items():
            found = [c for c in candidates if c in raw and name not in taken]
            if len(found) > 1:
                raise ConfigError(
                    f"{where}: {' and '.join(found)} could both be {name}; name one of them in "
                    "labels.columns"
                )
            if found:
                sources[name] = found[0]
        return sources


def read_layout(
    raw: pd.DataFrame, layout: Layout, where: Path
) -> tuple[pd.DataFrame, dict[str, str], Notes]:
    """`raw` (text or NaN, indexed by line) with canonical columns; what was read as what; notes."""
    preset = layout.preset
    if preset.missing:
        raw = raw.mask(raw.isin(list(preset.missing)))
    sources = layout.sources(raw, where)
    frame, aside = _renamed(raw, sources)
    notes: Notes = {f"columns of {where.name} set aside for one read under their name": aside}
    if not set(IDS) & set(frame.columns):
        raise CohortError(_no_ids(raw, preset, where))
    if preset.slides_in_one_cell and "slide_id" in frame:
        slideless = frame["slide_id"].isna()
        notes["patients without a slide in the label table"] = _ids(frame[slideless], "patient_id")
        frame = _one_row_per_slide(frame[~slideless])
    _refuse_empty_ids(frame, where)
    if preset.bare_ids and "slide_id" in frame:
        frame["slide_id"] = _bare(frame["slide_id"], where)
    if preset.patient_in_slide and "slide_id" in frame and "patient_id" not in layout.columns:
        frame["patient_id"] = _patients(frame["slide_id"], preset.patient_in_slide, where)
    notes |= _read_values(frame, preset, sources, where)
    return frame, sources, {reason: ids for reason, ids in notes.items() if ids}


def whole_numbers(values: pd.Series) -> pd.Series:
    """'1.0' as '1': spreadsheets write so where the column has empty cells."""
    return values.str.replace(r"^(-?\d+)\.0+$", r"\1", regex=True)


def plain_numbers(values: pd.Series) -> pd.Series:
    """'48.50' and '4.85e1' as '48.5': one text for one number; what is no number stays."""
    numbers = pd.Series(pd.to_numeric(values, errors="coerce")).to_numpy(dtype=float)
    plain = pd.Series([repr(float(number)) for number in numbers], index=values.index, dtype=object)
    return values.mask(np.isfinite(numbers), plain)


def _renamed(raw: pd.DataFrame, sources: Mapping[str, str]) -> tuple[pd.DataFrame, list[str]]:
    """Canonical columns, then the others under their names; and the others whose name is taken."""
    others = [str(c) for c in raw.columns if c not in sources.values()]
    aside = [c for c in others if c in sources or (c == "event" and "censorship" in sources)]
    frame = pd.DataFrame({name: raw[source] for name, source in sources.items()}, index=raw.index)
    return pd.concat([frame, raw[[c for c in others if c not in aside]]], axis=1), aside


def _one_row_per_slide(frame: pd.DataFrame) -> pd.DataFrame:
    """`slide_id` holds a patient's slides, joined by ;"""
    frame = frame.assign(slide_id=frame["slide_id"].str.split(";")).explode("slide_id")
    frame["slide_id"] = frame["slide_id"].str.strip()
    return frame[frame["slide_id"] != ""].copy()


def _no_ids(raw: pd.DataFrame, preset: Preset, where: Path) -> str:
    fitting = [
        name
        for name, known in PRESETS.items()
        if any(c in raw for key in IDS for c in known.columns.get(key, ()))
    ]
    wanted = {c for key in IDS for c in preset.columns.get(key, ())} or set(IDS)
    hint = f"; layouts (labels.preset) with such columns: {', '.join(fitting)}" if fitting else ""
    like = {key: column for key, words in _ID_WORDS.items() if (column := _like(raw, words))}
    example = ", ".join(f"{key}: {column}" for key, column in like.items())
    asked = f", say columns: {{{example}}}" if like else ""
    if not like:
        hint += ". If the first line is data already, mhim_slides or mhim_patients reads it"
    return (
        f"{where}: expected a column {' or '.join(sorted(wanted, reverse=True))}, found "
        f"{', '.join(map(str, raw.columns))}; name the id columns in labels.columns{asked}{hint}"
    )


def _like(raw: pd.DataFrame, words: tuple[str, ...]) -> str | None:
    """The first column whose name holds one of the words."""
    return next((str(c) for c in raw.columns if any(w in str(c).lower() for w in words)), None)


def _refuse_empty_ids(frame: pd.DataFrame, where: Path) -> None:
    key = "slide_id" if "slide_id" in frame else "patient_id"
    empty = frame.index[frame[key].isna()].tolist()
    if empty:
        raise CohortError(
            f"{where}: empty {key} in line(s) {empty[:NAMED_IDS]}; fill it in or remove the lines"
        )


def _bare(slides: pd.Series, where: Path) -> pd.Series:
    bare = slides.map(bare_id)
    texts = slides.groupby(bare).unique()
    torn = texts[texts.map(len) > 1]
    if len(torn):
        files = named(f"{slide} ({', '.join(names)})" for slide, names in torn.items())
        raise CohortError(
            f"{where}: several files become one slide_id without folder and ending: {files}; keep "
            "one line for each slide"
        )
    return bare


def _patients(slides: pd.Series, pattern: str, where: Path) -> pd.Series:
    found = slides.str.extract(f"({pattern})", expand=False)
    if found.isna().any():
        raise CohortError(
            f"{where}: expected slide ids that begin with their patient ({pattern}), got "
            f"{named(slides[found.isna()])}; choose another preset, or name the patient's column "
            "in labels.columns (patient_id)"
        )
    return found


def _read_values(
    frame: pd.DataFrame, preset: Preset, sources: dict[str, str], where: Path
) -> Notes:
    """Translates the canonical columns in place; notes which ids have no follow-up, and why.

    Follow-up that is derived from the vital status is entered into `sources`.
    """
    for name, words in preset.values.items():
        if sources.get(name) in preset.columns[name]:  # not where the user names another column
            meaning = ", ".join(f"{old} ({new})" for old, new in words.items())
            expected = f"{where}: column {sources[name]!r}: expected {meaning}"
            frame[name] = _translated(frame, name, words, expected)
    if set(VITAL) <= set(sources):
        vital = frame["vital_status"].str.lower()
        alive, dead = frame["days_to_last_follow_up"], frame["days_to_death"]
        frame["event"] = frame["vital_status"]
        frame["time"] = dead.where(vital == "dead", alive.where(vital == "alive"))
        sources |= {"event": "vital_status", "time": "days_to_death or days_to_last_follow_up"}
    if "censorship" in sources:
        expected = f"{where}: column {sources['censorship']!r}: expected 1 (censored) or 0 (event)"
        frame["event"] = _translated(frame, "censorship", {"0": "1", "1": "0"}, expected)
        del frame["censorship"]
    notes: Notes = {}
    if preset.event_words and "event" in frame:
        words = preset.event_words
        told = whole_numbers(frame["event"]).str.lower()
        strange = frame["event"].notna() & ~told.isin(list(words))
        reason = f"no follow-up: {sources.get('event', 'event')} is none of {', '.join(words)}"
        notes[reason] = _ids(frame[strange])
        frame["event"] = told.map(words).astype(object)
    if preset.positive_times and "time" in frame:
        good = pd.to_numeric(frame["time"], errors="coerce") > 0
        lost = sorted(set(_ids(frame[~good])) - set(_ids(frame[good])))
        notes["no follow-up: no time above 0"] = lost
        frame["time"] = frame["time"].where(good)
    return notes


def _translated(
    frame: pd.DataFrame, name: str, words: Mapping[str, str], expected: str
) -> pd.Series:
    """`expected` opens the message: the table, its column and what it may hold."""
    told = whole_numbers(frame[name])
    strange = told.notna() & ~told.isin(list(words))
    if strange.any():
        raise CohortError(
            f"{expected}, got {sorted(set(frame[name][strange]))[:NAMED_IDS]} for "
            f"{named(_ids(frame[strange]))}; correct the table"
        )
    return told.map(words).astype(object)


def _ids(frame: pd.DataFrame, key: str | None = None) -> list[str]:
    key = key or ("slide_id" if "slide_id" in frame else "patient_id")
    return sorted(set(frame[key].dropna()) if key in frame else ())
