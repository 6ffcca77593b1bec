"""Folds made elsewhere: published split files read as sets of ids, and ids translated to patients.

Read are CLAM's `splits_<k>.csv` (columns train, val, test of ids, ragged) and `splits_<k>_bool.csv`
(index of ids, columns of True and False), SurvPath's CSV (train and val alone), ACMIL's JSON
({train_names, val_names, test_names}), STAMP's JSON (list of {train_patients, test_patients}) and
soma's CSV (sample_id, split in train, tune, test..., fold: all its folds in one file).
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pandas as pd

from mil.cohorts.slide_ids import bare_id
from mil.folds.dealing import refuse_overlap
from mil.tasks.columns import named
from preprocessing.errors import CohortError

_CONTENTS = (
    "expected CLAM's or SurvPath's columns train, val[, test], soma's sample_id, split, fold, "
    "ACMIL's {train_names, val_names, test_names} or STAMP's list of {train_patients, "
    "test_patients}"
)
Parts = Mapping[str, frozenset[str]]  # train, val and test as a file holds them; absent or empty


@dataclass(frozen=True)
class SuppliedFold:
    """Ids of one fold, of slides or patients; an empty `validation` is to be cut from `train`."""

    train: frozenset[str]
    validation: frozenset[str]
    test: frozenset[str]
    source: str

    @property
    def parts(self) -> dict[str, frozenset[str]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


def read_split_files(
    paths: Sequence[Path], test_part: Literal["test", "val"] = "test"
) -> list[SuppliedFold]:
    """The folds of the files, in their order; ids lose a folder and a slide's extension.

    `test_part`: which part of the files is held out. Files without a test part validate on what
    they test, so that they are refused unless "val" is named: then it is held out untouched, and
    validation is cut from train. Raises CohortError for other contents, or an id in two parts.
    """
    return [
        _supplied(parts, test_part, source)
        for path in paths
        for source, parts in _read(path).items()
    ]


def to_patients(
    supplied: Sequence[SuppliedFold], bags: pd.DataFrame
) -> tuple[list[SuppliedFold], dict[str, list[str]]]:
    """The folds as ids of the patients of `bags` (columns patient_id and slide_ids), and what did
    not match.

    Raises CohortError for a patient whose slides stand in two parts, an id that is a slide of one
    patient and the name of another, and a fold of which no id is known.
    """
    patient_of = _patient_of(bags)
    translated, report = [], {}
    for number, fold in enumerate(supplied):
        ids = frozenset().union(*fold.parts.values())
        unknown = sorted(ids - set(patient_of))
        found = {
            part: frozenset(patient_of[i] for i in ids if i in patient_of)
            for part, ids in fold.parts.items()
        }
        _refuse_nothing_known(fold, found, bags)
        refuse_overlap(found, f"{fold.source}: patient(s)")
        left_out = sorted(set(bags["patient_id"]).difference(*found.values()))
        report[f"fold {number}: ids of {fold.source} that the cohort lacks"] = unknown
        report[f"fold {number}: patients in no part of {fold.source}"] = left_out
        translated.append(replace(fold, **found))
    return translated, {reason: ids for reason, ids in report.items() if ids}


def _supplied(parts: Parts, test_part: Literal["test", "val"], source: str) -> SuppliedFold:
    refuse_overlap(parts, f"{source}: id(s)")
    if test_part == "test" and not parts.get("test") and parts.get("val"):
        raise CohortError(
            f"{source} has the parts train and val but no test: models would be chosen on the very "
            "patients that they are then judged by; set mil.split.test_part: val to hold val out "
            "and cut a validation part from train"
        )
    for part in ("train", test_part):
        if not parts.get(part):
            raise CohortError(
                f"{source}: expected ids for {part}, got none; it has "
                f"{', '.join(name for name, ids in parts.items() if ids) or 'no part'}: correct "
                "the file, or mil.split.test_part"
            )
    validation = parts.get("val", frozenset()) if test_part == "test" else frozenset()
    return SuppliedFold(parts["train"], validation, parts[test_part], source)


def _read(path: Path) -> dict[str, Parts]:
    """Source -> the parts of each fold in the file."""
    try:
        if path.suffix.lower() == ".json":
            return _json_folds(json.loads(path.read_text(encoding="utf-8")), path)
        table = pd.read_csv(path, dtype=str, keep_default_na=False, encoding="utf-8-sig")
    except OSError as error:
        raise CohortError(f"cannot read the split file {path}: {error.strerror}") from error
    except (ValueError, UnicodeDecodeError) as error:
        raise CohortError(f"split file {path}: expected CSV or JSON in UTF-8, {error}") from error
    table = table.fillna("").apply(lambda cells: cells.str.strip())
    if {"sample_id", "split"} <= set(table):
        return _soma_folds(table, path)
    if "train" not in table:
        raise CohortError(f"split file {path}: {_CONTENTS}; got the columns {list(table)}")
    return {str(path): _clam_parts(table, path)}


def _clam_parts(table: pd.DataFrame, path: Path) -> Parts:
    names = [name for name in ("train", "val", "test") if name in table]
    cells = table[names].to_numpy().ravel().tolist()
    if {cell.lower() for cell in cells} <= {"true", "false"}:
        ids = table.iloc[:, 0]
        return {name: _ids(ids[table[name].str.lower() == "true"]) for name in names}
    first = table.iloc[:, 0]
    if first.name not in names and not first.str.fullmatch(r"\d*").all():
        raise CohortError(
            f"split file {path}: expected ids below {', '.join(names)}, got rows for "
            f"{named(first)}, which looks like CLAM's descriptor of counts: name splits_<k>.csv"
        )
    return {name: _ids(table[name]) for name in names}


def _soma_folds(table: pd.DataFrame, path: Path) -> dict[str, Parts]:
    """Every part whose name begins with `test` is held out."""
    part = (
        table["split"]
        .str.lower()
        .replace({"tune": "val"})
        .str.replace(r"^test.*", "test", regex=True)
    )
    unknown = ~part.isin(["train", "val", "test"])
    if unknown.any():
        raise CohortError(
            f"split file {path}: expected split train, tune or test..., got "
            f"{named(table['split'][unknown])} for {named(table['sample_id'][unknown])}"
        )
    fold = table["fold"] if "fold" in table else pd.Series("", index=table.index)
    numbered = fold.nunique() > 1
    return {
        f"{path}, fold {number}" if numbered else str(path): {
            name: _ids(rows["sample_id"][part[rows.index] == name])
            for name in ("train", "val", "test")
        }
        for number, rows in table.groupby(fold, sort=False)
    }


def _json_folds(content: object, path: Path) -> dict[str, Parts]:
    many = isinstance(content, list)
    folds = {}
    for number, fold in enumerate(content if isinstance(content, list) else [content]):
        source = f"{path}, entry {number}" if many else str(path)
        folds[source] = _json_parts(fold, source)
    return folds


def _json_parts(fold: object, source: str) -> Parts:
    if isinstance(fold, dict):
        for ending in ("names", "patients"):
            keys = {part: f"{part}_{ending}" for part in ("train", "val", "test")}
            parts = {part: fold[key] for part, key in keys.items() if key in fold}
            if parts and all(isinstance(ids, list) for ids in parts.values()):
                return {part: _ids(ids) for part, ids in parts.items()}
    got = f"keys {list(fold)}" if isinstance(fold, dict) else f"{str(fold)[:60]!r}"
    raise CohortError(f"split file {source}: {_CONTENTS}; got {got}")


def _ids(values: Iterable[object]) -> frozenset[str]:
    return frozenset(bare_id(str(value)) for value in values) - {""}


def _patient_of(bags: pd.DataFrame) -> dict[str, str]:
    """Bare slide id or patient id -> patient id."""
    slides = bags[["patient_id", "slide_ids"]].explode("slide_ids")
    owners: dict[str, set[str]] = {patient: {patient} for patient in bags["patient_id"]}
    for slide, patient in zip(slides["slide_ids"], slides["patient_id"], strict=True):
        owners.setdefault(bare_id(slide), set()).add(patient)
    torn = sorted(i for i, patients in owners.items() if len(patients) > 1)
    if torn:
        raise CohortError(
            f"id(s) {named(torn)} stand for more than one patient (as a slide of one and the name "
            "of another, or as slides that differ by their extension alone), so split files "
            "cannot be read: rename them in the manifest"
        )
    return {i: patient for i, (patient,) in owners.items()}


def _refuse_nothing_known(fold: SuppliedFold, found: Parts, bags: pd.DataFrame) -> None:
    for part, ids in fold.parts.items():
        if ids and not found[part]:
            raise CohortError(
                f"{fold.source}: none of the {len(ids)} ids for {part} is a slide or patient of "
                f"the cohort: the file has {named(sorted(ids))}; the cohort has patients "
                f"{named(sorted(set(bags['patient_id'])))} and slides "
                f"{named(sorted(set(bags['slide_ids'].explode())))}"
            )
