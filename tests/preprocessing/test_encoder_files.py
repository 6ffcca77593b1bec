import argparse
import hashlib
import pickle
import re
import warnings
from dataclasses import replace

import numpy as np
import pytest
import timm
import torch
from encoder_fakes import encoded
from safetensors.torch import save_file
from torch import nn

from preprocessing.config import CustomEncoderConfig, EncoderConfig
from preprocessing.encoders import hub, own, rows_timm
from preprocessing.encoders.custom import stated_facts
from preprocessing.encoders.network import digest_of
from preprocessing.encoders.own import NETWORKS
from preprocessing.encoders.registry import REGISTRY, find_spec, load_encoder
from preprocessing.errors import ConfigError, EncoderUnavailable


class TestFiles:
    @pytest.fixture
    def file_of(self, tmp_path, monkeypatch):
        """Puts a state dict where the hub's file of a row would be."""
        monkeypatch.setattr(hub, "_silence_of_hub", lambda: None)

        def place(state, name="weights.pth"):
            path = tmp_path / name
            save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
            asked = []
            monkeypatch.setattr(
                hub, "hf_hub_download", lambda *args, **kw: asked.append((args, kw)) or str(path)
            )
            return asked

        return place

    def test_ctranspath_under_its_published_names(self, file_of):
        """Those of an older timm: patch merging at the end of a stage, masks among the tensors."""
        torch.manual_seed(0)
        ours = NETWORKS["own:ctranspath"]()
        published = {
            re.sub(
                r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", k
            ): t
            for k, t in ours.state_dict().items()
        }
        published["layers.0.blocks.1.attn_mask"] = torch.zeros(64, 49, 49)
        published["layers.0.blocks.0.attn.relative_position_index"] = torch.zeros(49, 49)
        assert "layers.0.downsample.norm.weight" in published
        asked = file_of({"model": published})
        network = hub.load_file(REGISTRY["ctranspath"])
        assert digest_of(network) == digest_of(ours)
        args, kwargs = asked[0]
        assert args == ("MahmoodLab/hest-bench", "fm_v1/ctranspath/CHIEF_CTransPath.pth")
        assert kwargs == {"repo_type": "dataset"}

    def test_keep_takes_the_image_half(self, monkeypatch):
        tiny = own.vision_transformer.test_vit
        monkeypatch.setattr(own.vision_transformer, "vit_large_patch16_224", tiny)
        torch.manual_seed(0)
        ours = NETWORKS["own:keep"]()
        published = {k.replace(".gamma", ".weight"): t for k, t in ours.state_dict().items()} | {
            "text.embeddings.weight": torch.zeros(3),
            "logit_scale": torch.zeros(()),
        }
        network = NETWORKS["own:keep"]()
        network.load_state_dict(own.converted(published, network), strict=True)
        assert digest_of(network) == digest_of(ours)
        pixels = torch.rand(2, 3, 160, 160)
        expected = ours.eval().visual_head(ours.visual(pixels))
        assert torch.equal(network.eval()(pixels), expected)
        assert expected.shape == (2, 768)

    def test_a_dinov2_checkpoint_under_its_authors_names(self, file_of):
        """Register tokens, gated layers and the class token's position go by other names."""
        spec = replace(
            REGISTRY["openmidnight"],
            architecture="vit_small_patch14_reg4_dinov2",
            architecture_kwargs={"img_size": 28, "num_classes": 0, "depth": 2, **rows_timm.SWIGLU},
        )
        torch.manual_seed(0)
        ours = hub.build(spec)
        published = {
            k.replace("mlp.fc1", "mlp.w12").replace("mlp.fc2", "mlp.w3"): t
            for k, t in ours.state_dict().items()
        }
        place = torch.randn(1, 1, 384)
        published["register_tokens"] = published.pop("reg_token")
        published["cls_token"] = published["cls_token"] - place
        published["pos_embed"] = torch.cat([place, published["pos_embed"]], dim=1)
        published["mask_token"] = torch.zeros(1, 384)
        file_of(published, "weights.safetensors")
        network = hub.load_file(spec)
        for name, tensor in ours.state_dict().items():
            torch.testing.assert_close(network.state_dict()[name], tensor)

    def test_a_checkpoint_of_another_shape_is_refused(self, file_of):
        file_of({"cls_token": torch.zeros(1, 1, 7)})
        spec = replace(REGISTRY["gpfm"], architecture="test_vit", architecture_kwargs={})
        with pytest.raises(
            EncoderUnavailable,
            match=r"GPFM\.pth is no checkpoint of test_vit: 80 tensors.*first blocks\.0",
        ):
            hub.load_file(spec)

    @pytest.mark.parametrize(
        ("name", "content", "cause"),
        [
            ("cut.safetensors", b"\x40" + bytes(7) + b"{", "SafetensorError"),
            ("empty.pth", b"", "EOFError"),
            ("objects.pth", pickle.dumps(argparse.Namespace(lr=1), protocol=2), "UnpicklingError"),
        ],
        ids=["cut", "empty", "objects"],
    )
    def test_a_file_that_is_no_checkpoint_says_what_to_do(
        self, tmp_path, monkeypatch, name, content, cause
    ):
        (tmp_path / name).write_bytes(content)
        monkeypatch.setattr(hub, "_silence_of_hub", lambda: None)
        monkeypatch.setattr(hub, "hf_hub_download", lambda *_, **__: str(tmp_path / name))
        spec = replace(REGISTRY["gpfm"], architecture="test_vit", architecture_kwargs={})
        with pytest.raises(EncoderUnavailable, match=f"(?s){cause}.*What to do"):
            hub.load_file(spec)


