"""Reports of an archive as a table to read, a CSV, JSON, or a manifest to fill in."""

import csv
import io
import json
import os
import textwrap
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict
from pathlib import Path

from preprocessing.inspection.report import SlideReport
from preprocessing.manifest import REQUIRED_COLUMNS

_GAP = "  "
_LEAST_ID = 12  # characters of an id that are shown in any case
_STATES = ("ready", "no mpp", "damaged", "unreadable")
_UNITS = ("B", "kB", "MB", "GB", "TB")
_INDENT, _DEEPER = "  ", "      "
_MOST_PATHS = 10


def as_table(reports: Sequence[SlideReport], width: int) -> str:
    """One line a slide, then what needs a person, then what is worth knowing, then the sum.

    What is true of several slides is told once. `width` in characters; below about 100 the
    table's lines are longer.
    """
    if not reports:
        return "no slides found: name files, folders that hold slides, or a manifest\n"
    parts = [
        _lines(reports, width),
        _told("Cannot be read", reports, width, lambda report: [report.problem], paths=True),
        _told("Resolution (mpp) missing or in doubt", reports, width, lambda r: [r.mpp_problem]),
        _told("Notes", reports, width, lambda report: list(report.notes)),
        _told("Read through openslide (slower)", reports, width, _why_not_direct),
        _sum(reports),
    ]
    return "\n".join(part for part in parts if part)


def as_csv(reports: Iterable[SlideReport]) -> str:
    """One row a slide, every field a column; several values of a field are parted by blanks,
    notes by semicolons.
    """
    rows = [_flat(report) for report in reports]
    text = io.StringIO()
    writer = csv.DictWriter(text, list(_flat(SlideReport("", Path(), "ready"))))
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_json(reports: Iterable[SlideReport]) -> str:
    """A list of objects with the fields of `SlideReport`."""
    return json.dumps([asdict(report) for report in reports], indent=1, default=str) + "\n"


def manifest_of(
    reports: Iterable[SlideReport], folder: Path, *, patient_is_slide: bool = False
) -> str:
    """A slides.csv for `folder`, with relative paths for slides below it.

    `patient_id` is nowhere in a slide file: it stays empty, and `read_manifest` refuses the table
    until it is filled in, unless each slide is said to be its own patient. `mpp` is left to the
    file, and to people where the file does not know.
    """
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*REQUIRED_COLUMNS, "mpp"])
    for report in reports:
        patient = report.slide_id if patient_is_slide else ""
        writer.writerow([report.slide_id, patient, _relative(report.path, folder), ""])
    return text.getvalue()


def _relative(path: Path, folder: Path) -> str:
    path, folder = (Path(os.path.abspath(each)) for each in (path, folder))  # noqa: PTH100
    if not path.is_relative_to(folder):
        return str(path)
    relative = str(path.relative_to(folder))
    # A manifest's values are read without blanks around them.
    return relative if relative == relative.lstrip() else os.path.join(os.curdir, relative)  # noqa: PTH118


def _flat(report: SlideReport) -> dict[str, object]:
    values = asdict(report)
    for name, value in values.items():
        if isinstance(value, tuple):
            parts = value if name == "notes" else (f"{each:g}" for each in value)
            values[name] = ("; " if name == "notes" else " ").join(parts)
    return values


_COLUMNS: dict[str, Callable[[SlideReport], str]] = {
    "format": lambda report: report.format or "-",
    "pixels": lambda r: f"{r.width_px0} x {r.height_px0}" if r.width_px0 else "-",
    "um/px": lambda report: _mpp(report),
    "levels": lambda report: str(len(report.downsamples) or "-"),
    "lens": lambda report: f"{report.objective_power:g}x" if report.objective_power else "-",
    "file": lambda report: _size(report.bytes),
    "read": lambda report: report.reader.partition(" ")[0].rstrip(":") or "-",
    "state": lambda report: report.state,
}
_TO_THE_RIGHT = ("pixels", "um/px", "levels", "lens", "file")


