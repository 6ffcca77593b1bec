"""How fast tiles are read on this machine: beside openslide, and beside the limit.

Three sides take turns over the same tiles of a slide, one thread each, and count processor time:
histomil's batches; what most programs do, `openslide.read_region(...).convert("RGB")` with its
default cache and Pillow's bicubic where tiles are coarser; and the limit, nothing but decoding
every stored tile under them once, from memory. Ratios are taken within a turn, then their median.
Opening a slide is not counted; histomil's, with the comparison of pixels, is stated beside.
"""

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor
from pathlib import Path

import numpy as np
import openslide
import pandas as pd
from numpy.typing import NDArray
from simplejpeg import decode_jpeg
from tqdm import tqdm

from preprocessing.bench.reader_slides import RGB, YCBCR, painted_tissue, write_svs
from preprocessing.config import TissueConfig
from preprocessing.errors import NoTissue
from preprocessing.geometry import Pyramid, Size, TileGeometry, plan_tiles
from preprocessing.manifest import SlideRow
from preprocessing.slides.reader import RESAMPLING, decoded_scale, read_batches
from preprocessing.slides.slide import Slide
from preprocessing.slides.tiff_index import TileIndex, index_levels
from preprocessing.tissue.grid import make_grid
from preprocessing.tissue.segmentation import TissueMask, find_tissue

TILE_PX, BATCH, MPP = 224, 32, 0.25
MOST_TILES = 1500  # of a slide of the user's: some seconds of openslide a turn
MADE_PX = 12288  # so many tiles that the first ones, in new memory, hardly count
# The last: 0.5 um/px of one of the many slides that have 0.253.
_TIMES_COARSER = {"native": 1.0, "coarser": 2.0, "nearly_twice": 1.98}


@dataclass(frozen=True)
class Contest:
    """One slide at one resolution: CPU `seconds` a tile of each side, turn by turn.

    `resolution` is "native", the slide's own, "coarser", half of it, or "nearly_twice". The side
    `limit` is absent where a slide is not read directly.
    """

    slide: str
    reader: str
    resolution: str
    tiles: int
    decoded_scale: int
    opening_seconds: float
    seconds: Mapping[str, Sequence[float]]

    @property
    def faster(self) -> float:
        """Tiles a CPU second over openslide's."""
        return self._ratio("openslide", "ours")

    @property
    def of_limit(self) -> float | None:
        """Tiles a CPU second over those of decoding alone; at most 1."""
        return self._ratio("limit", "ours") if "limit" in self.seconds else None

    def _ratio(self, one: str, other: str) -> float:
        pairs = zip(self.seconds[one], self.seconds[other], strict=True)
        return statistics.median(a / b for a, b in pairs)

    def row(self) -> dict[str, object]:
        cells: dict[str, object] = {
            "slide": self.slide,
            "tiles": f"{self.tiles} {self.resolution.replace('_', ' ')}",
            "decoded at": f"1/{self.decoded_scale}",
        }
        for side, name in (("ours", "histomil"), ("openslide", "openslide"), ("limit", "limit")):
            if side in self.seconds:
                seconds = statistics.median(self.seconds[side])
                cells |= {f"{name} ms": f"{seconds * 1e3:.3f}", f"{name}/s": round(1 / seconds)}
        of_limit = "" if self.of_limit is None else f"{self.of_limit:.0%}"
        return cells | {"ratio": f"{self.faster:.2f}", "of limit": of_limit}


@dataclass(frozen=True)
class ReaderBench:
    """The contests by the suffix of their figures: "" and "_rgb", or "" alone for a given slide."""

    contests: Mapping[str, Sequence[Contest]]


def bench_reader(
    slide: Path | None = None,
    mpp: float | None = None,
    repeats: int = 3,
    *,
    made_px: int = MADE_PX,
) -> ReaderBench:
    """Two made slides of `made_px` squared, or `slide`; a minute or two.

    `mpp`: micrometres per level-0 pixel of `slide`, where the file states none. Raises what
    opening it raises, and `NoTissue`.
    """
    if slide is not None:
        row = SlideRow(slide.stem, slide.stem, slide, mpp)
        contests = _contests(row, repeats, everywhere=False)
        if not contests:
            raise NoTissue(row.slide_id, f"{slide}: no tile of tissue to measure with")
        return ReaderBench({"": contests})
    with tempfile.TemporaryDirectory() as folder:
        image = painted_tissue(made_px, made_px, mpp=MPP)
        found = {}
        for suffix, name, storage in (("", "YCbCr 4:2:0", YCBCR), ("_rgb", "RGB 4:4:4", RGB)):
            path = Path(folder) / f"slide{suffix}.svs"
            write_svs(path, image, mpp=MPP, storage=storage)
            found[suffix] = _contests(SlideRow(name, name, path), repeats, everywhere=True)
        return ReaderBench(found)


def as_record(bench: ReaderBench) -> dict[str, float | None]:
    """`native_ratio`, `coarser_ratio`, `nearly_twice_ratio` and the same with `_rgb`: times as many
    tiles as openslide in a CPU second; `native_vs_decode`: of the limit. None where nothing was
    measured.
    """
    record: dict[str, float | None] = {}
    for suffix in ("", "_rgb"):
        found = {each.resolution: each for each in bench.contests.get(suffix, ())}
        for name in _TIMES_COARSER:
            record[f"{name}_ratio{suffix}"] = (
                _rounded(found[name].faster) if name in found else None
            )
    natives = [each for each in bench.contests[""] if each.resolution == "native"]
    record["native_vs_decode"] = _rounded(natives[0].of_limit) if natives else None
    return record


def _rounded(value: float | None) -> float | None:
    return None if value is None else round(value, 3)


