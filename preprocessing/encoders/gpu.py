"""Which device a process computes on, how precisely, and how tiles get there."""

import logging
import tempfile
from functools import cache
from pathlib import Path

import torch

from preprocessing.encoders.base import EncoderSpec
from preprocessing.encoders.gpu_claim import claim
from preprocessing.errors import ConfigError

_log = logging.getLogger(__name__)


def on_gpu(wanted: str) -> bool:
    """Whether `encoder.device` means a GPU here; claims none."""
    if wanted == "cuda" and not torch.cuda.is_available():
        raise ConfigError("encoder.device is 'cuda', but torch sees no GPU; use 'auto' or 'cpu'")
    return wanted != "cpu" and torch.cuda.is_available()


def choose_device(wanted: str) -> str:
    """`cpu`, `cuda`, or `cuda:<n>` where this process had to claim one of several GPUs."""
    if not on_gpu(wanted):
        return "cpu"
    return "cuda" if torch.cuda.device_count() == 1 else f"cuda:{_claimed()}"


def choose_precision(wanted: str, spec: EncoderSpec, *, gpu: bool) -> str:
    """`auto` is the row's half precision on a GPU that computes in it, float32 on a CPU."""
    if wanted != "auto":
        return wanted
    if not gpu:
        return "float32"
    if spec.half == "bfloat16" and not torch.cuda.is_bf16_supported(including_emulation=False):
        return "float16"
    return spec.half


@cache
def _claimed() -> int:
    """Once per process: the lock is held until it ends."""
    names = [
        str(torch.cuda.get_device_properties(n).uuid) for n in range(torch.cuda.device_count())
    ]
    index = claim(names, Path(tempfile.gettempdir()))
    _log.info("of %d GPUs this process uses number %d (%s)", len(names), index, names[index])
    return index


class Uploader:
    """Copies batches to the device, on a GPU beside what it computes."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None

    def __call__(self, tiles: torch.Tensor) -> torch.Tensor:
        """Ready for the current stream of the device when that gets to it."""
        if self._stream is None:
            return tiles.to(self._device)
        computing = torch.cuda.current_stream(self._device)
        with torch.cuda.stream(self._stream):
            there = tiles.to(self._device, non_blocking=True)
        computing.wait_stream(self._stream)
        there.record_stream(computing)  # or its memory would be free for the next copy too early
        return there
