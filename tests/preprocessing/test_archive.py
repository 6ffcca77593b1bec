"""An archive of 200 slides of all kinds, good and bad: nothing stops it and nothing is lost."""

import os
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import archive_files as files
import numpy as np
import pytest
from encode_fakes import TILE_PX, config_of, lazy
from tiff_files import damage_tile, write_tiff

from preprocessing.extraction.encode import encode_shard
from preprocessing.inspection.archive import inspect_archive
from preprocessing.manifest import SlideRow
from preprocessing.plan import plan_shards, shards_of
from preprocessing.process_list import (
    collect_statuses,
    read_process_list,
    shard_path,
    write_process_list,
)
from preprocessing.status import write_status
from preprocessing.stores.store import open_store, store_path

SLIDES, SHARD = 200, 64
IMAGE = files.tissue()
GLASS = np.full((512, 512, 3), 244, dtype=np.uint8)
Writer = Callable[[Path], object]


@dataclass(frozen=True)
class Kind:
    """`mpp` as written; what inspecting says (state, words of its reason) and encoding (words of
    its error; none: it succeeds).
    """

    file: str
    write: Writer
    mpp: float | None = None
    state: str = "ready"
    said: str = ""
    error: str = ""


def plain(factors: tuple[int, ...], compression: str, mpp: float) -> Writer:
    return lambda path: write_tiff(
        path, IMAGE, mpp=(mpp, mpp), factors=factors, compression=compression
    )


GOOD = [
    kind
    for mpp in (0.25, 0.4, 0.5)
    for kind in (
        Kind("ycbcr.tif", lambda p, m=mpp: files.write_jpeg(p, IMAGE, mpp=m), mpp),
        Kind("rgb.tiff", lambda p, m=mpp: files.write_jpeg(p, IMAGE, mpp=m, rgb=True), mpp),
        Kind("aperio.svs", lambda p, m=mpp: files.write_svs(p, IMAGE, mpp=m), mpp),
        Kind("deflate.tif", plain((1, 4), "deflate", mpp), mpp),
        Kind("lzw.tif", plain((1, 2, 8), "lzw", mpp), mpp),
        Kind("level.tif", plain((1,), "deflate", mpp), mpp),
    )
]
CUT = "cut short"
BAD = [
    Kind("empty.svs", Path.touch, None, "unreadable", "empty: 0 bytes", "cannot open"),
    Kind(
        "text.tif",
        lambda p: p.write_text("no slide"),
        None,
        "unreadable",
        "no slide format",
        "cannot open",
    ),
    Kind("folder.svs", Path.mkdir, None, "unreadable", "a folder, not a file", "cannot open"),
    Kind(
        "picture.svs",
        lambda p: files.write_picture(p, IMAGE),
        None,
        "unreadable",
        "plain JPEG",
        "cannot open",
    ),
    Kind(
        "strips.tif",
        lambda p: files.write_strips(p, IMAGE),
        None,
        "unreadable",
        "in strips",
        "cannot open",
    ),
    Kind(
        "half.svs",
        lambda p: files.cut(files.write_svs(p, IMAGE, mpp=0.5), share=0.5),
        None,
        "unreadable",
        CUT,
        "cannot open",
    ),
    Kind(
        "tail.tif",
        lambda p: files.cut(files.write_jpeg(p, IMAGE, mpp=0.5), share=0.95),
        None,
        "unreadable",
        CUT,
        "cannot open",
    ),
    Kind("blank.tif", lambda p: write_tiff(p, GLASS), 0.5, error="not one tile"),
    Kind("coarse.tif", plain((1,), "deflate", 4.0), 4.0, error="at most 1.1x"),
    Kind(
        "silent.svs",
        lambda p: files.write_svs(p, IMAGE, mpp=None),
        None,
        "no mpp",
        "states no micro",
        "set column 'mpp'",
    ),
    Kind(
        "print.tif",
        plain((1,), "deflate", 352.8),
        None,
        "no mpp",
        "outside the plausible",
        "set column 'mpp'",
    ),
    Kind(
        "torn.svs",
        lambda p: files.contradict(files.write_svs(p, IMAGE, mpp=0.25, power=40), um=0.5),
        None,
        "no mpp",
        "contradicts",
        "contradicts tiff.XResolution = 0.5",
    ),
    Kind(
        "lens.svs",
        lambda p: files.write_svs(p, IMAGE, mpp=0.5, power=2.5),
        None,
        "no mpp",
        "2.5x, usually gives 4",
        "8.0 times off",
    ),
]
ODD = [
    Kind("deep.tif", lambda p: files.write_deep(p, IMAGE, mpp=0.5), 0.5, said="16 bits a channel"),
    Kind("alpha.tif", lambda p: files.write_alpha(p, IMAGE, mpp=0.4), 0.4, said="alpha channel"),
    Kind(
        "adapter.svs",
        lambda p: files.write_svs(p, IMAGE, mpp=0.23),
        0.23,
        said="20x, usually gives 0.5",
    ),
    Kind(
        "label.svs",
        lambda p: files.cut(files.write_svs(p, IMAGE, mpp=0.5), share=0.99),
        0.5,
        "damaged",
        CUT,
    ),
    Kind("hole.tif", lambda p: damaged(p), 0.5, "damaged", "1 of 9 places"),
]


