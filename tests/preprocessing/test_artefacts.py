import os
import subprocess
import sys
from pathlib import Path

import pytest

from preprocessing.artefacts import _HOST, partials_in, tidy, whole_file, whole_folder


@pytest.mark.parametrize("kind", [whole_file, whole_folder])
def test_contents_are_on_the_disk_before_they_take_the_name(tmp_path, monkeypatch, kind):
    events, fsync, replace = [], os.fsync, Path.replace

    def watched_fsync(handle):
        events.append(("sync", Path(f"/proc/self/fd/{handle}").readlink().name))
        fsync(handle)

    def watched_replace(path, target):
        events.append(("rename", path.name))
        return replace(path, target)

    monkeypatch.setattr(os, "fsync", watched_fsync)
    monkeypatch.setattr(Path, "replace", watched_replace)
    with kind(tmp_path / "made.json") as partial:
        if kind is whole_folder:
            partial.mkdir()
        inside = partial / "inside" if kind is whole_folder else partial
        inside.write_text("text")
    expected = [("sync", name) for name in dict.fromkeys((inside.name, partial.name))]
    assert events == [*expected, ("rename", partial.name)]
    assert [entry.name for entry in tmp_path.iterdir()] == ["made.json"]


def make_folder(path, text):
    with whole_folder(path) as partial:
        partial.mkdir()
        (partial / "inside").write_text(text)


@pytest.mark.parametrize("writer", ["this process", "7", f"{_HOST}-1", "0123abcd-1"])
def test_a_folder_comes_back_if_nothing_took_its_place(tmp_path, monkeypatch, writer):
    """Whoever was killed between the renames: a number may be that of another process by now."""
    path = tmp_path / "a.zarr"
    make_folder(path, "old")
    replace = Path.replace

    def killed(entry, target):
        if target == path:
            raise KeyboardInterrupt
        return replace(entry, target)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", killed)
        with pytest.raises(KeyboardInterrupt):
            make_folder(path, "new")
    assert not path.exists()
    (retired,) = tmp_path.iterdir()
    if writer != "this process":
        retired = retired.rename(tmp_path / f"a.zarr.partial-{writer}-old")
    tidy(path, partials_in(tmp_path))
    assert (path / "inside").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]
    retired.mkdir()  # a kill after both renames
    tidy(path, partials_in(tmp_path))
    assert (path / "inside").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]


WRITER = """
import sys
from pathlib import Path
from preprocessing.artefacts import whole_folder
with whole_folder(Path(sys.argv[1])) as partial:
    partial.mkdir()
    print(partial, flush=True)
    sys.stdin.read()
"""


def test_what_another_process_is_writing_stays_until_it_is_killed(tmp_path):
    path = tmp_path / "a.zarr"
    command = [sys.executable, "-c", WRITER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        partial = Path(run.stdout.readline().strip())
        tidy(path, partials_in(tmp_path))
        assert partial.is_dir()
        run.kill()
        run.wait()
    tidy(path, partials_in(tmp_path))
    assert not partial.exists()


@pytest.mark.parametrize("kind", ["file", "folder"])
def test_what_another_machine_left_goes_an_hour_after_it_was_touched(tmp_path, kind):
    path = tmp_path / "a.png"
    if kind == "file":
        partial = inside = tmp_path / ".a.partial-0123abcd-1.png"
    else:
        partial = tmp_path / "a.png.partial-0123abcd-1"
        inside = partial / "inside"
        partial.mkdir()
    inside.touch()
    now = inside.stat().st_mtime
    os.utime(partial, (now - 3700, now - 3700))
    os.utime(inside, (now, now))
    tidy(path, partials_in(tmp_path))
    assert partial.exists()
    os.utime(inside, (now - 3700, now - 3700))
    tidy(path, partials_in(tmp_path))
    assert not partial.exists()


def test_what_goes_by_itself_meanwhile_is_no_error(tmp_path):
    gone = [tmp_path / f"a.png.partial-{_HOST}-4194304{end}" for end in ("", "-old")]
    tidy(tmp_path / "a.png", gone)
    assert list(tmp_path.iterdir()) == []


def test_only_what_belongs_to_the_path_is_touched(tmp_path):
    others = ["a2.zarr.partial-1", "b.zarr.partial-1-old", ".a2.partial-1.zarr"]
    for name in others:
        (tmp_path / name).mkdir()
    tidy(tmp_path / "a.zarr", partials_in(tmp_path))
    assert sorted(entry.name for entry in tmp_path.iterdir()) == sorted(others)
