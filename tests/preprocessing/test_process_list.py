import pytest

from preprocessing.config import GridConfig, PreprocessingConfig, SyntheticConfig
from preprocessing.errors import ManifestError
from preprocessing.plan import plan_shards
from preprocessing.process_list import (
    collect_statuses,
    read_process_list,
    shard_path,
    shards_of,
    write_process_list,
)
from preprocessing.status import SlideStatus, write_status


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
        SlideStatus("a", "done", 12, 3.5),
        SlideStatus("b", "failed", 0, 0.1, error="slide 'b': comma, \"quote\"", traceback="x\ny"),
    ]
    write_process_list(statuses, tmp_path)
    assert read_process_list(tmp_path) == statuses


def test_every_slide_has_a_status_in_the_manifests_order(tmp_path):
    setting = config(tmp_path, THREE)
    write_status(shard_path(tmp_path, 1), [SlideStatus("c", "done", 1, 0.0)])
    with pytest.raises(ManifestError, match=r"2 slide\(s\) .* the first is 'a'; run extract"):
        collect_statuses(tmp_path, setting)
    first = [SlideStatus("b", "failed", 0, 0.0, error="x"), SlideStatus("a", "skipped", 2, 0.0)]
    write_status(shard_path(tmp_path, 0), first)
    assert [s.slide_id for s in collect_statuses(tmp_path, setting)] == ["a", "b", "c"]


def test_absent_or_foreign_process_list(tmp_path):
    with pytest.raises(ManifestError, match=r"no process list at .*process_list\.csv"):
        read_process_list(tmp_path)
    (tmp_path / "process_list.csv").write_text("slide_id,status\na,perhaps\n")
    with pytest.raises(ManifestError, match="is not a process list"):
        read_process_list(tmp_path)


def test_only_the_shard_whose_rows_changed_has_new_settings(tmp_path):
    before = plan_shards(config(tmp_path, THREE))
    (tmp_path / "a.svs").write_text("now it exists")
    after = plan_shards(config(tmp_path, THREE.replace("c.svs,", "c.svs,0.25") + "d,q,d.svs,\n"))
    assert [len(before), len(after)] == [2, 2]
    assert before[0].settings == after[0].settings
    assert before[1].settings != after[1].settings
    assert [before[0].files, after[0].files] == [[], [str(tmp_path / "a.svs")]]
    smaller = plan_shards(config(tmp_path, THREE, grid=GridConfig(mpp=1.0)))
    assert smaller[0].settings != before[0].settings


def test_a_synthetic_cohort_is_planned_before_it_is_made(tmp_path):
    setting = PreprocessingConfig(
        manifest=tmp_path / "not made yet.csv",
        grid=GridConfig(mpp=0.5),
        synthetic=SyntheticConfig(patients=6),
        shard_size=4,
    )
    assert 2 <= len(plan_shards(setting)) <= 5