def damaged(path: Path) -> None:
    files.write_jpeg(path, IMAGE, mpp=0.5, factors=(1,))
    damage_tile(path, col=1, row=1)


@dataclass(frozen=True)
class Archive:
    folder: Path
    kinds: dict[Path, Kind]
    """Of every file that was put there."""


@pytest.fixture(scope="module")
def archive(tmp_path_factory: pytest.TempPathFactory) -> Archive:
    """Each kind is written once and copied; every name stands in two folders."""
    patterns, folder = tmp_path_factory.mktemp("patterns"), tmp_path_factory.mktemp("archive")
    kinds = [*BAD, *ODD, *GOOD]
    for number, kind in enumerate(kinds):
        (patterns / str(number)).mkdir()
        kind.write(patterns / str(number) / kind.file)
    placed = {}
    for at in range(SLIDES):
        number = at // 2 % len(kinds)
        path = folder / ("north", "south")[at % 2] / f"{at // 2:03d}" / kinds[number].file
        path.parent.mkdir(parents=True)
        pattern = patterns / str(number) / kinds[number].file
        (shutil.copytree if pattern.is_dir() else shutil.copyfile)(pattern, path)
        placed[path] = kinds[number]
    return Archive(folder, placed)


@pytest.fixture(scope="module")
def reports(archive):
    return inspect_archive([archive.folder])


def test_inspecting_says_what_each_file_is(archive, reports):
    assert {report.path for report in reports} == set(archive.kinds)
    assert len({report.slide_id.lower() for report in reports}) == SLIDES
    for report in reports:
        kind = archive.kinds[report.path]
        assert report.state == kind.state, (kind.file, report)
        said = " ".join([report.problem, report.mpp_problem, *report.notes])
        assert kind.said in said, (kind.file, said)
        if kind.mpp is not None:
            assert (report.mpp_x, report.mpp_y) == pytest.approx((kind.mpp, kind.mpp), rel=1e-4)
        else:
            assert report.mpp_x is None


def test_encoding_loses_no_slide_and_says_why_it_failed(archive, reports, tmp_path, monkeypatch):
    """As the workflow does it: a manifest, its shards, a status file each, one process list."""
    monkeypatch.setattr(os, "fsync", lambda _: None)  # most of the time, and nothing to this test
    rows = [SlideRow(r.slide_id, f"p{n}", r.path) for n, r in enumerate(reports)]
    rows.append(SlideRow("absent", "p", archive.folder / "absent.svs"))
    manifest = tmp_path / "slides.csv"
    lines = [f"{row.slide_id},{row.patient_id},{row.path}" for row in rows]
    manifest.write_text("\n".join(["slide_id,patient_id,path", *lines]) + "\n")
    config = config_of().model_copy(update={"manifest": manifest, "shard_size": SHARD})
    plans = plan_shards(config)
    for number, (shard, plan) in enumerate(zip(shards_of(rows, SHARD), plans, strict=True)):
        statuses = encode_shard(shard, config, tmp_path, encoder=lazy())
        write_status(shard_path(tmp_path, number), statuses, settings=plan.settings)
    write_process_list(collect_statuses(tmp_path, config), tmp_path)
    listed = read_process_list(tmp_path)
    assert [status.slide_id for status in listed] == [row.slide_id for row in rows]
    for row, status in zip(rows, listed, strict=True):
        absent = Kind("absent", Path.touch, error="no file at")
        kind = archive.kinds.get(row.path, absent)
        if kind.error:
            assert (kind.file, status.status, status.tiles) == (kind.file, "failed", 0)
            assert kind.error in status.error, (kind.file, status.error)
            assert repr(row.slide_id) in status.error
            assert not store_path(tmp_path, row.slide_id).exists()
        else:
            assert (kind.file, status.status, status.error) == (kind.file, "done", "")
            assert_right(tmp_path, row, kind, tiles=status.tiles)


def assert_right(folder: Path, row: SlideRow, kind: Kind, *, tiles: int) -> None:
    """The block of tissue is tiled, at the resolution that was written, and is purple."""
    store = open_store(store_path(folder, row.slide_id))
    assert kind.mpp is not None
    assert store.provenance.mpp_x == pytest.approx(kind.mpp, rel=1e-4)
    height, width = IMAGE.shape[:2]
    per_tile_px0 = TILE_PX * 0.5 / kind.mpp
    block = (width * 2 / 3) * (height * 2 / 3) / per_tile_px0**2
    assert len(store) == tiles
    assert 0.6 * block < tiles < 2.5 * block
    assert store.read_error.any() == (kind.file == "hole.tif")
    values = store.features("fake")[~store.read_error]
    inside = store.tissue_fraction[~store.read_error] > 0.99
    assert np.abs(values[inside].mean(axis=0) - (150, 70, 150)).max() < 12
