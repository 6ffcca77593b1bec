"""A torch network as a tile encoder: stain, normalisation, pooling, precision, device."""

import hashlib
import logging
from collections.abc import Callable
from functools import cache

import torch
from torch import Tensor, nn

from preprocessing.encoders.base import EncoderSpec, Pooling, Stain, unavailable

_log = logging.getLogger(__name__)
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
# autocast computes these in half precision, whatever their weights are stored in.
_MATRIX_LAYERS = (nn.Linear, nn.Conv2d)


class NetworkEncoder:
    """`network` maps (B, 3, h, w) normalised pixels to what `spec.pooling` expects.

    `precision` is that of the arithmetic, by autocast, with normalisations, softmax and what
    they read in float32. Every tile goes its own way through the network, so features do not
    depend on the rest of the batch. `compiled_for` is the batch size to compile for, None for no
    compilation; smaller batches are then filled up, since every new shape would be compiled anew.
    `weight_digest` stands in for that of the tensors where these are not all of the network.
    """

    def __init__(
        self,
        spec: EncoderSpec,
        network: nn.Module,
        *,
        device: str,
        precision: str,
        stain: Stain = "none",
        compiled_for: int | None = None,
        weight_digest: str | None = None,
    ) -> None:
        self.spec = spec
        self.dim = spec.dim
        self.transform = transform_of(spec, stain)
        self.precision = precision
        self.device = torch.device(device)
        self.weight_digest = weight_digest or digest_of(network)
        if spec.weight_digest not in (None, self.weight_digest):
            raise unavailable(
                spec,
                f"the weights have SHA-256 {self.weight_digest[:16]}..., expected "
                f"{spec.weight_digest[:16]}...: another release or a damaged file",
            )
        self._dtype = _DTYPES.get(precision)
        if self._dtype is None and self.device.type == "cuda":
            torch.backends.cudnn.allow_tf32 = False  # or convolutions round to 10 bits
        self._network = _placed(network, self.device, self._dtype)
        self._call: Callable[[Tensor], object] = self._network
        self._fill = compiled_for
        if compiled_for is not None:
            self._call = torch.compile(self._network, dynamic=False)
        self._normalise_stain = _stain_normaliser(stain)
        self._mean = torch.tensor(spec.mean, device=self.device).view(1, 3, 1, 1) * 255
        self._std = torch.tensor(spec.std, device=self.device).view(1, 3, 1, 1) * 255
        _announce(spec.name, _facts(spec))

    @torch.inference_mode()
    def features(self, pixels: Tensor) -> Tensor:
        """(B, 3, h, w) float32 RGB 0..255 on `device` -> (B, dim) float32, not waited for."""
        if pixels.ndim != 4 or pixels.shape[1] != 3 or pixels.dtype != torch.float32:
            raise ValueError(
                f"expected (B, 3, h, w) float32, got {tuple(pixels.shape)} {pixels.dtype}"
            )
        self.spec.require_tile_px(pixels.shape[2])
        if self._normalise_stain is not None:
            pixels = self._normalise_stain(pixels)
        inputs = (_centre(pixels, self.spec.crop_px) - self._mean) / self._std
        return self.forward(inputs.contiguous(memory_format=torch.channels_last))

    @torch.inference_mode()
    def forward(self, inputs: Tensor) -> Tensor:
        """The network alone: (B, 3, h, w) normalised pixels, channels last -> (B, dim) float32."""
        with torch.autocast(self.device.type, dtype=self._dtype, enabled=self._dtype is not None):
            output = self._call(_filled(inputs, self._fill))
        features = pooled(output, self.spec.pooling, network=self._network)[: len(inputs)]
        if features.shape != (len(inputs), self.dim):
            raise unavailable(
                self.spec, f"it returns features {tuple(features.shape[1:])}, expected {self.dim}"
            )
        return features.float()


def transform_of(spec: EncoderSpec, stain: Stain) -> str:
    """The way from a uint8 tile to features, stain normalisation first."""
    if stain == "none":
        return spec.transform
    from preprocessing.encoders.stain import describe, stain_normaliser

    stain_normaliser(stain)  # where its package is absent, this says what to install
    return f"{describe(stain)}, then {spec.transform}"


def _stain_normaliser(stain: Stain) -> Callable[[Tensor], Tensor] | None:
    if stain == "none":
        return None
    from preprocessing.encoders.stain import stain_normaliser

    return stain_normaliser(stain)


def _placed(network: nn.Module, device: torch.device, dtype: torch.dtype | None) -> nn.Module:
    """On the device, channels last, with the matrix weights already in half precision.

    autocast would cast the same weights to the same numbers at every batch.
    """
    network = network.float().eval().to(device)
    if dtype is not None:
        for layer in network.modules():
            if type(layer) in _MATRIX_LAYERS:
                layer.to(dtype)
    return network.to(memory_format=torch.channels_last)  # pyright: ignore[reportCallIssue]


def _filled(inputs: Tensor, size: int | None) -> Tensor:
    if size is None or len(inputs) >= size:
        return inputs
    filled = inputs.new_zeros((size, *inputs.shape[1:]))
    filled[: len(inputs)] = inputs
    return filled.contiguous(memory_format=torch.channels_last)


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
    # Class token first, then registers, then the patches; timm counts both, transformers registers.
    registers = getattr(getattr(network, "config", None), "num_register_tokens", 0)
    first_patch = getattr(network, "num_prefix_tokens", 1 + registers)
    if not isinstance(first_patch, int):
        raise TypeError(f"num_prefix_tokens must be an integer, got {first_patch!r}")
    if pooling == "cls":
        return tokens[:, 0]
    return torch.cat([tokens[:, 0], tokens[:, first_patch:].mean(dim=1)], dim=-1)


def _tensor(value: object, pooling: Pooling) -> Tensor:
    if not isinstance(value, Tensor):
        raise TypeError(f"pooling {pooling!r} needs a tensor, the network gave {type(value)}")
    return value


def _centre(pixels: Tensor, crop_px: int | None) -> Tensor:
    if crop_px is None:
        return pixels
    top, left = (pixels.shape[2] - crop_px) // 2, (pixels.shape[3] - crop_px) // 2
    return pixels[:, :, top : top + crop_px, left : left + crop_px]


def _facts(spec: EncoderSpec) -> str:
    facts = [spec.note, f"licence {spec.licence}", "gated" if spec.gated else ""]
    facts.append("" if spec.checked else "not checked against its weights here")
    return "; ".join(fact for fact in facts if fact)


@cache
def _announce(name: str, facts: str) -> None:
    """Once per process: users must see whose terms they work under."""
    _log.warning("encoder %s: %s", name, facts)
