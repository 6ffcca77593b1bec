"""Available memory from hand-written copies of /proc and /sys."""

import pytest

from mil.memory import available_bytes

GIB = 1 << 30
V1 = "4:memory:/slurm/job_7\n3:cpuset:/other\n"
V2 = "0::/user/job_7\n"


def write(folder, files):
    for name, text in files.items():
        path = folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(str(text))


def machine(gib):
    return {"proc/meminfo": f"MemTotal: {gib << 21} kB\nMemAvailable:  {gib << 20} kB\nHuge: 0\n"}


def group(folder, limit, used, cache, version=2):
    base = f"sys/fs/cgroup/{folder}" if version == 2 else f"sys/fs/cgroup/memory/{folder}"
    names = {
        2: ("memory.max", "memory.current", "inactive_file"),
        1: ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file"),
    }[version]
    return {
        f"{base}/{names[0]}": limit,
        f"{base}/{names[1]}": used,
        f"{base}/memory.stat": f"anon 1\n{names[2]} {cache}\n",
    }


@pytest.mark.parametrize(
    ("files", "gib"),
    [
        ({}, 100),  # no control group
        ({"proc/self/cgroup": V2, **group("user/job_7", "max", GIB, 0)}, 100),
        ({"proc/self/cgroup": V2, **group("user/job_7", 16 * GIB, 10 * GIB, 4 * GIB)}, 10),
        ({"proc/self/cgroup": V2, **group("user", 8 * GIB, GIB, 0)}, 7),  # of a group above
        ({"proc/self/cgroup": V2, **group(".", 8 * GIB, 2 * GIB, 0)}, 6),  # as containers see it
        ({"proc/self/cgroup": V2, **group("stranger", 8 * GIB, GIB, 0)}, 100),
        ({"proc/self/cgroup": V1, **group("slurm/job_7", 16 * GIB, 12 * GIB, GIB, 1)}, 5),
        ({"proc/self/cgroup": V1, **group("slurm/job_7", 1 << 62, 12 * GIB, 0, 1)}, 100),
        ({"proc/self/cgroup": V2, **group("user/job_7", GIB, 2 * GIB, 0)}, 0),  # over its limit
    ],
)
def test_the_tightest_limit_counts(tmp_path, files, gib):
    write(tmp_path, machine(100) | files)
    assert available_bytes(tmp_path) == gib * GIB


def test_here_there_is_some():
    assert 0 < available_bytes() < 1 << 50


def test_without_proc_it_is_half_of_what_is_built_in(tmp_path):
    assert 0 < available_bytes(tmp_path) < 1 << 50
