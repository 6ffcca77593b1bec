"""Out and in again, by every format; and what an import refuses to guess."""

import logging
from dataclasses import replace

import h5py
import numpy as np
import pytest
from interchange_fakes import (
    CLAM_GIVEN,
    FORMATS,
    GIVEN,
    row,
    there_and_back,
    write_clam,
    write_slide,
    write_stamp,
)

from preprocessing.config import QualityConfig
from preprocessing.errors import ConfigError, StoreError
from preprocessing.interchange.base import GivenFacts
from preprocessing.interchange.exports import export_features
from preprocessing.interchange.imports import import_features
from preprocessing.stores.store import open_store, store_path

SAME = ("tile_px", "requested_mpp", "level0_width", "level0_height", "patient_id", "slide_id")


@pytest.fixture(autouse=True)
def _pyarrow(request):
    if "wsidata" in request.node.name:
        pytest.importorskip("pyarrow", reason="the extra `interchange` is not installed")


@pytest.mark.parametrize("name", FORMATS)
@pytest.mark.parametrize("overlap_px", [0, 56])
def test_there_and_back(tmp_path, name, overlap_px):
    before, after = there_and_back(name, tmp_path, overlap_px=overlap_px)
    assert len(after) == len(before) - 1
    assert after.usable.all()
    np.testing.assert_array_equal(after.coords_px0, before.coords_px0[before.usable])
    np.testing.assert_array_equal(after.features("uni"), before.features("uni")[before.usable])
    was, now = before.provenance, after.provenance
    assert {key: getattr(now, key) for key in SAME} == {key: getattr(was, key) for key in SAME}
    for key in ("tile_px0", "stride_px0", "effective_mpp", "mpp"):
        for axis in ("x", "y"):
            assert getattr(now, f"{key}_{axis}") == pytest.approx(getattr(was, f"{key}_{axis}"))
    assert now.grid == was.grid
    assert now.slide_fingerprint.startswith("features:")
    assert now.imported_from.lower().startswith(f"{name}, s1")
    assert now.mpp_source == "given"
    assert np.isnan(after.quality).all()


@pytest.mark.parametrize("name", FORMATS)
def test_tiles_of_a_fraction_of_a_pixel(tmp_path, name):
    """0.2525 um per pixel make tiles of 443.56 pixels, of which some formats know 444."""
    given = replace(GIVEN, mpp=0.2525)
    before, after = there_and_back(name, tmp_path, mpp=(0.2525, 0.2525), given=given)
    np.testing.assert_array_equal(after.coords_px0, before.coords_px0[before.usable])
    side = after.provenance.tile_px0_x
    exact = {"stamp": 1e-6, "wsidata": 1e-6}
    assert side == pytest.approx(before.provenance.tile_px0_x, abs=exact.get(name, 0.5))
    assert after.provenance.requested_mpp == 0.5
    assert after.provenance.effective_mpp_x == pytest.approx(0.5, rel=2e-3)


@pytest.mark.parametrize("name", FORMATS)
def test_an_encoder_of_the_hub(tmp_path, name):
    before, after = there_and_back(name, tmp_path, encoder="hf:owner/model")
    assert not any("owner/model" in str(path) for path in (tmp_path / name).rglob("*"))
    assert after.encoders == ("hf:owner/model",)
    np.testing.assert_array_equal(
        after.features("hf:owner/model"), before.features("hf:owner/model")[before.usable]
    )


@pytest.mark.parametrize("name", FORMATS)
def test_what_is_left_out_is_said(tmp_path, name, caplog):
    caplog.set_level(logging.INFO)
    store = write_slide(tmp_path / "before")
    paths = export_features(name, tmp_path / "before", ["s1"], "uni", tmp_path / "out")
    assert paths
    assert all(path.exists() for path in paths)
    assert "slide 's1': 1 tiles left out: unreadable, or beyond the limits" in caplog.text
    assert int(store.read_error.sum()) == 1


def test_limits_leave_tiles_out_of_an_export(tmp_path):
    write_slide(tmp_path)
    limits = QualityConfig(min_sharpness=1.0)
    with pytest.raises(StoreError, match="slide 's1': none of its 24 tiles is readable and within"):
        export_features("stamp", tmp_path, ["s1"], "uni", tmp_path / "out", limits=limits)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", FORMATS)
def test_nothing_is_written_over(tmp_path, name):
    """The second slide's files exist: the first is not written either."""
    for slide_id in ("s1", "s2"):
        write_slide(tmp_path / "before", slide_id)
    paths = export_features(name, tmp_path / "before", ["s2"], "uni", tmp_path / "out")
    with pytest.raises(StoreError, match=r"s2.*exist; move them away, or name another folder"):
        export_features(name, tmp_path / "before", ["s1", "s2"], "uni", tmp_path / "out")
    again = sorted(path for path in (tmp_path / "out").rglob("*s1*"))
    assert again == []
    assert all(path.exists() for path in paths)


