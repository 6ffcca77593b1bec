"""slides.csv: one row per slide, checked before any slide is opened."""

import csv
import os
import re
from collections import Counter
from dataclasses import dataclass, field
from math import isfinite
from pathlib import Path

from preprocessing.errors import ManifestError

REQUIRED_COLUMNS = ("slide_id", "patient_id", "path")
_MPP_COLUMNS = ("mpp", "mpp_x", "mpp_y")
_SAFE_ID = re.compile(r"[A-Za-z0-9_-][A-Za-z0-9._-]*")


@dataclass(frozen=True)
class SlideRow:
    """One slide; `extra` holds every further column as text.

    `mpp` overrides what the file says: um per level-0 pixel, (x, y) where pixels are not square.
    """

    slide_id: str
    patient_id: str
    path: Path
    mpp: float | tuple[float, float] | None = None
    extra: dict[str, str] = field(default_factory=dict, hash=False)


def read_manifest(path: Path) -> list[SlideRow]:
    """Rows in the file's order; relative slide paths are relative to the manifest's folder.

    Whether the slide files exist is not asked here: a missing one fails alone when it is opened.
    """
    records = _read_records(path)
    rows = [_row(record, f"{path}, line {line}", path.parent) for line, record in records]
    if not rows:
        raise ManifestError(f"{path}: expected at least one slide, the table has no rows")
    _refuse_repeats(rows, path)
    return rows


def _read_records(path: Path) -> list[tuple[int, dict[str, str]]]:
    try:
        if not path.is_file():
            raise ManifestError(
                f"{path}: no such file; a manifest is a CSV with the columns "
                f"{', '.join(REQUIRED_COLUMNS)}[, mpp | mpp_x, mpp_y]"
            )
        # utf-8-sig: spreadsheets put a byte-order mark in front of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            header = [name.strip() for name in next(reader, [])]
            _check_header(header, path)
            lines = [(reader.line_num, cells) for cells in reader if any(map(str.strip, cells))]
    except (UnicodeDecodeError, csv.Error) as error:
        raise ManifestError(f"{path}: expected a CSV in UTF-8, got {error}") from error
    except OSError as error:
        raise ManifestError(f"{path}: cannot be read: {error.strerror}") from error
    for line, cells in lines:
        if len(cells) != len(header):
            raise ManifestError(
                f"{path}, line {line}: expected {len(header)} values, got {len(cells)}; "
                "put quotes around values that contain a comma"
            )
    return [(line, dict(zip(header, map(str.strip, cells), strict=True))) for line, cells in lines]


def _check_header(header: list[str], path: Path) -> None:
    missing = [name for name in REQUIRED_COLUMNS if name not in header]
    if missing:
        raise ManifestError(
            f"{path}: missing column(s) {', '.join(missing)}; found {', '.join(header) or 'none'}"
        )
    for name in header:
        if name.lower() in _MPP_COLUMNS and name not in _MPP_COLUMNS:
            raise ManifestError(
                f"{path}: column {name!r} would be passed over; write {name.lower()!r}"
            )
    repeated = sorted(name for name, count in Counter(header).items() if count > 1)
    if repeated:
        raise ManifestError(f"{path}: column(s) {', '.join(repeated)} appear more than once")


def _row(record: dict[str, str], where: str, folder: Path) -> SlideRow:
    for name in REQUIRED_COLUMNS:
        if not record[name]:
            raise ManifestError(f"{where}: {name} is empty")
    slide_id = record["slide_id"]
    if not _SAFE_ID.fullmatch(slide_id):
        raise ManifestError(
            f"{where}: slide_id {slide_id!r} becomes a file name, so only letters, digits, "
            "'.', '_' and '-' are allowed, and no '.' in front"
        )
    if "\0" in record["path"]:
        raise ManifestError(f"{where}: path {record['path']!r} cannot be that of a file")
    known = {*REQUIRED_COLUMNS, *_MPP_COLUMNS}
    return SlideRow(
        slide_id=slide_id,
        patient_id=record["patient_id"],
        path=folder / record["path"],
        mpp=_mpp(record, f"{where}, slide {slide_id!r}"),
        extra={name: value for name, value in record.items() if name not in known},
    )


def _mpp(record: dict[str, str], where: str) -> float | tuple[float, float] | None:
    square, x, y = (_positive(record.get(name, ""), name, where) for name in _MPP_COLUMNS)
    if square is not None and (x is not None or y is not None):
        raise ManifestError(
            f"{where}: mpp and mpp_x or mpp_y are given; keep mpp where pixels are square, mpp_x "
            "and mpp_y where they are not"
        )
    if (x is None) != (y is None):
        given, missing = ("mpp_x", "mpp_y") if y is None else ("mpp_y", "mpp_x")
        raise ManifestError(f"{where}: {given} without {missing}; fill in both, or mpp alone")
    return (x, y) if x is not None and y is not None else square


def _positive(text: str, name: str, where: str) -> float | None:
    if not text:
        return None
    message = f"{where}: {name} must be a positive number (um per pixel) or empty, got {text!r}"
    try:
        value = float(text)
    except ValueError as error:
        raise ManifestError(message) from error
    # Python reads "0_25" as 25.
    if not (isfinite(value) and value > 0) or "_" in text:
        raise ManifestError(message)
    return value


def _refuse_repeats(rows: list[SlideRow], path: Path) -> None:
    counts = Counter(row.slide_id for row in rows)
    repeated = [slide_id for slide_id, count in counts.items() if count > 1]
    if repeated:
        raise ManifestError(f"{path}: slide_id(s) {', '.join(repeated)} appear more than once")
    ids_of_file: dict[str, list[str]] = {}
    for row in rows:
        # Unlike Path.resolve, realpath puts up with circles of links.
        ids_of_file.setdefault(os.path.realpath(row.path), []).append(row.slide_id)
    shared = [f"{file} as {', '.join(ids)}" for file, ids in ids_of_file.items() if len(ids) > 1]
    if shared:
        raise ManifestError(f"{path}: one file under several slide_ids: {'; '.join(shared)}")
