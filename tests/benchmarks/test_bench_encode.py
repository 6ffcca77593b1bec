"""The encoding benchmark measures what it says, and the pipeline loses little to its limits."""

import json
from dataclasses import replace

import pytest
import timm
import torch

from preprocessing.bench import encode as bench
from preprocessing.bench.encode import Measured, as_record, as_table, bench_encode
from preprocessing.errors import StoreError

ROW = Measured("lite0", "cpu", "float32", 900.0, 30.0, 29.0, 27.0, 0.9, 0.98)


@pytest.fixture(scope="module")
def measured():
    """Turns of a few seconds; ratios are taken within a turn."""
    return bench_encode(device="cpu", repeats=2)


@pytest.mark.slow
def test_the_pipeline_keeps_up_with_the_slower_of_reader_and_encoder(measured):
    (row,) = measured
    assert row.share >= 0.6, row
    assert row.device_busy >= 0.6, row
    assert row.memory_tiles_s >= 0.6 * row.encoder_tiles_s, row


@pytest.mark.slow
def test_reading_is_no_limit_for_this_encoder(measured):
    (row,) = measured
    assert row.reader_tiles_s > 3 * row.encoder_tiles_s, row


def test_record_and_table():
    other = replace(ROW, encoder="vit_g", device="cuda", share=1.01)
    record = json.loads(json.dumps(as_record([ROW, other])))
    assert record["reader_tiles_s"] == 900
    assert record["vit_g_share"] == 1.01
    assert len(record) == 12
    table = as_table([ROW, other])
    assert "of the slower" in table
    assert "90%" in table
    assert "cuda, float32" in table


@pytest.mark.parametrize("name", ["resnet50", "vit_s"])
def test_networks_of_random_weights_take_the_tiles(name):
    encoder = bench._random_encoder(name, "cpu")
    features = encoder.features(torch.zeros(1, 3, bench.TILE_PX, bench.TILE_PX))
    assert features.shape == (1, encoder.dim)


@pytest.mark.parametrize("name", bench.RANDOM)
def test_their_dimensions(name):
    architecture, dim, kwargs = bench.RANDOM[name]
    with torch.device("meta"):
        network = timm.create_model(architecture, pretrained=False, num_classes=0, **kwargs).eval()
        assert network(torch.zeros(1, 3, bench.TILE_PX, bench.TILE_PX)).shape == (1, dim)


def test_a_slide_too_small_to_measure_on(tmp_path):
    path = bench._made_slide(tmp_path / "small.svs", 4, 0.5)
    with pytest.raises(StoreError, match=r"4 tiles at grid\.mpp 0\.5, expected a batch of 8"):
        bench_encode([path], device="cpu", repeats=1)
