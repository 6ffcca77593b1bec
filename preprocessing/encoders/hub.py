"""Encoders whose weights lie on the Hugging Face hub or in its local cache."""

import importlib.util
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any

import timm
import torch
from huggingface_hub import constants
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from timm.data.config import resolve_model_data_config
from timm.layers.mlp import SwiGLUPacked
from torch import nn

from preprocessing.encoders.base import EncoderSpec, unavailable
from preprocessing.encoders.network import pooled
from preprocessing.errors import ConfigError, EncoderUnavailable

_ANSWER_SECONDS = 5.0
_FAILURES = (OSError, RuntimeError, ValueError, KeyError)
_HUB_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")
# Layers that a registry row names; the registry itself does not import torch.
_LAYERS = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU}


def load_timm(spec: EncoderSpec) -> nn.Module:
    """(B, 3, h, w) -> features or tokens, by timm's loader of `hf-hub:` names or its own list."""
    with _weights_of(spec):
        return timm.create_model(spec.source, pretrained=True, **timm_kwargs(spec))


def timm_kwargs(spec: EncoderSpec) -> dict[str, Any]:
    """The row's constructor arguments, layer names replaced by classes."""
    return {
        key: _LAYERS[value] if isinstance(value, str) and value in _LAYERS else value
        for key, value in spec.model_kwargs.items()
    }


def describe_timm(spec: EncoderSpec, network: nn.Module) -> EncoderSpec:
    """A row for a model that is in no registry: size, normalisation and licence as timm says."""
    data = resolve_model_data_config(network)
    side = data["input_size"][1]
    features = _probe(spec, network, side)
    licence = getattr(network, "pretrained_cfg", {}).get("license") or "unknown"
    return replace(
        spec, dim=features, tile_px=side, mean=data["mean"], std=data["std"], licence=licence
    )


def load_transformers(spec: EncoderSpec) -> nn.Module:
    """An `AutoModel`; Python code from the hub runs only for rows that say so."""
    if importlib.util.find_spec("transformers") is None:
        raise EncoderUnavailable(
            f"encoder {spec.name!r} ({spec.source}): the package transformers is not installed; "
            "pip install 'histomil[hub]'"
        )
    with _weights_of(spec):
        # Here, because it is optional and reads the offline switch when it is imported.
        from transformers import AutoModel  # pyright: ignore[reportMissingImports]

        return AutoModel.from_pretrained(spec.source, trust_remote_code=spec.remote_code)


def describe_transformers(spec: EncoderSpec, network: nn.Module) -> EncoderSpec:
    """The same for transformers: the repository's image processor states the normalisation."""
    with _weights_of(spec):
        from transformers import AutoImageProcessor  # pyright: ignore[reportMissingImports]

        processor = AutoImageProcessor.from_pretrained(spec.source)
    mean, std = tuple(processor.image_mean), tuple(processor.image_std)
    return replace(spec, dim=_probe(spec, network, spec.tile_px), mean=mean, std=std)


def _probe(spec: EncoderSpec, network: nn.Module, side: int) -> int:
    """The feature dimension, from one blank tile."""
    with torch.inference_mode():
        output = network.eval()(torch.zeros(1, 3, side, side))
    features = pooled(output, spec.pooling, network=network)
    if features.ndim != 2:
        raise unavailable(
            spec, f"it gives features of shape {tuple(features.shape[1:])} per tile, not a vector"
        )
    return features.shape[1]


@contextmanager
def _weights_of(spec: EncoderSpec) -> Iterator[None]:
    """Whatever stops the loading becomes `EncoderUnavailable`.

    The hub's client repeats a failing request for most of a minute per file. So it is asked once
    whether the hub answers; if not, only its cache is used for the time of the block.
    """
    named = spec.loader == "timm" and not spec.source.startswith(_HUB_PREFIXES)
    if named and not timm.is_model(spec.source):
        raise ConfigError(f"encoder {spec.name!r}: timm {timm.__version__} knows no such model")
    before = constants.HF_HUB_OFFLINE
    silence = "offline mode is set (HF_HUB_OFFLINE)" if before else _silence_of_hub()
    constants.HF_HUB_OFFLINE = silence is not None
    try:
        yield
    except EncoderUnavailable:
        raise
    except GatedRepoError as error:
        raise unavailable(spec, "the repository is gated and this login has no access") from error
    except RepositoryNotFoundError as error:
        raise unavailable(spec, "no such repository, or a private one") from error
    except LocalEntryNotFoundError as error:
        hub = silence or "the connection to the hub broke off"
        raise unavailable(spec, f"{hub}, and its local cache lacks the weights") from error
    except _FAILURES as error:
        cause = f"{type(error).__name__}: {error}"
        raise unavailable(spec, f"{silence}; {cause}" if silence else cause) from error
    finally:
        constants.HF_HUB_OFFLINE = before


def _silence_of_hub() -> str | None:
    """Why the hub cannot be reached, or None if it answers, whatever it answers."""
    request = urllib.request.Request(constants.ENDPOINT, method="HEAD")
    try:
        urllib.request.urlopen(request, timeout=_ANSWER_SECONDS).close()
    except urllib.error.HTTPError as answer:
        answer.close()
    except OSError as error:
        return f"{constants.ENDPOINT} cannot be reached ({error})"
    return None
