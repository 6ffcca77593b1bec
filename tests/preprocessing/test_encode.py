import logging
from pathlib import Path

import numpy as np
import pytest
from encode_fakes import (
    CONFIG,
    TILE_PX,
    FakeEncoder,
    config_of,
    lazy,
    only,
    tissue_image,
    two_slides,
)
from encoder_fakes import cosines, encoded
from openslide import OpenSlide
from PIL import Image
from pydantic import ValidationError
from tiff_files import write_tiff

from preprocessing.config import EncoderConfig, GridConfig, PreprocessingConfig, ReadingConfig
from preprocessing.encoders.registry import load_encoder
from preprocessing.errors import ConfigError
from preprocessing.extraction.encode import encode_shard
from preprocessing.manifest import SlideRow
from preprocessing.plan import EXTRACTION_VERSION
from preprocessing.stores.store import open_store, store_path


@pytest.fixture
def rows(tmp_path):
    return two_slides(tmp_path)


def test_features_stand_where_the_slide_has_them(rows, tmp_path):
    statuses = encode_shard(rows, CONFIG, tmp_path / "out", encoder=lazy())
    assert [s.status for s in statuses] == ["done", "done"]
    for seed, row in enumerate(rows):
        image = tissue_image(seed)
        store = open_store(store_path(tmp_path / "out", row.slide_id))
        expected = [
            image[y : y + TILE_PX, x : x + TILE_PX].mean(axis=(0, 1)) for x, y in store.coords_px0
        ]
        np.testing.assert_allclose(store.features("fake"), expected, rtol=1e-3)
        assert len(store) == statuses[seed].tiles >= 96  # the block holds 12 x 8 tiles
        assert store.usable.all()


def test_provenance_and_pictures(rows, tmp_path):
    config = config_of(mpp=0.7)
    encode_shard(rows[:1], config, tmp_path, encoder=lazy())
    store = open_store(store_path(tmp_path, "a"))
    found = store.provenance
    assert (found.patient_id, found.vendor) == ("patient-a", "generic-tiff")
    assert (found.level0_width, found.level0_height) == (1280, 768)
    assert found.tile_px0_x == pytest.approx(64 * 0.7 / 0.5)
    assert found.effective_mpp_x == pytest.approx(0.7)
    assert found.mpp_source == "tiff.XResolution"
    assert found.grid == config.grid
    assert (found.resampling, found.extraction_version) == ("pillow bicubic", EXTRACTION_VERSION)
    assert found.encoders["fake"].weight_digest == "digest-1.0"
    assert {"openslide", "zarr", "torch", "histomil"} <= found.versions.keys()
    assert found.created.endswith("+00:00")
    height, width = store.thumbnail.shape[:2]
    assert max(height, width) <= 1024
    assert width * found.thumbnail_px0_per_px_x == pytest.approx(1280, abs=2)
    assert height * found.thumbnail_px0_per_px_y == pytest.approx(768, abs=2)
    rows_px, cols_px = np.nonzero(store.tissue_mask)
    scale = found.mask_px0_per_px_x
    assert (cols_px.min() * scale, (cols_px.max() + 1) * scale) == pytest.approx(
        (256, 1024), abs=33
    )
    assert (rows_px.min() * scale, (rows_px.max() + 1) * scale) == pytest.approx((128, 640), abs=33)


def test_the_embedded_encoder_end_to_end_on_a_real_slide(shared, tmp_path):
    path = shared / "slides" / "CMU-1-Small-Region.svs"
    config = PreprocessingConfig(
        manifest=Path("slides.csv"),
        grid=GridConfig(mpp=2.0, tile_px=128),
        encoder=EncoderConfig(device="cpu", batch_size=8),
        reading=ReadingConfig(scaled_decoding=False),
    )
    status = only(encode_shard([SlideRow("cmu", "p", path)], config, tmp_path))
    assert (status.status, status.error) == ("done", "")
    store = open_store(store_path(tmp_path, "cmu"))
    features = store.features("lite0").astype(np.float32)
    assert features.shape == (status.tiles, 1280)
    # The same tile cut by hand, 513.03 level-0 pixels wide; only the rim is filtered differently.
    x, y = store.coords_px0[0].tolist()
    with OpenSlide(path) as slide:
        side = 128 * 2.0 / 0.499
        region = slide.read_region((x, y), 0, (514, 514)).convert("RGB")
        tile = region.resize((128, 128), Image.Resampling.BICUBIC, box=(0, 0, side, side))
    expected = encoded(load_encoder(config.encoder), np.asarray(tile)[None])
    assert cosines(features[:1], expected) > 0.999


