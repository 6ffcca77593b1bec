"""One slide's tiles -> one encoder's features: reading overlapped with encoding."""

from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import PreprocessingConfig
from preprocessing.encoders.base import TileEncoder
from preprocessing.errors import UnreadableSlide
from preprocessing.geometry import TileGeometry
from preprocessing.manifest import SlideRow
from preprocessing.reader import read_batches, read_side
from preprocessing.slide import Slide, open_slide


@contextmanager
def opened(row: SlideRow) -> Iterator[Slide]:
    """`open_slide`, where a file that the system refuses to open is an `UnreadableSlide`."""
    with ExitStack() as stack:
        with read_side(row.slide_id, row.path):
            slide = stack.enter_context(open_slide(row))
        yield slide


def extract_features(
    row: SlideRow,
    slide: Slide,
    geometry: TileGeometry,
    *,
    coords_px0: NDArray[np.int32],
    encoder: TileEncoder,
    config: PreprocessingConfig,
    advance: Callable[[int], object],
) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    """(N, D) features, NaN where (N,) says that a tile could not be read.

    `slide` is one of `config.readers` handles on the file. `advance` is told of the tiles done.
    """
    encoder.spec.require_tile_px(geometry.tile_px)
    features = np.full((len(coords_px0), encoder.dim), np.nan, dtype=np.float16)
    failed = np.zeros(len(coords_px0), dtype=bool)
    start, size = 0, config.encoder.batch_size
    with ExitStack() as stack:
        more = range(config.readers - 1)
        handles = [slide, *(stack.enter_context(opened(row)) for _ in more)]
        batches = read_batches(handles, coords_px0, geometry, batch_size=size)
        # Closed before the handles are, or the reading threads would lose them.
        for batch in stack.enter_context(closing(batches)):
            rows = slice(start, start + len(batch.readable))
            failed[rows] = ~batch.readable
            _refuse_bad_tiles(row, failed, rows.stop, most=config.max_bad_tiles)
            if batch.readable.any():
                values = encoder.encode(batch.tiles[batch.readable])
                with np.errstate(over="ignore"):  # the store refuses what float16 cannot hold
                    features[rows][batch.readable] = values.astype(np.float16)
            start = rows.stop
            advance(len(batch.readable))
    return features, failed


def _refuse_bad_tiles(row: SlideRow, failed: NDArray[np.bool_], tried: int, *, most: float) -> None:
    """As soon as it is certain: every unreadable tile costs another opening of the file."""
    if failed.mean() > most:
        raise UnreadableSlide(
            row.slide_id,
            f"{row.path}: {failed.sum()} of the first {tried} tiles cannot be read, more than "
            f"max_bad_tiles = {most:g} of all {len(failed)}; replace the file",
        )
