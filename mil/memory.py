"""How much memory a process may still take: of the machine, and of its control groups.

A batch system gives a job less than the machine has and kills it at that limit, so the tightest of
all limits counts. What files are cached in is given back when asked for, and counts as available.
"""

import os
from collections.abc import Iterator
from pathlib import Path

# Of cgroup versions 2 and 1: controller, mount point, limit, use, and cache as in memory.stat.
_VERSIONS = (
    ("", "sys/fs/cgroup", "memory.max", "memory.current", "inactive_file"),
    (
        "memory",
        "sys/fs/cgroup/memory",
        "memory.limit_in_bytes",
        "memory.usage_in_bytes",
        "total_inactive_file",
    ),
)


def available_bytes(root: Path = Path("/")) -> int:
    """`root`: where proc and sys are; without them (macOS), half of what is built in."""
    meminfo = _numbers(root / "proc/meminfo")
    if "MemAvailable" not in meminfo:
        return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") // 2
    return min([1024 * meminfo["MemAvailable"], *_left_in_groups(root)])


def _left_in_groups(root: Path) -> Iterator[int]:
    """Bytes left in each control group that this process is in, where it has a limit.

    A container may see its own group as the mount point, whatever path it is told.
    """
    membership = root / "proc/self/cgroup"
    lines = membership.read_text().splitlines() if membership.is_file() else []
    for controllers, mount, most, used, cache in _VERSIONS:
        for line in lines:
            _, mine, path = line.split(":", 2)
            if controllers not in mine.split(","):
                continue
            group = root / mount / path.lstrip("/")
            for folder in (group, *group.parents):
                limit = folder / most
                if limit.is_file() and limit.read_text().strip() != "max":
                    given_back = _numbers(folder / "memory.stat").get(cache, 0)
                    taken = int((folder / used).read_text()) - given_back
                    yield max(0, int(limit.read_text()) - taken)


def _numbers(path: Path) -> dict[str, int]:
    """`name: number` or `name number`, a line each; nothing of a file that is not there."""
    lines = path.read_text().splitlines() if path.is_file() else []
    pairs = (line.replace(":", " ").split()[:2] for line in lines)
    return {name: int(number) for name, number in pairs}
