"""Files, folders and manifests -> the slides to look at, each once and with an id of its own."""

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from preprocessing.inspection.dicom_series import series_uid
from preprocessing.manifest import SlideRow, read_manifest

# What openslide may open; a DICOM file or a TIFF of another name must be named to be looked at.
SLIDE_SUFFIXES = (
    *(".bif", ".czi", ".dcm", ".mrxs", ".ndpi", ".scn"),
    *(".svs", ".svslide", ".tif", ".tiff", ".vms", ".vmu"),
)
_UNSAFE = re.compile(r"[^A-Za-z0-9._-]")


@dataclass(frozen=True)
class Candidate:
    """One slide: `row.path` and, for a DICOM series, the further files that belong to it.

    `problem` is what is known to be wrong before anything is opened.
    """

    row: SlideRow
    further: tuple[Path, ...] = ()
    problem: str = ""


@dataclass(frozen=True)
class _Found:
    path: Path
    further: tuple[Path, ...] = ()
    problem: str = ""


def find_candidates(paths: Sequence[Path]) -> list[Candidate]:
    """A CSV is read as a manifest, a folder is searched through all its folders, a file is taken.

    Hidden files are passed over, and a file that is reached twice is listed once. Slides of a
    manifest keep their ids; the others get their file's stem, with folders in front where stems
    are equal. Raises `ManifestError` where a CSV is none.
    """
    listed = [row for path in paths if is_manifest(path) for row in read_manifest(path)]
    named = {_real(row.path) for row in listed}
    found = [each for path in paths if not is_manifest(path) for each in _below(path)]
    once = {_real(each.path): each for each in reversed(found) if _real(each.path) not in named}
    rest = _one_per_series(sorted(once.values(), key=lambda each: each.path))
    ids = _ids([each.path for each in rest], taken={row.slide_id for row in listed})
    return [Candidate(row, problem=_hopeless(row.path)) for row in listed] + [
        Candidate(SlideRow(slide_id, "", each.path), each.further, each.problem)
        for slide_id, each in zip(ids, rest, strict=True)
    ]


def is_manifest(path: Path) -> bool:
    return path.suffix.lower() == ".csv" and not _is_folder(path)


def _is_folder(path: Path) -> bool:
    return os.path.isdir(path)  # noqa: PTH112  # Path's raises where no permission is


def _hopeless(path: Path) -> str:
    """Why a file is not even opened; empty for most."""
    # To open a pipe would be to wait without end.
    if os.path.exists(path) and not (os.path.isfile(path) or _is_folder(path)):  # noqa: PTH110, PTH113
        return "neither a file nor a folder"
    try:
        os.fspath(path).encode()
    except UnicodeEncodeError:
        return "its name is not UTF-8, as a manifest has to be: rename it"
    return ""


def _real(path: Path) -> Path:
    return Path(os.path.realpath(path))  # unlike resolve, it puts up with circles of links


def _below(path: Path) -> Iterator[_Found]:
    if not _is_folder(path):
        yield _Found(path, problem=_hopeless(path))
        return
    refused: list[_Found] = []

    def refuse(error: OSError) -> None:
        refused.append(_Found(Path(error.filename), problem=f"cannot be listed: {error.strerror}"))

    entered: set[Path] = set()
    for name, folders, files in os.walk(path, onerror=refuse, followlinks=True):
        folder = Path(name)
        if _real(folder) in entered:  # a link to a folder above
            folders.clear()
            continue
        entered.add(_real(folder))
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        if folder.suffix.lower() in SLIDE_SUFFIXES:
            yield _Found(
                folder, problem="a folder, not a file; what lies in it is listed by itself"
            )
        for file in files:
            if not file.startswith(".") and Path(file).suffix.lower() in SLIDE_SUFFIXES:
                yield _Found(folder / file, problem=_hopeless(folder / file))
    yield from refused


def _one_per_series(found: Iterable[_Found]) -> list[_Found]:
    """Files of one folder and one DICOM series become one entry, the first file's."""
    entries: dict[object, _Found] = {}
    for each in found:
        uid = None
        if each.path.suffix.lower() == ".dcm" and not each.problem:
            uid = _series_uid_or_none(each.path)
        key = each.path if uid is None else (_real(each.path).parent, uid)
        first = entries.setdefault(key, each)
        if first is not each:
            entries[key] = replace(first, further=(*first.further, each.path))
    return list(entries.values())


def _series_uid_or_none(path: Path) -> str | None:
    try:
        return series_uid(path)
    except OSError:  # said in full when the slide is opened
        return None


def _ids(paths: Sequence[Path], *, taken: set[str]) -> list[str]:
    """Letters, digits, '.', '_' and '-'; unique also where upper and lower case are the same."""
    of_stem: dict[str, list[Path]] = {}
    for path in paths:
        of_stem.setdefault(_safe(path.stem).lower(), []).append(path)
    names: dict[Path, str] = {}
    for alike in of_stem.values():
        names |= _told_apart(alike, {slide_id.lower() for slide_id in taken})
    return _numbered([names[path] for path in paths], taken)


def _told_apart(alike: Sequence[Path], taken: set[str]) -> dict[Path, str]:
    """By the suffix, or by as many folders in front as it takes; by nothing where that fails."""
    for folders in range(max(len(path.parts) for path in alike)):
        for last in ("stem", "name"):
            ids = [
                _safe("_".join([*path.parts[-folders - 1 : -1], getattr(path, last)]))
                for path in alike
            ]
            if len({each.lower() for each in ids} - taken) == len(alike):
                return dict(zip(alike, ids, strict=True))
    return {path: _safe(path.stem) for path in alike}


def _numbered(ids: Iterable[str], taken: set[str]) -> list[str]:
    """For what differs only by signs that an id cannot hold."""
    used = {slide_id.lower() for slide_id in taken}
    unique = []
    for slide_id in ids:
        number, chosen = 1, slide_id
        while chosen.lower() in used:
            number += 1
            chosen = f"{slide_id}-{number}"
        used.add(chosen.lower())
        unique.append(chosen)
    return unique


def _safe(text: str) -> str:
    return re.sub(r"^\.", "_", _UNSAFE.sub("_", text)) or "_"