def test_an_unknown_format_and_an_absent_folder(tmp_path):
    with pytest.raises(ConfigError, match="format 'clan' is not known; known are clam, trident"):
        export_features("clan", tmp_path, [], "uni", tmp_path)
    with pytest.raises(ConfigError, match=r"no folder .*none to import from"):
        import_features("clam", tmp_path / "none", [], tmp_path, encoder="uni")


def test_oblong_tiles_cannot_be_exported(tmp_path):
    write_slide(tmp_path, mpp=(0.25, 0.26))
    with pytest.raises(StoreError, match=r"448 x 430\.769 level-0 pixels; other tools know square"):
        export_features("clam", tmp_path, ["s1"], "uni", tmp_path / "out")


def imported(name, source, out, *rows, given=CLAM_GIVEN, encoder="uni"):
    return import_features(name, source, rows or [row()], out, encoder=encoder, given=given)


def test_one_slide_that_fails_does_not_stop_the_others(tmp_path):
    write_clam(tmp_path / "clam", "s1")
    write_clam(tmp_path / "clam", "s3")
    (tmp_path / "clam" / "h5_files" / "s3.h5").write_bytes(b"cut")
    rows = [row("s2"), row("s1"), row("s3")]
    lost, done, cut = imported("clam", tmp_path / "clam", tmp_path / "out", *rows)
    assert (done.status, done.tiles) == ("done", 12)
    assert lost.status == cut.status == "failed"
    assert lost.error.startswith("slide 's2': ")
    assert "s2.h5: no such file; name the folder in which CLAM's files are" in lost.error
    assert "s3.h5: cannot be read as CLAM writes it" in cut.error
    assert "Traceback" in cut.traceback
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["s1.zarr"]


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (replace(CLAM_GIVEN, mpp=None), "s1.h5 states no micrometres per level-0 pixel; set"),
        (replace(CLAM_GIVEN, tile_px=None), "how many pixels wide the encoder saw a tile; give"),
        (replace(CLAM_GIVEN, tile_mpp=None), r"resolution .* \(they have 0.5 um per pixel\); give"),
        (replace(CLAM_GIVEN, tile_mpp=1.0), "tiles have 0.5 x 0.5 um per pixel, not 1 as they"),
        (replace(CLAM_GIVEN, tile_px0=256), "level-0 pixels is 512 by the file, 256 was given"),
        (replace(CLAM_GIVEN, level0_size=(9, 9)), r"is \(5000, 4000\) .* given was \(9, 9\)"),
    ],
)
def test_what_the_files_do_not_say_must_be_given_and_agree(tmp_path, given, message):
    write_clam(tmp_path)
    (status,) = imported("clam", tmp_path, tmp_path / "out", given=given)
    assert status.status == "failed"
    with pytest.raises(StoreError, match=message):
        raise StoreError(status.error)
    assert list((tmp_path / "out").iterdir()) == []


def test_the_manifests_mpp_comes_first(tmp_path):
    write_clam(tmp_path)
    given = replace(CLAM_GIVEN, mpp=0.26)
    (status,) = imported("clam", tmp_path, tmp_path / "out", row(mpp=(0.25, 0.251)), given=given)
    assert status.status == "done", status.error
    made = open_store(store_path(tmp_path / "out", "s1")).provenance
    assert (made.mpp_x, made.mpp_y, made.mpp_source) == (0.25, 0.251, "manifest")
    assert made.effective_mpp_y == pytest.approx(0.502)
    (status,) = imported("clam", tmp_path, tmp_path / "other", row(mpp=0.5), given=given)
    assert "manifest = (0.5, 0.5) um/px contradicts given = (0.26, 0.26)" in status.error


@pytest.mark.parametrize("fact", ["mpp", "tile_px", "tile_mpp", "tile_px0"])
@pytest.mark.parametrize("value", [0, -1.0, float("nan")])
def test_given_facts_are_positive(fact, value):
    with pytest.raises(ConfigError, match=f"{fact}: expected a positive number"):
        GivenFacts(**{fact: value})


def test_without_a_slide_file_there_is_a_white_picture_and_the_union_of_the_tiles(tmp_path):
    coords, _ = write_clam(tmp_path)
    imported("clam", tmp_path, tmp_path / "out")
    store = open_store(store_path(tmp_path / "out", "s1"))
    made = store.provenance
    assert (made.level0_width, made.level0_height) == (5000, 4000)
    assert (store.thumbnail == 255).all()
    assert store.thumbnail.shape == (820, 1024, 3)
    assert store.thumbnail.shape[1] * made.thumbnail_px0_per_px_x == pytest.approx(5000)
    assert store.tissue_mask.shape == (125, 157)  # of 32 level-0 pixels, 8 um
    covered = np.zeros((4000, 5000), dtype=bool)
    for x, y in coords:
        covered[y : y + 512, x : x + 512] = True
    rows, columns = np.nonzero(store.tissue_mask)
    assert not covered[: 32 * rows.min()].any()
    assert not covered[:, 32 * (columns.max() + 1) :].any()
    assert store.tissue_mask.mean() == pytest.approx(covered.mean(), rel=0.1)
    assert (store.tissue_fraction == 1).all()
    assert (
        made.slide_fingerprint
        == open_store(store_path(tmp_path / "out", "s1")).provenance.slide_fingerprint
    )


