"""Label tables as files: CSV, TSV or XLSX, every cell as text, an empty cell as NaN."""

import csv
from collections import Counter
from pathlib import Path
from zipfile import BadZipFile

import numpy as np
import pandas as pd

from preprocessing.errors import CohortError

_SEPARATORS = {".csv": ",", ".tsv": "\t"}


def read_table(path: Path, *, header: bool = True) -> tuple[pd.DataFrame, list[str]]:
    """The table, indexed by line, and the names of a workbook's further sheets, which are not read.

    Text stays as it is written: ids keep leading zeros, and 'NA' or 'None' may be a grade. A column
    without a name (the index that pandas writes) is left out. header=False: columns are 1, 2, ...
    """
    if not path.is_file():
        raise CohortError(f"the label table {path} does not exist")
    kind = path.suffix.lower()
    sheets: list[str] = []
    if kind in _SEPARATORS:
        lines = _text_lines(path, _SEPARATORS[kind])
    elif kind == ".xlsx":
        lines, sheets = _sheet_lines(path)
    else:
        raise CohortError(
            f"{path}: expected a label table that ends with .csv, .tsv or .xlsx, got {kind!r}; "
            "unpack it or save it as one of these"
        )
    lines = {number: [c.strip() for c in cells] for number, cells in lines.items()}
    lines = {number: cells for number, cells in lines.items() if any(cells)}
    if not lines:
        raise CohortError(f"{path}: expected a table, it has no values")
    return _frame(lines, path, header=header), sheets


def _text_lines(path: Path, separator: str) -> dict[int, list[str]]:
    lines: dict[int, list[str]] = {}
    try:
        # utf-8-sig: spreadsheets put a byte-order mark in front of the first column's name.
        with path.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, delimiter=separator, strict=True)
            for cells in reader:
                lines[reader.line_num] = cells
    except UnicodeDecodeError as error:
        raise CohortError(
            f"{path}: expected text in UTF-8, got {error.object[error.start : error.end]!r} after "
            f"line {max(lines, default=0)}; save it as 'CSV UTF-8', or as .xlsx"
        ) from error
    except csv.Error as error:
        kind = "CSV" if separator == "," else "TSV"
        raise CohortError(
            f"{path}: expected a {kind}, got after line {max(lines, default=0)}: {error}; save it "
            "from a spreadsheet, or as .xlsx"
        ) from error
    return lines


def _sheet_lines(path: Path) -> tuple[dict[int, list[str]], list[str]]:
    try:
        book = pd.read_excel(
            path,
            sheet_name=None,
            header=None,
            dtype=object,
            keep_default_na=False,
            engine="openpyxl",
        )
    except (ValueError, KeyError, OSError, BadZipFile) as error:
        raise CohortError(f"{path}: expected an Excel workbook (.xlsx), got {error}") from error
    first, *others = book
    cells = book[first].to_numpy(dtype=object)
    lines = {i + 1: [_cell_text(cell) for cell in row] for i, row in enumerate(cells)}
    return lines, [str(sheet) for sheet in others]


def _cell_text(cell: object) -> str:
    """Numbers as they would be typed: 7.0 is 7. Excel's error values (#N/A) are empty."""
    if isinstance(cell, float):
        if np.isnan(cell):
            return ""
        return str(int(cell)) if cell.is_integer() else repr(cell)
    return "" if cell is None else str(cell)


def _frame(lines: dict[int, list[str]], path: Path, *, header: bool) -> pd.DataFrame:
    first = next(iter(lines))
    names = lines.pop(first) if header else [str(i + 1) for i in range(len(lines[first]))]
    _check_names(names, path)
    if not lines:
        raise CohortError(f"{path}: expected rows below the header, it has none")
    for number, cells in lines.items():
        if len(cells) != len(names):
            raise CohortError(
                f"{path}, line {number}: expected {len(names)} values, got {len(cells)}; put "
                "quotes around values that contain the separator"
            )
    frame = pd.DataFrame(list(lines.values()), index=list(lines), columns=names, dtype=object)
    frame = frame[[name for name in names if name]]
    return frame.mask(frame == "")


def _check_names(names: list[str], path: Path) -> None:
    repeated = sorted(name for name, count in Counter(names).items() if name and count > 1)
    if repeated:
        raise CohortError(
            f"{path}: column(s) {', '.join(repeated)} appear more than once; rename or remove one"
        )
    if len(names) == 1 and any(separator in names[0] for separator in ";\t"):
        raise CohortError(
            f"{path}: expected columns separated by commas (.csv) or tabs (.tsv), found one "
            f"column {names[0]!r}; save it with the separator of its ending"
        )
