import io
import re

import pytest

from preprocessing.extraction.progress import Progress
from preprocessing.manifest import SlideRow


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def rows(tmp_path):
    rows = [SlideRow(name, "p", tmp_path / f"{name}.tif") for name in "abcd"]
    for row, size in zip(rows, (1000, 3000, 500), strict=False):  # the last is absent
        row.path.write_bytes(bytes(size))
    return rows


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr("tqdm.std.time", clock)
    monkeypatch.setattr("tqdm.std.tqdm._time", clock, raising=False)
    return clock


def test_a_log_gets_whole_lines(rows, clock):
    log = io.StringIO()
    with Progress(rows, stream=log, every_s=0.0, clock=clock) as progress:
        progress.start("a", 40)
        clock.now = 2.0
        progress.advance(10)
        progress.advance(30)
        progress.done("a")
    assert "\r" not in log.getvalue()
    lines = log.getvalue().splitlines()
    assert all(line == line.strip() for line in lines)
    assert lines[0].startswith("0/4 slides 0 %")
    assert lines[1].startswith("0/4 slides, a: 10 of 40 tiles")
    assert "5 tiles/s" in lines[1]
    assert lines[2].startswith("0/4 slides, a: 40 of 40 tiles")
    assert lines[-1].startswith("1/4 slides, a")


def test_time_left_follows_from_the_bytes_still_to_be_encoded(rows, clock):
    """Slide b has 3000 bytes, a and c 1500: half of b in 10 s leaves another 10 + 10 s."""
    log = io.StringIO()
    with Progress(rows, stream=log, every_s=0.0, clock=clock) as progress:
        progress.done("d")
        progress.start("b", 200)
        clock.now = 10.0
        progress.advance(100)
        assert re.search(r"33 % 00:10<00:20, 10 tiles/s", log.getvalue().splitlines()[-1])
        progress.advance(100)
        progress.done("b")
        progress.done("a")  # skipped: no time is planned for it
        progress.start("c", 1)
        assert log.getvalue().splitlines()[-1].startswith("3/4 slides, a")
        assert re.search(r"86 % 00:10<00:01", log.getvalue().splitlines()[-1])


def test_a_slide_that_fails_half_way_ends_as_a_whole_one(rows, clock):
    log = io.StringIO()
    with Progress(rows[:2], stream=log, every_s=0.0, clock=clock) as progress:
        progress.start("a", 10)
        clock.now = 1.0
        progress.advance(5)
        progress.done("a")
        progress.start("b", 10)
        progress.advance(10)
        progress.done("b")
    assert log.getvalue().splitlines()[-1].startswith("2/2 slides, b 100 %")


def test_a_log_is_not_flooded(rows, clock):
    log = io.StringIO()
    with Progress(rows, stream=log, clock=clock) as progress:
        progress.start("a", 1000)
        for number in range(1000):
            clock.now = number / 10
            progress.advance(1)
    assert 3 <= len(log.getvalue().splitlines()) <= 6


def test_a_terminal_gets_a_bar_that_writes_over_itself(rows, clock):
    terminal = io.StringIO()
    terminal.isatty = lambda: True
    with Progress(rows, stream=terminal, clock=clock) as progress:
        progress.start("a", 2)
        clock.now = 1.0
        progress.advance(1)
    assert terminal.getvalue().count("\n") == 1
    assert "\r0/4 slides, a: 1 of 2 tiles" in terminal.getvalue()
