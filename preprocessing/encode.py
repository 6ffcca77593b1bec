"""Many slides -> many feature stores: one encoder load, reading overlapped with encoding.

A slide's store is written when the slide is done, so a killed run loses one slide at most, and
the same call afterwards goes on where it stopped.
"""

import logging
import shutil
import time
import traceback
from collections.abc import Sequence
from contextlib import closing
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from numpy.typing import NDArray
from openslide import __library_version__ as openslide_version
from tqdm import tqdm

from preprocessing.config import PreprocessingConfig
from preprocessing.encoders.lazy import LazyEncoder
from preprocessing.errors import (
    ConfigError,
    EncoderUnavailable,
    HistomilError,
    StoreError,
    UnreadableSlide,
)
from preprocessing.geometry import TileGeometry
from preprocessing.manifest import SlideRow
from preprocessing.prepare import prepare_slide, tile_geometry
from preprocessing.reader import prefetch, read_batches
from preprocessing.slide import Slide, open_slide
from preprocessing.status import SlideStatus, require_unique
from preprocessing.store import (
    FeatureStore,
    SlideFeatures,
    open_store,
    partial_stores,
    store_path,
    write_store,
)

_log = logging.getLogger(__name__)
_PACKAGES = ("histomil", "numpy", "pillow", "zarr", "torch", "timm")


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
    not stop the others; an encoder that cannot be loaded does.
    """
    require_unique((row.slide_id for row in rows), "shard")
    out_dir.mkdir(parents=True, exist_ok=True)
    statuses = []
    # Few refreshes, because a workflow's log keeps each as a line.
    with tqdm(unit="tile", unit_scale=True, mininterval=2) as bar:
        shard = _Shard(config, out_dir, encoder or LazyEncoder.of(config.encoder), bar)
        for number, row in enumerate(rows, 1):
            bar.set_description(f"slide {number}/{len(rows)} {row.slide_id}")
            statuses.append(shard.run(row))
    return statuses


class _Shard:
    def __init__(
        self,
        config: PreprocessingConfig,
        out_dir: Path,
        encoder: LazyEncoder,
        bar: "tqdm[NoReturn]",
    ) -> None:
        self._config = config
        self._out_dir = out_dir
        self._encoder = encoder
        self._bar = bar

    def run(self, row: SlideRow) -> SlideStatus:
        """The job boundary: what goes wrong with one slide becomes its status."""
        started = time.perf_counter()
        try:
            for leftover in partial_stores(self._out_dir, row.slide_id):
                shutil.rmtree(leftover)
            with open_slide(row) as slide:
                status, tiles = self._encode(row, slide)
        except (ConfigError, EncoderUnavailable):
            raise  # the same for every slide
        except (HistomilError, OSError) as error:
            seconds = time.perf_counter() - started
            trace = traceback.format_exc()
            return SlideStatus(row.slide_id, "failed", 0, seconds, str(error), trace)
        return SlideStatus(row.slide_id, status, tiles, time.perf_counter() - started)

    def _encode(self, row: SlideRow, slide: Slide) -> tuple[Literal["done", "skipped"], int]:
        geometry = tile_geometry(slide, self._config.grid)
        old = self._matching_store(row, slide)
        if old is not None and self._has_features(old):
            return "skipped", len(old)
        fresh = old is None
        base = prepare_slide(row, slide, geometry, self._config) if fresh else self._kept(old)
        write_store(self._out_dir, self._with_features(base, slide, geometry))
        return "done", len(base.coords_px0)

    def _matching_store(self, row: SlideRow, slide: Slide) -> FeatureStore | None:
        """The finished store of the same file, resolution, tissue and grid settings, if any."""
        path = store_path(self._out_dir, row.slide_id)
        if not path.exists():
            return None
        try:
            store = open_store(path)
        except StoreError as error:
            _log.warning("extracting again: %s", error)
            return None
        found = store.provenance
        same = (
            found.slide_fingerprint == slide.fingerprint
            and found.patient_id == row.patient_id
            and (found.mpp_x, found.mpp_y) == (slide.pyramid.mpp_x, slide.pyramid.mpp_y)
            and found.tissue == self._config.tissue
            and found.grid == self._config.grid
        )
        return store if same else None

    def _has_features(self, store: FeatureStore) -> bool:
        """A corrected licence text is no reason to compute again."""
        found, wanted = store.provenance.encoders.get(self._encoder.name), self._encoder.record
        return found is not None and found == wanted.model_copy(update={"licence": found.licence})

    def _kept(self, store: FeatureStore) -> SlideFeatures:
        """A finished store without this encoder's part."""
        others = [name for name in store.encoders if name != self._encoder.name]
        encoders = {name: store.provenance.encoders[name] for name in others}
        return SlideFeatures(
            provenance=store.provenance.model_copy(update={"encoders": encoders}),
            coords_px0=store.coords_px0,
            tissue_fraction=store.tissue_fraction,
            read_error=store.read_error,
            features={name: store.features(name) for name in others},
            thumbnail=store.thumbnail,
            tissue_mask=store.tissue_mask,
        )

    def _with_features(
        self, base: SlideFeatures, slide: Slide, geometry: TileGeometry
    ) -> SlideFeatures:
        """A tile that any pass could not read is unreadable for all encoders: rows of NaN."""
        features, failed = self._features(slide, base.coords_px0, geometry)
        read_error = base.read_error | failed
        every = {**base.features, self._encoder.name: features}
        for values in every.values():
            values[read_error] = np.nan
        record = self._encoder.record
        provenance = base.provenance.model_copy(
            update={
                "encoders": {**base.provenance.encoders, self._encoder.name: record},
                "versions": _versions(),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        return replace(base, provenance=provenance, read_error=read_error, features=every)

    def _features(
        self, slide: Slide, coords_px0: NDArray[np.int32], geometry: TileGeometry
    ) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
        """(N, D) features and (N,) read errors; their rows are not filled."""
        encoder = self._encoder.loaded
        encoder.spec.require_tile_px(geometry.tile_px)
        features = np.full((len(coords_px0), encoder.dim), np.nan, dtype=np.float16)
        failed = np.zeros(len(coords_px0), dtype=bool)
        start, size = 0, self._config.encoder.batch_size
        batches = prefetch(read_batches(slide, coords_px0, geometry, batch_size=size))
        # Closed before the slide is, or the reading thread would lose its handle.
        with closing(batches):
            for batch in batches:
                rows = slice(start, start + len(batch.readable))
                failed[rows] = ~batch.readable
                if batch.readable.any():
                    values = encoder.encode(batch.tiles[batch.readable])
                    with np.errstate(over="ignore"):  # the store refuses what float16 cannot hold
                        features[rows][batch.readable] = values.astype(np.float16)
                start = rows.stop
                self._bar.update(len(batch.readable))
        share = failed.mean()
        if share > self._config.max_bad_tiles:
            raise UnreadableSlide(
                slide.slide_id,
                f"{slide.path}: {failed.sum()} of {len(failed)} tiles cannot be read, more than "
                f"max_bad_tiles = {self._config.max_bad_tiles:g} of them; replace the file",
            )
        return features, failed


@cache
def _versions() -> dict[str, str]:
    return {"openslide": openslide_version, **{name: _version_of(name) for name in _PACKAGES}}


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
