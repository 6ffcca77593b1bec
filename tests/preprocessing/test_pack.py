"""A pack: the bits of the stores it was made from, or a refusal that says what to do."""

import json
import signal
import subprocess
import sys
from dataclasses import replace

import numpy as np
import pytest
from test_store import contents

from preprocessing.config import QualityConfig
from preprocessing.errors import StoreError
from preprocessing.stores import pack as packs
from preprocessing.stores.pack import open_pack, pack_features, pack_path
from preprocessing.stores.store import open_store, store_path, write_store

NO_LIMITS = QualityConfig()
SLIDES = {"s0": 7, "s1": 1, "s2": 5000}


def write_slide(folder, slide_id, tiles, *, seed=0, **changes):
    slide = contents(tiles, unreadable=range(1, tiles, 3), seed=seed)
    made = slide.provenance.model_copy(update={"slide_id": slide_id, **changes})
    write_store(folder, replace(slide, provenance=made))


@pytest.fixture
def folder(tmp_path):
    for seed, (slide_id, tiles) in enumerate(SLIDES.items()):
        write_slide(tmp_path, slide_id, tiles, seed=seed)
    return tmp_path


def stores(folder, slide_ids=SLIDES, limits=NO_LIMITS):
    return {s: open_store(store_path(folder, s), limits) for s in slide_ids}


def make(folder, slide_ids=SLIDES, limits=NO_LIMITS):
    return pack_features(folder, slide_ids, "lite0", limits, pack_path(folder, "lite0"))


def test_a_pack_holds_the_usable_tiles_of_every_slide(folder):
    path = make(folder)
    assert path == folder / "packs" / "lite0"
    pack = open_pack(path, stores(folder))
    assert list(pack) == list(SLIDES)
    for slide_id, store in stores(folder).items():
        assert pack[slide_id].dtype == np.float16
        np.testing.assert_array_equal(pack[slide_id], store.features("lite0")[store.usable])
    rows = sum(int(store.usable.sum()) for store in stores(folder).values())
    flat = np.fromfile(path / "features.f16", dtype="<f2")
    assert flat.size == rows * 12
    index = json.loads((path / "index.json").read_text())
    assert [slide["start"] for slide in index["slides"]] == [0, 5, 6]


def test_writing_to_a_view_leaves_the_file_as_it_is(folder):
    path = make(folder)
    before = (path / "features.f16").read_bytes()
    pack = open_pack(path, stores(folder))
    pack["s0"][:] = 0
    assert (path / "features.f16").read_bytes() == before
    assert open_pack(path, stores(folder))["s0"].any()


def test_limits_are_part_of_a_pack(folder):
    limits = QualityConfig(max_ink=0.5)
    path = make(folder, ["s0", "s2"], limits)
    within = stores(folder, ["s0", "s2"], limits)
    pack = open_pack(path, within)
    assert len(pack["s2"]) == within["s2"].usable.sum() < stores(folder)["s2"].usable.sum()
    with pytest.raises(StoreError, match=r"stale, it has other features or tiles of 2 of 2 slide"):
        open_pack(path, stores(folder, ["s0", "s2"]))


def test_hub_names_make_one_folder(tmp_path):
    assert pack_path(tmp_path, "hf:owner/model").parent == tmp_path / "packs"


def test_some_slides_of_a_pack_may_be_asked_for_and_a_lacking_one_is_named(folder):
    path = make(folder, ["s0", "s1"])
    assert len(open_pack(path, stores(folder, ["s1"]))["s1"]) == 1
    with pytest.raises(StoreError, match=r"stale, it lacks 1 of 3 slide.*: s2; make the pack anew"):
        open_pack(path, stores(folder))


@pytest.mark.parametrize(
    "change",
    [
        lambda folder: write_slide(folder, "s1", 1, seed=9),
        lambda folder: write_slide(folder, "s1", 2, seed=1),
    ],
    ids=["features", "tiles"],
)
def test_a_stale_pack_is_refused_by_name(folder, change):
    path = make(folder)
    change(folder)
    with pytest.raises(StoreError, match=r"other features or tiles of 1 of 3 slide.*: s1; make"):
        open_pack(path, stores(folder))
    make(folder)
    open_pack(path, stores(folder))


