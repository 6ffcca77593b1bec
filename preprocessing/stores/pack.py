"""One flat file of an encoder's features, for training that reads bag after bag from disk.

`packs/<encoder>` below the features' folder:

    features.f16   (tiles, dim) little-endian float16: the usable tiles of each slide, in its
                   store's order, one slide behind the other
    index.json     a `PackIndex`: where each slide begins, and the digest of what it was made from

A pack is a copy: the stores stay what counts. It holds the tiles of the limits that it was made
with, and is stale as soon as a slide's features, tiles or limits are others.
"""

import mmap
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Literal
from urllib.parse import quote

import numpy as np
from numpy.typing import NDArray
from pydantic import Field, ValidationError
from tqdm import tqdm

from preprocessing.artefacts import partials_in, tidy, whole_folder
from preprocessing.config import QualityConfig, Section
from preprocessing.errors import StoreError
from preprocessing.stores.store import FeatureStore, open_store, store_path
from preprocessing.stores.zarr_arrays import checksum

INDEX, FEATURES = "index.json", "features.f16"
_ANEW = "make the pack anew (histomil pack) or delete it"


class PackedSlide(Section):
    """`content` is what `FeatureStore.content` said of the features, tiles and limits."""

    slide_id: str
    start: int = Field(ge=0, description="row of features.f16")
    tiles: int = Field(ge=0)
    content: str
    sha256: str = Field(description="of the slide's bytes in features.f16")


class PackIndex(Section):
    version: Literal[1] = 1
    encoder: str
    dim: int = Field(gt=0)
    limits: QualityConfig
    slides: tuple[PackedSlide, ...]

    @property
    def tiles(self) -> int:
        return sum(slide.tiles for slide in self.slides)


class Pack(Mapping[str, NDArray[np.float16]]):
    """Slide id -> (tiles, dim) float16, a view into the mapped file, read when it is touched.

    Writing to a view changes this process's memory and never the file.
    """

    def __init__(self, folder: Path, index: PackIndex) -> None:
        self.folder, self.index = folder, index
        self._slides = {slide.slide_id: slide for slide in index.slides}
        with (folder / FEATURES).open("rb") as file:
            # A copy-on-write mapping, because torch takes no array that cannot be written.
            self._map = mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY)
        self._rows = np.frombuffer(self._map, dtype="<f2").reshape(index.tiles, index.dim)

    def __getitem__(self, slide_id: str) -> NDArray[np.float16]:
        slide = self._slides[slide_id]
        if slide.tiles:
            self._read_ahead(slide)
        return self._rows[slide.start : slide.start + slide.tiles]

    def __iter__(self) -> Iterator[str]:
        return iter(self._slides)

    def __len__(self) -> int:
        return len(self._slides)

    def verify(self) -> None:
        """Reads everything; `StoreError` for the first slide that is not what was written."""
        for slide_id, slide in self._slides.items():
            if checksum(self[slide_id]) != slide.sha256:
                raise StoreError(
                    f"{self.folder / FEATURES}: damaged, the features of slide {slide_id!r} are "
                    f"not those written (SHA-256 {slide.sha256}); {_ANEW}"
                )

    def _read_ahead(self, slide: PackedSlide) -> None:
        """Asks the kernel for all of a slide at once: by itself it would read page after page."""
        row_bytes = self._rows.itemsize * self.index.dim
        first = slide.start * row_bytes // mmap.PAGESIZE * mmap.PAGESIZE
        last = (slide.start + slide.tiles) * row_bytes
        self._map.madvise(mmap.MADV_WILLNEED, first, last - first)


def pack_path(features_dir: Path, encoder: str) -> Path:
    return features_dir / "packs" / quote(encoder, safe="")


def pack_features(
    features_dir: Path,
    slide_ids: Iterable[str],
    encoder: str,
    limits: QualityConfig,
    folder: Path,
) -> Path:
    """Write the pack of `slide_ids` to `folder`; one slide is in memory at a time.

    Every array is checked against its checksum on the way. A pack that is there is replaced when
    the new one is whole; a killed run leaves a partial name, which the next run removes. Raises
    `StoreError` for a damaged store, features of different weights, or nothing to pack.
    """
    tidy(folder, partials_in(folder.parent))
    packed: list[PackedSlide] = []
    first: FeatureStore | None = None
    start = 0
    with whole_folder(folder) as partial:
        partial.mkdir()
        with (partial / FEATURES).open("wb") as file:
            for slide_id in tqdm(list(slide_ids), unit="slide", mininterval=2):
                store = open_store(store_path(features_dir, slide_id), limits)
                first = first or store
                _refuse_other_weights(first, store, encoder)
                rows = store.verified_features(encoder)[store.usable].astype("<f2", copy=False)
                file.write(rows.data)
                packed.append(
                    PackedSlide(
                        slide_id=slide_id,
                        start=start,
                        tiles=len(rows),
                        content=store.content(encoder),
                        sha256=checksum(rows),
                    )
                )
                start += len(rows)
        if first is None or start == 0:
            raise StoreError(f"{folder}: {len(packed)} slide(s) given, and no tile to pack")
        dim = first.encoder_record(encoder).dim
        index = PackIndex(encoder=encoder, dim=dim, limits=limits, slides=tuple(packed))
        (partial / INDEX).write_text(index.model_dump_json(indent=1), encoding="utf-8")
    return folder


def open_pack(folder: Path, stores: Mapping[str, FeatureStore]) -> Pack:
    """The pack, if it holds each of `stores` (by slide id) as it is now and with its limits.

    Raises `StoreError`, naming the slides, where it is damaged, lacks one or is stale. Other slides
    may be in it. `stores` are open, so that they are asked what they hold and not read.
    """
    index = read_index(folder)
    found_bytes = (folder / FEATURES).stat().st_size if (folder / FEATURES).is_file() else 0
    wanted_bytes = 2 * index.tiles * index.dim
    if found_bytes != wanted_bytes:
        raise StoreError(
            f"{folder / FEATURES}: expected {wanted_bytes} bytes, got {found_bytes}; {_ANEW}"
        )
    of_slide = {slide.slide_id: slide.content for slide in index.slides}
    lacking = [slide_id for slide_id in stores if slide_id not in of_slide]
    stale = [
        slide_id
        for slide_id, store in stores.items()
        if of_slide.get(slide_id, "") not in ("", store.content(index.encoder))
    ]
    for what, slide_ids in (("lacks", lacking), ("has other features or tiles of", stale)):
        if slide_ids:
            raise StoreError(
                f"{folder}: stale, it {what} {len(slide_ids)} of {len(stores)} slide(s): "
                f"{', '.join(slide_ids[:5])}{', ...' if slide_ids[5:] else ''}; {_ANEW}"
            )
    return Pack(folder, index)


def _refuse_other_weights(first: FeatureStore, store: FeatureStore, encoder: str) -> None:
    one, other = (
        (record.weight_digest, record.dim)
        for record in (first.encoder_record(encoder), store.encoder_record(encoder))
    )
    if one != other:
        raise StoreError(
            f"{store.path}: features of encoder {encoder!r} have (weights, dim) {other}, those of "
            f"{first.path.name} {one}; extract all slides of a pack with the same encoder"
        )


def read_index(folder: Path) -> PackIndex:
    try:
        return PackIndex.model_validate_json((folder / INDEX).read_bytes())
    except OSError as error:
        raise StoreError(f"{folder}: no index of a pack: {error.strerror}; {_ANEW}") from error
    except ValidationError as error:
        raise StoreError(f"{folder / INDEX} is no index of a pack: {error}; {_ANEW}") from error
