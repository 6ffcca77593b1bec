"""Slides -> batches of tiles -> one encoder's features; the two halves run side by side.

`read` makes batches in a thread of its own while the main thread gives them to an `Encoding`.
"""

from collections import deque
from collections.abc import Generator, Sequence
from contextlib import ExitStack, closing
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from preprocessing.config import PreprocessingConfig
from preprocessing.encoders.base import TileEncoder
from preprocessing.encoders.gpu import Uploader, on_gpu
from preprocessing.encoders.lazy import LazyEncoder
from preprocessing.errors import HistomilError, UnreadableSlide
from preprocessing.extraction.jobs import Extraction, Failed, Job, failed_job, jobs, naming
from preprocessing.extraction.pipeline import Ahead
from preprocessing.manifest import SlideRow
from preprocessing.slides.reader import read_batches, read_side
from preprocessing.slides.slide import Slide
from preprocessing.stores.store import QUALITY
from preprocessing.tissue.quality import tile_quality

_IN_FLIGHT = 2  # batches that a GPU is given before the first is waited for


@dataclass(frozen=True, eq=False)
class Batch:
    """(n, h, w, 3) uint8 `tiles` that were readable, and their `rows` (n,) among the slide's.

    `tried` counts the unreadable ones too.
    """

    rows: NDArray[np.int64]
    tiles: Tensor
    tried: int


@dataclass(frozen=True, eq=False)
class Read:
    """The end of a slide's batches; `failed` (N,) marks the tiles that could not be read."""

    failed: NDArray[np.bool_]


def read(
    rows: Sequence[SlideRow], config: PreprocessingConfig, out_dir: Path, encoder: LazyEncoder
) -> Generator[Job | Batch | Read]:
    """Every slide's job; after an `Extraction` its batches, then `Read`, or `Failed` instead.

    The next slide is opened and its tissue found while this one is read.
    """
    todo = jobs(rows, config, out_dir, encoder)
    with Ahead(todo, limit=1, name="prepare", discard=_close) as ahead:
        for job in ahead:
            if isinstance(job, Extraction):
                with closing(job), naming(job.row):
                    yield job
                    yield from _read_slide(job, config)
            else:
                yield job


def _close(job: Job) -> None:
    if isinstance(job, Extraction):
        job.close()


def _read_slide(job: Extraction, config: PreprocessingConfig) -> Generator[Batch | Read | Failed]:
    coords_px0 = job.base.coords_px0
    failed = np.zeros(len(coords_px0), dtype=bool)
    pin, tried = on_gpu(config.encoder.device), 0
    try:
        with ExitStack() as stack:
            handles = _handles(job, config.readers, stack)
            batches = read_batches(
                handles, coords_px0, job.geometry, batch_size=config.encoder.batch_size
            )
            # Closed before the handles are, or the reading threads would lose them.
            for batch in stack.enter_context(closing(batches)):
                tried += len(batch.rows)
                failed[batch.rows] = ~batch.readable
                _refuse_bad_tiles(job.row, failed, tried, most=config.max_bad_tiles)
                good = batch.readable
                tiles = batch.tiles if good.all() else batch.tiles[good]
                yield Batch(batch.rows[good], _as_tensor(tiles, pin=pin), len(good))
    except HistomilError as error:
        yield failed_job(job.row, error)
    else:
        yield Read(failed)


def _handles(job: Extraction, count: int, stack: ExitStack) -> list[Slide]:
    """The slide opened once per reading thread."""
    with read_side(job.row.slide_id, job.row.path):
        more = [stack.enter_context(closing(job.slide.another())) for _ in range(count - 1)]
    return [job.slide, *more]


def _as_tensor(tiles: NDArray[np.uint8], *, pin: bool) -> Tensor:
    """Pinned memory is what a GPU can copy from while it computes."""
    tensor = torch.from_numpy(np.require(tiles, requirements=("C", "W")))
    return tensor.pin_memory() if pin else tensor


def _refuse_bad_tiles(row: SlideRow, failed: NDArray[np.bool_], tried: int, *, most: float) -> None:
    """As soon as it is certain: every unreadable tile costs another opening of the file."""
    if failed.mean() > most:
        raise UnreadableSlide(
            row.slide_id,
            f"{row.path}: {failed.sum()} of the first {tried} tiles cannot be read, more than "
            f"max_bad_tiles = {most:g} of all {len(failed)}; replace the file",
        )


class Encoding:
    """One slide's `features` (N, D) and `quality` (N, 3), NaN where no tile was given.

    A GPU is given `_IN_FLIGHT` batches before the first is waited for, so that it copies one
    while it computes another; call `drain` before the results are used.
    """

    def __init__(self, encoder: TileEncoder, upload: Uploader, *, tiles: int, mpp: float) -> None:
        self.features = np.full((tiles, encoder.dim), np.nan, dtype=np.float16)
        self.quality = np.full((tiles, len(QUALITY)), np.nan, dtype=np.float32)
        self._mpp = mpp
        self._encoder = encoder
        self._upload = upload
        self._in_flight: deque[_Pending] = deque()

    @torch.inference_mode()
    def add(self, batch: Batch) -> None:
        if len(batch.rows) == 0:
            return
        try:
            pixels = self._upload(batch.tiles).permute(0, 3, 1, 2).float()
            quality = tile_quality(pixels, self._mpp)
            features = self._encoder.features(pixels)
        except torch.OutOfMemoryError as error:
            error.add_note(f"{len(batch.rows)} tiles at once: lower encoder.batch_size")
            raise
        # float16 ends at 65504; the store refuses what became infinite.
        self._in_flight.append(_Pending.of(batch.rows, features.half(), quality.float()))
        if len(self._in_flight) > (_IN_FLIGHT if pixels.is_cuda else 0):
            self._take()

    def drain(self) -> None:
        while self._in_flight:
            self._take()

    def _take(self) -> None:
        done = self._in_flight.popleft()
        done.wait()
        self.features[done.rows] = done.features.numpy()
        self.quality[done.rows] = done.quality.numpy()


@dataclass(frozen=True, eq=False)
class _Pending:
    """Results on their way to the host, `arrived` once the event says so."""

    rows: NDArray[np.int64]
    features: Tensor
    quality: Tensor
    arrived: torch.cuda.Event | None

    @classmethod
    def of(cls, rows: NDArray[np.int64], features: Tensor, quality: Tensor) -> "_Pending":
        features_there = features.to("cpu", non_blocking=True)
        quality_there = quality.to("cpu", non_blocking=True)
        event = None
        if features.is_cuda:
            event = torch.cuda.Event()
            event.record(torch.cuda.current_stream(features.device))
        return cls(rows, features_there, quality_there, event)

    def wait(self) -> None:
        if self.arrived is not None:
            self.arrived.synchronize()
