"""Artefacts that are either whole or absent: written to a partial name, then renamed."""

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_RETIRED = "-old"


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A partial name beside `path` (same suffix), renamed to it when the block ends well.

    A process that is killed leaves the partial file and never a broken `path`; on disk before the
    rename, or a power cut could leave a whole name with nothing in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial-{os.getpid()}{path.suffix}")
    try:
        yield partial
        _sync(partial)
        partial.replace(path)
    finally:
        partial.unlink(missing_ok=True)


@contextmanager
def whole_folder(path: Path) -> Iterator[Path]:
    """A partial name beside `path`, renamed to it when the block ends well; replaces an old one.

    A folder cannot be swapped in one step: a kill between the two renames leaves `path` absent and
    the old folder under a name that `put_back` knows.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f"{path.name}.partial-{os.getpid()}")
    shutil.rmtree(partial, ignore_errors=True)
    try:
        yield partial
        for entry in [*partial.rglob("*"), partial]:
            _sync(entry)
        _swap_in(partial, path)
    finally:
        shutil.rmtree(partial, ignore_errors=True)  # gone already after a success


def put_back(path: Path) -> None:
    """The old folder, if a kill in `whole_folder` took it away and put nothing in its place."""
    for retired in path.parent.glob(f"{path.name}.partial-*{_RETIRED}"):
        if not path.exists():
            retired.replace(path)


def _sync(entry: Path) -> None:
    handle = os.open(entry, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _swap_in(partial: Path, path: Path) -> None:
    """The old folder comes back if the new one cannot take its place."""
    retired = partial.with_name(partial.name + _RETIRED)
    shutil.rmtree(retired, ignore_errors=True)
    had_folder = path.exists()
    if had_folder:
        path.replace(retired)
    try:
        partial.replace(path)
    except OSError:
        if had_folder:
            retired.replace(path)
        raise
    shutil.rmtree(retired, ignore_errors=True)
