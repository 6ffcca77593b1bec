"""One slide, opened and tried at a few places; whatever is wrong with it ends in its report."""

from collections.abc import Iterator, Mapping
from contextlib import closing, contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import openslide
from numpy.typing import NDArray

from preprocessing.config import ReadingConfig
from preprocessing.errors import MppError, UnreadableSlide
from preprocessing.geometry import Pyramid, Size
from preprocessing.inspection.files import cut_short, is_tiff, pixel_notes, why_refused
from preprocessing.inspection.paths import Candidate
from preprocessing.inspection.report import SlideReport
from preprocessing.manifest import SlideRow
from preprocessing.slides.direct_slide import DIRECT, DirectSlide
from preprocessing.slides.mpp import judge_mpp
from preprocessing.slides.properties import bounds_px0, objective_power
from preprocessing.slides.slide import levels_of
from preprocessing.slides.tiff_claims import impossible_claim
from preprocessing.slides.tiff_file import StoredFile

_PLACES = (0.1, 0.5, 0.9)  # of the scanned area, along each axis
_PLACE_PX = 64

_Place = tuple[int, int, int]  # level, x, y in level-0 pixels


def examine(candidate: Candidate) -> SlideReport:
    """Opens the slide, reads nine small places of level 0 and one of every other level."""
    row = candidate.row
    report = SlideReport(row.slide_id, row.path, "unreadable", further_files=len(candidate.further))
    if candidate.problem:
        return replace(report, problem=candidate.problem)
    try:
        return _examined(candidate, replace(report, bytes=_bytes(candidate)))
    except Exception as error:  # noqa: BLE001  # the boundary of a job: a bad slide ends here
        return replace(report, problem=f"{type(error).__name__}: {error}")


def _examined(candidate: Candidate, report: SlideReport) -> SlideReport:
    row = candidate.row
    if row.path.is_file() and (claim := impossible_claim(row.path)):
        return replace(report, problem=claim)
    try:
        with _opened((row.path, *candidate.further)) as (path, handle):
            described = _with_mpp(_described(report, path, handle), row, handle.properties)
            return _tried(described, path, handle)
    except (openslide.OpenSlideError, OSError) as error:
        return replace(report, problem=why_refused(row.path, str(error)))


def _bytes(candidate: Candidate) -> int:
    """With the files that belong to a DICOM series or a MIRAX slide."""
    path = candidate.row.path
    files = [path, *candidate.further]
    if path.suffix.lower() == ".mrxs":
        files += path.with_suffix("").glob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


@contextmanager
def _opened(paths: tuple[Path, ...]) -> Iterator[tuple[Path, openslide.OpenSlide]]:
    """The first of the files of one slide from which openslide opens it."""
    *others, last = paths
    for path in others:
        try:
            handle = openslide.OpenSlide(path)
        except openslide.OpenSlideError:
            continue
        break
    else:
        path, handle = last, openslide.OpenSlide(last)
    with handle:
        yield path, handle


def _described(report: SlideReport, path: Path, handle: openslide.OpenSlide) -> SlideReport:
    properties = handle.properties
    width, height = handle.dimensions
    notes = pixel_notes(path) if is_tiff(path) else []
    if properties.get("dicom.BitsAllocated", "8") != "8":
        notes.append(f"{properties['dicom.BitsAllocated']} bits a channel, read as 8")
    if report.further_files:
        notes.append("a DICOM series, of whose files the first is named")
    levels, note = levels_of(handle)
    if note:
        notes.append(note)
    elif len(levels) == 1:
        notes.append("one level only: whatever is coarser is computed from full resolution")
    if "label" in list(handle.associated_images):  # to ask the mapping would decode it
        notes.append("holds a photograph of its label: see who may have the file")
    return replace(
        report,
        path=path,
        format=properties.get("openslide.vendor", "unknown"),
        width_px0=width,
        height_px0=height,
        downsamples=tuple(level.downsample for level in levels),
        bounds_px0=bounds_px0(properties),
        objective_power=objective_power(properties),
        quickhash=properties.get("openslide.quickhash-1", ""),
        notes=tuple(notes),
    )


def _with_mpp(report: SlideReport, row: SlideRow, properties: Mapping[str, str]) -> SlideReport:
    try:
        mpp, notes = judge_mpp(row, properties)
    except MppError as error:
        # Without names, so that what is wrong with many slides is told once.
        said = str(error).removeprefix(f"slide {row.slide_id!r}: ")
        said = said.replace(str(row.path), "the file")
        return replace(report, state="no mpp", mpp_problem=said)
    return replace(
        report,
        state="ready",
        mpp_x=mpp.x,
        mpp_y=mpp.y,
        mpp_source=mpp.source,
        notes=(*notes, *report.notes),
    )


def _tried(report: SlideReport, path: Path, handle: openslide.OpenSlide) -> SlideReport:
    """Whether pixels can be read, and how they would be."""
    places = list(_places(report, handle))
    failures = list(_failures(path, handle, places))
    if len(failures) == len(places):
        problem = f"opens, but no pixel can be read, as {failures[0]}"
        return replace(report, state="unreadable", problem=problem, notes=())
    missing = cut_short(path) if is_tiff(path) else ""
    if failures:
        tried = f"{len(failures)} of {len(places)} places tried cannot be read"
        missing = missing or f"{tried}, the first {failures[0]}; copy it again"
    if missing:
        return replace(report, state="damaged", problem=missing)
    return replace(report, reader=_reader(report, path, handle))


def _places(report: SlideReport, handle: openslide.OpenSlide) -> Iterator[_Place]:
    left, top, width, height = report.bounds_px0 or (0, 0, *handle.dimensions)
    for down in _PLACES:
        for right in _PLACES:
            yield 0, left + int(right * width), top + int(down * height)
    for level in range(1, len(report.downsamples)):
        yield level, left + width // 2, top + height // 2


def _failures(path: Path, handle: openslide.OpenSlide, places: list[_Place]) -> Iterator[str]:
    """What openslide says of each place that it cannot read."""
    for number, (level, x, y) in enumerate(places):
        try:
            handle.read_region((x, y), level, (_PLACE_PX, _PLACE_PX))
        except openslide.OpenSlideError as error:
            yield f"on level {level} at ({x}, {y}): {error}"
            # After one error openslide refuses everything on a handle.
            with openslide.OpenSlide(path) as fresh:
                yield from _failures(path, fresh, places[number + 1 :])
            return


def _reader(report: SlideReport, path: Path, handle: openslide.OpenSlide) -> str:
    levels, _ = levels_of(handle)
    pyramid = Pyramid(levels, 1.0, 1.0)  # only sizes are asked of it

    def draw(level: int, x_px0: int, y_px0: int, size_px: Size) -> NDArray[np.uint8]:
        try:
            region = handle.read_region((x_px0, y_px0), level, (size_px.width, size_px.height))
        except openslide.OpenSlideError as error:
            raise UnreadableSlide(report.slide_id, str(error)) from error
        return np.asarray(region.convert("RGB"))

    direct = DirectSlide(path, report.format, pyramid, ReadingConfig())
    with closing(StoredFile(path)) as file:
        found = [direct.level(each.index, lambda: file, draw) for each in levels]
    reasons = {n: each for n, each in enumerate(found) if isinstance(each, str)}
    if 0 in reasons:
        return f"openslide: {reasons[0]}"
    return "; ".join([DIRECT, *(f"level {n} by openslide: {why}" for n, why in reasons.items())])
