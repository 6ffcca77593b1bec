"""Encoders that are in no registry, by configuration alone; this module imports no torch.

    timm:<model>            any model of timm's list; `timm:hf-hub:<owner/repository>` from the hub
    hf:<owner/repository>   any `AutoModel` of transformers; no Python code of the hub is run
    torchscript:<path>      a file that `torch.jit.save` wrote: (B, 3, h, w) -> (B, dim)

`encoder.custom` states what the source does not, and overrules what it does.
"""

from dataclasses import replace
from typing import Any

from preprocessing.config import EncoderConfig
from preprocessing.encoders.base import EncoderSpec, Loader, Pooling
from preprocessing.errors import ConfigError

_KINDS: dict[str, tuple[Loader, Pooling]] = {
    "timm": ("timm", "model"),
    "hf": ("transformers", "cls"),
    "torchscript": ("torchscript", "model"),
}


def custom_spec(config: EncoderConfig) -> EncoderSpec | None:
    """A row without dimension, or None for a name of another form."""
    kind, _, source = config.name.partition(":")
    if kind not in _KINDS or not source:
        return None
    loader, pooling = _KINDS[kind]
    stated = stated_facts(config)
    missing = [key for key in ("tile_px", "mean", "std") if key not in stated]
    if loader == "torchscript" and missing:
        raise ConfigError(
            f"encoder.name {config.name!r}: a TorchScript file does not say what it takes; set "
            + ", ".join(f"encoder.custom.{key}" for key in missing)
        )
    if loader == "torchscript" and config.compile:
        raise ConfigError(
            f"encoder.compile: true cannot be had for {config.name!r}, which is compiled already"
        )
    spec = EncoderSpec(
        name=config.name,
        source=source,
        loader=loader,
        dim=0,
        licence="unknown",
        gated=False,
        pooling=pooling,
        mpp=None,
        model_kwargs={"num_classes": 0} if loader == "timm" else {},
    )
    return replace(spec, **stated)


def stated_facts(config: EncoderConfig) -> dict[str, Any]:
    """What `encoder.custom` says, under the names of `EncoderSpec`."""
    return {} if config.custom is None else config.custom.model_dump(exclude_none=True)