@pytest.mark.parametrize("mpp", [0.998, 1.0, 2.0, 2.5])
def test_scaled_decoding_is_within_what_resampling_filters_differ_by(shared, tmp_path, mpp):
    """Two to five times as coarse as a real slide, where a box filter in place of the bicubic one
    gives 0.987 to 0.994, and decoding at 1/4 alone 0.983.
    """
    rows = [SlideRow("cmu", "p", shared / "slides" / "CMU-1-Small-Region.svs")]
    found = {}
    for scaled in (True, False):
        config = PreprocessingConfig(
            manifest=Path("slides.csv"),
            grid=GridConfig(mpp=mpp, tile_px=224),
            encoder=EncoderConfig(device="cpu"),
            reading=ReadingConfig(scaled_decoding=scaled),
        )
        only(encode_shard(rows, config, tmp_path / str(scaled)))
        store = open_store(store_path(tmp_path / str(scaled), "cmu"))
        assert store.provenance.decoded_scale == (2 if scaled else 1)
        found[scaled] = store.features("lite0").astype(np.float32)
    assert cosines(found[True], found[False]).mean() > 0.987


def test_provenance_tells_the_level_that_was_read(tmp_path):
    """Levels of 0.5 and 2 um/px: tiles of 2.5 um/px are exactly that, made from pixels of 2."""
    path = write_tiff(tmp_path / "a.tif", tissue_image(), factors=(1, 4))
    encode_shard([SlideRow("a", "p", path)], config_of(mpp=2.5), tmp_path, encoder=lazy())
    found = open_store(store_path(tmp_path, "a")).provenance
    assert found.read_level == 1
    assert found.read_level_mpp == pytest.approx((2.0, 2.0))
    assert found.effective_mpp_x == pytest.approx(2.5)


def test_tile_size_the_encoder_does_not_take_is_refused_at_the_door(tmp_path):
    """Before any slide is opened: there is none."""
    row = SlideRow("a", "p", tmp_path / "absent.tif")
    encoder = lazy(FakeEncoder(tile_px=224))
    with pytest.raises(ConfigError, match=r"takes tiles of 224 px, grid\.tile_px is 64"):
        encode_shard([row], CONFIG, tmp_path / "out", encoder=encoder)
    uni = CONFIG.model_copy(update={"encoder": EncoderConfig(name="uni")})
    with pytest.raises(ConfigError, match=r"'uni' takes tiles of 224 px"):
        encode_shard([row], uni, tmp_path / "out")
    assert encoder._load.calls == 0
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(("mpp", "warned"), [(0.5, False), (0.54, False), (0.56, True)])
def test_resolution_far_from_the_recommended_is_said_once(tmp_path, caplog, mpp, warned):
    with caplog.at_level(logging.WARNING, "preprocessing.extraction.encode"):
        encode_shard([], config_of(mpp=mpp), tmp_path, encoder=lazy())
    said = [f"encoder fake: its authors recommend 0.5 um/px, grid.mpp is {mpp}"]
    assert caplog.messages == said * warned


def test_tiles_that_would_not_advance_are_refused_by_the_configuration():
    with pytest.raises(ValidationError, match="overlap_px 64 must be less than tile_px 64"):
        GridConfig(mpp=0.5, tile_px=64, overlap_px=64)
    assert GridConfig(mpp=0.5, tile_px=64, overlap_px=63).overlap_px == 63
