"""One of several GPUs for this process alone, as far as there are enough.

Jobs that Snakemake starts on one machine all see all of its GPUs. By file locks they spread over
them; the system frees a lock when its process ends, however it ends.
"""

import fcntl
import os
from pathlib import Path


def claim(devices: list[str], folder: Path) -> int:
    """The first of `devices` that fewest processes have claimed in `folder`; locks it.

    Never waits: where all are taken, each takes a second process, and so on.
    """
    turn = 0
    while True:
        for index, device in enumerate(devices):
            if _locked(folder / f"histomil-gpu-{device}-{turn}.lock"):
                return index
        turn += 1


def _locked(path: Path) -> bool:
    """The lock belongs to the open file, which is left open on purpose."""
    # Read-only is enough for a lock, and other users' files in a shared folder allow no more.
    handle = _opened(path)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return False
    return True


def _opened(path: Path) -> int:
    try:
        handle = os.open(path, os.O_RDONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC)
    except FileExistsError:
        return os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_CLOEXEC)
    os.fchmod(handle, 0o644)  # whatever this user's mask is
    return handle
