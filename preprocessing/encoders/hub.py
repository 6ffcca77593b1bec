"""Encoders whose weights lie on the Hugging Face hub or in its local cache."""

import hashlib
import importlib.util
import urllib.error
import urllib.request
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import timm
import torch
from huggingface_hub import constants, hf_hub_download
from huggingface_hub.errors import (
    GatedRepoError,
    LocalEntryNotFoundError,
    RepositoryNotFoundError,
)
from safetensors import SafetensorError
from safetensors.torch import load_file as load_safetensors
from timm.data.config import resolve_model_data_config
from timm.layers.mlp import SwiGLUPacked
from torch import nn

from preprocessing.encoders.base import EncoderSpec, unavailable
from preprocessing.encoders.network import pooled
from preprocessing.encoders.own import NETWORKS, converted
from preprocessing.errors import ConfigError, EncoderUnavailable

_ANSWER_SECONDS = 5.0
# Files cut off or of other objects than tensors; code of the hub for other versions than installed.
_FILE_FAILURES = (OSError, EOFError, UnpicklingError, SafetensorError)
_CODE_FAILURES = (RuntimeError, ValueError, LookupError, TypeError, AttributeError, ImportError)
_FAILURES = (*_FILE_FAILURES, *_CODE_FAILURES)
_HUB_PREFIXES = ("hf-hub:", "hf_hub:", "local-dir:")
# Layers that a registry row names; the registry itself does not import torch.
_LAYERS = {"SwiGLUPacked": SwiGLUPacked, "SiLU": nn.SiLU}


def load_timm(spec: EncoderSpec) -> nn.Module:
    """(B, 3, h, w) -> features or tokens, by timm's loader of `hf-hub:` names or its own list."""
    with _weights_of(spec):
        return timm.create_model(spec.source, pretrained=True, **timm_kwargs(spec.model_kwargs))


def load_file(spec: EncoderSpec) -> nn.Module:
    """A checkpoint of a hub repository in the row's architecture; strict."""
    network = build(spec)
    dataset = spec.source.startswith("datasets/")
    with _weights_of(spec):
        path = hf_hub_download(
            spec.source.removeprefix("datasets/"),
            spec.file,
            repo_type="dataset" if dataset else "model",
        )
        safe = path.endswith(".safetensors")
        state = load_safetensors(path) if safe else _unpickled(path)
    state = converted(state, network)
    expected = {name: t.shape for name, t in network.state_dict().items()}
    found = {name: t.shape for name, t in state.items()}
    if found != expected:
        wrong = sorted(n for n in found | expected if found.get(n) != expected.get(n))
        raise unavailable(
            spec,
            f"{spec.file} is no checkpoint of {spec.architecture}: {len(wrong)} tensors are "
            f"missing, unknown or of another shape, first {wrong[0]}",
        )
    network.load_state_dict(state, strict=True)
    return network


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

        if spec.remote_code:
            network = AutoModel.from_pretrained(
                spec.source, trust_remote_code=True, **spec.model_kwargs
            )
            return getattr(network, spec.part)()[0] if spec.part else network
        network, report = AutoModel.from_pretrained(
            spec.source, trust_remote_code=False, output_loading_info=True, **spec.model_kwargs
        )
    return _without_random_parts(spec, network, sorted(report["missing_keys"]))


def load_torchscript(spec: EncoderSpec) -> nn.Module:
    path = Path(spec.source)
    if not path.is_file():
        raise ConfigError(f"encoder.name {spec.name!r}: there is no file {path}")
    try:
        with warnings.catch_warnings():
            # torch wants torch.export instead, which the files that exist were not made with.
            warnings.simplefilter("ignore", FutureWarning)
            return torch.jit.load(path, map_location="cpu")
    except RuntimeError as error:
        raise EncoderUnavailable(
            f"encoder {spec.name!r}: expected a file that torch.jit.save wrote: {error}"
        ) from error


def file_digest(spec: EncoderSpec) -> str:
    """SHA-256 of a TorchScript file, whose code counts as much as its tensors."""
    with Path(spec.source).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def build(spec: EncoderSpec) -> nn.Module:
    """The row's architecture with random weights: (B, 3, h, w) -> what `spec.pooling` expects.

    For a transformers row that is timm's twin, whose output stands for `last_hidden_state`.
    """
    if spec.architecture in NETWORKS:
        return NETWORKS[spec.architecture]()
    tokens = {"global_pool": "", "num_classes": 0} if spec.loader == "transformers" else {}
    kwargs = {**spec.architecture_kwargs, **tokens}
    if spec.loader == "timm":
        kwargs |= spec.model_kwargs
    return timm.create_model(spec.architecture, pretrained=False, **timm_kwargs(kwargs))


def timm_kwargs(kwargs: Mapping[str, object]) -> dict[str, Any]:
    """Constructor arguments of a row, layer names replaced by classes."""
    return {
        key: _LAYERS[value] if isinstance(value, str) and value in _LAYERS else value
        for key, value in kwargs.items()
    }


def completed(spec: EncoderSpec, network: nn.Module, stated: Mapping[str, object]) -> EncoderSpec:
    """The row of a model that is in no registry: what its source says, overruled by `stated`.

    The dimension is that of one blank tile's features.
    """
    said = {"timm": _said_by_timm, "transformers": _said_by_transformers}.get(spec.loader)
    facts = {**(said(spec, network) if said else {}), **stated}
    spec = replace(spec, **facts)
    with torch.inference_mode():
        output = network.eval()(torch.zeros(1, 3, spec.tile_px, spec.tile_px))
    features = pooled(output, spec.pooling, network=network)
    if features.ndim != 2:
        raise unavailable(
            spec, f"it gives features of shape {tuple(features.shape[1:])} per tile, not a vector"
        )
    return replace(spec, dim=features.shape[1])


def _said_by_timm(_: EncoderSpec, network: nn.Module) -> dict[str, Any]:
    data = resolve_model_data_config(network)
    licence = getattr(network, "pretrained_cfg", {}).get("license") or "unknown"
    side = data["input_size"][1]
    return {"tile_px": side, "mean": data["mean"], "std": data["std"], "licence": licence}


def _said_by_transformers(spec: EncoderSpec, _: nn.Module) -> dict[str, Any]:
    """The repository's image processor states the normalisation."""
    with _weights_of(spec):
        from transformers import AutoImageProcessor  # pyright: ignore[reportMissingImports]

        processor = AutoImageProcessor.from_pretrained(spec.source)
    return {"mean": tuple(processor.image_mean), "std": tuple(processor.image_std)}


def _without_random_parts(spec: EncoderSpec, network: nn.Module, missing: list[str]) -> nn.Module:
    """What a checkpoint lacks, transformers fills with random numbers, other ones at every load.

    An unused pooling layer is taken out, anything else cannot be meant.
    """
    rest = [name for name in missing if not name.startswith("pooler.")]
    if rest or (missing and spec.pooling == "pooler"):
        raise unavailable(spec, f"its checkpoint lacks {', '.join((rest or missing)[:3])}")
    if missing:
        network.register_module("pooler", None)
    return network


def _unpickled(path: str) -> dict[str, torch.Tensor]:
    return torch.load(path, map_location="cpu", weights_only=True)


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