def _lines(reports: Sequence[SlideReport], width: int) -> str:
    columns = {name: [name, *map(show, reports)] for name, show in _COLUMNS.items()}
    taken = sum(len(_GAP) + max(map(len, cells)) for cells in columns.values())
    room = max(_LEAST_ID, width - taken)
    ids = ["slide", *(_shortened(_plain(report.slide_id), room) for report in reports)]
    table = [_padded(ids, right=False)]
    table += [_padded(cells, right=name in _TO_THE_RIGHT) for name, cells in columns.items()]
    return "".join(f"{_GAP.join(cells).rstrip()}\n" for cells in zip(*table, strict=True))


def _padded(cells: Sequence[str], *, right: bool) -> list[str]:
    widest = max(map(len, cells))
    return [cell.rjust(widest) if right else cell.ljust(widest) for cell in cells]


def _mpp(report: SlideReport) -> str:
    if report.mpp_x is None or report.mpp_y is None:
        return "-"
    x, y = f"{report.mpp_x:.4g}", f"{report.mpp_y:.4g}"
    return x if x == y else f"{x} x {y}"


def _size(count: float) -> str:
    unit = 0
    while count >= 999.5 and unit + 1 < len(_UNITS):
        count, unit = count / 1000, unit + 1
    return f"{count:.3g} {_UNITS[unit]}"


def _told(
    title: str,
    reports: Sequence[SlideReport],
    width: int,
    told: Callable[[SlideReport], list[str]],
    *,
    paths: bool = False,
) -> str:
    """Each thing said once, and under it the ids or paths of which it is true."""
    true_of: dict[str, list[str]] = {}
    for report in reports:
        for text in filter(None, told(report)):
            name = str(report.path) if paths else report.slide_id
            true_of.setdefault(text, []).append(_plain(name))
    lines = [f"{title}:"] if true_of else []
    for text, names in true_of.items():
        count = f" ({len(names)} slides)" if len(names) > 1 else ""
        lines += _wrapped(_plain(text) + count, width, indent=_INDENT)
        lines += _paths(names) if paths else _wrapped(", ".join(names), width, most_lines=2)
    return "".join(f"{line}\n" for line in lines)


def _wrapped(
    text: str, width: int, *, indent: str = _DEEPER, most_lines: int | None = None
) -> list[str]:
    return textwrap.wrap(
        text,
        width,
        initial_indent=indent,
        subsequent_indent=indent,
        break_on_hyphens=False,
        max_lines=most_lines,
        placeholder=" ...",
    )


def _paths(paths: Sequence[str]) -> list[str]:
    """One a line, because people copy them."""
    rest = len(paths) - _MOST_PATHS
    shown = [_DEEPER + path for path in paths[:_MOST_PATHS]]
    return [*shown, f"{_DEEPER}and {rest} more: see the table, or --csv"] if rest > 0 else shown


def _why_not_direct(report: SlideReport) -> list[str]:
    way, _, why = report.reader.partition(": ")
    return [why] if way == "openslide" else []


def _sum(reports: Sequence[SlideReport]) -> str:
    counts = Counter(report.state for report in reports)
    states = ", ".join(f"{counts[state]} {state}" for state in _STATES if counts[state])
    size = _size(sum(report.bytes for report in reports))
    return f"{len(reports)} slide(s), {size}: {states}\n"


def _shortened(text: str, room: int) -> str:
    """Without the middle: names of one archive differ at their ends."""
    if len(text) <= room:
        return text
    front = (room - 1) // 2
    return f"{text[:front]}~{text[len(text) - (room - 1 - front) :]}"


def _plain(text: str) -> str:
    """Names may hold line breaks or worse; a terminal must not obey them."""
    return "".join(sign if sign.isprintable() else "?" for sign in text)
