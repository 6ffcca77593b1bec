"""Feature stores as bags: one float16 tensor (tiles, dim) a slide, in memory or read when asked."""

import logging
from abc import abstractmethod
from collections.abc import Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Self

import torch
from torch import Tensor

from mil.memory import available_bytes
from mil.training.config import Residence
from preprocessing.config import QualityConfig
from preprocessing.errors import StoreError
from preprocessing.stores.pack import Pack, open_pack, pack_path
from preprocessing.stores.store import FeatureStore, open_store, store_path

_log = logging.getLogger(__name__)
MOST_OF_MEMORY = 0.6  # share of what is available that features may take
READERS = 2  # threads that read bags ahead


@dataclass(frozen=True)
class TileOrigin:
    """What the features of a cohort have in common; a model answers only its own origin."""

    encoder: str
    weight_digest: str
    transform: str
    requested_mpp: float
    tile_px: int

    @classmethod
    def of(cls, store: FeatureStore, encoder: str) -> "TileOrigin":
        record = store.encoder_record(encoder)
        provenance = store.provenance
        return cls(
            encoder=encoder,
            weight_digest=record.weight_digest,
            transform=record.transform,
            requested_mpp=provenance.requested_mpp,
            tile_px=provenance.tile_px,
        )


class TilesOnDisk(Mapping[str, Tensor]):
    """The usable tiles of each slide, read at every look; `shapes` are known without reading."""

    def __init__(self, shapes: dict[str, tuple[int, int]]) -> None:
        self.shapes = shapes

    @abstractmethod
    def __getitem__(self, slide_id: str) -> Tensor: ...

    def __iter__(self) -> Iterator[str]:
        return iter(self.shapes)

    def __len__(self) -> int:
        return len(self.shapes)

    def in_memory(self) -> dict[str, Tensor]:
        """All of them, read once into one tensor of which each slide is a view."""
        sizes, dims = zip(*self.shapes.values(), strict=True)
        flat = torch.empty(sum(sizes), dims[0], dtype=torch.float16)
        tiles = dict(zip(self, flat.split(sizes), strict=True))
        for slide_id, place in tiles.items():
            place.copy_(self[slide_id])
        return tiles


class StoredTiles(TilesOnDisk):
    """Read from each slide's store."""

    def __init__(self, stores: dict[str, FeatureStore], encoder: str) -> None:
        self._stores, self._encoder = stores, encoder
        super().__init__(
            {
                slide_id: (int(store.usable.sum()), store.encoder_record(encoder).dim)
                for slide_id, store in stores.items()
            }
        )

    def __getitem__(self, slide_id: str) -> Tensor:
        store = self._stores[slide_id]
        features = store.features(self._encoder)
        return torch.from_numpy(features if store.usable.all() else features[store.usable])


class PackedTiles(TilesOnDisk):
    """Views of a pack, whose pages are read when they are touched."""

    def __init__(self, pack: Pack, shapes: dict[str, tuple[int, int]]) -> None:
        self._pack = pack
        super().__init__(shapes)

    def __getitem__(self, slide_id: str) -> Tensor:
        return torch.from_numpy(self._pack[slide_id])


@dataclass(frozen=True)
class CohortFeatures:
    """The usable tiles of some slides, by slide id, and where they come from."""

    tiles: Mapping[str, Tensor]
    fingerprints: dict[str, str]
    origin: TileOrigin

    @cached_property
    def _shapes(self) -> Mapping[str, tuple[int, ...]]:
        if isinstance(self.tiles, TilesOnDisk):
            return self.tiles.shapes
        return {slide_id: tuple(tiles.shape) for slide_id, tiles in self.tiles.items()}

    @property
    def dim(self) -> int:
        return next(iter(self._shapes.values()))[1]

    def sizes(self, slide_ids: Iterable[str]) -> tuple[int, ...]:
        """Tiles of each of the slides: where each begins and ends in their `bag`."""
        return tuple(self._shapes[slide_id][0] for slide_id in slide_ids)

    def stored(self, slide_ids: Iterable[str]) -> Tensor:
        """All tiles of the slides, in the order given, as they are stored: (tiles, dim).

        Of one slide in memory a view, so change nothing in it.
        """
        parts = [self.tiles[slide_id] for slide_id in slide_ids]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def bag(self, slide_ids: Iterable[str]) -> Tensor:
        """All tiles of the slides, in the order given: (tiles, dim) float32."""
        return self.stored(slide_ids).float()

    def placed(self, device: torch.device, slide_ids: Collection[str]) -> Self:
        """Of some slides alone: on a CUDA device if they fit there, else where they are."""
        tiles = self.tiles
        if device.type != "cuda" or isinstance(tiles, TilesOnDisk):
            return self
        free, _ = torch.cuda.mem_get_info(device)
        if sum(tiles[slide_id].nbytes for slide_id in slide_ids) > MOST_OF_MEMORY * free:
            return self
        return replace(self, tiles={slide_id: tiles[slide_id].to(device) for slide_id in slide_ids})

    def readers(self, device: torch.device) -> int:
        """Threads that should read bags for `device` ahead: none where they lie at hand."""
        if isinstance(self.tiles, TilesOnDisk):
            return READERS
        return 0 if next(iter(self.tiles.values())).device.type == device.type else READERS


