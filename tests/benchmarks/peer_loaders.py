"""The loaders that `peers` compares: histomil's, and those of other tools.

Each is used as its own pipeline or documentation does, in one thread, at what is best there for
speed. What they import is looked for only when they run.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch.utils.data import DataLoader

from preprocessing.bench.reader import BATCH
from preprocessing.geometry import Pyramid, TileGeometry
from preprocessing.manifest import SlideRow
from preprocessing.slides.reader import read_batches
from preprocessing.slides.slide import Slide

Batches = Iterable[tuple[Sequence[int], Any]]  # the tiles' numbers, and as many tiles


@dataclass(frozen=True)
class Task:
    """`coords_px0` (N, 2): the tiles' top-left corners (x, y) in level-0 pixels."""

    row: SlideRow
    resolution: str
    pyramid: Pyramid
    geometry: TileGeometry
    coords_px0: NDArray[np.int32]


@dataclass(frozen=True)
class Tool:
    """`load` opens a slide; what it gives is timed. `beside`: the histomil that does the same.

    `wanted`: how many times less histomil shall take at 2x coarser.
    """

    name: str
    package: str
    includes: str
    load: Callable[[Task], AbstractContextManager[Batches]]
    beside: str = "histomil"
    wanted: float | None = None


@contextmanager
def _histomil(task: Task, *, channels_first: bool) -> Iterator[Batches]:
    def tiles() -> Batches:
        for batch in read_batches([slide], task.coords_px0, task.geometry, batch_size=BATCH):
            tensor = torch.from_numpy(batch.tiles)
            yield (
                batch.rows.tolist(),
                tensor.permute(0, 3, 1, 2).contiguous() if channels_first else tensor,
            )

    with Slide(task.row) as slide:
        slide.stored_tile(task.geometry.level)  # compared with openslide's pixels
        yield tiles()


@contextmanager
def _slide2vec(task: Task, *, backend: str) -> Iterator[Batches]:
    """As its embedding does, with batches that never split a block of tiles that is read once."""
    from slide2vec.data.tile_reader import OnTheFlyBatchTileCollator  # pyright: ignore[reportMissingImports]

    geometry = task.geometry
    x, y = task.coords_px0.T.astype(np.int64)
    tiling = SimpleNamespace(
        x=x,
        y=y,
        num_tiles=len(x),
        read_level=geometry.level,
        read_tile_size_px=round(geometry.read_px_x),
        requested_tile_size_px=geometry.tile_px,
        tile_size_lv0=round(geometry.tile_px0_x),
        step_px_lv0=round(geometry.stride_px0_x),
        overlap=0.0,
        level_downsamples=[level.downsample for level in task.pyramid.levels],
    )
    collate = OnTheFlyBatchTileCollator(
        image_path=task.row.path, tiling_result=tiling, backend=backend, num_cucim_workers=1
    )
    order = collate.ordered_indices
    batches = collate.build_batch_sampler(batch_size=BATCH, dataset_indices=order)
    collate([0])  # it opens the slide only now

    def tiles() -> Batches:
        for places in batches:
            rows = order[places].tolist()
            yield rows, collate(rows)[1]

    yield tiles()


@contextmanager
def _tiatoolbox(task: Task) -> Iterator[Batches]:
    from tiatoolbox.tools.patchextraction import get_patch_extractor  # pyright: ignore[reportMissingImports]

    geometry = task.geometry
    corners = task.coords_px0 / [geometry.tile_px0_x, geometry.tile_px0_y] * geometry.tile_px
    extractor = get_patch_extractor(
        "point",
        input_img=task.row.path,
        locations_list=np.rint(corners).astype(int) + (geometry.tile_px - 1) // 2,
        patch_size=(geometry.tile_px, geometry.tile_px),
        resolution=geometry.effective_mpp_x,
        units="mpp",
    )
    yield (([row], tile[np.newaxis]) for row, tile in enumerate(extractor))


@contextmanager
def _lazyslide(task: Task, *, reader: str) -> Iterator[Batches]:
    """As its feature extraction does, without a model's transform."""
    from wsidata import TileSpec, open_wsi  # pyright: ignore[reportMissingImports]
    from wsidata.io import add_tiles  # pyright: ignore[reportMissingImports]

    slide = open_wsi(task.row.path, store=None, reader=reader)
    geometry = task.geometry
    spec = TileSpec.from_wsidata(  # cucim's mpp is text, which it could not divide by
        slide, geometry.tile_px, mpp=geometry.effective_mpp_x, slide_mpp=task.pyramid.mpp_x
    )
    add_tiles(slide, "tiles", task.coords_px0, spec, np.zeros(len(task.coords_px0), dtype=int))
    dataset = slide.ds.tile_images()
    loader = DataLoader(dataset, batch_size=BATCH, num_workers=0)
    dataset[0]  # it opens the slide only now

    def tiles() -> Batches:
        for number, batch in enumerate(loader):
            start = number * BATCH
            yield range(start, start + len(batch["image"])), batch["image"]

    try:
        yield tiles()
    finally:
        dataset.reader.detach_reader()


ARRAYS, CHANNELS_LAST = "uint8 arrays (H, W, 3)", "uint8 tensors (B, H, W, 3)"
CHANNELS_FIRST = "uint8 tensors (B, 3, H, W)"
OURS = (
    Tool("histomil", "histomil", CHANNELS_LAST, partial(_histomil, channels_first=False)),
    Tool("histomil BCHW", "histomil", CHANNELS_FIRST, partial(_histomil, channels_first=True)),
)
PEERS = (
    *(
        Tool(
            f"slide2vec {backend}",
            "slide2vec",
            CHANNELS_FIRST,
            partial(_slide2vec, backend=backend),
            beside="histomil BCHW",
            wanted=4.0,
        )
        for backend in ("cucim", "vips", "openslide")
    ),
    Tool("tiatoolbox", "tiatoolbox", ARRAYS, _tiatoolbox, wanted=7.0),
    *(
        Tool(
            f"LazySlide {reader}",
            "wsidata",
            CHANNELS_LAST,
            partial(_lazyslide, reader=reader),
            wanted=7.0,
        )
        for reader in ("openslide", "cucim", "fastslide")  # the first is what it chooses itself
    ),
)
