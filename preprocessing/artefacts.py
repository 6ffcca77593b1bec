"""Artefacts that are either whole or absent: written to a partial name, then renamed."""

import os
import re
import shutil
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from hashlib import sha256
from pathlib import Path

_RETIRED = "-old"
_HOST = sha256(socket.gethostname().encode()).hexdigest()[:8]
_WRITER = re.compile(r"\.partial-([0-9a-f]{8})-([0-9]{1,7})")
_SILENT_SECONDS, _SWAP_SECONDS = 3600.0, 1.0


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
    the old folder under a name that `tidy` knows.
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


def partials_in(folder: Path) -> list[Path]:
    """What writers are at in `folder`, or left there."""
    return sorted(folder.glob("*.partial-*"))


def tidy(path: Path, partials: Iterable[Path]) -> None:
    """After writers of `path` that were killed: an old folder comes back if nothing took its place,
    and what they left is removed. What another process is writing stays.

    `partials` are those of its folder, which is listed once for all that is written there.
    """
    of_path = (f"{path.name}.partial-", f".{path.stem}.partial-")
    own = [partial for partial in partials if partial.name.startswith(of_path)]
    retired = [partial for partial in own if partial.name.endswith(_RETIRED)]
    for old in retired:
        if old.exists() and not path.exists():
            time.sleep(_SWAP_SECONDS)  # its writer may be alive, and about to put the new one there
        if path.exists():
            _remove(old)
        else:
            with suppress(FileNotFoundError):
                old.replace(path)
    for partial in own:
        if partial not in retired and not _is_written(partial):
            _remove(partial)


def _is_written(partial: Path) -> bool:
    """Its process lives, or it is another machine's and was touched within the hour."""
    writer = _WRITER.search(partial.name)
    if writer is None:
        return False
    try:
        if writer[1] != _HOST:
            touched = max(each.stat().st_mtime for each in [partial, *partial.rglob("*")])
            return time.time() - touched < _SILENT_SECONDS
        os.kill(int(writer[2]), 0)
    except ProcessLookupError:
        return False
    except (PermissionError, FileNotFoundError):
        pass  # another user's process; or what it wrote has its final name by now
    return True


def _remove(entry: Path) -> None:
    with suppress(FileNotFoundError):  # another run tidies, too
        if entry.is_dir():
            shutil.rmtree(entry)
        else:
            entry.unlink()


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
