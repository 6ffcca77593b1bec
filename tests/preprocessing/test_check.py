"""The check of an archive finds every way in which its stores can be wrong, and names a remedy."""

import shutil
from dataclasses import replace

import pytest
from test_store import contents

from preprocessing.check import check_archive, check_stores
from preprocessing.config import QualityConfig
from preprocessing.errors import ManifestError
from preprocessing.process_list import write_process_list
from preprocessing.status import SlideStatus
from preprocessing.stores.pack import pack_features, pack_path
from preprocessing.stores.store import store_path, write_store

SLIDES = ("s0", "s1", "s2")


def write_slide(folder, slide_id, tiles=7, seed=0):
    slide = contents(tiles, seed=seed)
    made = slide.provenance.model_copy(update={"slide_id": slide_id})
    return write_store(folder, replace(slide, provenance=made))


def list_statuses(folder, *, failed=()):
    write_process_list(
        [
            SlideStatus(s, "failed", 0, 1.0, error=f"slide {s!r}: no mpp")
            if s in failed
            else SlideStatus(s, "done", 7, 1.0)
            for s in SLIDES
        ],
        folder,
    )


@pytest.fixture
def folder(tmp_path):
    for slide_id in SLIDES:
        write_slide(tmp_path, slide_id)
    list_statuses(tmp_path)
    pack_features(tmp_path, SLIDES, "lite0", QualityConfig(), pack_path(tmp_path, "lite0"))
    (tmp_path / "shards").mkdir()
    (tmp_path / "shards" / "0.json").write_text("{}")
    return tmp_path


def flip(path, place=3):
    content = bytearray(path.read_bytes())
    content[place] ^= 1
    path.write_bytes(content)


@pytest.mark.parametrize("deep", [False, True])
def test_a_sound_archive_says_nothing(folder, deep):
    assert check_archive(folder, SLIDES, deep=deep) == ([], 0)


def test_failed_slides_are_told_and_need_no_store(folder):
    list_statuses(folder, failed=["s1"])
    shutil.rmtree(store_path(folder, "s1"))
    lines, code = check_archive(folder, SLIDES)
    assert lines[0] == "failed: slide 's1': no mpp"
    assert lines[1].startswith("1 slide(s) failed, all others are done; correct them")
    assert (len(lines), code) == (2, 1)


def test_an_archive_without_a_process_list_is_refused(tmp_path):
    with pytest.raises(ManifestError, match="run extract, then status"):
        check_archive(tmp_path, SLIDES)


def test_a_slide_that_was_never_extracted_is_told(folder):
    lines, code = check_archive(folder, (*SLIDES, "new"))
    assert lines[0] == "wrong: slide 'new': not in the process list; run extract, then status"
    assert (len(lines), code) == (2, 1)


def problems(folder, *, deep=False):
    return check_stores(folder, SLIDES, done=SLIDES, deep=deep)


def test_an_absent_store_of_a_done_slide(folder):
    shutil.rmtree(pack_path(folder, "lite0"))
    shutil.rmtree(store_path(folder, "s1"))
    (problem,) = problems(folder)
    assert "s1.zarr: absent, though its slide counts as done; delete the status files" in problem
    assert check_stores(folder, SLIDES) == []


def test_what_is_cut_off_is_found_at_once_and_a_changed_bit_when_looking_deep(folder):
    chunk = store_path(folder, "s2") / "features" / "lite0" / "c" / "0" / "0"
    flip(chunk)
    assert problems(folder) == []
    (problem,) = problems(folder, deep=True)
    assert "s2.zarr/features/lite0: " in problem
    assert "its values are not those written" in problem
    assert "delete it and extract again" in problem
    chunk.write_bytes(chunk.read_bytes()[:-1])
    (problem,) = problems(folder)
    assert "s2.zarr/features/lite0/c/0/0: " in problem


def test_a_store_under_another_slides_name(folder):
    shutil.rmtree(store_path(folder, "s1"))
    shutil.copytree(store_path(folder, "s0"), store_path(folder, "s1"))
    assert any("s1.zarr: holds slide 's0'; give the folder" in line for line in problems(folder))


def test_leftovers_and_strangers(folder):
    write_slide(folder, "gone")
    (folder / "s0.zarr.partial-12").mkdir()
    (folder / "shards" / ".0.partial-12.json").write_text("")
    (folder / "packs" / "lite0.partial-12").mkdir()
    (folder / "previews").mkdir(exist_ok=True)
    (folder / "previews" / ".s0.partial-12.png").write_text("")
    found = problems(folder)
    assert len(found) == 5
    for name in (
        "s0.zarr.partial-12",
        ".0.partial-12.json",
        "packs/lite0.partial-12",
        "previews/.s0.partial-12.png",
    ):
        assert any(f"{name}: left by a run that was interrupted" in line for line in found)
    assert any("gone.zarr: of no slide of the manifest; delete it" in line for line in found)


def test_a_stale_or_damaged_pack(folder):
    flip(pack_path(folder, "lite0") / "features.f16")
    assert problems(folder) == []
    (problem,) = problems(folder, deep=True)
    assert "features.f16: damaged, the features of slide 's0'" in problem
    write_slide(folder, "s1", seed=5)
    (problem,) = problems(folder)
    assert "packs/lite0: stale, it has other features or tiles of 1 of 3 slide(s): s1" in problem


def test_every_problem_is_one_line(folder):
    (store_path(folder, "s0") / "zarr.json").write_text('{"zarr_format": 3, "node_type": "group"}')
    (pack_path(folder, "lite0") / "index.json").write_text("{}")
    found = problems(folder)
    assert len(found) == 2
    assert not any("\n" in line for line in found)


def test_many_stores_are_looked_at_side_by_side(tmp_path):
    ids = [f"s{i}" for i in range(12)]
    for slide_id in ids:
        write_slide(tmp_path, slide_id)
    for slide_id in ids[::3]:
        flip(store_path(tmp_path, slide_id) / "features" / "lite0" / "c" / "0" / "0")
    found = check_stores(tmp_path, ids, deep=True)
    named = [line.split(".zarr")[0].rpartition("/")[2] for line in found]
    assert named == ["s0", "s3", "s6", "s9"]
