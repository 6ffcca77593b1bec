import os
import struct
from pathlib import Path

import archive_files as files
import pytest
from hypothesis import given
from hypothesis import strategies as st
from tiff_files import write_tiff

from preprocessing.errors import ManifestError
from preprocessing.inspection.archive import inspect_archive, run_inspect
from preprocessing.inspection.dicom_series import series_uid
from preprocessing.inspection.examination import examine
from preprocessing.inspection.paths import find_candidates
from preprocessing.manifest import read_manifest

IMAGE = files.tissue()


def only(reports):
    (report,) = reports
    return report


class TestWhichFiles:
    def test_folders_are_searched_and_other_files_passed_over(self, tmp_path):
        for name in ("b/x.SVS", "a/deep/y.tif", "a/.hidden.svs", ".trash/z.svs", "a/notes.txt"):
            (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
            (tmp_path / name).touch()
        found = [c.row.path for c in find_candidates([tmp_path])]
        assert found == [tmp_path / "a/deep/y.tif", tmp_path / "b/x.SVS"]
        named = find_candidates([tmp_path / "a/notes.txt", tmp_path / "b"])
        assert [c.row.slide_id for c in named] == ["notes", "x"]
        assert find_candidates([tmp_path / ".trash"])  # a hidden folder may be named

    def test_a_file_reached_twice_is_listed_once(self, tmp_path):
        slide = tmp_path / "a" / "x.svs"
        slide.parent.mkdir()
        slide.touch()
        (tmp_path / "link.svs").symlink_to(slide)
        (tmp_path / "a" / "up").symlink_to(tmp_path)  # a circle
        (tmp_path / "lost.svs").symlink_to(tmp_path / "gone.svs")
        found = [c.row.path for c in find_candidates([slide, tmp_path, slide])]
        assert found == [slide, tmp_path / "lost.svs"]
        assert examine(find_candidates([tmp_path / "lost.svs"])[0]).problem == (
            "no such file: a link that leads nowhere"
        )

    def test_a_folder_named_as_a_slide_is_reported_and_searched(self, tmp_path):
        (tmp_path / "x.svs").mkdir()
        write_tiff(tmp_path / "x.svs" / "x.svs", IMAGE)
        folder, slide = inspect_archive([tmp_path])
        assert (folder.path, folder.state) == (tmp_path / "x.svs", "unreadable")
        assert "a folder, not a file" in folder.problem
        assert (slide.path, slide.state) == (tmp_path / "x.svs" / "x.svs", "ready")

    def test_a_folder_that_cannot_be_listed_is_no_empty_one(self, tmp_path, monkeypatch):
        def refuse(path):
            raise PermissionError(13, "Permission denied", os.fspath(path))

        monkeypatch.setattr(os, "scandir", refuse)
        report = only(inspect_archive([tmp_path]))
        assert (report.path, report.state) == (tmp_path, "unreadable")
        assert report.problem == "cannot be listed: Permission denied"

    @pytest.mark.parametrize("name", ["x.svs", "x.dcm"])
    def test_a_pipe_is_not_waited_for(self, tmp_path, name):
        os.mkfifo(tmp_path / name)
        table = tmp_path / "slides.csv"
        table.write_text(f"slide_id,patient_id,path\nours,p,{name}\n")
        for path in (tmp_path, tmp_path / name, table):
            report = only(inspect_archive([path]))
            assert (report.state, report.problem) == ("unreadable", "neither a file nor a folder")

    def test_a_name_that_no_manifest_can_hold(self, tmp_path):
        write_tiff(Path(os.fsdecode(os.fsencode(tmp_path) + b"/F\xe4rbung.tif")), IMAGE)
        report = only(inspect_archive([tmp_path]))
        assert (report.slide_id, report.state) == ("F_rbung", "unreadable")
        assert report.problem == "its name is not UTF-8, as a manifest has to be: rename it"

    def test_names_of_any_bytes_and_blanks(self, tmp_path):
        odd = tmp_path / os.fsdecode(b"\xff.tif")
        for path in (odd, tmp_path / " x .tif"):
            write_tiff(path, IMAGE)
        table, manifest = tmp_path / "all.csv", tmp_path / "slides.csv"
        run_inspect([tmp_path], csv=table, manifest=manifest, patient_is_slide=True)
        assert r"\udcff.tif," in table.read_text()
        assert [row.path for row in read_manifest(manifest)] == [tmp_path / " x .tif"]

    def test_a_path_that_the_system_refuses(self, tmp_path):
        report = only(inspect_archive([tmp_path / ("x" * 300 + ".svs")]))
        assert report.state == "unreadable"
        assert "File name too long" in report.problem

    def test_manifest_keeps_ids_and_overrides(self, tmp_path):
        write_tiff(tmp_path / "x.tif", IMAGE, mpp=None)
        write_tiff(tmp_path / "y.tif", IMAGE, mpp=(0.25, 0.25))
        table = tmp_path / "slides.csv"
        table.write_text("slide_id,patient_id,path,mpp\nours,p,x.tif,0.5\ngone,p,z.tif,\n")
        ours, gone, other = inspect_archive([table, tmp_path])
        assert (ours.slide_id, ours.state, ours.mpp_x, ours.mpp_source) == (
            *("ours", "ready"),
            *(0.5, "manifest"),
        )
        assert (gone.slide_id, gone.problem) == ("gone", "no such file")
        assert (other.slide_id, other.mpp_x) == ("y", pytest.approx(0.25))
        table.write_text("slide,file\n")
        with pytest.raises(ManifestError, match="missing column"):
            inspect_archive([table])


class TestIds:
    @pytest.mark.parametrize(
        ("paths", "ids"),
        [
            (["a/x.svs", "a/y.svs"], ["x", "y"]),
            (["a/x.svs", "b/x.svs", "b/y.svs"], ["a_x", "b_x", "y"]),
            (["a/x.svs", "a/x.tif"], ["x.svs", "x.tif"]),
            (["a/X.svs", "b/x.svs"], ["a_X", "b_x"]),
            (["r/a/x.svs", "s/a/x.svs"], ["r_a_x", "s_a_x"]),
            (["Fall 1 (ä).svs", ".x.svs"], ["_x", "Fall_1____"]),
            (["a 1.svs", "a_1.svs"], ["a_1", "a_1-2"]),
        ],
    )
    def test_made_from_names(self, paths, ids):
        found = find_candidates([Path("/r", path) for path in paths])
        assert sorted(c.row.slide_id for c in found) == sorted(ids)

    @given(
        st.lists(
            st.lists(st.sampled_from(["a", "A", "b ", "b_", ".c", "ä"]), min_size=1), max_size=8
        )
    )
    def test_always_safe_and_unique(self, parts):
        paths = {Path("/none", *names).with_suffix(".svs") for names in parts}
        found = find_candidates(sorted(paths))
        ids = [c.row.slide_id for c in found]
        assert {c.row.path for c in found} == paths
        assert len({slide_id.lower() for slide_id in ids}) == len(paths)
        for slide_id in ids:
            assert slide_id
            assert set(slide_id) <= set("abcABCsvn_-.o0123456789e")
            assert not slide_id.startswith(".")

    def test_manifests_ids_are_not_taken_again(self, tmp_path):
        table = tmp_path / "slides.csv"
        table.write_text("slide_id,patient_id,path\nx,p,other/scan.svs\n")
        (tmp_path / "x.svs").touch()
        ids = [c.row.slide_id for c in find_candidates([table, tmp_path])]
        assert ids == ["x", "x.svs"]


def dicom(*elements: bytes) -> bytes:
    return bytes(128) + b"DICM" + b"".join(elements)


def short(group: int, number: int, kind: bytes, value: bytes) -> bytes:
    return struct.pack("<HH2sH", group, number, kind, len(value)) + value


def sequence(group: int, number: int, *items: bytes, closed: bool) -> bytes:
    """`closed`: ended by delimiters instead of lengths."""
    end = struct.pack("<HHI", 0xFFFE, 0xE00D, 0) if closed else b""
    body = b"".join(
        struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF if closed else len(item)) + item + end
        for item in items
    )
    if closed:
        body += struct.pack("<HHI", 0xFFFE, 0xE0DD, 0)
    length = 0xFFFFFFFF if closed else len(body)
    return struct.pack("<HH2sHI", group, number, b"SQ", 0, length) + body


