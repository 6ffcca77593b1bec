import os

import pytest

from preprocessing.config import GridConfig, PreprocessingConfig, QualityConfig, ReadingConfig
from preprocessing.plan import plan_shards

MASKS, REGIONS = "masks", "regions"


@pytest.fixture
def config(tmp_path):
    """Two slides in shards of one; masks and regions are asked for, none is there."""
    (tmp_path / "slides.csv").write_text("slide_id,patient_id,path\na,p,a.svs\nb,q,b.svs\n")
    for name in (MASKS, REGIONS):
        (tmp_path / name).mkdir()
    (tmp_path / "a.svs").write_text("slide")
    return PreprocessingConfig(
        manifest=tmp_path / "slides.csv",
        grid=GridConfig(mpp=0.5),
        tissue={
            "masks": tmp_path / MASKS,
            "regions": {"folder": tmp_path / REGIONS, "frame": "qupath"},
        },
        shard_size=1,
    )


@pytest.mark.parametrize("name", [f"{MASKS}/a.png", f"{REGIONS}/a.geojson"])
def test_a_drawing_is_an_input_of_its_slides_shard_alone(config, tmp_path, name):
    before = plan_shards(config)
    assert [shard.files for shard in before] == [[str(tmp_path / "a.svs")], []]
    drawing = tmp_path / name
    drawing.write_text("one")
    after = plan_shards(config)
    assert after[0].files == [str(tmp_path / "a.svs"), str(drawing)]
    assert after[0].settings != before[0].settings
    assert after[1] == before[1]
    drawing.write_text("two")
    os.utime(drawing, (1, 1))  # a copy that keeps an old date
    assert plan_shards(config)[0].settings != after[0].settings


def test_drawings_that_no_setting_asks_for_change_nothing(config, tmp_path):
    plain = config.model_copy(update={"tissue": type(config.tissue)()})
    before = plan_shards(plain)
    (tmp_path / MASKS / "a.png").write_text("one")
    assert plan_shards(plain) == before
    assert plan_shards(config)[0].settings != before[0].settings


def test_limits_and_caches_change_no_shard_and_ways_to_read_do(config):
    before = plan_shards(config)
    for same in (
        {"quality": QualityConfig(min_sharpness=0.5)},
        {"reading": ReadingConfig(cache_mb=64)},
        {"readers": 7},
    ):
        assert plan_shards(config.model_copy(update=same)) == before
    other = config.model_copy(update={"reading": ReadingConfig(scaled_decoding=False)})
    assert plan_shards(other)[0].settings != before[0].settings


def test_a_path_that_the_system_refuses_is_no_input(config, tmp_path):
    """As one in a folder without permission would be."""
    far = "n" * 300 + ".svs"
    (tmp_path / "slides.csv").write_text(f"slide_id,patient_id,path\na,p,a.svs\nb,q,{far}\n")
    assert [shard.files for shard in plan_shards(config)] == [[str(tmp_path / "a.svs")], []]
