"""What there is to do for a slide: nothing, another name of the patient, or its features.

An old store of the slide decides: where file, settings and weights are the same it stays, where
only the encoder is new its tiles and the other encoders' features are kept.
"""

import logging
import traceback
from collections.abc import Generator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from openslide import __library_version__ as openslide_version

from preprocessing.artefacts import partials_in, tidy
from preprocessing.config import PreprocessingConfig, ReadingConfig
from preprocessing.encoders.lazy import LazyEncoder
from preprocessing.errors import ConfigError, EncoderUnavailable, HistomilError, StoreError
from preprocessing.extraction.prepare import prepare_slide, tile_geometry
from preprocessing.extraction.preview import PREVIEWS, preview_path
from preprocessing.geometry import TileGeometry
from preprocessing.manifest import SlideRow
from preprocessing.plan import EXTRACTION_VERSION
from preprocessing.slides.reader import RESAMPLING, decoded_scale, read_side
from preprocessing.slides.slide import Slide
from preprocessing.stores.provenance import EncoderRecord
from preprocessing.stores.store import (
    FeatureStore,
    SlideFeatures,
    open_store,
    store_path,
)
from preprocessing.tissue.regions import tissue_digest
from preprocessing.versions import installed_version

_log = logging.getLogger(__name__)
_PACKAGES = ("histomil", "numpy", "pillow", "simplejpeg", "zarr", "torch", "timm")


@dataclass(frozen=True)
class Skipped:
    row: SlideRow
    tiles: int


@dataclass(frozen=True)
class Failed:
    """Wrong with this slide alone; `trace` is the traceback for the log."""

    row: SlideRow
    error: HistomilError
    trace: str


@dataclass(frozen=True, eq=False)
class Renamed:
    """A finished store whose slide the manifest gives to another patient."""

    row: SlideRow
    contents: SlideFeatures
    found: bytes | None


@dataclass(frozen=True, eq=False)
class Extraction:
    """An open slide and its tiles in `base`, which has no features yet; `kept` is what an old
    store has of other encoders; `found` is that store's root as it was then. Close it.
    """

    row: SlideRow
    slide: Slide
    geometry: TileGeometry
    base: SlideFeatures
    kept: SlideFeatures | None
    found: bytes | None

    def close(self) -> None:
        self.slide.close()

    def finished(
        self,
        name: str,
        record: EncoderRecord,
        *,
        features: NDArray[np.float16],
        quality: NDArray[np.float32],
        failed: NDArray[np.bool_],
    ) -> SlideFeatures:
        """The store's contents: this encoder's part, beside those of other encoders."""
        created = datetime.now(UTC).isoformat(timespec="seconds")
        provenance = self.base.provenance.model_copy(
            update={"encoders": {name: record}, "created": created}
        )
        made = replace(
            self.base,
            provenance=provenance,
            read_error=failed,
            quality=quality,
            features={name: features},
        )
        return made if self.kept is None else self._beside(self.kept, made)

    def _beside(self, kept: SlideFeatures, made: SlideFeatures) -> SlideFeatures:
        """Where a tile of the old store can be read now that could not be, the file is another
        one: its tissue may be, and the other encoders lack that tile.
        """
        if not kept.features:
            return made
        as_before = np.array_equal(kept.coords_px0, made.coords_px0)
        if as_before and made.read_error[kept.read_error].all():
            return _joined(kept, made)
        _log.warning(
            "slide %r: %s no longer reads as it did; extract it again with %s",
            self.row.slide_id,
            self.row.path,
            ", ".join(kept.features),
        )
        return made


Job = Skipped | Failed | Renamed | Extraction


def jobs(
    rows: Sequence[SlideRow], config: PreprocessingConfig, out_dir: Path, encoder: LazyEncoder
) -> Generator[Job]:
    """One per row, in their order, each slide looked at when its turn comes."""
    partials = [*partials_in(out_dir), *partials_in(out_dir / PREVIEWS)]
    for row in rows:
        with naming(row):
            for path in (store_path(out_dir, row.slide_id), preview_path(out_dir, row.slide_id)):
                tidy(path, partials)
        yield _job(row, config, out_dir, encoder)


def failed_job(row: SlideRow, error: HistomilError) -> Failed:
    """What is wrong with one slide becomes its status; what is wrong with all stops the shard."""
    if isinstance(error, ConfigError | EncoderUnavailable):
        raise error
    return Failed(row, error, traceback.format_exc())