class TestDicom:
    @pytest.mark.parametrize("closed", [False, True])
    def test_series_is_the_files_own_not_one_it_refers_to(self, tmp_path, closed):
        other = short(0x20, 0x0E, b"UI", b"9.9.9\0")
        inner = sequence(0x08, 0x1199, short(0x08, 0x1150, b"UI", b"1.2"), other, closed=closed)
        refers = sequence(0x08, 0x1115, inner + other, closed=closed)
        study = short(0x20, 0x0D, b"UI", b"1.5.6\0")
        own = short(0x20, 0x0E, b"UI", b"1.2.3\0")
        path = tmp_path / "x.dcm"
        path.write_bytes(dicom(refers, study, own))
        assert series_uid(path) == "1.2.3"
        path.write_bytes(dicom(refers, study, short(0x28, 0x10, b"US", b"\1\0")))
        assert series_uid(path) is None
        for length in range(len(dicom(refers, study, own)) - 1):
            path.write_bytes(dicom(refers, study, own)[:length])
            assert series_uid(path) in (None, "1.2.3")

    def test_no_depth_of_nesting_stops_it(self, tmp_path):
        path = tmp_path / "x.dcm"
        deep = struct.pack("<HH2sHI", 8, 0x1115, b"SQ", 0, 0xFFFFFFFF)
        item = struct.pack("<HHI", 0xFFFE, 0xE000, 0xFFFFFFFF)
        path.write_bytes(dicom((deep + item) * 9000))
        assert series_uid(path) is None

    def test_one_entry_a_series(self, shared):
        folder = shared / "slides" / "broken"
        report = only(r for r in inspect_archive([folder]) if r.format == "dicom")
        assert (report.slide_id, report.further_files, report.state) == ("boxes_0", 1, "ready")
        assert report.bytes == sum(path.stat().st_size for path in folder.glob("boxes_*.dcm"))
        # Equal files in other folders are other slides.
        assert len(find_candidates([folder, folder.parent])) == len(
            find_candidates([folder.parent])
        )
