"""Rows of encoders that timm loads by name: the hub's and its own."""

from preprocessing.encoders.base import EncoderSpec

HALF = (0.5, 0.5, 0.5)
MANY_MPP = (0.25, 2.0)
NOT_CHECKED = "not checked"
NON_COMMERCIAL = "CC-BY-NC-ND-4.0"
SWIGLU: dict[str, object] = {"mlp_layer": "SwiGLUPacked", "act_layer": "SiLU"}
_HOPTIMUS_MEAN = (0.707223, 0.578729, 0.703617)
_HOPTIMUS_STD = (0.211883, 0.230117, 0.177517)
_TOKENS: dict[str, object] = {"num_classes": 0, "global_pool": ""}
_VIRCHOW: dict[str, object] = {"init_values": 1e-5, "mlp_ratio": 5.3375}
_UNI: dict[str, object] = {"init_values": 1e-5, "dynamic_img_size": True}


def _vit_large(name: str, source: str, licence: str) -> EncoderSpec:
    """The ViT-L/16 of UNI with other weights."""
    return EncoderSpec(
        name=name,
        source=source,
        loader="timm",
        dim=1024,
        licence=licence,
        gated=True,
        precision="float16",
        model_kwargs=_UNI,
        architecture="vit_large_patch16_224",
        architecture_kwargs={"num_classes": 0},
    )


def _h_optimus(name: str, source: str, licence: str, *, gated: bool) -> EncoderSpec:
    return EncoderSpec(
        name=name,
        source=source,
        loader="timm",
        dim=1536,
        licence=licence,
        gated=gated,
        mean=_HOPTIMUS_MEAN,
        std=_HOPTIMUS_STD,
        precision="float16",
        model_kwargs={"init_values": 1e-5, "dynamic_img_size": False, "global_pool": "token"},
        architecture="vit_giant_patch14_reg4_dinov2",
        architecture_kwargs={"img_size": 224, "num_classes": 0},
    )


def _virchow(
    name: str, licence: str, *, mpp: tuple[float, float], registers: int, note: str, cls: bool
) -> EncoderSpec:
    return EncoderSpec(
        name=name,
        source=f"hf-hub:paige-ai/{'Virchow2' if registers else 'Virchow'}",
        loader="timm",
        dim=1280 if cls else 2560,
        licence=licence,
        gated=True,
        pooling="cls" if cls else "cls+mean",
        mpp=mpp,
        precision="float16",
        model_kwargs={**SWIGLU, **_TOKENS},
        architecture="vit_huge_patch14_224",
        architecture_kwargs={**_VIRCHOW, "reg_tokens": registers},
        note=note,
    )


def _kaiko(name: str, model: str, dim: int, *, img_size: int = 224) -> EncoderSpec:
    return EncoderSpec(
        name=name,
        source=f"hf-hub:1aurent/{model}.kaiko_ai_towards_large_pathology_fms",
        loader="timm",
        dim=dim,
        licence=NOT_CHECKED,
        gated=False,
        mean=HALF,
        std=HALF,
        mpp=MANY_MPP,
        model_kwargs={"num_classes": 0, "img_size": img_size, "dynamic_img_size": True},
        architecture=model,
    )


def _lunit(name: str, model: str, weights: str, dim: int) -> EncoderSpec:
    return EncoderSpec(
        name=name,
        source=f"hf-hub:1aurent/{model}.{weights}",
        loader="timm",
        dim=dim,
        licence="Lunit non-commercial",
        gated=False,
        mean=(0.70322989, 0.53606487, 0.66096631),
        std=(0.21716536, 0.26081574, 0.20723464),
        model_kwargs={"num_classes": 0},
        architecture=model,
    )


ROWS = (
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
        architecture="resnet50",
        note="ImageNet baseline: third stage, mean over the map",
    ),
    _vit_large("uni", "hf-hub:MahmoodLab/UNI", NON_COMMERCIAL),
    EncoderSpec(
        name="uni2-h",
        source="hf-hub:MahmoodLab/UNI2-h",
        loader="timm",
        dim=1536,
        licence=NON_COMMERCIAL,
        gated=True,
        precision="bfloat16",
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
            **SWIGLU,
        },
        architecture="vit_giant_patch14_224",
    ),
    _virchow(
        "virchow",
        "Apache-2.0 (not checked)",
        mpp=(0.5, 0.5),
        registers=0,
        cls=False,
        note="class token and mean of the patch tokens",
    ),
    _virchow(
        "virchow2",
        NON_COMMERCIAL,
        mpp=MANY_MPP,
        registers=4,
        cls=False,
        note="class token and mean of the patch tokens; 4 registers left out",
    ),
    _virchow(
        "virchow2-cls",
        NON_COMMERCIAL,
        mpp=MANY_MPP,
        registers=4,
        cls=True,
        note="the class token alone",
    ),
    _h_optimus("h-optimus-0", "hf-hub:bioptimus/H-optimus-0", "Apache-2.0", gated=False),
    _h_optimus("h-optimus-1", "hf-hub:bioptimus/H-optimus-1", NON_COMMERCIAL, gated=True),
    EncoderSpec(
        name="h0-mini",
        source="hf-hub:bioptimus/H0-mini",
        loader="timm",
        dim=1536,
        licence=NON_COMMERCIAL,
        gated=True,
        pooling="cls+mean",
        mean=_HOPTIMUS_MEAN,
        std=_HOPTIMUS_STD,
        precision="float16",
        model_kwargs={**SWIGLU, **_TOKENS},
        architecture="vit_base_patch14_reg4_dinov2",
        architecture_kwargs={"img_size": 224, "mlp_ratio": 5.33334},
        note="class token and mean of the patch tokens; TRIDENT's default is the class token alone",
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
        precision="float16",
        architecture="vit_giant_patch14_dinov2",
        architecture_kwargs={"img_size": 224, "patch_size": 16, "num_classes": 0},
    ),
    _vit_large("mstar", "hf-hub:Wangyh/mSTAR", NON_COMMERCIAL),
    _vit_large("digepath", "hf-hub:xtxx/Digepath", NOT_CHECKED),
    _kaiko("kaiko-vits8", "vit_small_patch8_224", 384),
    _kaiko("kaiko-vits16", "vit_small_patch16_224", 384),
    _kaiko("kaiko-vitb8", "vit_base_patch8_224", 768),
    _kaiko("kaiko-vitb16", "vit_base_patch16_224", 768),
    _kaiko("kaiko-vitl14", "vit_large_patch14_reg4_dinov2", 1024, img_size=518),
    _lunit("lunit-vits8", "vit_small_patch8_224", "lunit_dino", 384),
    _lunit("lunit-vits16", "vit_small_patch16_224", "lunit_dino", 384),
    _lunit("lunit-bt", "resnet50", "lunit_bt", 2048),
    _lunit("lunit-mocov2", "resnet50", "lunit_mocov2", 2048),
    _lunit("lunit-swav", "resnet50", "lunit_swav", 2048),
)
