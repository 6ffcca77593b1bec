import logging
import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import timm
import torch
from huggingface_hub import constants
from torch import nn

from preprocessing.config import EncoderConfig
from preprocessing.encoders import hub, network
from preprocessing.encoders.base import EncoderSpec
from preprocessing.encoders.lite0 import load_lite0
from preprocessing.encoders.network import NetworkEncoder, choose_device, digest_of, pooled
from preprocessing.encoders.registry import REGISTRY, find_spec, load_encoder
from preprocessing.errors import ConfigError, EncoderUnavailable


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


def on_cpu(spec: EncoderSpec, module: nn.Module, precision: str = "float32") -> NetworkEncoder:
    return NetworkEncoder(spec, module, device="cpu", precision=precision)


@pytest.fixture(scope="module")
def lite0():
    return load_encoder(EncoderConfig(device="cpu"))


class TestLite0:
    def test_equals_the_plain_network_on_normalised_pixels(self, lite0):
        tiles = tiles_of(3)
        plain = load_lite0(find_spec("lite0")).eval()
        pixels = torch.from_numpy((tiles.astype(np.float32) - 127) / 128).permute(0, 3, 1, 2)
        with torch.no_grad():
            maps = plain.forward_features(pixels.contiguous())
            expected = maps.mean(dim=(2, 3)).numpy()
        found = lite0.encode(tiles)
        assert found.dtype == np.float32
        assert found.shape == (3, 1280)
        np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-4)

    def test_same_tiles_same_features_whatever_their_neighbours(self, lite0):
        tiles = tiles_of(5)
        together = lite0.encode(tiles)
        np.testing.assert_array_equal(together, lite0.encode(tiles.copy()))
        alone = np.concatenate([lite0.encode(tile[None]) for tile in tiles])
        np.testing.assert_allclose(together, alone, rtol=1e-4, atol=1e-5)
        assert np.abs(together[0] - together[1]).max() > 0.1

    def test_read_only_input_is_taken(self, lite0):
        tiles = tiles_of(1)
        tiles.flags.writeable = False
        assert lite0.encode(tiles).shape == (1, 1280)

    def test_weights_are_those_of_the_registry(self, lite0):
        assert lite0.weight_digest == REGISTRY["lite0"].weight_digest
        assert lite0.transform == REGISTRY["lite0"].transform

    def test_other_weights_are_refused(self):
        module = MeanColour()
        with pytest.raises(EncoderUnavailable, match=r"'lite0'.*another release or a damaged"):
            on_cpu(find_spec("lite0"), module)

    @pytest.mark.parametrize("precision", ["bfloat16", "float16"])
    def test_half_precision_stays_close(self, lite0, precision):
        half = load_encoder(EncoderConfig(device="cpu", precision=precision))
        assert half.precision == precision
        tiles = tiles_of(2)
        exact, rough = lite0.encode(tiles), half.encode(tiles)
        assert rough.dtype == np.float32
        assert not np.array_equal(exact, rough)
        cosine = (
            (exact * rough).sum(1) / np.linalg.norm(exact, axis=1) / np.linalg.norm(rough, axis=1)
        )
        assert cosine.min() > 0.99

    def test_says_once_that_it_is_a_demo(self, caplog):
        network._announce.cache_clear()
        with caplog.at_level(logging.WARNING):
            load_encoder(EncoderConfig(device="cpu"))
            load_encoder(EncoderConfig(device="cpu"))
        said = [r.message for r in caplog.records if "not for pathology results" in r.message]
        assert len(said) == 1
        assert "Apache-2.0" in said[0]


