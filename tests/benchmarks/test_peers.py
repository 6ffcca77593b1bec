"""The comparison with other tools, with made-up tools in their place."""

import json
import time
from contextlib import contextmanager
from dataclasses import replace

import numpy as np
import openslide
import peers
import pytest
from peer_loaders import OURS, Tool

from preprocessing.bench.reader import MPP
from preprocessing.bench.reader_slides import RGB, YCBCR, painted_tissue, write_svs
from preprocessing.manifest import SlideRow

WASTED = 0.01  # CPU seconds a tile, many times what histomil takes


@pytest.fixture(scope="module")
def tissue():
    return painted_tissue(1024, 1024, mpp=MPP)


@pytest.fixture(scope="module")
def slide(tmp_path_factory, tissue):
    path = tmp_path_factory.mktemp("peers") / "made.svs"
    write_svs(path, tissue, mpp=MPP, storage=YCBCR)
    return path


@pytest.fixture(scope="module")
def native(slide):
    return peers.tasks(SlideRow("made", "p", slide), everywhere=True)[0]


@contextmanager
def slow(task):
    """openslide's tiles, one at a time, and time wasted on each."""

    def tiles():
        for row, corner in enumerate(task.coords_px0.tolist()):
            until = time.process_time() + WASTED
            while time.process_time() < until:
                pass
            side = round(task.geometry.read_px_x)
            image = shown.read_region(tuple(corner), task.geometry.level, (side, side))
            image = image.convert("RGB").resize((task.geometry.tile_px,) * 2)
            yield [row], np.asarray(image)[np.newaxis]

    with openslide.OpenSlide(task.row.path) as shown:
        yield tiles()


@contextmanager
def absent(task):
    import a_tool_that_nobody_has  # noqa: F401  # pyright: ignore[reportMissingImports]

    yield []


@contextmanager
def forgetful(task):
    with slow(task) as batches:
        yield list(batches)[1:]


@contextmanager
def elsewhere(task):
    moved = replace(task, coords_px0=np.roll(task.coords_px0, 1, axis=0))
    with slow(moved) as batches:
        yield batches


@contextmanager
def shifted(task):
    with slow(replace(task, coords_px0=task.coords_px0 + 2)) as batches:
        yield batches


def fake(load, wanted=None):
    return Tool(load.__name__, "openslide-python", "arrays", load, wanted=wanted)


def test_ratios_say_how_many_times_as_long_and_are_medians_of_turns():
    seconds = {"histomil": [1.0, 2.0, 4.0], "slow": [3.0, 4.0, 40.0], peers.LIMIT: [0.5, 1.6, 2.0]}
    contest = peers.Contest("s", "2x coarser", 9, seconds, {})
    record = peers.as_record([contest], [fake(slow, wanted=2.5)])
    assert record["contests"][0]["ratio"] == {"slow": 3.0}  # neither 1/3, nor 4 / 2
    assert record["contests"][0]["of_limit"] == 0.5
    assert record["contests"][0]["ms"] == {"histomil": 2000, "slow": 4000, peers.LIMIT: 1600}
    table = peers.as_table(record)
    assert "4000.000 (3.00x)" in table
    assert "slow on s 2x coarser: at least 2.5x wanted, met" in table
    record = peers.as_record([contest], [fake(slow, wanted=3.5)])
    assert "at least 3.5x wanted, missed" in peers.as_table(record)


def test_a_slow_tool_is_measured_and_failing_ones_are_named(native):
    fakes = [fake(load) for load in (absent, slow, forgetful, elsewhere, shifted)]
    contest = peers.contest(native, fakes, turns=2)
    assert contest.tiles == 16
    assert set(contest.seconds) == {"histomil", "histomil BCHW", "slow", peers.LIMIT}
    assert all(len(spent) == 2 for spent in contest.seconds.values())
    assert contest.milliseconds("slow") > WASTED * 1e3
    assert contest.ratio("slow", "histomil") > 2
    assert set(contest.failed) == {"absent", "forgetful", "elsewhere", "shifted"}
    assert contest.failed["absent"].startswith("ModuleNotFoundError: ")
    assert "1 of 16 tiles not given once" in contest.failed["forgetful"]
    for name in ("elsewhere", "shifted"):
        assert "tiles differ from openslide's by" in contest.failed[name]
    record = peers.as_record([contest], fakes)
    assert json.loads(json.dumps(record)) == record
    assert record["tools"]["slow"]["version"] == f"openslide-python {openslide.__version__}"
    assert "absent failed on made native: ModuleNotFoundError: " in peers.as_table(record)


def test_a_tool_that_fails_later_is_named_too(native):
    turns = iter(range(2))

    @contextmanager
    def tiring(task):
        if next(turns) == 1:
            raise OSError("no strength left")
        with slow(task) as batches:
            yield batches

    contest = peers.contest(native, [fake(tiring)], turns=2)
    assert contest.failed == {"tiring": "OSError: no strength left"}
    assert set(contest.seconds) == {"histomil", "histomil BCHW", peers.LIMIT}


@pytest.mark.parametrize("storage", [YCBCR, RGB], ids=["ycbcr", "rgb"])
def test_histomil_on_both_storages_and_resolutions(tmp_path, tissue, storage):
    path = tmp_path / "s.svs"
    write_svs(path, tissue, mpp=MPP, storage=storage)
    tasks = peers.tasks(SlideRow("s", "p", path), everywhere=True)
    assert [(t.resolution, len(t.coords_px0)) for t in tasks] == [("native", 16), ("2x coarser", 4)]
    for task in tasks:
        contest = peers.contest(task, [], turns=1)
        assert set(contest.seconds) == {"histomil", "histomil BCHW", peers.LIMIT}
        with OURS[1].load(task) as batches:
            assert {tuple(tiles.shape[1:]) for _, tiles in batches} == {(3, 224, 224)}


def test_histomils_own_failure_is_raised(native, monkeypatch):
    monkeypatch.setattr(peers, "OURS", (fake(absent),))
    with pytest.raises(ModuleNotFoundError, match="a_tool_that_nobody_has"):
        peers.contest(native, [fake(slow)], turns=1)
