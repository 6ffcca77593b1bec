import os

import pytest

from preprocessing.config import EncoderConfig, GridConfig, PreprocessingConfig, SyntheticConfig
from preprocessing.errors import ConfigError, ManifestError, StoreError
from preprocessing.plan import plan_shards, shards_of
from preprocessing.process_list import (
    collect_statuses,
    read_process_list,
    shard_path,
    write_process_list,
)
from preprocessing.status import SlideStatus, write_status
from preprocessing.synthetic.cohort import make_cohort


def config(tmp_path, rows: str, **settings) -> PreprocessingConfig:
    manifest = tmp_path / "slides.csv"
    manifest.write_text("slide_id,patient_id,path,mpp\n" + rows)
    defaults = {"grid": GridConfig(mpp=0.5), "shard_size": 2}
    return PreprocessingConfig(manifest=manifest, **{**defaults, **settings})


THREE = "a,p,a.svs,\nb,p,b.svs,\nc,q,c.svs,\n"


def test_shards_keep_every_row_in_order():
    assert shards_of([1, 2, 3, 4, 5], 2) == [[1, 2], [3, 4], [5]]


def test_process_list_comes_back_as_it_went(tmp_path):
    statuses = [
        SlideStatus("a", "done", 12, 3.5, tiles_unreadable=2, waited_for_reading=0.25),
        SlideStatus("b", "failed", 0, 0.1, error="slide 'b': comma, \"quote\"", traceback="x\ny"),
    ]
    header = write_process_list(statuses, tmp_path).read_text().splitlines()[0]
    assert header == (
        "slide_id,status,tiles,seconds,tiles_unreadable,waited_for_reading,error,traceback"
    )
    assert read_process_list(tmp_path) == statuses


def test_a_process_list_of_fewer_columns_is_read(tmp_path):
    (tmp_path / "process_list.csv").write_text("slide_id,status,tiles,seconds\na,done,3,0.5\n")
    assert read_process_list(tmp_path) == [SlideStatus("a", "done", 3, 0.5)]


def test_every_slide_has_a_status_in_the_manifests_order(tmp_path):
    setting = config(tmp_path, THREE)
    plans = plan_shards(setting)
    slides = [SlideStatus("a", "skipped", 2, 0.0), SlideStatus("b", "failed", 0, 0.0, error="x")]
    write_status(shard_path(tmp_path, 0), slides, settings=plans[0].settings)
    with pytest.raises(StoreError, match=r"1\.json: no such status file"):
        collect_statuses(tmp_path, setting)
    last = [SlideStatus("c", "done", 1, 0.0)]
    write_status(shard_path(tmp_path, 1), last, settings=plans[1].settings)
    assert collect_statuses(tmp_path, setting) == [*slides, *last]
    (tmp_path / "c.svs").write_text("a mended file")
    with pytest.raises(StoreError, match=r"1\.json: its slides, or the settings .* have changed"):
        collect_statuses(tmp_path, setting)


def test_absent_or_foreign_process_list(tmp_path):
    with pytest.raises(ManifestError, match=r"no process list at .*process_list\.csv"):
        read_process_list(tmp_path)
    (tmp_path / "process_list.csv").write_text("slide_id,status\na,perhaps\n")
    with pytest.raises(ManifestError, match="is not a process list"):
        read_process_list(tmp_path)
    (tmp_path / "process_list.csv").write_text("slide_id,status\na," + "x" * 200_000)
    with pytest.raises(ManifestError, match=r"is not a process list.*field larger"):
        read_process_list(tmp_path)


def test_only_the_shard_whose_rows_changed_has_new_settings(tmp_path):
    before = plan_shards(config(tmp_path, THREE))
    after = plan_shards(config(tmp_path, THREE.replace("c.svs,", "c.svs,0.25") + "d,q,d.svs,\n"))
    assert [len(before), len(after)] == [2, 2]
    assert before[1].settings != after[1].settings
    assert before[0] == after[0]


def test_settings_follow_what_changes_results_and_nothing_else(tmp_path):
    def settings(rows: str = THREE, **changed) -> str:
        return plan_shards(config(tmp_path, rows, **changed))[0].settings

    usual = settings()
    assert settings(grid=GridConfig(mpp=1.0)) != usual
    assert settings(encoder=EncoderConfig(precision="bfloat16")) != usual
    assert settings(encoder=EncoderConfig(batch_size=7, device="cpu")) == usual
    assert settings(THREE.replace("a,p", "a,q")) != usual
    slide = tmp_path / "a.svs"
    slide.write_text("one")
    here = settings()
    assert here != usual
    slide.write_text("two")
    os.utime(slide, (1, 1))  # a copy that keeps an old date
    assert settings() != here


def test_a_synthetic_cohort_never_takes_the_place_of_tables(tmp_path):
    setting = config(tmp_path, THREE, synthetic=SyntheticConfig(patients=6))
    with pytest.raises(ConfigError, match="is no synthetic cohort's"):
        plan_shards(setting)
    with pytest.raises(ConfigError, match="synthetic slides never overwrite others"):
        make_cohort(SyntheticConfig(patients=6), tmp_path)
    assert (tmp_path / "slides.csv").read_text().endswith(THREE)


def test_a_synthetic_cohort_is_planned_before_it_is_made(tmp_path):
    setting = PreprocessingConfig(
        manifest=tmp_path / "not made yet" / "slides.csv",
        grid=GridConfig(mpp=0.5),
        synthetic=SyntheticConfig(patients=6),
        shard_size=4,
    )
    assert 2 <= len(plan_shards(setting)) <= 5