class TestNetworkEncoder:
    def test_normalisation_follows_the_row(self):
        spec = spec_of(mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))
        tiles = np.full((1, 8, 8, 3), (255, 0, 51), dtype=np.uint8)
        found = on_cpu(spec, MeanColour()).encode(tiles)
        np.testing.assert_allclose(found, [[1.8, -0.2, -0.05]], atol=1e-6)

    def test_centre_crop(self):
        tiles = np.zeros((1, 256, 256, 3), dtype=np.uint8)
        tiles[:, 16:240, 16:240] = 255
        module = MeanColour()
        spec = spec_of(tile_px=256, crop_px=224, any_tile_px=False, mean=(0, 0, 0), std=(1, 1, 1))
        np.testing.assert_allclose(on_cpu(spec, module).encode(tiles), [[1, 1, 1]], rtol=1e-6)
        assert module.seen == (1, 3, 224, 224)

    def test_wrong_tile_size_names_the_key_to_change(self):
        encoder = on_cpu(spec_of(any_tile_px=False), MeanColour())
        with pytest.raises(
            ConfigError, match=r"224 px, grid.tile_px is 64; set grid.tile_px to 224"
        ):
            encoder.encode(tiles_of(1))

    def test_wrong_dimension_is_found_at_the_first_batch(self):
        with pytest.raises(EncoderUnavailable, match=r"features \(3,\), expected 5"):
            on_cpu(spec_of(dim=5), MeanColour()).encode(tiles_of(1))

    def test_float_pixels_are_refused(self):
        with pytest.raises(ValueError, match=r"uint8, got .* float32"):
            on_cpu(spec_of(), MeanColour()).encode(tiles_of(1).astype(np.float32))

    def test_digest_sees_every_weight_and_no_name(self):
        one, two = nn.Linear(3, 4), nn.Linear(3, 4)
        two.load_state_dict(one.state_dict())
        assert digest_of(nn.Sequential(one)) == digest_of(two)
        with torch.no_grad():
            two.bias[0] += 1e-6
        assert digest_of(one) != digest_of(two)

    @pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
    def test_cuda_without_a_gpu(self):
        assert choose_device("auto") == "cpu"
        with pytest.raises(ConfigError, match="no GPU; use 'auto' or 'cpu'"):
            load_encoder(EncoderConfig(device="cuda"))


class TestPooling:
    tokens = torch.arange(2 * 7 * 4, dtype=torch.float32).reshape(2, 7, 4)

    def test_class_token(self):
        assert torch.equal(pooled(self.tokens, "cls", network=nn.Identity()), self.tokens[:, 0])

    def test_registers_are_left_out_of_the_mean(self):
        module = nn.Identity()
        module.num_prefix_tokens = 5
        found = pooled(self.tokens, "cls+mean", network=module)
        expected = (self.tokens[:, 5] + self.tokens[:, 6]) / 2
        assert torch.equal(found, torch.cat([self.tokens[:, 0], expected], dim=1))

    def test_map_mean_takes_the_last_map(self):
        maps = [torch.zeros(2, 3, 8, 8), torch.full((2, 6, 4, 4), 2.0)]
        assert torch.equal(pooled(maps, "map mean", network=nn.Identity()), torch.full((2, 6), 2.0))

    def test_transformers_records(self):
        record = types.SimpleNamespace(
            last_hidden_state=self.tokens, pooler_output=torch.ones(2, 9)
        )
        assert torch.equal(pooled(record, "cls", network=nn.Identity()), self.tokens[:, 0])
        assert pooled(record, "cls+mean", network=nn.Identity()).shape == (2, 8)
        assert torch.equal(pooled(record, "pooler", network=nn.Identity()), torch.ones(2, 9))
        with pytest.raises(TypeError, match="pooling 'pooler' needs a tensor"):
            pooled(self.tokens, "pooler", network=nn.Identity())


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


@pytest.fixture
def no_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)


@pytest.fixture
def dead_hub(no_cache, monkeypatch):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")  # the discard port: refused


