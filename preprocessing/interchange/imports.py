"""Features that another tool made -> feature stores, as if they had been extracted here."""

import time
import traceback
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Literal

import numpy as np
from tqdm import tqdm

from preprocessing.errors import ConfigError, HistomilError, StoreError
from preprocessing.interchange.base import Format, GivenFacts
from preprocessing.interchange.formats import format_named
from preprocessing.interchange.incoming import store_contents
from preprocessing.manifest import SlideRow
from preprocessing.status import SlideStatus, require_unique
from preprocessing.stores.provenance import Provenance
from preprocessing.stores.store import (
    FeatureStore,
    SlideFeatures,
    open_store,
    store_path,
    write_store,
)


def import_features(
    format: str,  # noqa: A002 - what it is
    source: Path,
    rows: Sequence[SlideRow],
    out_dir: Path,
    *,
    encoder: str,
    given: GivenFacts = GivenFacts(),  # noqa: B008 - it is frozen
) -> list[SlideStatus]:
    """One store a slide in `out_dir`, with features under the name `encoder`; and what became of
    each slide, in the order of `rows`.

    Where a slide's file is there, size, resolution, bounds, fingerprint and thumbnail come from it.
    A store of the same tiles keeps its other encoders; one of other tiles, or with other features
    of this encoder, is left as it is and the slide fails. So does a slide whose files lack a fact
    that is not given.
    """
    tool = format_named(format)
    if not source.is_dir():
        raise ConfigError(f"no folder {source} to import from")
    require_unique((row.slide_id for row in rows), "import")
    out_dir.mkdir(parents=True, exist_ok=True)
    return [
        _status(tool, source, row, out_dir, encoder=encoder, given=given)
        for row in tqdm(rows, unit="slide", mininterval=2)
    ]


def _status(
    tool: Format, source: Path, row: SlideRow, out_dir: Path, *, encoder: str, given: GivenFacts
) -> SlideStatus:
    """The job boundary: what is wrong with one slide becomes its status."""
    started = time.perf_counter()
    try:
        theirs = given.their_encoder or encoder
        tiles = tool.read(source, row.slide_id, theirs, given)
        origin = (tool.name, theirs)
        contents = store_contents(row, tiles, given, encoder=encoder, origin=origin)
        status, contents = _beside(store_path(out_dir, row.slide_id), contents, encoder)
        if status == "done":
            write_store(out_dir, contents)
    except ConfigError:
        raise  # the same for every slide
    except HistomilError as error:
        seconds = time.perf_counter() - started
        slide = f"slide {row.slide_id!r}: "
        text = slide + str(error).removeprefix(slide)
        return SlideStatus(
            row.slide_id, "failed", 0, seconds, error=text, traceback=traceback.format_exc()
        )
    tiles_stored = len(contents.coords_px0)
    return SlideStatus(row.slide_id, status, tiles_stored, time.perf_counter() - started)


def _beside(
    path: Path, contents: SlideFeatures, encoder: str
) -> tuple[Literal["done", "skipped"], SlideFeatures]:
    """`contents`, with the other encoders of a store that is there already."""
    if not path.exists():
        return "done", contents
    store = open_store(path)
    store.verify()  # or what is damaged would be written again, with checksums that fit
    differs = _difference(store, contents)
    if differs:
        raise StoreError(
            f"{path}: there is a store of other tiles, its {differs} differ(s) from what is to be "
            "imported; move it away, or import into another folder"
        )
    if encoder in store.encoders:
        if not np.array_equal(store.features(encoder), contents.features[encoder], equal_nan=True):
            raise StoreError(
                f"{path}: holds other features of encoder {encoder!r}; delete it, or import under "
                "another name"
            )
        found, wanted = (
            made.provenance.encoders[encoder].weight_digest for made in (store, contents)
        )
        if found != wanted:
            raise StoreError(
                f"{path}: its features of encoder {encoder!r} are of weights {found!r}, to be "
                f"imported are those of {wanted!r}; delete it, or import under another name"
            )
        return "skipped", contents
    return "done", _joined(store, contents)


def _difference(store: FeatureStore, contents: SlideFeatures) -> str | None:
    """In what the tiles of two slides of equal id are not the same; None if in nothing."""
    if len(store) != len(contents.coords_px0) or not np.array_equal(
        store.coords_px0, contents.coords_px0
    ):
        return "coordinates"
    if not np.array_equal(store.read_error, contents.read_error):
        return "unreadable tiles"
    for name in ("tile_px", "requested_mpp", "tile_px0_x", "tile_px0_y", "mpp_x", "mpp_y"):
        if not np.isclose(getattr(store.provenance, name), getattr(contents.provenance, name)):
            return name
    return None


def _joined(store: FeatureStore, contents: SlideFeatures) -> SlideFeatures:
    """The store as it is, and the new encoder's features in it."""
    made: Provenance = store.provenance
    encoders = {**made.encoders, **contents.provenance.encoders}
    return replace(
        contents,
        provenance=made.model_copy(update={"encoders": encoders}),
        tissue_fraction=store.tissue_fraction,
        quality=store.quality,
        features={**{name: store.features(name) for name in store.encoders}, **contents.features},
        thumbnail=store.thumbnail,
        tissue_mask=store.tissue_mask,
    )