@contextmanager
def naming(row: SlideRow) -> Generator[None]:
    """What stops the shard, such as a full disk, is told with the slide at which it did."""
    try:
        yield
    except HistomilError:
        raise  # names it already
    except Exception as error:
        error.add_note(f"slide {row.slide_id!r}")
        raise


def refuse_changed(job: Extraction | Renamed, out_dir: Path) -> None:
    """What another run wrote since the job was made would be lost."""
    if _root(out_dir, job.row) != job.found:
        raise ConfigError(
            f"slide {job.row.slide_id!r}: another run wrote "
            f"{store_path(out_dir, job.row.slide_id)} while this one encoded it; wait for that "
            "run to end, then start this one again"
        )


def _root(out_dir: Path, row: SlideRow) -> bytes | None:
    path = store_path(out_dir, row.slide_id) / "zarr.json"
    return path.read_bytes() if path.is_file() else None


def _job(row: SlideRow, config: PreprocessingConfig, out_dir: Path, encoder: LazyEncoder) -> Job:
    with naming(row), ExitStack() as stack:
        try:
            with read_side(row.slide_id, row.path):
                slide = stack.enter_context(Slide(row, reading=config.reading))
            job = _wanted(row, slide, config, out_dir, encoder)
        except HistomilError as error:
            return failed_job(row, error)
        if isinstance(job, Extraction):
            stack.pop_all()  # its to close
        return job


def _wanted(
    row: SlideRow, slide: Slide, config: PreprocessingConfig, out_dir: Path, encoder: LazyEncoder
) -> Job:
    geometry = tile_geometry(slide, config.grid)
    found = _root(out_dir, row)
    old = _matching_store(row, slide, config, out_dir)
    # A store with unreadable tiles is never finished: the file may have been mended since.
    if old is None or old.read_error.any() or not _has_features(old, encoder):
        kept = None if old is None else _kept(old, row, without=encoder.name)
        if kept is not None and not kept.read_error.any():
            base = kept
        else:
            with read_side(row.slide_id, row.path):
                base = prepare_slide(row, slide, geometry, config)
        with read_side(row.slide_id, row.path):
            base = _read_now(base, slide, geometry)
        return Extraction(row, slide, geometry, base=base, kept=kept, found=found)
    if old.provenance.patient_id != row.patient_id:
        return Renamed(row, _kept(old, row), found)
    return Skipped(row, len(old))


def _read_now(base: SlideFeatures, slide: Slide, geometry: TileGeometry) -> SlideFeatures:
    """The same tiles, with how this pass reads them."""
    update = {
        "read_level_mpp": slide.pyramid.mpp_at(geometry.level),
        "reader": slide.reader,
        "decoded_scale": decoded_scale(slide, geometry),
        "resampling": f"pillow {RESAMPLING.name.lower()}",
        "extraction_version": EXTRACTION_VERSION,
        "versions": _versions(),
    }
    return replace(base, provenance=base.provenance.model_copy(update=update))


def _matching_store(
    row: SlideRow, slide: Slide, config: PreprocessingConfig, out_dir: Path
) -> FeatureStore | None:
    """The finished store of the same file, resolution and settings of tissue, grid and reading."""
    path = store_path(out_dir, slide.slide_id)
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
        and found.tissue == config.tissue
        and found.tissue_digest == tissue_digest(row, config.tissue)
        and found.grid == config.grid
        and _pixels(found.reading) == _pixels(config.reading)
    )
    return store if same else None


def _pixels(reading: ReadingConfig) -> dict[str, object]:
    """What of the reading can change a pixel."""
    return reading.model_dump(exclude={"cache_mb"})


def _has_features(store: FeatureStore, encoder: LazyEncoder) -> bool:
    """A corrected licence text is no reason to compute again."""
    found, wanted = store.provenance.encoders.get(encoder.name), encoder.record
    return found is not None and found == wanted.model_copy(update={"licence": found.licence})


def _kept(store: FeatureStore, row: SlideRow, *, without: str | None = None) -> SlideFeatures:
    """A finished store under the manifest's patient, without the part of one encoder.

    Raises `StoreError` where it is not what was written: new checksums would hide that for good.
    """
    store.verify()
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
    lost = made.read_error[:, None]
    others = {name: np.where(lost, np.float16(np.nan), v) for name, v in kept.features.items()}
    encoders = {**kept.provenance.encoders, **made.provenance.encoders}
    provenance = made.provenance.model_copy(update={"encoders": encoders})
    return replace(made, provenance=provenance, features={**others, **made.features})


@cache
def _versions() -> dict[str, str]:
    return {"openslide": openslide_version, **{name: installed_version(name) for name in _PACKAGES}}
