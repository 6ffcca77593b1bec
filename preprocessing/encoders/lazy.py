"""An encoder that is loaded only if a slide needs it, and its record beside the features."""

from collections.abc import Callable
from functools import cached_property
from typing import Self

from preprocessing.config import EncoderConfig
from preprocessing.encoders.base import EncoderSpec, TileEncoder
from preprocessing.encoders.registry import find_spec, load_encoder
from preprocessing.store import EncoderRecord


class LazyEncoder:
    """An encoder that is loaded when it is first needed.

    `known` is its record where that is fixed without loading; then a shard whose stores are all
    finished loads nothing. `spec` is its row where that is complete without loading.
    """

    def __init__(
        self,
        name: str,
        load: Callable[[], TileEncoder],
        *,
        known: EncoderRecord | None = None,
        spec: EncoderSpec | None = None,
    ) -> None:
        self.name = name
        self.spec = spec
        self._load = load
        self._known = known

    @classmethod
    def of(cls, config: EncoderConfig) -> Self:
        spec = find_spec(config.name)
        known = spec.weight_digest and EncoderRecord(
            dim=spec.dim,
            weight_digest=spec.weight_digest,
            transform=spec.transform,
            precision=config.precision,
            licence=spec.licence,
        )
        complete = spec if spec.dim else None
        return cls(config.name, lambda: load_encoder(config), known=known or None, spec=complete)

    @cached_property
    def loaded(self) -> TileEncoder:
        return self._load()

    @property
    def record(self) -> EncoderRecord:
        if self._known is not None:
            return self._known
        encoder = self.loaded
        return EncoderRecord(
            dim=encoder.dim,
            weight_digest=encoder.weight_digest,
            transform=encoder.transform,
            precision=encoder.precision,
            licence=encoder.spec.licence,
        )
