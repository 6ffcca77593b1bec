"""Many slides -> many feature stores: one encoder load, reading overlapped with encoding.

A slide's store is written when the slide is done, so a killed run loses one slide at most, and
the same call afterwards goes on where it stopped.
"""

import logging
import shutil
import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from datetime import UTC, datetime
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal, NoReturn

import numpy as np
from openslide import __library_version__ as openslide_version
from tqdm import tqdm

from preprocessing.config import GridConfig, PreprocessingConfig
from preprocessing.encoders.base import EncoderSpec
from preprocessing.encoders.lazy import LazyEncoder
from preprocessing.errors import (
    ConfigError,
    EncoderUnavailable,
    HistomilError,
    StoreError,
)
from preprocessing.extract import extract_features, opened
from preprocessing.geometry import TileGeometry
from preprocessing.manifest import SlideRow
from preprocessing.plan import EXTRACTION_VERSION
from preprocessing.prepare import prepare_slide, tile_geometry
from preprocessing.reader import RESAMPLING, read_side
from preprocessing.slide import Slide
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
    not stop the others; an encoder that cannot be loaded or a disk that cannot be written does.
    """
    require_unique((row.slide_id for row in rows), "shard")
    encoder = encoder or LazyEncoder.of(config.encoder)
    if encoder.spec is not None:
        _check_grid(encoder.spec, config.grid)
    out_dir.mkdir(parents=True, exist_ok=True)
    statuses = []
    # Few refreshes, because a workflow's log keeps each as a line.
    with tqdm(unit="tile", unit_scale=True, mininterval=2) as bar:
        shard = _Shard(config, out_dir, encoder, bar)
        for number, row in enumerate(rows, 1):
            bar.set_description(f"slide {number}/{len(rows)} {row.slide_id}")
            statuses.append(shard.run(row))
    return statuses


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
        """The job boundary: what is wrong with one slide becomes its status.

        Anything else, such as a full disk or an encoder out of memory, would go wrong again.
        """
        started = time.perf_counter()
        try:
            for leftover in partial_stores(self._out_dir, row.slide_id):
                shutil.rmtree(leftover)
            with opened(row) as slide:
                status, tiles = self._encode(row, slide)
        except (ConfigError, EncoderUnavailable):
            raise  # the same for every slide
        except HistomilError as error:
            seconds = time.perf_counter() - started
            trace = traceback.format_exc()
            return SlideStatus(row.slide_id, "failed", 0, seconds, str(error), trace)
        except Exception as error:
            error.add_note(f"slide {row.slide_id!r}")
            raise
        return SlideStatus(row.slide_id, status, tiles, time.perf_counter() - started)

    def _encode(self, row: SlideRow, slide: Slide) -> tuple[Literal["done", "skipped"], int]:
        geometry = tile_geometry(slide, self._config.grid)
        old = self._matching_store(slide)
        # A store with unreadable tiles is never finished: the file may have been mended since.
        if old is None or old.read_error.any() or not self._has_features(old):
            contents = self._extracted(row, slide, geometry, old=old)
        elif old.provenance.patient_id != row.patient_id:
            contents = _kept(old, row)
        else:
            return "skipped", len(old)
        write_store(self._out_dir, contents)
        return "done", len(contents.coords_px0)

    def _matching_store(self, slide: Slide) -> FeatureStore | None:
        """The finished store of the same file, resolution, tissue and grid settings, if any."""
        path = store_path(self._out_dir, slide.slide_id)
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
            and found.extraction_version == EXTRACTION_VERSION
            and (found.mpp_x, found.mpp_y) == (slide.pyramid.mpp_x, slide.pyramid.mpp_y)
            and found.tissue == self._config.tissue
            and found.grid == self._config.grid
        )
        return store if same else None

    def _has_features(self, store: FeatureStore) -> bool:
        """A corrected licence text is no reason to compute again."""
        found, wanted = store.provenance.encoders.get(self._encoder.name), self._encoder.record
        return found is not None and found == wanted.model_copy(update={"licence": found.licence})

    def _extracted(
        self, row: SlideRow, slide: Slide, geometry: TileGeometry, *, old: FeatureStore | None
    ) -> SlideFeatures:
        """This encoder's features, beside those of other encoders in `old`.

        Where a tile of `old` can be read now that could not be, the file is another one: its
        tissue may be, and the other encoders lack that tile.
        """
        kept = _kept(old, row, without=self._encoder.name) if old is not None else None
        if kept is not None and not kept.read_error.any():
            base = kept
        else:
            with read_side(row.slide_id, row.path):
                base = prepare_slide(row, slide, geometry, self._config)
        made = self._with_features(row, slide, geometry, base=base)
        if kept is None or not kept.features:
            return made
        as_before = np.array_equal(kept.coords_px0, made.coords_px0)
        if as_before and made.read_error[kept.read_error].all():
            return _joined(kept, made)
        _log.warning(
            "slide %r: %s no longer reads as it did; extract it again with %s",
            row.slide_id,
            row.path,
            ", ".join(kept.features),
        )
        return made

    def _with_features(
        self, row: SlideRow, slide: Slide, geometry: TileGeometry, *, base: SlideFeatures
    ) -> SlideFeatures:
        """The tiles of `base` with this encoder's features and read errors alone."""
        features, failed = extract_features(
            row,
            slide,
            geometry,
            coords_px0=base.coords_px0,
            encoder=self._encoder.loaded,
            config=self._config,
            advance=self._bar.update,
        )
        provenance = base.provenance.model_copy(
            update={
                "encoders": {self._encoder.name: self._encoder.record},
                "read_level_mpp": slide.pyramid.mpp_at(geometry.level),
                "resampling": f"pillow {RESAMPLING.name.lower()}",
                "extraction_version": EXTRACTION_VERSION,
                "versions": _versions(),
                "created": datetime.now(UTC).isoformat(timespec="seconds"),
            }
        )
        return replace(
            base,
            provenance=provenance,
            read_error=failed,
            features={self._encoder.name: features},
        )


def _kept(store: FeatureStore, row: SlideRow, *, without: str | None = None) -> SlideFeatures:
    """A finished store under the manifest's patient, without the part of one encoder."""
    names = [name for name in store.encoders if name != without]
    encoders = {name: store.provenance.encoders[name] for name in names}
    update = {"encoders": encoders, "patient_id": row.patient_id}
    return SlideFeatures(
        provenance=store.provenance.model_copy(update=update),
        coords_px0=store.coords_px0,
        tissue_fraction=store.tissue_fraction,
        read_error=store.read_error,
        quality=store.quality,
        features={name: store.features(name) for name in names},
        thumbnail=store.thumbnail,
        tissue_mask=store.tissue_mask,
    )


def _joined(kept: SlideFeatures, made: SlideFeatures) -> SlideFeatures:
    """A tile that any pass could not read is unreadable for all encoders: rows of NaN."""
    for values in kept.features.values():
        values[made.read_error] = np.nan
    encoders = {**kept.provenance.encoders, **made.provenance.encoders}
    provenance = made.provenance.model_copy(update={"encoders": encoders})
    return replace(made, provenance=provenance, features={**kept.features, **made.features})


@cache
def _versions() -> dict[str, str]:
    return {"openslide": openslide_version, **{name: _version_of(name) for name in _PACKAGES}}


def _version_of(package: str) -> str:
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
