import sys

import pytest
import timm
import torch

from preprocessing.encoders import hub
from preprocessing.encoders.network import pooled
from preprocessing.encoders.registry import REGISTRY, find_spec
from preprocessing.errors import ConfigError

# The architectures that the rows' config.json on the hub are expected to name (not checked against
# the hub): with them a row's arguments must build, and its pooling give the row's dimension.
ARCHITECTURES = {
    "uni": ("vit_large_patch16_224", {"num_classes": 0}),
    "uni2-h": ("vit_giant_patch14_224", {}),
    "virchow": ("vit_huge_patch14_224", {"init_values": 1e-5, "mlp_ratio": 5.3375}),
    "virchow2": (
        "vit_huge_patch14_224",
        {"init_values": 1e-5, "mlp_ratio": 5.3375, "reg_tokens": 4},
    ),
    "h-optimus-0": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "num_classes": 0}),
    "h-optimus-1": ("vit_giant_patch14_reg4_dinov2", {"img_size": 224, "num_classes": 0}),
    "h0-mini": ("vit_base_patch14_reg4_dinov2", {"img_size": 224, "mlp_ratio": 5.33334}),
    "prov-gigapath": (
        "vit_giant_patch14_dinov2",
        {"img_size": 224, "patch_size": 16, "num_classes": 0},
    ),
    "kaiko-vits16": ("vit_small_patch16_224", {}),
    "kaiko-vitb16": ("vit_base_patch16_224", {}),
    "kaiko-vitl14": ("vit_large_patch14_reg4_dinov2", {}),
    "lunit-vits8": ("vit_small_patch8_224", {}),
    "resnet50": ("resnet50", {}),
}


class TestRegistry:
    @pytest.mark.parametrize("name", ARCHITECTURES)
    def test_architecture_gives_the_rows_dimension(self, name):
        spec = find_spec(name)
        architecture, extra = ARCHITECTURES[name]
        with torch.device("meta"):
            module = timm.create_model(
                architecture, pretrained=False, **extra | hub.timm_kwargs(spec)
            ).eval()
            output = module(torch.zeros(2, 3, spec.input_px, spec.input_px))
        assert pooled(output, spec.pooling, network=module).shape == (2, spec.dim)

    def test_every_timm_row_is_built_above(self):
        rows = {name for name, spec in REGISTRY.items() if spec.loader == "timm"}
        assert rows == set(ARCHITECTURES)

    @pytest.mark.parametrize("spec", REGISTRY.values(), ids=REGISTRY)
    def test_rows_are_complete_and_honest(self, spec):
        assert spec.dim > 0
        assert spec.licence
        assert min(spec.mean) > 0
        assert max(spec.std) < 1
        assert spec.input_px <= spec.tile_px
        assert spec.checked == (spec.weight_digest is not None)

    def test_unknown_name_lists_the_known(self):
        with pytest.raises(ConfigError, match=r"'uni3' is unknown.*lite0.*uni2-h.*timm:<model>"):
            find_spec("uni3")

    def test_importing_the_registry_imports_no_torch(self):
        import subprocess

        code = "import preprocessing.encoders.registry, sys; sys.exit('torch' in sys.modules)"
        assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize(
    ("name", "mpp", "recommended"),
    [
        ("uni", 0.46, True),
        ("uni", 0.44, False),
        ("uni", 0.56, False),
        ("virchow2", 0.25, True),
        ("virchow2", 2.0, True),
        ("virchow2", 2.1, False),
        ("lite0", 8.0, True),
        ("timm:resnet18", 8.0, True),
    ],
)
def test_recommended_resolution(name, mpp, recommended):
    assert find_spec(name).recommends(mpp) == recommended