def load_features(
    features_dir: Path,
    slide_ids: Iterable[str],
    encoder: str,
    residence: Residence = "auto",
    *,
    limits: QualityConfig = QualityConfig(),  # noqa: B008 - it is frozen
) -> CohortFeatures:
    """The tiles of `slide_ids` within `limits`; refuses different encoders, weights or tile sizes.

    `auto` reads them into memory if they take no more than most of what is available. What is
    streamed comes from the encoder's pack where there is a valid one, else from the stores.
    """
    stores: dict[str, FeatureStore] = {}
    origin: TileOrigin | None = None
    for slide_id in slide_ids:
        store = open_store(store_path(features_dir, slide_id), limits)
        mine = TileOrigin.of(store, encoder)
        origin = origin or mine
        if mine != origin:
            raise StoreError(
                f"slide {slide_id!r}: features come from {mine}, other slides' from {origin}; "
                "extract all slides of a cohort with the same settings"
            )
        stores[slide_id] = store
    if origin is None:
        raise StoreError(f"no slide to read features of in {features_dir}")
    _refuse_mixed_dims(stores, encoder)
    _refuse_empty(stores)
    stored = StoredTiles(stores, encoder)
    prints = {slide_id: store.provenance.slide_fingerprint for slide_id, store in stores.items()}
    if not _to_be_streamed(stored, residence):
        return CohortFeatures(stored.in_memory(), prints, origin)
    packed = _packed(pack_path(features_dir, encoder), stores, stored.shapes)
    return CohortFeatures(packed or stored, prints, origin)


def _refuse_mixed_dims(stores: dict[str, FeatureStore], encoder: str) -> None:
    """Imported features may go by one name and be of several encoders."""
    dims = {slide_id: store.encoder_record(encoder).dim for slide_id, store in stores.items()}
    (first, expected), *others = dims.items()
    for slide_id, dim in others:
        if dim != expected:
            raise StoreError(
                f"slide {slide_id!r}: features of encoder {encoder!r} have {dim} numbers a tile, "
                f"those of slide {first!r} {expected}; extract or import them with one encoder"
            )


def _refuse_empty(stores: dict[str, FeatureStore]) -> None:
    empty = {slide_id: store for slide_id, store in stores.items() if not store.usable.any()}
    if not empty:
        return
    named = [
        f"slide {slide_id!r}: of {len(store)} tiles {int(store.read_error.sum())} could not be "
        "read, and no other is within preprocessing.quality"
        for slide_id, store in empty.items()
    ]
    raise StoreError(
        "not one tile to use:\n  "
        + "\n  ".join(named)
        + "\ntake these slides out of the manifest, or relax preprocessing.quality"
    )


def _packed(
    folder: Path, stores: dict[str, FeatureStore], shapes: dict[str, tuple[int, int]]
) -> PackedTiles | None:
    """None where there is no pack, or one of other features: the stores are what counts."""
    if not folder.exists():
        return None
    try:
        return PackedTiles(open_pack(folder, stores), shapes)
    except StoreError as error:
        _log.warning("reading the feature stores instead, which is slower: %s", error)
        return None


def _to_be_streamed(stored: StoredTiles, residence: Residence) -> bool:
    if residence != "auto":
        return residence == "stream"
    needed = sum(2 * tiles * dim for tiles, dim in stored.shapes.values())
    return needed > MOST_OF_MEMORY * available_bytes()
