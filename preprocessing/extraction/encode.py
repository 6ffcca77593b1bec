"""Many slides -> many feature stores: one encoder load, four things at a time.

    prepare   opens the next slide and finds its tissue       a thread, one slide ahead
    read      decodes tiles into batches                      `readers` threads, four batches ahead
    encode    computes quality and features on the device     the main thread
    write     writes the preview and the store                a thread, one slide behind

A slide's store is written when the slide is done, so a killed run loses two slides at most, and
the same call afterwards goes on where it stopped.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Literal

from preprocessing.config import GridConfig, PreprocessingConfig, QualityConfig
from preprocessing.encoders.base import EncoderSpec
from preprocessing.encoders.gpu import Uploader
from preprocessing.encoders.lazy import LazyEncoder
from preprocessing.errors import HistomilError
from preprocessing.extraction.extract import Batch, Encoding, Read, read
from preprocessing.extraction.jobs import (
    Extraction,
    Failed,
    Job,
    Renamed,
    Skipped,
    failed_job,
    naming,
    refuse_changed,
)
from preprocessing.extraction.pipeline import Ahead, Behind
from preprocessing.extraction.preview import write_preview
from preprocessing.extraction.progress import Progress
from preprocessing.manifest import SlideRow
from preprocessing.status import SlideStatus, require_unique
from preprocessing.stores.store import SlideFeatures, write_store

_log = logging.getLogger(__name__)
_AHEAD = 4  # batches that wait to be encoded


def encode_shard(
    rows: Sequence[SlideRow],
    config: PreprocessingConfig,
    out_dir: Path,
    *,
    encoder: LazyEncoder | None = None,
) -> list[SlideStatus]:
    """One store per slide in `out_dir`, and what became of each slide, in the order of `rows`.

    A finished store of the same slide, settings and weights is left as it is; where only the
    encoder is new, the tiles and the other encoders' features are kept. A slide that fails does
    not stop the others; an encoder that cannot be loaded or a disk that cannot be written does.
    """
    require_unique((row.slide_id for row in rows), "shard")
    encoder = encoder or LazyEncoder.of(config.encoder)
    if encoder.spec is not None:
        _check_grid(encoder.spec, config.grid)
    out_dir.mkdir(parents=True, exist_ok=True)
    batches = read(rows, config, out_dir, encoder)
    with (
        Behind[SlideStatus]("write") as writer,
        Progress(rows) as progress,
        Ahead(batches, limit=_AHEAD, name="read") as items,
    ):
        shard = _Shard(
            items=items,
            encoder=encoder,
            writer=writer,
            write=partial(_written, out_dir, config.quality),
            progress=progress,
        )
        statuses = shard.run()
    return [statuses[row.slide_id] for row in rows]


def _check_grid(spec: EncoderSpec, grid: GridConfig) -> None:
    spec.require_tile_px(grid.tile_px)
    if not spec.recommends(grid.mpp):
        _log.warning(
            "encoder %s: its authors recommend %s um/px, grid.mpp is %g",
            spec.name,
            " to ".join(f"{mpp:g}" for mpp in sorted(set(spec.mpp or ()))),
            grid.mpp,
        )


class _Shard:
    """The main thread's part: what the threads ahead made, encoded and handed to the writer."""

    def __init__(
        self,
        *,
        items: "Ahead[Job | Batch | Read]",
        encoder: LazyEncoder,
        writer: "Behind[SlideStatus]",
        write: Callable[[Extraction | Renamed, SlideFeatures, SlideStatus], SlideStatus],
        progress: Progress,
    ) -> None:
        self._items = items
        self._encoder = encoder
        self._writer = writer
        self._written = write
        self._progress = progress
        self._statuses: dict[str, SlideStatus] = {}
        self._upload: Uploader | None = None
        self._begun, self._waited = time.perf_counter(), 0.0

    def run(self) -> dict[str, SlideStatus]:
        """By slide id; raises what stops the shard."""
        while (job := self._next()) is not None:
            if isinstance(job, Extraction):
                self._extract(job)
            elif isinstance(job, Renamed):
                self._write(job, job.contents)
            elif isinstance(job, Skipped):
                self._note(self._status(job.row, "skipped", job.tiles))
            elif isinstance(job, Failed):
                self._fail(job)
            else:
                raise TypeError(f"expected a slide's job, got {type(job)}")
        self._note(self._writer.result())
        return self._statuses

    def _extract(self, job: Extraction) -> None:
        tiles, mpp = len(job.base.coords_px0), job.base.provenance.requested_mpp
        with naming(job.row):
            encoder = self._encoder.loaded
            self._upload = self._upload or Uploader(encoder.device)
            encoding = Encoding(encoder, self._upload, tiles=tiles, mpp=mpp)
        self._progress.start(job.row.slide_id, tiles)
        while True:
            if not self._items.waiting:
                with naming(job.row):
                    encoding.drain()
            item = self._next()
            if isinstance(item, Batch):
                with naming(job.row):
                    encoding.add(item)
                self._progress.advance(item.tried)
            elif isinstance(item, Failed):
                return self._fail(item)
            elif isinstance(item, Read):
                break
            else:
                raise TypeError(f"expected a slide's batches or their end, got {type(item)}")
        with naming(job.row):
            encoding.drain()
            contents = job.finished(
                self._encoder.name,
                self._encoder.record,
                features=encoding.features,
                quality=encoding.quality,
                failed=item.failed,
            )
        return self._write(job, contents)

    def _next(self) -> Job | Batch | Read | None:
        """The next item; called when the device has nothing left to do, or need not wait."""
        if self._items.waiting:
            return next(self._items, None)
        started = time.perf_counter()
        item = next(self._items, None)
        self._waited += time.perf_counter() - started
        return item

    def _write(self, job: Extraction | Renamed, contents: SlideFeatures) -> None:
        tiles, lost = len(contents.coords_px0), int(contents.read_error.sum())
        status = self._status(job.row, "done", tiles, unreadable=lost)
        self._note(self._writer.submit(partial(self._written, job, contents, status)))

    def _fail(self, job: Failed) -> None:
        self._note(_failure(job, self._status(job.row, "failed", 0)))

    def _note(self, status: SlideStatus | None) -> None:
        if status is not None:
            self._statuses[status.slide_id] = status

    def _status(
        self,
        row: SlideRow,
        status: Literal["done", "skipped", "failed"],
        tiles: int,
        *,
        unreadable: int = 0,
    ) -> SlideStatus:
        """With the seconds since the slide before, and the share of them spent waiting."""
        self._progress.done(row.slide_id)
        now = time.perf_counter()
        seconds, waited = now - self._begun, self._waited
        self._begun, self._waited = now, 0.0
        return SlideStatus(
            row.slide_id,
            status,
            tiles,
            seconds,
            tiles_unreadable=unreadable,
            waited_for_reading=round(waited / seconds, 3) if status == "done" else 0.0,
        )


def _written(
    out_dir: Path,
    limits: QualityConfig,
    job: Extraction | Renamed,
    contents: SlideFeatures,
    done: SlideStatus,
) -> SlideStatus:
    """`done`, once it is; what the schema refuses is the slide's failure."""
    try:
        with naming(job.row):
            # First: a slide whose store is there is left alone by the next run.
            write_preview(out_dir, contents, limits)
            refuse_changed(job, out_dir)
            write_store(out_dir, contents)
    except HistomilError as error:
        return _failure(failed_job(job.row, error), done)
    return done


def _failure(job: Failed, status: SlideStatus) -> SlideStatus:
    return replace(
        status,
        status="failed",
        tiles=0,
        tiles_unreadable=0,
        error=str(job.error),
        traceback=job.trace,
    )
