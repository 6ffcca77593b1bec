import subprocess
import sys

import pytest
import torch

from preprocessing.config import EncoderConfig
from preprocessing.encoders import hub
from preprocessing.encoders.network import pooled
from preprocessing.encoders.registry import REGISTRY, encoder_lines, find_spec
from preprocessing.errors import ConfigError

BUILT = [name for name, spec in REGISTRY.items() if spec.architecture]
# Millions of parameters, as lazyslide-models or the authors state them for the published weights.
MILLIONS = {
    "uni": 303.4,
    "uni2-h": 681.4,
    "virchow": 631.2,
    "virchow2": 631.2,
    "virchow2-cls": 631.2,
    "h-optimus-0": 1130,
    "h-optimus-1": 1130,
    "h0-mini": 85.7,
    "prov-gigapath": 1130,
    "gpfm": 303,
    "openmidnight": 1130,
    "ctranspath": 27.5,
    "phikon": 85.8,
    "phikon-v2": 303.4,
    "midnight-12k": 1140,
    "mascaret": 1140,
    "phaet": 303.4,
    "hibou-b": 85.7,
    "hibou-l": 303.7,
    "mstar": 303.4,
    "lunit-vits8": 21.7,
    "lunit-vits16": 21.7,
    "lunit-bt": 23.6,
    "lunit-mocov2": 23.6,
    "lunit-swav": 23.6,
}


@pytest.mark.parametrize("name", BUILT)
def test_architecture_gives_the_rows_dimension(name):
    """On the meta device: shapes without numbers, so that the giants cost nothing."""
    spec = REGISTRY[name]
    with torch.device("meta"):
        network = hub.build(spec).eval()
        output = network(torch.zeros(2, 3, spec.input_px, spec.input_px))
    # timm's twin of a transformers model has no pooler, which is as wide as the class token.
    pooling = "cls" if spec.pooling == "pooler" else spec.pooling
    assert pooled(output, pooling, network=network).shape == (2, spec.dim)
    if name in MILLIONS:
        millions = sum(p.numel() for p in network.parameters()) / 1e6
        assert millions == pytest.approx(MILLIONS[name], rel=0.007)


def test_rows_that_could_not_be_built_run_the_hubs_own_code():
    rest = [spec for name, spec in REGISTRY.items() if name not in BUILT]
    assert {spec.name for spec in rest} == {"conch-v1.5", "genbio-pathfm"}
    assert all(spec.remote_code for spec in rest)


@pytest.mark.parametrize("spec", REGISTRY.values(), ids=REGISTRY)
def test_rows_are_complete_and_honest(spec):
    assert spec.dim > 0
    assert spec.licence
    assert min(spec.mean) > 0
    assert max(spec.std) < 1
    assert spec.input_px <= spec.tile_px
    assert spec.checked == (spec.weight_digest is not None)
    assert bool(spec.file) == (spec.loader == "file")
    assert spec.half in ("float16", "bfloat16")


def test_unknown_name_lists_the_known():
    with pytest.raises(
        ConfigError, match=r"'uni3' is unknown.*lite0.*uni2-h.*timm:<model>.*torchscript:<path>"
    ):
        find_spec(EncoderConfig(name="uni3"))


def test_importing_the_registry_imports_no_torch():
    code = (
        "import preprocessing.encoders.registry as r, sys; r.encoder_lines();"
        "sys.exit('torch' in sys.modules)"
    )
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
    assert find_spec(EncoderConfig(name=name)).recommends(mpp) == recommended


class TestEncoderLines:
    def test_a_line_per_row_under_a_header(self):
        header, *lines = encoder_lines(200)
        assert header.split() == [
            *("name", "dim", "px", "um/px", "precision", "pooling", "access", "checked", "licence")
        ]
        assert [line.split()[0] for line in lines] == list(REGISTRY)
        found = {line.split()[0]: line.split() for line in lines}
        assert found["uni2-h"][1:] == [
            *("1536", "224", "0.5", "bfloat16", "model", "gated", "shape", "CC-BY-NC-ND-4.0")
        ]
        assert found["lite0"][1:5] == ["1280", "224", "any", "float32"]
        assert found["lite0"][7] == "weights"
        assert found["prov-gigapath"][2] == "256→224"
        assert found["virchow2"][3] == "0.25-2"
        assert found["conch-v1.5"][7] == "no"

    def test_columns_line_up(self):
        header, *lines = encoder_lines(200)
        assert all(line[header.index("licence") - 1] == " " for line in lines)
        assert all(line[header.index("licence")] != " " for line in lines)

    @pytest.mark.parametrize("width", [60, 80, 100])
    def test_lines_are_cut_to_the_width(self, width):
        lines = encoder_lines(width)
        assert max(map(len, lines)) == width
        assert lines[1].endswith("…") or len(lines[1]) < width