class TestHub:
    @pytest.mark.parametrize("name", ["uni", "resnet50", "timm:resnet18.a1_in1k"])
    def test_unreachable_hub_fails_at_once_and_says_what_to_do(self, dead_hub, name):
        started = time.monotonic()
        with pytest.raises(EncoderUnavailable) as caught:
            load_encoder(EncoderConfig(name=name, device="cpu"))
        assert time.monotonic() - started < 8
        text = str(caught.value)
        assert name in text
        assert "127.0.0.1:9 cannot be reached" in text
        assert "set HF_HOME to a cache copied" in text
        assert "lite0" in text
        assert ("request access at https://huggingface.co/MahmoodLab/UNI" in text) == (
            name == "uni"
        )
        assert constants.HF_HUB_OFFLINE is False

    def test_offline_switch_is_named(self, no_cache, monkeypatch):
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
        with pytest.raises(EncoderUnavailable, match=r"offline mode is set \(HF_HUB_OFFLINE\)"):
            load_encoder(EncoderConfig(name="virchow2", device="cpu"))
        assert constants.HF_HUB_OFFLINE is True

    @pytest.mark.parametrize(
        ("code", "cause"),
        [("GatedRepo", "gated and this login has no access"), ("RepoNotFound", "no such repo")],
    )
    def test_refusals_of_the_hub(self, no_cache, monkeypatch, code, cause):
        class Refusing(BaseHTTPRequestHandler):
            def do_HEAD(self):
                self.send_response(200 if self.path == "/" else 403)
                self.send_header("X-Error-Code", code)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def do_GET(self):
                self.do_HEAD()

            def log_message(self, *_):
                pass

        with HTTPServer(("127.0.0.1", 0), Refusing) as server:
            thread = threading.Thread(target=server.serve_forever)
            thread.start()
            here = f"http://127.0.0.1:{server.server_port}"
            monkeypatch.setattr(constants, "ENDPOINT", here)
            template = here + "/{repo_id}/resolve/{revision}/{filename}"
            monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
            try:
                with pytest.raises(EncoderUnavailable, match=f"'uni2-h'.*{cause}"):
                    load_encoder(EncoderConfig(name="uni2-h", device="cpu"))
            finally:
                server.shutdown()
                thread.join()

    def test_unknown_timm_model(self):
        with pytest.raises(ConfigError, match=r"'timm:resnet19': timm .* knows no such model"):
            load_encoder(EncoderConfig(name="timm:resnet19", device="cpu"))

    def test_any_timm_model_describes_itself(self):
        module = timm.create_model("test_vit", pretrained=False, num_classes=0)
        spec = hub.describe_timm(find_spec("timm:test_vit"), module)
        assert (spec.dim, spec.tile_px) == (64, 160)
        assert spec.mean == tuple(module.pretrained_cfg["mean"])
        assert on_cpu(spec, module).encode(tiles_of(2, 160)).shape == (2, 64)

    def test_transformers_missing(self, monkeypatch):
        monkeypatch.setattr(hub.importlib.util, "find_spec", lambda _: None)
        with pytest.raises(EncoderUnavailable, match=r"'phikon-v2'.*pip install 'histomil\[hub\]'"):
            load_encoder(EncoderConfig(name="phikon-v2", device="cpu"))


class FakeViT(nn.Module):
    """What an `AutoModel` gives for pixel values, with tokens that show the mean colour."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.ones(dim))

    def forward(self, pixel_values):
        cls = pixel_values.mean(dim=(1, 2, 3))[:, None, None] * self.scale
        tokens = torch.cat([cls, cls + 1, cls + 3], dim=1)
        return types.SimpleNamespace(last_hidden_state=tokens, pooler_output=-cls[:, 0])


@pytest.fixture
def transformers(monkeypatch):
    """A stand-in for the optional package, which records how it was asked."""
    asked = []

    class AutoModel:
        @staticmethod
        def from_pretrained(source, *, trust_remote_code):
            asked.append((source, trust_remote_code))
            return FakeViT({"kaiko-ai/midnight": 1536, "some/model": 10}.get(source, 1024))

    class AutoImageProcessor:
        @staticmethod
        def from_pretrained(_):
            return types.SimpleNamespace(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.2])

    module = types.ModuleType("transformers")
    module.AutoModel, module.AutoImageProcessor, module.asked = AutoModel, AutoImageProcessor, asked
    monkeypatch.setitem(sys.modules, "transformers", module)
    monkeypatch.setattr(hub.importlib.util, "find_spec", lambda _: object())
    return module


class TestTransformers:
    @pytest.mark.parametrize(
        ("name", "code"),
        [("phikon-v2", False), ("midnight-12k", False), ("hibou-l", True)],
    )
    def test_rows_are_pooled_as_written(self, dead_hub, transformers, name, code):
        encoder = load_encoder(EncoderConfig(name=name, device="cpu"))
        features = encoder.encode(np.full((2, 224, 224, 3), 255, dtype=np.uint8))
        assert transformers.asked == [(REGISTRY[name].source, code)]
        assert features.shape == (2, REGISTRY[name].dim)
        white = np.mean(
            [(1 - m) / s for m, s in zip(encoder.spec.mean, encoder.spec.std, strict=True)]
        )
        first, last = {
            "phikon-v2": (white, white),
            "midnight-12k": (white, white + 2),
            "hibou-l": (-white, -white),
        }[name]
        np.testing.assert_allclose(features[0, [0, -1]], [first, last], rtol=1e-5)

    def test_any_model_by_name_runs_no_foreign_code(self, dead_hub, transformers):
        encoder = load_encoder(EncoderConfig(name="hf:some/model", device="cpu"))
        assert transformers.asked == [("some/model", False)]
        assert (encoder.dim, encoder.spec.mean) == (10, (0.5, 0.4, 0.3))
