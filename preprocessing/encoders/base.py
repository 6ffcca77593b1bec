"""What an encoder is to the rest of the package: a row of facts, and tiles in, features out."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol

from preprocessing.errors import ConfigError, EncoderUnavailable

if TYPE_CHECKING:
    import torch

Rgb = tuple[float, float, float]
# model: what the network returns; cls: class token; cls+mean: class token, then the mean of the
# patch tokens; map mean: mean over the last feature map; pooler: a transformers `pooler_output`.
Pooling = Literal["model", "cls", "cls+mean", "map mean", "pooler"]
Stain = Literal["none", "macenko", "reinhard"]
Precision = Literal["float32", "float16", "bfloat16"]
# file: a checkpoint in a hub repository, loaded into the row's own architecture.
Loader = Literal["package", "timm", "transformers", "file", "torchscript"]
IMAGENET_MEAN: Rgb = (0.485, 0.456, 0.406)
IMAGENET_STD: Rgb = (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class EncoderSpec:
    """One row of the registry.

    `mean` and `std` apply to pixels in 0..1. A tile of `tile_px` is cropped about its centre to
    `crop_px`, if that is set; `any_tile_px` networks take other tiles as well. `mpp` is the
    interval that the authors recommend; `precision` that of the published loading code.

    `architecture` is timm's name of the network (or a name of encoders/own.py), which is built
    without weights to check the row; the hub's file says with `architecture_kwargs` what
    `model_kwargs`, the loader's arguments, leave open. For a transformers row it is timm's twin.
    `checked` means that the weights were loaded and the numbers compared. `weight_digest` is
    known only for weights that a pinned package ships.
    """

    name: str
    source: str
    loader: Loader
    dim: int
    licence: str
    gated: bool
    pooling: Pooling = "model"
    tile_px: int = 224
    crop_px: int | None = None
    any_tile_px: bool = False
    mpp: tuple[float, float] | None = (0.5, 0.5)
    mean: Rgb = IMAGENET_MEAN
    std: Rgb = IMAGENET_STD
    precision: Precision = "float32"
    model_kwargs: Mapping[str, object] = field(default_factory=dict)
    architecture: str = ""
    architecture_kwargs: Mapping[str, object] = field(default_factory=dict)
    file: str = ""
    part: str = ""  # the method of a transformers model that gives the encoder first
    remote_code: bool = False
    weight_digest: str | None = None
    checked: bool = False
    note: str = ""

    @property
    def input_px(self) -> int:
        """What the network sees of a tile."""
        return self.crop_px or self.tile_px

    @property
    def half(self) -> Precision:
        """The half precision for a GPU: the published one, else float16, whose features are an
        order of magnitude nearer to those of float32; a store refuses what overflows.
        """
        return "float16" if self.precision == "float32" else self.precision

    @property
    def transform(self) -> str:
        """The way from a uint8 tile to features, as it is recorded beside them."""
        size = "any px" if self.any_tile_px else f"{self.tile_px} px"
        crop = f", centre crop {self.crop_px} px" if self.crop_px else ""
        mean, std = (" ".join(f"{v:.6g}" for v in values) for values in (self.mean, self.std))
        return f"{size}{crop}, x/255, mean {mean}, std {std}, pooling {self.pooling}"

    def require_tile_px(self, tile_px: int) -> None:
        if tile_px != self.tile_px and not self.any_tile_px:
            raise ConfigError(
                f"encoder {self.name!r} takes tiles of {self.tile_px} px, grid.tile_px is "
                f"{tile_px}; set grid.tile_px to {self.tile_px} (grid.mpp sets the resolution)"
            )

    def recommends(self, mpp: float) -> bool:
        """A single recommended value has a tenth of play, an interval is meant as it stands."""
        if self.mpp is None:
            return True
        least, most = self.mpp
        play = 0.1 if least == most else 0.0
        return least * (1 - play) <= mpp <= most * (1 + play)


class TileEncoder(Protocol):
    """A loaded encoder. `weight_digest` is the SHA-256 over its tensors in order.

    `transform` describes all that `features` does to a tile, `precision` is never "auto".
    """

    spec: EncoderSpec
    dim: int
    weight_digest: str
    transform: str
    precision: str
    device: "torch.device"

    def features(self, pixels: "torch.Tensor") -> "torch.Tensor":
        """(B, 3, tile_px, tile_px) float32 RGB 0..255 on `device` -> (B, dim) float32 there.

        On a GPU it returns before the work is done.
        """
        ...


def unavailable(spec: EncoderSpec, cause: str) -> EncoderUnavailable:
    """The error for weights that cannot be had, with every way out."""
    ways = [
        f"request access at https://huggingface.co/{spec.source.removeprefix('hf-hub:')} and log "
        "in with a token (`hf auth login`, or HF_TOKEN)"
        if spec.gated
        else "",
        "set HF_HOME to a cache copied from a machine that is online",
        "use encoder.name: lite0, which needs no download",
    ]
    return EncoderUnavailable(
        f"encoder {spec.name!r} ({spec.source}): {cause}. What to do: "
        + "; or ".join(way for way in ways if way)
    )