def test_the_extent_of_the_tiles_is_the_least_size_of_a_slide(tmp_path):
    write_stamp(tmp_path / "s1.h5")
    given = GivenFacts(mpp=0.25)
    (status,) = imported("stamp", tmp_path, tmp_path / "out", given=given)
    assert status.status == "done", status.error
    made = open_store(store_path(tmp_path / "out", "s1")).provenance
    assert (made.level0_width, made.level0_height) == (4 * 1024, 3 * 1024)
    given = GivenFacts(mpp=0.25, level0_size=(9000, 8000))
    imported("stamp", tmp_path, tmp_path / "sized", given=given)
    made = open_store(store_path(tmp_path / "sized", "s1")).provenance
    assert (made.level0_width, made.level0_height) == (9000, 8000)
    given = GivenFacts(mpp=0.25, level0_size=(3000, 8000))
    (status,) = imported("stamp", tmp_path, tmp_path / "small", given=given)
    assert "3 of 12 tiles begin outside of the slide of 3000 x 8000" in status.error


def test_features_that_float16_cannot_hold_are_refused(tmp_path):
    write_clam(tmp_path)
    with h5py.File(tmp_path / "h5_files" / "s1.h5", "r+") as file:
        file["features"][3, 2] = 1e6
    (status,) = imported("clam", tmp_path, tmp_path / "out")
    assert "expected finite rows" in status.error
    assert "first row 3 (float16 ends at 65504)" in status.error


def test_rows_of_nan_are_unreadable_tiles(tmp_path):
    write_clam(tmp_path)
    with h5py.File(tmp_path / "h5_files" / "s1.h5", "r+") as file:
        file["features"][3] = np.nan
    (status,) = imported("clam", tmp_path, tmp_path / "out")
    assert status.status == "done"
    store = open_store(store_path(tmp_path / "out", "s1"))
    assert np.flatnonzero(~store.usable).tolist() == [3]


def test_a_file_without_tiles(tmp_path):
    write_clam(tmp_path, tiles=0)
    (status,) = imported("clam", tmp_path, tmp_path / "out")
    assert status.error.startswith("slide 's1': ")
    assert "there is no tile in it" in status.error


def test_a_second_encoder_joins_the_store_of_the_same_tiles(tmp_path):
    write_clam(tmp_path / "uni")
    write_clam(tmp_path / "conch")
    with h5py.File(tmp_path / "conch" / "h5_files" / "s1.h5", "r+") as file:
        file["features"][...] = file["features"][...] + 1
    out = tmp_path / "out"
    (first,) = imported("clam", tmp_path / "uni", out)
    (second,) = imported("clam", tmp_path / "conch", out, encoder="conch")
    assert (first.status, second.status) == ("done", "done")
    store = open_store(store_path(out, "s1"))
    assert set(store.encoders) == {"uni", "conch"}
    np.testing.assert_allclose(store.features("conch"), store.features("uni") + 1, atol=5e-3)
    (again,) = imported("clam", tmp_path / "conch", out, encoder="conch")
    assert (again.status, again.tiles) == ("skipped", 12)
    (other,) = imported("clam", tmp_path / "conch", out)
    assert "holds other features of encoder 'uni'; delete it, or import under" in other.error
    for part in ("h5_files", "patches"):
        with h5py.File(tmp_path / "uni" / part / "s1.h5", "r+") as file:
            file["coords"][0, 0] += 1
    (moved,) = imported("clam", tmp_path / "uni", out, encoder="third")
    assert "there is a store of other tiles, its coordinates differ" in moved.error
    assert set(open_store(store_path(out, "s1")).encoders) == {"uni", "conch"}


def test_weights_that_nobody_names_are_those_of_the_tool(tmp_path):
    """So that a model asked about another tool's features of that name refuses them."""
    write_clam(tmp_path / "clam")
    write_stamp(tmp_path / "stamp" / "s1.h5")
    imported(
        "clam", tmp_path / "clam", tmp_path / "a", given=replace(CLAM_GIVEN, their_encoder="uni_v1")
    )
    imported("stamp", tmp_path / "stamp", tmp_path / "b", given=GivenFacts(mpp=0.25))
    digests = [
        open_store(store_path(tmp_path / folder, "s1")).encoder_record("uni").weight_digest
        for folder in ("a", "b")
    ]
    assert digests == ["uni_v1 of CLAM", "uni of STAMP"]
    imported(
        "clam", tmp_path / "clam", tmp_path / "c", given=replace(CLAM_GIVEN, weight_digest="abc")
    )
    store = open_store(store_path(tmp_path / "c", "s1"))
    assert store.encoder_record("uni").weight_digest == "abc"