def as_table(bench: ReaderBench) -> str:
    contests = [each for group in bench.contests.values() for each in group]
    table = pd.DataFrame([each.row() for each in contests]).fillna("").to_string(index=False)
    opened = {each.slide: each for each in contests}.values()
    notes = [
        f"{each.slide}: {each.reader}; opened and compared in {each.opening_seconds * 1e3:.0f} ms"
        for each in opened
    ]
    return "\n".join([table, "CPU milliseconds and tiles per CPU second, one thread.", *notes])


def _contests(row: SlideRow, repeats: int, *, everywhere: bool) -> list[Contest]:
    """At the slide's own resolution, at half of it, and at a little more than that."""
    with Slide(row) as slide:
        mask = whole_slide(slide.pyramid) if everywhere else tissue_of(slide)
        plans = {
            name: plan_tiles(
                slide.pyramid,
                mpp=factor * max(slide.pyramid.mpp_x, slide.pyramid.mpp_y),
                tile_px=TILE_PX,
            )
            for name, factor in _TIMES_COARSER.items()
        }
        coords = {name: corners_px0(slide, plan, mask) for name, plan in plans.items()}
    return [
        _contest(row, name, plans[name], coords[name], repeats)
        for name in _TIMES_COARSER
        if len(coords[name])
    ]


def whole_slide(pyramid: Pyramid) -> TissueMask:
    size = pyramid.size_px0
    return TissueMask(np.ones((1, 1), dtype=bool), size.width, size.height)


def tissue_of(slide: Slide) -> TissueMask:
    config = TissueConfig()
    view, _ = slide.overviews(mpp=config.mask_mpp, longest_px=1024)
    return find_tissue(
        view.rgb,
        config,
        px0_per_px_x=view.px0_per_px_x,
        px0_per_px_y=view.px0_per_px_y,
        mpp=view.mpp,
    )


def corners_px0(slide: Slide, geometry: TileGeometry, mask: TissueMask) -> NDArray[np.int32]:
    """Tiles of tissue; where there are many, those of the rows in the middle."""
    tiles = make_grid(
        slide.pyramid.size_px0, geometry, mask, min_tissue=0.25, bounds_px0=slide.bounds_px0
    )
    first = max(0, (len(tiles) - MOST_TILES) // 2)
    return tiles.coords_px0[first : first + MOST_TILES]


def _contest(
    row: SlideRow,
    resolution: str,
    geometry: TileGeometry,
    coords_px0: NDArray[np.int32],
    repeats: int,
) -> Contest:
    started = time.process_time()
    with Slide(row) as slide:
        reader = slide.reader
        opening_seconds = time.process_time() - started
        scale = decoded_scale(slide, geometry)
        sides: dict[str, Callable[[], float]] = {
            "ours": lambda: _ours(row, geometry, coords_px0),
            "openslide": lambda: _openslides(row.path, geometry, coords_px0),
        }
        if slide.stored_tile(geometry.level) is not None:
            streams, tile = stored_streams(slide, geometry, coords_px0)
            smaller = Size(tile.width // scale, tile.height // scale)
            sides["limit"] = lambda: decoding_seconds(streams, smaller)
        seconds: dict[str, list[float]] = {side: [] for side in sides}
        for turn in tqdm(range(repeats + 1), desc=f"{row.slide_id} {resolution}", mininterval=0):
            for side, run in sides.items():
                spent = run() / len(coords_px0)
                if turn:  # the first one finds the file outside of memory
                    seconds[side].append(spent)
    return Contest(
        row.slide_id, reader, resolution, len(coords_px0), scale, opening_seconds, seconds
    )


def _ours(row: SlideRow, geometry: TileGeometry, coords_px0: NDArray[np.int32]) -> float:
    with Slide(row) as slide:
        slide.stored_tile(geometry.level)
        started = time.process_time()
        for _ in read_batches([slide], coords_px0, geometry, batch_size=BATCH):
            pass
        return time.process_time() - started


def _openslides(path: Path, geometry: TileGeometry, coords_px0: NDArray[np.int32]) -> float:
    size = (round(geometry.read_px_x), round(geometry.read_px_y))
    side = (geometry.tile_px, geometry.tile_px)
    with openslide.OpenSlide(path) as slide:
        started = time.process_time()
        for x, y in coords_px0.tolist():
            image = slide.read_region((x, y), geometry.level, size).convert("RGB")
            np.asarray(image if size == side else image.resize(side, resample=RESAMPLING))
        return time.process_time() - started


def stored_streams(
    slide: Slide, geometry: TileGeometry, coords_px0: NDArray[np.int32]
) -> tuple[list[bytes], Size]:
    """Every stored tile under the tiles, complete, and its size."""
    sizes = [level.size for level in slide.pyramid.levels]
    index = index_levels(slide.path, slide.vendor, sizes)[geometry.level]
    assert isinstance(index, TileIndex)
    downsample = slide.pyramid.levels[geometry.level].downsample
    numbers: set[int] = set()
    for x_px0, y_px0 in coords_px0.tolist():
        x, y = x_px0 / downsample, y_px0 / downsample
        right = min(ceil(x + geometry.read_px_x - 1e-6), index.size.width)
        bottom = min(ceil(y + geometry.read_px_y - 1e-6), index.size.height)
        box = Size(right - floor(x), bottom - floor(y))
        numbers.update(index.under(floor(x), floor(y), box))
    streams = []
    with slide.path.open("rb") as file:
        for number in sorted(numbers):
            file.seek(index.offsets[number])
            streams.append(index.head + file.read(index.byte_counts[number])[2:])
    return streams, index.tile


def decoding_seconds(streams: Sequence[bytes], size: Size) -> float:
    started = time.process_time()
    for stream in streams:
        decode_jpeg(stream, min_width=size.width, min_height=size.height)
    return time.process_time() - started
