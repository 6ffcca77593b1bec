"""Tile loading of other tools beside histomil's: processor time per tile, one thread each.

    pip install slide2vec tiatoolbox lazyslide   # beside histomil, in an environment of its own
    python tests/benchmarks/peers.py [slide.svs] [--turns 5] [--json]

slide2vec's vips wants libvips, and LazySlide's fastslide `pip install "wsidata[fastslide]"`.
Where pip warns of versions that they pin, slide2vec 7.1, tiatoolbox 2.1 and wsidata 0.12 still ran.

All take turns over the same tiles in one process, without workers, at the slide's own resolution
and at half of it; ratios are taken within a turn, then their median. Opening is not counted. First
each must give every tile once and show what openslide shows there. No figure includes floats or
normalisation. At half the resolution histomil's JPEG decoder halves the tiles, its default; the
others decode in full, then resize. What is not installed or fails is named with the reason.
"""

import argparse
import json
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import openslide
import pandas as pd
import torch
from numpy.typing import NDArray
from peer_loaders import OURS, PEERS, Task, Tool
from tqdm import tqdm

from preprocessing.bench import reader as bench
from preprocessing.bench.reader_slides import RGB, YCBCR, painted_tissue, write_svs
from preprocessing.errors import NoTissue
from preprocessing.geometry import Size, plan_tiles
from preprocessing.manifest import SlideRow
from preprocessing.slides.reader import RESAMPLING, decoded_scale
from preprocessing.slides.slide import Slide
from preprocessing.versions import installed_version

MADE_PX = 7680  # of whole stored tiles, 256 or 240 pixels wide
USED_PX = 32 * bench.TILE_PX  # whole blocks of 8 x 8 tiles, slide2vec's best case; no slide's edge
COARSER = {"native": 1, "2x coarser": 2}
CHECKED_TILES = 16
LIMIT = "decoding alone"


@dataclass(frozen=True)
class Contest:
    """CPU `seconds` a tile of each side, turn by turn, and why tools `failed`."""

    slide: str
    resolution: str
    tiles: int
    seconds: Mapping[str, Sequence[float]]
    failed: Mapping[str, str]

    def milliseconds(self, side: str) -> float:
        return statistics.median(self.seconds[side]) * 1e3

    def ratio(self, side: str, other: str) -> float:
        """How many times as long as the other side it takes."""
        pairs = zip(self.seconds[side], self.seconds[other], strict=True)
        return statistics.median(a / b for a, b in pairs)


def contest(task: Task, peers: Sequence[Tool], turns: int) -> Contest:
    """Every side in every turn; who begins changes. Only histomil's own failure is raised."""
    failed: dict[str, str] = {}
    shown, next_to_it = _shown(task), _shown(task, shift_px=1)
    most = float(np.mean([np.abs(next_to_it[row] - shown[row]).mean() for row in shown]))
    for tool in (*OURS, *peers):
        with _noting(failed, tool):
            _check(tool, task, shown, most)
    limit = _limit(task)
    sides = [tool for tool in (*OURS, *peers) if tool.name not in failed]
    seconds: dict[str, list[float]] = {tool.name: [] for tool in sides}
    seconds |= {LIMIT: []} if limit else {}
    for turn in tqdm(range(turns), desc=f"{task.row.slide_id} {task.resolution}"):
        for tool in sides[turn % len(sides) :] + sides[: turn % len(sides)]:
            if tool.name in failed:
                continue
            with _noting(failed, tool):
                seconds[tool.name].append(_seconds(tool, task) / len(task.coords_px0))
        if limit:
            seconds[LIMIT].append(limit() / len(task.coords_px0))
    counted = {side: spent for side, spent in seconds.items() if side not in failed}
    return Contest(task.row.slide_id, task.resolution, len(task.coords_px0), counted, failed)


@contextmanager
def _noting(failed: dict[str, str], tool: Tool) -> Iterator[None]:
    try:
        yield
    except Exception as error:  # whatever another tool raises is its result
        if tool in OURS:
            raise
        failed[tool.name] = f"{type(error).__name__}: {error}"


