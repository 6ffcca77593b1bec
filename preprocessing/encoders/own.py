"""Networks that no library builds, and the way from published checkpoints to their tensors.

    ctranspath   Wang et al. 2022, doi 10.1016/j.media.2022.102559: a Swin-T whose patches are
                 embedded by three convolutions instead of one
    keep         Zhou et al. 2026, doi 10.1016/j.ccell.2026.01.019: a ViT-L/16 and the two-layer
                 projection into the space that it shares with a text encoder

Neither could be compared with its weights here; the loading is strict, so that a checkpoint of
another shape is refused.
"""

import re
from collections.abc import Callable
from typing import Any

import timm
from timm.models import swin_transformer, vision_transformer
from torch import Tensor, nn

StateDict = dict[str, Tensor]
_KEEP_DIM = 768


class ConvStem(nn.Module):
    """(B, 3, h, w) -> (B, h / 4, w / 4, embed_dim): 3x3, 3x3 and 1x1 convolutions.

    Takes the arguments of timm's `PatchEmbed`, of which it needs a few.
    """

    def __init__(
        self,
        *,
        img_size: int | tuple[int, int],
        in_chans: int,
        embed_dim: int,
        norm_layer: Callable[..., nn.Module],
        **_: Any,
    ) -> None:
        super().__init__()
        height, width = (img_size, img_size) if isinstance(img_size, int) else img_size
        self.grid_size = (height // 4, width // 4)
        first, second = embed_dim // 8, embed_dim // 4
        self.proj = nn.Sequential(
            nn.Conv2d(in_chans, first, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(first),
            nn.ReLU(),
            nn.Conv2d(first, second, 3, stride=2, padding=1, bias=False),
            nn.BatchNorm2d(second),
            nn.ReLU(),
            nn.Conv2d(second, embed_dim, 1),
        )
        self.norm = norm_layer(embed_dim)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.norm(self.proj(pixels).permute(0, 2, 3, 1))


class KeepVision(nn.Module):
    """(B, 3, 224, 224) -> (B, 768)."""

    def __init__(self) -> None:
        super().__init__()
        self.visual = vision_transformer.vit_large_patch16_224(init_values=1e-5, num_classes=0)
        self.visual_head = nn.Sequential(
            nn.Linear(self.visual.embed_dim, _KEEP_DIM),
            nn.GELU(),
            nn.Linear(_KEEP_DIM, _KEEP_DIM),
        )

    def forward(self, pixels: Tensor) -> Tensor:
        return self.visual_head(self.visual(pixels))


def _ctranspath() -> nn.Module:
    return timm.create_model(
        "swin_tiny_patch4_window7_224", pretrained=False, embed_layer=ConvStem, num_classes=0
    )


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "own:ctranspath": _ctranspath,
    "own:keep": KeepVision,
}


def converted(state: StateDict, network: nn.Module) -> StateDict:
    """A checkpoint's tensors under the names that `network` gives them."""
    if isinstance(network, KeepVision):
        image_half = {name: t for name, t in state.items() if name.startswith("visual")}
        return {re.sub(r"\.(ls[12])\.weight$", r".\1.gamma", k): t for k, t in image_half.items()}
    if isinstance(network, swin_transformer.SwinTransformer):
        return swin_transformer.checkpoint_filter_fn(state, network)
    if isinstance(network, vision_transformer.VisionTransformer):
        return vision_transformer.checkpoint_filter_fn(state, network)
    raise TypeError(f"no known way from a checkpoint to a {type(network)}")
