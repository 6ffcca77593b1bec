"""What an archive holds, before anything is computed: every slide opened, tried and described.

A bad slide is a line of the report and never an end of it. Nothing is written to the slides'
folders, and only a few tiles of each slide are read.
"""

import logging
import os
import shutil
import sys
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

from tqdm import tqdm

from preprocessing.artefacts import whole_file
from preprocessing.errors import ConfigError
from preprocessing.inspection.examination import examine
from preprocessing.inspection.output import as_csv, as_json, as_table, manifest_of
from preprocessing.inspection.paths import find_candidates, is_manifest
from preprocessing.inspection.report import SlideReport

_log = logging.getLogger(__name__)

_MAX_THREADS = 8  # they wait for the disk; each holds one open slide
_WIDTHS = (90, 140)  # of the table: narrower is unreadable, wider is hard to follow


def inspect_archive(paths: Sequence[Path]) -> list[SlideReport]:
    """One report per slide of the files, folders (with all folders in them) and manifests.

    Raises `ManifestError` for a CSV that is no manifest, and nothing for a slide.
    """
    candidates = find_candidates(paths)
    threads = min(_MAX_THREADS, 2 * (os.cpu_count() or 1))
    pool = ThreadPoolExecutor(threads, thread_name_prefix="inspect")
    try:
        with _quiet_tifffile():
            examined = pool.map(examine, candidates)
            # disable=None: no bar where standard error is no terminal.
            reports = list(tqdm(examined, total=len(candidates), unit="slide", disable=None))
    finally:
        pool.shutdown(cancel_futures=True)  # or an interruption would wait for the whole archive
    return _with_repeats_named(reports)


def run_inspect(
    paths: Sequence[Path],
    *,
    json: bool = False,
    csv: Path | None = None,
    manifest: Path | None = None,
    patient_is_slide: bool = False,
) -> int:
    """`histomil inspect`: the table, or JSON, to standard output; 1 if any slide is not ready.

    `csv` takes the full table; `manifest` a slides.csv of the slides that can be read, whose
    patient_id is left empty unless `patient_is_slide`. Raises `ConfigError` where it would be made
    of another manifest, and `ManifestError` as `inspect_archive`.
    """
    if manifest is not None and any(is_manifest(path) for path in paths):
        raise ConfigError(
            f"a manifest is made of files and folders, got {', '.join(map(str, paths))}, which is "
            "or holds a manifest already"
        )
    reports = inspect_archive(paths)
    columns = shutil.get_terminal_size((110, 24)).columns
    shown = (
        as_json(reports) if json else as_table(reports, max(_WIDTHS[0], min(columns, _WIDTHS[1])))
    )
    try:
        if csv is not None:
            _write(csv, as_csv(reports))
        if manifest is not None:
            _write_manifest(manifest, reports, patient_is_slide=patient_is_slide)
    finally:  # the files first: whoever reads the table may stop at its first lines
        sys.stdout.write(shown)
    return 0 if reports and all(report.state == "ready" for report in reports) else 1


def _write(path: Path, text: str) -> None:
    with whole_file(path) as partial:
        # A file's name may hold bytes that are no UTF-8; a table tells them by their numbers.
        partial.write_text(text, encoding="utf-8", errors="backslashreplace", newline="")
    _log.info("wrote %s", path)


def _write_manifest(path: Path, reports: list[SlideReport], *, patient_is_slide: bool) -> None:
    usable = [report for report in reports if report.readable]
    if not usable:
        _log.warning("%s: not written, because no slide can be read", path)
        return
    _write(path, manifest_of(usable, path.parent, patient_is_slide=patient_is_slide))
    if not patient_is_slide:
        _log.warning("%s: fill in column patient_id; it is the unit that is split", path)
    left_out = len(reports) - len(usable)
    if left_out:
        _log.warning("%s: left out %d slide(s) that cannot be read", path, left_out)
    without = sum(report.state == "no mpp" for report in usable)
    if without:
        _log.warning("%s: fill in column mpp of %d slide(s)", path, without)


def _with_repeats_named(reports: Iterable[SlideReport]) -> list[SlideReport]:
    """The same scan twice, under two names, would be two slides of one patient or of two."""
    first: dict[object, str] = {}
    named = []
    for report in reports:
        key = (report.quickhash, report.width_px0, report.height_px0)
        same = first.setdefault(key, report.slide_id) if report.quickhash else report.slide_id
        named.append(
            report
            if same == report.slide_id
            else report.noted(f"the same scan as {same} (equal quickhash)")
        )
    return named


@contextmanager
def _quiet_tifffile() -> Iterator[None]:
    """It logs what is odd about damaged files; the report says so already."""
    logger = logging.getLogger("tifffile")
    before, logger.disabled = logger.disabled, True
    try:
        yield
    finally:
        logger.disabled = before
