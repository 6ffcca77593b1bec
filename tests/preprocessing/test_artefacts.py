import os
import subprocess
import sys
from pathlib import Path

import pytest

from preprocessing.artefacts import abandoned, put_back, whole_file, whole_folder


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


def test_a_folder_is_put_back_that_was_taken_away_for_one_that_never_came(tmp_path, monkeypatch):
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
    put_back(path)
    assert not path.exists()  # this process lives: it is its own to put back
    next(tmp_path.iterdir()).replace(tmp_path / "a.zarr.partial-1-old")
    put_back(path)
    assert (path / "inside").read_text() == "old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["a.zarr"]
    (tmp_path / "a.zarr.partial-1-old").mkdir()  # a kill after both renames
    put_back(path)
    assert (path / "inside").read_text() == "old"


WRITER = """
import sys
from pathlib import Path
from preprocessing.artefacts import whole_folder
with whole_folder(Path(sys.argv[1])) as partial:
    partial.mkdir()
    print(partial, flush=True)
    sys.stdin.read()
"""


def test_what_another_process_is_writing_is_not_abandoned_until_it_is_killed(tmp_path):
    command = [sys.executable, "-c", WRITER, str(tmp_path / "a.zarr")]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as run:
        assert run.stdout is not None
        partial = Path(run.stdout.readline().strip())
        assert partial.is_dir()
        assert list(abandoned([partial])) == []
        run.kill()
        run.wait()
    assert list(abandoned([partial])) == [partial]


def test_what_another_machine_left_is_abandoned_after_an_hour(tmp_path):
    partial = tmp_path / ".a.partial-0123abcd-1.png"
    partial.touch()
    assert list(abandoned([partial])) == []
    long_ago = partial.stat().st_mtime - 3700
    os.utime(partial, (long_ago, long_ago))
    assert list(abandoned([partial])) == [partial]
