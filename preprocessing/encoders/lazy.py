"""An encoder that is loaded only if a slide needs it, and its record beside the features."""

from collections.abc import Callable
from threading import Lock
from typing import Self

from preprocessing.config import EncoderConfig
from preprocessing.encoders.base import EncoderSpec, TileEncoder
from preprocessing.encoders.registry import find_spec, load_encoder
from preprocessing.stores.store import EncoderRecord


class LazyEncoder:
    """An encoder that is loaded when it is first needed; threads may share it.

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
        self._lock = Lock()
        self._encoder: TileEncoder | None = None

    @classmethod
    def of(cls, config: EncoderConfig) -> Self:
        spec = find_spec(config)
        return cls(
            config.name,
            lambda: load_encoder(config),
            known=_record_without_loading(spec, config) if spec.weight_digest else None,
            spec=spec if spec.dim else None,
        )

    @property
    def loaded(self) -> TileEncoder:
        with self._lock:
            if self._encoder is None:
                self._encoder = self._load()
            return self._encoder

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


def _record_without_loading(spec: EncoderSpec, config: EncoderConfig) -> EncoderRecord:
    from preprocessing.encoders.gpu import choose_precision, on_gpu
    from preprocessing.encoders.network import transform_of

    return EncoderRecord(
        dim=spec.dim,
        weight_digest=spec.weight_digest or "",
        transform=transform_of(spec, config.stain),
        precision=choose_precision(config.precision, spec, gpu=on_gpu(config.device)),
        licence=spec.licence,
    )
