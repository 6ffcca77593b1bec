"""Tiles of noise, and a network whose features are plain to see."""

import numpy as np
import torch
from torch import nn

from preprocessing.encoders.base import EncoderSpec, TileEncoder
from preprocessing.encoders.network import NetworkEncoder


def tiles_of(count: int, side: int = 64, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, side, side, 3), dtype=np.uint8)


def spec_of(**changes) -> EncoderSpec:
    facts = {
        "name": "test",
        "source": "test",
        "loader": "timm",
        "dim": 3,
        "licence": "none",
        "gated": False,
        "any_tile_px": True,
    }
    return EncoderSpec(**facts | changes)


class MeanColour(nn.Module):
    """The mean of each channel: features whose values are plain to see."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: torch.Size | None = None
        self.scale = nn.Parameter(torch.ones(1))

    def forward(self, pixels):
        self.seen = pixels.shape
        return pixels.mean(dim=(2, 3)) * self.scale


def on_cpu(
    spec: EncoderSpec, module: nn.Module, precision: str = "float32", **more
) -> NetworkEncoder:
    return NetworkEncoder(spec, module, device="cpu", precision=precision, **more)


def encoded(encoder: TileEncoder, tiles: np.ndarray) -> np.ndarray:
    """(B, h, w, 3) uint8 -> (B, dim), by way of the device."""
    pixels = torch.from_numpy(np.array(tiles)).permute(0, 3, 1, 2).float()
    return encoder.features(pixels.to(encoder.device)).cpu().numpy()


def cosines(one: np.ndarray, two: np.ndarray) -> np.ndarray:
    """Of the rows of two (B, dim)."""
    return (one * two).sum(1) / np.linalg.norm(one, axis=1) / np.linalg.norm(two, axis=1)