def test_the_slides_file_says_what_it_knows(tmp_path, shared):
    """CMU-1-Small-Region: 2220 x 2967 pixels of 0.499 um."""
    path = shared / "slides" / "CMU-1-Small-Region.svs"
    write_stamp(tmp_path / "s1.h5", tile_size_um=111.776, stride=111.776)
    (status,) = imported("stamp", tmp_path, tmp_path / "out", row(path=path), given=GivenFacts())
    assert status.status == "done", status.error
    store = open_store(store_path(tmp_path / "out", "s1"))
    made = store.provenance
    assert (made.level0_width, made.level0_height, made.vendor) == (2220, 2967, "aperio")
    assert (made.mpp_x, made.objective_power) == (0.499, 20.0)
    assert made.tile_px0_x == pytest.approx(224)
    assert len(made.slide_fingerprint) == 64
    assert store.thumbnail.std() > 10  # tissue, not white
    assert made.thumbnail_px0_per_px_x * store.thumbnail.shape[1] >= 2220


def test_files_of_another_slide_are_refused(tmp_path, shared):
    path = shared / "slides" / "CMU-1-Small-Region.svs"
    write_clam(tmp_path)
    (status,) = imported("clam", tmp_path, tmp_path / "out", row(path=path))
    assert "made of a slide of (5000, 4000) level-0 pixels" in status.error
    assert "has (2220, 2967); correct 'path' in the manifest" in status.error


def test_a_given_mpp_is_for_slides_that_state_none(tmp_path, shared):
    """TCGA-CR-7395 is 4443 x 3567 pixels of an unknown size; what the other file says counts."""
    silent = shared / "slides" / "TCGA-CR-7395-01A-01-TS1.svs"
    outspoken = shared / "slides" / "CMU-1-Small-Region.svs"
    for slide_id in ("a", "b"):
        write_stamp(tmp_path / f"{slide_id}.h5", tile_size_um=111.776, stride=111.776)
    rows = [row("a", path=silent), row("b", path=outspoken)]
    given = GivenFacts(mpp=0.5)
    for status in imported("stamp", tmp_path, tmp_path / "out", *rows, given=given):
        assert status.status == "done", status.error
    a, b = (open_store(store_path(tmp_path / "out", s)).provenance for s in ("a", "b"))
    assert (a.mpp_x, a.mpp_source, a.level0_width) == (0.5, "given", 4443)
    assert (b.mpp_x, b.mpp_source, b.level0_width) == (0.499, "openslide.mpp-x", 2220)
    (lacking,) = imported("stamp", tmp_path, tmp_path / "none", rows[0], given=GivenFacts())
    assert "states no micrometres per pixel" in lacking.error


def test_a_slide_that_cannot_be_opened_is_done_without(tmp_path, shared, caplog):
    path = shared / "slides" / "broken" / "histolab_broken.svs"
    write_clam(tmp_path)
    (status,) = imported("clam", tmp_path, tmp_path / "out", row(path=path))
    assert status.status == "done"
    assert "imported without the slide's file: slide 's1': openslide cannot open" in caplog.text


def test_published_features_without_a_word_about_themselves(tmp_path, shared):
    """Real ones: every fact must be given, one after the other."""
    slide_id = "TCGA-AD-6964-01Z-00-DX1"
    facts: dict = {}
    for fact, value, message in (
        ("mpp", 0.25, "states no micrometres per level-0 pixel"),
        ("tile_px0", 512, "does not say how large a tile is"),
        ("coords_unit", "px0", "does not say the unit of its coordinates"),
        ("tile_px", 256, "does not say how many pixels wide the encoder saw a tile"),
        ("tile_mpp", 0.5, "does not say at which resolution tiles were asked for"),
    ):
        (status,) = import_features(
            "stamp",
            shared / "features",
            [row(slide_id)],
            tmp_path,
            encoder="conch",
            given=GivenFacts(**facts),
        )
        assert message in status.error
        facts[fact] = value
    (status,) = import_features(
        "stamp",
        shared / "features",
        [row(slide_id)],
        tmp_path,
        encoder="conch",
        given=GivenFacts(**facts),
    )
    assert (status.status, status.tiles) == ("done", 777), status.error
    made = open_store(store_path(tmp_path, slide_id)).provenance
    assert (made.stride_px0_x, made.stride_px0_y) == (512, 512)
