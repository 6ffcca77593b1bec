import sys
import threading
import time
import types
from http.server import BaseHTTPRequestHandler, HTTPServer

import numpy as np
import pytest
import timm
import torch
from encoder_fakes import encoded, on_cpu, tiles_of
from huggingface_hub import constants
from torch import nn

from preprocessing.config import CustomEncoderConfig, EncoderConfig
from preprocessing.encoders import hub
from preprocessing.encoders.registry import REGISTRY, find_spec, load_encoder
from preprocessing.errors import ConfigError, EncoderUnavailable


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
        spec = hub.completed(find_spec(EncoderConfig(name="timm:test_vit")), module, {})
        assert (spec.dim, spec.tile_px) == (64, 160)
        assert spec.mean == tuple(module.pretrained_cfg["mean"])
        assert encoded(on_cpu(spec, module), tiles_of(2, 160)).shape == (2, 64)

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
    asked, missing = [], []

    class AutoModel:
        @staticmethod
        def from_pretrained(source, *, trust_remote_code, output_loading_info=False, **kwargs):
            asked.append((source, trust_remote_code, kwargs))
            widths = {"kaiko-ai/midnight": 1536, "some/model": 10, "owkin/phikon": 768}
            network = FakeViT(widths.get(source, 1024))
            if source == "MahmoodLab/TITAN":
                conch = nn.Sequential(nn.AdaptiveAvgPool2d(16), nn.Flatten())
                network.return_conch = lambda: (conch, "its transform")
            return (network, {"missing_keys": set(missing)}) if output_loading_info else network

    class AutoImageProcessor:
        @staticmethod
        def from_pretrained(_):
            return types.SimpleNamespace(image_mean=[0.5, 0.4, 0.3], image_std=[0.2, 0.2, 0.2])

    module = types.ModuleType("transformers")
    module.AutoModel, module.AutoImageProcessor = AutoModel, AutoImageProcessor
    module.asked, module.missing = asked, missing
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
        features = encoded(encoder, np.full((2, 224, 224, 3), 255, dtype=np.uint8))
        assert transformers.asked == [(REGISTRY[name].source, code, REGISTRY[name].model_kwargs)]
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
        assert transformers.asked == [("some/model", False, {})]
        assert (encoder.dim, encoder.spec.mean) == (10, (0.5, 0.4, 0.3))

    @pytest.mark.parametrize("failure", [ImportError, AttributeError, TypeError])
    def test_foreign_code_that_does_not_run_here_says_what_to_do(
        self, dead_hub, transformers, monkeypatch, failure
    ):
        def failing(*_, **__):
            raise failure("needs another version")

        monkeypatch.setattr(transformers.AutoModel, "from_pretrained", failing)
        with pytest.raises(EncoderUnavailable, match=r"'hibou-l'.*another version\. What to do"):
            load_encoder(EncoderConfig(name="hibou-l", device="cpu"))

    def test_an_encoder_inside_another_model(self, dead_hub, transformers):
        encoder = load_encoder(EncoderConfig(name="conch-v1.5", device="cpu"))
        assert encoded(encoder, tiles_of(2, 448)).shape == (2, 768)

    def test_a_pooling_layer_of_random_numbers_is_taken_out(self, dead_hub, transformers):
        """Or the weights would have another digest each time."""
        transformers.missing += ["pooler.dense.bias", "pooler.dense.weight"]
        encoder = load_encoder(EncoderConfig(name="hf:some/model", device="cpu"))
        assert encoder._network.pooler is None

    @pytest.mark.parametrize(
        ("missing", "pooling"), [("encoder.layer.3.bias", "cls"), ("pooler.dense.bias", "pooler")]
    )
    def test_used_layers_of_random_numbers_are_refused(
        self, dead_hub, transformers, missing, pooling
    ):
        transformers.missing.append(missing)
        config = EncoderConfig(
            name="hf:some/model", device="cpu", custom=CustomEncoderConfig(pooling=pooling)
        )
        with pytest.raises(EncoderUnavailable, match=f"its checkpoint lacks {missing}"):
            load_encoder(config)