def _seconds(tool: Tool, task: Task) -> float:
    with tool.load(task) as batches:
        started = time.process_time()
        for _ in batches:
            pass
        return time.process_time() - started


def _check(tool: Tool, task: Task, shown: Mapping[int, NDArray[np.int16]], most: float) -> None:
    """Every tile once, and those `shown` by openslide differ less than `most`: resampling does."""
    times_given = np.zeros(len(task.coords_px0), dtype=int)
    differences = []
    with tool.load(task) as batches:
        for rows, tiles in batches:
            for row, tile in zip(rows, tiles, strict=True):
                times_given[row] += 1
                if row in shown:
                    rgb = np.asarray(tile)
                    rgb = rgb.transpose(1, 2, 0) if len(rgb) == 3 else rgb
                    differences.append(np.abs(rgb - shown[row]).mean())
    if (times_given != 1).any():
        raise ValueError(f"{(times_given != 1).sum()} of {len(times_given)} tiles not given once")
    if np.mean(differences) >= most:
        raise ValueError(
            f"tiles differ from openslide's by {np.mean(differences):.1f} grey levels, a shift by "
            f"one pixel by {most:.1f}: another place or level, or wrong colours"
        )


def _shown(task: Task, *, shift_px: int = 0) -> dict[int, NDArray[np.int16]]:
    """Some tiles by their number, begun so many of their level's pixels further on both axes."""
    geometry = task.geometry
    corners = task.coords_px0 + round(shift_px * task.pyramid.levels[geometry.level].downsample)
    size = (round(geometry.read_px_x), round(geometry.read_px_y))
    side = (geometry.tile_px, geometry.tile_px)
    step = -(-len(task.coords_px0) // CHECKED_TILES)
    with openslide.OpenSlide(task.row.path) as slide:
        return {
            row: np.asarray(
                slide.read_region(tuple(corners[row].tolist()), geometry.level, size)
                .convert("RGB")
                .resize(side, resample=RESAMPLING),
                dtype=np.int16,
            )
            for row in range(0, len(task.coords_px0), step)
        }


def _limit(task: Task) -> Callable[[], float] | None:
    """None where the slide is not read directly."""
    with Slide(task.row) as slide:
        if slide.stored_tile(task.geometry.level) is None:
            return None
        streams, tile = bench.stored_streams(slide, task.geometry, task.coords_px0)
        scale = decoded_scale(slide, task.geometry)
    return partial(bench.decoding_seconds, streams, Size(tile.width // scale, tile.height // scale))


def tasks(row: SlideRow, *, everywhere: bool) -> list[Task]:
    with Slide(row) as slide:
        pyramid = slide.pyramid
        mask = bench.whole_slide(pyramid) if everywhere else bench.tissue_of(slide)
        found = []
        for resolution, factor in COARSER.items():
            mpp = factor * max(pyramid.mpp_x, pyramid.mpp_y)
            geometry = plan_tiles(pyramid, mpp=mpp, tile_px=bench.TILE_PX)
            coords_px0 = bench.corners_px0(slide, geometry, mask)
            if everywhere:
                coords_px0 = coords_px0[(coords_px0 < USED_PX).all(axis=1)]
            if not len(coords_px0):
                raise NoTissue(row.slide_id, f"{row.path}: no tile of tissue to measure with")
            found.append(Task(row, resolution, pyramid, geometry, coords_px0))
        return found


def compare(slide: Path | None, peers: Sequence[Tool], turns: int) -> list[Contest]:
    """On `slide`, or on two made ones."""
    if slide is not None:
        row = SlideRow(slide.stem, slide.stem, slide)
        return [contest(task, peers, turns) for task in tasks(row, everywhere=False)]
    contests = []
    with tempfile.TemporaryDirectory() as folder:
        image = painted_tissue(MADE_PX, MADE_PX, mpp=bench.MPP)
        for name, storage in (("YCbCr 4:2:0", YCBCR), ("RGB 4:4:4", RGB)):
            path = Path(folder) / f"{name[:3]}.svs"
            write_svs(path, image, mpp=bench.MPP, storage=storage)
            made = tasks(SlideRow(name, name, path), everywhere=True)
            contests += [contest(task, peers, turns) for task in made]
    return contests


def as_record(contests: Sequence[Contest], peers: Sequence[Tool]) -> dict[str, Any]:
    """`ratio`: how many times as long a tool takes as the histomil that does the same."""
    tools = {
        tool.name: {
            "version": f"{tool.package} {installed_version(tool.package)}",
            "includes": tool.includes,
            "beside": tool.beside,
            "wanted": tool.wanted,
        }
        for tool in (*OURS, *peers)
    }
    measured = [
        {
            "slide": each.slide,
            "resolution": each.resolution,
            "tiles": each.tiles,
            "ms": {side: round(each.milliseconds(side), 4) for side in each.seconds},
            "ratio": {
                tool.name: round(each.ratio(tool.name, tool.beside), 3)
                for tool in peers
                if tool.name in each.seconds
            },
            "of_limit": (
                round(each.ratio(LIMIT, "histomil"), 3) if LIMIT in each.seconds else None
            ),
            "failed": dict(each.failed),
        }
        for each in contests
    ]
    return {"tools": tools, "contests": measured}


def as_table(record: Mapping[str, Any]) -> str:
    sides = [*record["tools"], LIMIT]
    rows = []
    for side in sides:
        about = record["tools"].get(side, {"version": "simplejpeg", "includes": "every tile once"})
        cells = {"tool": side, "version": about["version"], "figure includes": about["includes"]}
        for each in record["contests"]:
            cells[f"{each['slide']} {each['resolution']}"] = _cell(each, side)
        rows.append(cells)
    lines = [pd.DataFrame(rows).to_string(index=False)]
    lines.append("CPU ms a tile; in brackets, times histomil's for the same, or histomil's share.")
    for side, tool in record["tools"].items():
        reasons: dict[str, list[str]] = {}
        for each in record["contests"]:
            where = f"{each['slide']} {each['resolution']}"
            if side in each["failed"]:
                reasons.setdefault(each["failed"][side], []).append(where)
            elif tool["wanted"] and each["resolution"] != "native":
                met = "met" if each["ratio"][side] >= tool["wanted"] else "missed"
                lines.append(f"{side} on {where}: at least {tool['wanted']:g}x wanted, {met}")
        lines += [f"{side} failed on {', '.join(on)}: {why}" for why, on in reasons.items()]
    return "\n".join(lines)


def _cell(each: Mapping[str, Any], side: str) -> str:
    if side not in each["ms"]:
        return "failed" if side in each["failed"] else ""
    ratio = f" ({each['ratio'][side]:.2f}x)" if side in each["ratio"] else ""
    share = f" ({each['of_limit']:.0%})" if side == LIMIT else ""
    return f"{each['ms'][side]:.3f}{ratio}{share}"


@contextmanager
def _stdout_to_stderr() -> Iterator[None]:
    """Of C code too: cucim and others print there."""
    kept = os.dup(1)
    os.dup2(2, 1)
    try:
        yield
    finally:
        sys.stdout.flush()
        os.dup2(kept, 1)
        os.close(kept)


def main() -> None:
    parser = argparse.ArgumentParser(description="Tile loading of other tools beside histomil's")
    parser.add_argument("slide", type=Path, nargs="?")
    parser.add_argument("--turns", type=int, default=5)
    parser.add_argument("--json", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with suppress(ImportError):
        import cv2  # pyright: ignore[reportMissingImports] - the peers resize with it

        cv2.setNumThreads(1)
    with _stdout_to_stderr():
        contests = compare(options.slide, PEERS, options.turns)
    record = as_record(contests, PEERS)
    print(json.dumps(record) if options.json else as_table(record))


if __name__ == "__main__":
    main()