def test_a_store_that_was_written_again_as_it_was_keeps_its_pack(folder):
    path = make(folder)
    write_slide(folder, "s1", 1, seed=1, created="2030-01-01T00:00:00+00:00", patient_id="other")
    open_pack(path, stores(folder))


def test_a_cut_or_foreign_pack_is_refused(folder):
    path = make(folder)
    features = (path / "features.f16").read_bytes()
    (path / "features.f16").write_bytes(features[:-2])
    with pytest.raises(
        StoreError, match=rf"expected {len(features)} bytes, got {len(features) - 2}"
    ):
        open_pack(path, stores(folder))
    (path / "features.f16").unlink()
    with pytest.raises(StoreError, match="got 0; make the pack anew"):
        open_pack(path, stores(folder))
    (path / "index.json").write_text('{"version": 2}')
    with pytest.raises(StoreError, match="is no index of a pack"):
        open_pack(path, stores(folder))
    (path / "index.json").unlink()
    with pytest.raises(StoreError, match="no index of a pack: No such file"):
        open_pack(path, stores(folder))


def test_a_damaged_store_is_not_packed(folder):
    make(folder)
    chunk = store_path(folder, "s1") / "features" / "lite0" / "c" / "0" / "0"
    content = bytearray(chunk.read_bytes())
    content[3] ^= 1
    chunk.write_bytes(content)
    before = (pack_path(folder, "lite0") / "index.json").read_bytes()
    with pytest.raises(StoreError, match=r"s1\.zarr/features/lite0: .*not those written"):
        make(folder)
    assert (pack_path(folder, "lite0") / "index.json").read_bytes() == before
    assert [entry.name for entry in (folder / "packs").iterdir()] == ["lite0"]


def test_a_changed_bit_in_a_pack_is_found_where_it_is_looked_for(folder):
    path = make(folder)
    open_pack(path, stores(folder)).verify()
    content = bytearray((path / "features.f16").read_bytes())
    content[5 * 12 * 2 + 3] ^= 1  # in the sixth row, the only one of s1
    (path / "features.f16").write_bytes(content)
    with pytest.raises(StoreError, match=r"features\.f16: damaged, .*slide 's1' are not those"):
        open_pack(path, stores(folder)).verify()


def test_other_weights_and_nothing_to_pack_are_refused(folder):
    slide = contents(3)
    record = slide.provenance.encoders["lite0"].model_copy(update={"weight_digest": "new"})
    changes = {"slide_id": "s1", "encoders": {"lite0": record}}
    other = replace(slide, provenance=slide.provenance.model_copy(update=changes))
    write_store(folder, other)
    with pytest.raises(StoreError, match=r"s1\.zarr: features .*'new', 12.*s0\.zarr .*'d', 12"):
        make(folder)
    with pytest.raises(StoreError, match=r"0 slide\(s\) given, and no tile to pack"):
        make(folder, [])


def test_a_killed_run_leaves_a_partial_name_that_the_next_one_removes(folder):
    script = (
        "import os, sys, pathlib, preprocessing.stores.pack as packs\n"
        "from preprocessing.config import QualityConfig\n"
        "packs.PackedSlide = lambda **_: os.kill(os.getpid(), 9)\n"
        "folder = pathlib.Path(sys.argv[1])\n"
        "packs.pack_features(folder, ['s0'], 'lite0', QualityConfig(), folder / 'packs/lite0')\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script, str(folder)], check=False, stderr=subprocess.DEVNULL
    )
    assert result.returncode == -signal.SIGKILL
    (partial,) = (folder / "packs").iterdir()
    assert ".partial-" in partial.name
    make(folder)
    assert [entry.name for entry in (folder / "packs").iterdir()] == ["lite0"]


def test_a_slide_is_in_the_file_before_the_next_one_is_read(folder, monkeypatch):
    sizes = []
    entry = packs.PackedSlide

    def sized(**values):
        partial = next((folder / "packs").glob("*.partial-*"))
        sizes.append((partial / "features.f16").stat().st_size)
        return entry(**values)

    monkeypatch.setattr(packs, "PackedSlide", sized)
    make(folder, ["s2", "s0"])
    assert sizes[-1] > 70_000  # of s2, while s0 is being written
