"""A torch network as a tile encoder: normalisation, pooling, precision, device."""

import hashlib
import logging
from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from preprocessing.encoders.base import EncoderSpec, Pooling, unavailable
from preprocessing.errors import ConfigError

_log = logging.getLogger(__name__)


class NetworkEncoder:
    """`network` maps (B, 3, h, w) normalised pixels to what `spec.pooling` expects.

    Weights stay float32; `precision` is that of the arithmetic, by autocast. Every tile goes
    its own way through the network, so features do not depend on the rest of the batch.
    """

    def __init__(
        self, spec: EncoderSpec, network: nn.Module, *, device: str, precision: str
    ) -> None:
        self.spec = spec
        self.dim = spec.dim
        self.transform = spec.transform
        self.precision = precision
        self.weight_digest = digest_of(network)
        if spec.weight_digest not in (None, self.weight_digest):
            raise unavailable(
                spec,
                f"the weights have SHA-256 {self.weight_digest[:16]}..., expected "
                f"{spec.weight_digest[:16]}...: another release or a damaged file",
            )
        self._device = torch.device(device)
        self._network = network.float().eval().requires_grad_(False)
        self._network.to(self._device)
        self._network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]
        self._mean = torch.tensor(spec.mean, device=self._device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(spec.std, device=self._device).view(1, 3, 1, 1) * 255
        _announce(spec.name, _facts(spec))

    def encode(self, tiles: NDArray[np.uint8]) -> NDArray[np.float32]:
        """(B, h, w, 3) RGB -> (B, dim)."""
        if tiles.ndim != 4 or tiles.shape[3] != 3 or tiles.dtype != np.uint8:
            raise ValueError(f"expected (B, h, w, 3) uint8, got {tiles.shape} {tiles.dtype}")
        self.spec.require_tile_px(tiles.shape[1])
        # A (B, h, w, 3) array seen as (B, 3, h, w) is channels-last already: nothing is copied.
        pixels = torch.from_numpy(np.require(tiles, requirements=("C", "W"))).permute(0, 3, 1, 2)
        with torch.inference_mode():
            inputs = (pixels.to(self._device).float() - self._mean) / self._std
            with self._autocast():
                output = self._network(_centre(inputs, self.spec.crop_px))
            features = pooled(output, self.spec.pooling, network=self._network)
        if features.shape != (len(tiles), self.dim):
            raise unavailable(
                self.spec, f"it returns features {tuple(features.shape[1:])}, expected {self.dim}"
            )
        return features.float().cpu().numpy()

    def _autocast(self) -> torch.autocast:
        dtype = {"float16": torch.float16, "bfloat16": torch.bfloat16}.get(self.precision)
        return torch.autocast(self._device.type, dtype=dtype, enabled=dtype is not None)


def choose_device(wanted: str) -> str:
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("encoder.device is 'cuda', but torch sees no GPU; use 'auto' or 'cpu'")
    return ("cuda" if torch.cuda.is_available() else "cpu") if wanted == "auto" else wanted


def digest_of(network: nn.Module) -> str:
    """SHA-256 over dtype, shape and bytes of every tensor in order; names differ by library."""
    digest = hashlib.sha256()
    for tensor in network.state_dict().values():
        digest.update(f"{tensor.dtype} {tuple(tensor.shape)} ".encode())
        flat = tensor.detach().cpu().contiguous().reshape(-1)
        digest.update(flat.view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def pooled(output: object, pooling: Pooling, *, network: nn.Module) -> Tensor:
    """(B, dim) from a network's output: a tensor, a list of maps, or a transformers record."""
    if pooling == "pooler":
        return _tensor(getattr(output, "pooler_output", None), pooling)
    if pooling == "map mean":
        last = output[-1] if isinstance(output, list | tuple) else output
        return _tensor(last, pooling).mean(dim=(2, 3))
    tokens = _tensor(getattr(output, "last_hidden_state", output), pooling)
    if pooling == "model":
        return tokens
    # Class token first, then registers, then the patches.
    first_patch = getattr(network, "num_prefix_tokens", 1)
    if not isinstance(first_patch, int):
        raise TypeError(f"num_prefix_tokens must be an integer, got {first_patch!r}")
    if pooling == "cls":
        return tokens[:, 0]
    return torch.cat([tokens[:, 0], tokens[:, first_patch:].mean(dim=1)], dim=-1)


def _tensor(value: object, pooling: Pooling) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"pooling {pooling!r} needs a tensor, the network gave {type(value)}")
    return value


def _centre(inputs: Tensor, crop_px: int | None) -> Tensor:
    if crop_px is None:
        return inputs
    top, left = (inputs.shape[2] - crop_px) // 2, (inputs.shape[3] - crop_px) // 2
    return inputs[:, :, top : top + crop_px, left : left + crop_px]


def _facts(spec: EncoderSpec) -> str:
    facts = [spec.note, f"licence {spec.licence}", "gated" if spec.gated else ""]
    facts.append("" if spec.checked else "not checked against its weights here")
    return "; ".join(fact for fact in facts if fact)


@cache
def _announce(name: str, facts: str) -> None:
    """Once per process: users must see whose terms they work under."""
    _log.warning("encoder %s: %s", name, facts)
