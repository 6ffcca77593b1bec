import logging
import types

import numpy as np
import pytest
import torch
from encoder_fakes import MeanColour, on_cpu, spec_of, tiles_of
from torch import nn

from preprocessing.config import EncoderConfig
from preprocessing.encoders import network
from preprocessing.encoders.lite0 import load_lite0
from preprocessing.encoders.network import choose_device, digest_of, pooled
from preprocessing.encoders.registry import REGISTRY, find_spec, load_encoder
from preprocessing.errors import ConfigError, EncoderUnavailable


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