class TestCustom:
    FACTS = CustomEncoderConfig(tile_px=64, mean=(0.1, 0.2, 0.3), std=(0.5, 1.0, 2.0))

    @pytest.fixture
    def script(self, tmp_path):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)
            module = torch.jit.script(Scripted())
            torch.jit.save(module, tmp_path / "encoder.pt")
        return tmp_path / "encoder.pt"

    def config(self, script, custom=FACTS, **more):
        return EncoderConfig(name=f"torchscript:{script}", device="cpu", custom=custom, **more)

    @pytest.mark.parametrize("precision", ["float32", "bfloat16"])
    def test_a_torchscript_file(self, script, precision):
        encoder = load_encoder(self.config(script, precision=precision))
        tiles = np.full((2, 64, 64, 3), (255, 0, 51), dtype=np.uint8)
        expected = np.array([1.8, -0.2, -0.05]) @ [[1, 0], [0, 1], [0, 0]]
        np.testing.assert_allclose(encoded(encoder, tiles), [expected] * 2, rtol=1e-2, atol=1e-6)
        assert (encoder.dim, encoder.spec.tile_px) == (2, 64)
        assert encoder.weight_digest == hashlib.sha256(script.read_bytes()).hexdigest()

    def test_what_a_torchscript_file_does_not_say_must_be_stated(self, script):
        with pytest.raises(ConfigError, match=r"set encoder\.custom\.mean, encoder\.custom\.std"):
            load_encoder(self.config(script, CustomEncoderConfig(tile_px=64)))

    def test_a_torchscript_file_is_not_compiled_again(self, script):
        with pytest.raises(ConfigError, match="compile: true cannot be had"):
            load_encoder(self.config(script, compile=True))

    def test_no_torchscript_file(self, tmp_path):
        with pytest.raises(ConfigError, match=r"there is no file .*absent\.pt"):
            load_encoder(self.config(tmp_path / "absent.pt"))
        (tmp_path / "text.pt").write_text("no archive")
        with pytest.raises(
            EncoderUnavailable, match=r"expected a file that torch\.jit\.save wrote"
        ):
            load_encoder(self.config(tmp_path / "text.pt"))

    def test_stated_facts_overrule_those_of_timm(self):
        custom = CustomEncoderConfig(std=(0.9, 0.8, 0.7), precision="bfloat16", licence="ours")
        config = EncoderConfig(name="timm:test_vit", custom=custom)
        module = timm.create_model("test_vit", pretrained=False, num_classes=0)
        spec = hub.completed(find_spec(config), module, stated_facts(config))
        assert (spec.std, spec.licence, spec.half) == ((0.9, 0.8, 0.7), "ours", "bfloat16")
        assert spec.mean == tuple(module.pretrained_cfg["mean"])

    def test_rows_of_the_registry_are_not_described_anew(self):
        with pytest.raises(ConfigError, match=r"encoder\.name is 'lite0'; remove encoder\.custom"):
            find_spec(EncoderConfig(name="lite0", custom=self.FACTS))


class Scripted(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 2, bias=False)
        self.linear.weight.data = torch.eye(3)[:2]

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        return self.linear(pixels.mean(dim=(2, 3)))
