"""Feature stores as bags: one tensor (tiles, dim) a slide, in memory once as float16."""

from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from preprocessing.errors import StoreError
from preprocessing.store import FeatureStore, open_store, store_path


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


@dataclass(frozen=True)
class CohortFeatures:
    """The usable tiles of some slides, by slide id, and where they come from."""

    tiles: dict[str, Tensor]
    fingerprints: dict[str, str]
    origin: TileOrigin

    @property
    def dim(self) -> int:
        return next(iter(self.tiles.values())).shape[1]

    def bag(self, slide_ids: Iterable[str]) -> Tensor:
        """All tiles of the slides, in the order given: (tiles, dim) float32."""
        parts = [self.tiles[slide_id] for slide_id in slide_ids]
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).float()


def load_features(features_dir: Path, slide_ids: Iterable[str], encoder: str) -> CohortFeatures:
    """Reads the stores of `slide_ids`; refuses different encoders, weights or tile sizes."""
    tiles: dict[str, Tensor] = {}
    fingerprints: dict[str, str] = {}
    origin: TileOrigin | None = None
    for slide_id in slide_ids:
        store = open_store(store_path(features_dir, slide_id))
        mine = TileOrigin.of(store, encoder)
        origin = origin or mine
        if mine != origin:
            raise StoreError(
                f"slide {slide_id!r}: features come from {mine}, other slides' from {origin}; "
                "extract all slides of a cohort with the same settings"
            )
        usable = torch.from_numpy(store.usable)
        if not usable.any():
            raise StoreError(f"slide {slide_id!r}: not one tile of it could be read; leave it out")
        tiles[slide_id] = torch.from_numpy(store.features(encoder))[usable]
        fingerprints[slide_id] = store.provenance.slide_fingerprint
    if origin is None:
        raise StoreError(f"no slide to read features of in {features_dir}")
    return CohortFeatures(tiles, fingerprints, origin)
