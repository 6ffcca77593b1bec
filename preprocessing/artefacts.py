"""Artefacts that are either whole or absent: written to a partial name, then renamed."""

import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path

_RETIRED = "-old"
_HOST = sha256(socket.gethostname().encode()).hexdigest()[:8]
_WRITER = re.compile(r"\.partial-([0-9a-f]{8})-([0-9]+)")
_SILENT_SECONDS = 3600.0


@contextmanager
def whole_file(path: Path) -> Iterator[Path]:
    """A partial name beside `path` (same suffix), renamed to it when the block ends well.

    A process that is killed leaves the partial file and never a broken `path`; on disk before the
    rename, or a power cut could leave a whole name with nothing in it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem}.partial-{_HOST}-{os.getpid()}{path.suffix}")
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
    partial = path.with_name(f"{path.name}.partial-{_HOST}-{os.getpid()}")
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
    for retired in abandoned(path.parent.glob(f"{path.name}.partial-*{_RETIRED}")):
        if not path.exists():
            retired.replace(path)


def abandoned(partials: Iterable[Path]) -> Iterator[Path]:
    """Those of `partials` that nobody is writing: their process is gone, or they are another
    machine's and an hour old.
    """
    for partial in partials:
        writer = _WRITER.search(partial.name)
        if writer is None or not _at_work(partial, host=writer[1], process=int(writer[2])):
            yield partial


def _at_work(partial: Path, *, host: str, process: int) -> bool:
    try:
        if host != _HOST:
            return time.time() - partial.stat().st_mtime < _SILENT_SECONDS
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except (PermissionError, FileNotFoundError):
        pass  # another user's process; or it has taken its final name by now
    return True


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
