from pathlib import Path

import pytest

from preprocessing.errors import ManifestError
from preprocessing.manifest import read_manifest


def manifest(folder: Path, *lines: str) -> Path:
    path = folder / "slides.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_rows_keep_order_and_further_columns(tmp_path):
    path = manifest(
        tmp_path,
        "slide_id,patient_id,path,mpp,site,mpp_force",
        "b-2,P1,scans/b.svs,0.25,Kiel,1",
        "a_1.x,P 2,/archive/a.svs,, ,",
    )
    first, second = read_manifest(path)
    assert (first.slide_id, first.patient_id, first.mpp) == ("b-2", "P1", 0.25)
    assert first.path == tmp_path / "scans" / "b.svs"
    assert first.extra == {"site": "Kiel", "mpp_force": "1"}
    assert (second.path, second.mpp) == (Path("/archive/a.svs"), None)
    assert second.extra == {"site": "", "mpp_force": ""}
    assert len({first, second}) == 2  # hashable


def test_spreadsheet_habits_are_understood(tmp_path):
    path = tmp_path / "slides.csv"
    path.write_bytes(b'\xef\xbb\xbfslide_id, patient_id ,path\r\ns1,P1,"a, b.svs"\r\n,,\r\n\r\n')
    (row,) = read_manifest(path)
    assert (row.patient_id, row.path.name) == ("P1", "a, b.svs")


def test_pixels_that_are_not_square_have_two_columns(tmp_path):
    path = manifest(
        tmp_path,
        "slide_id,patient_id,path,mpp,mpp_x,mpp_y",
        "s1,P1,a.svs,,0.25,0.5",
        "s2,P1,b.svs,0.25,,",
        "s3,P1,c.svs,,,",
    )
    rows = read_manifest(path)
    assert [row.mpp for row in rows] == [(0.25, 0.5), 0.25, None]
    assert [row.extra for row in rows] == [{}, {}, {}]


HEADER = "slide_id,patient_id,path,mpp"
AXES = "slide_id,patient_id,path,mpp,mpp_x,mpp_y"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], r"slides\.csv: missing column\(s\) slide_id, patient_id, path; found none"),
        (
            ["slide_id,patient,path"],
            r"missing column\(s\) patient_id; found slide_id, patient, path",
        ),
        (["slide_id,patient_id,path,path"], r"column\(s\) path appear more than once"),
        (["slide_id,patient_id,path,MPP"], "column 'MPP' would be passed over; write 'mpp'"),
        ([AXES.replace("mpp_y", "mpp_Y")], "column 'mpp_Y' would be passed over; write 'mpp_y'"),
        ([HEADER, "s1,P1,a\0.svs,"], r"line 2: path 'a\\x00\.svs' cannot be that of a file"),
        ([HEADER], "at least one slide"),
        ([HEADER, "s1,,a.svs,"], "line 2: patient_id is empty"),
        ([HEADER, ",P1,a.svs,"], "line 2: slide_id is empty"),
        ([HEADER, "s1,P1, ,"], "line 2: path is empty"),
        ([HEADER, "s1,P1,a.svs,", "s1,P2,b.svs,", "s2,P2,c.svs,"], r"slide_id\(s\) s1 appear more"),
        ([HEADER, "s1,P1,a.svs,", "s2,P2,x/../a.svs,"], "one file under several.*a.svs as s1, s2"),
        ([HEADER, "s/1,P1,a.svs,"], "line 2: slide_id 's/1' becomes a file name"),
        ([HEADER, ".s1,P1,a.svs,"], r"slide_id '\.s1'"),
        ([HEADER, "sä,P1,a.svs,"], "slide_id 'sä'"),
        ([HEADER, "s1,P1,a.svs,0"], "slide 's1': mpp must be a positive number.*got '0'"),
        ([HEADER, "s1,P1,a.svs,-1"], "got '-1'"),
        ([HEADER, "s1,P1,a.svs,nan"], "got 'nan'"),
        ([HEADER, "s1,P1,a.svs,inf"], "got 'inf'"),
        ([HEADER, "s1,P1,a.svs,0_25"], "got '0_25'"),
        ([HEADER, 's1,P1,a.svs,"0,25"'], "got '0,25'"),
        ([AXES, "s1,P1,a.svs,,0.5,"], "slide 's1': mpp_x without mpp_y; fill in both"),
        ([AXES, "s1,P1,a.svs,,,0.5"], "mpp_y without mpp_x"),
        ([AXES, "s1,P1,a.svs,0.5,0.5,0.5"], "mpp and mpp_x or mpp_y are given; keep mpp where"),
        ([AXES, "s1,P1,a.svs,0.5,0.5,"], "mpp and mpp_x or mpp_y are given"),
        ([AXES, "s1,P1,a.svs,,0.5,x"], "mpp_y must be a positive number.*got 'x'"),
        (["slide_id,patient_id,path,mpp_x", "s1,P1,a.svs,0.5"], "mpp_x without mpp_y"),
        ([HEADER, "s1,P1,a.svs,0.5,more"], "line 2: expected 4 values, got 5"),
        ([HEADER, "s1,P1"], "line 2: expected 4 values, got 2"),
        ([HEADER, 's1,P1,"a.svs,'], "expected a CSV in UTF-8"),
    ],
)
def test_every_mistake_is_named(tmp_path, lines, message):
    with pytest.raises(ManifestError, match=message):
        read_manifest(manifest(tmp_path, *lines))


def test_a_missing_manifest_says_what_one_is(tmp_path):
    with pytest.raises(ManifestError, match=r"none\.csv: no such file.*slide_id, patient_id, path"):
        read_manifest(tmp_path / "none.csv")


def test_a_manifest_that_may_not_be_read(tmp_path, monkeypatch):
    path = manifest(tmp_path, HEADER, "s1,P1,a.svs,")

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    for asked in ("is_file", "open"):
        with monkeypatch.context() as patch:
            patch.setattr(Path, asked, refuse)
            with pytest.raises(
                ManifestError, match=r"slides\.csv: cannot be read: Permission denied"
            ):
                read_manifest(path)


def test_a_circle_of_links_is_not_the_manifests_error(tmp_path):
    (tmp_path / "a.svs").symlink_to("b.svs")
    (tmp_path / "b.svs").symlink_to("a.svs")
    (row,) = read_manifest(manifest(tmp_path, HEADER, "s1,P1,a.svs,"))
    assert row.path == tmp_path / "a.svs"


def test_another_encoding_is_refused(tmp_path):
    path = tmp_path / "slides.csv"
    path.write_bytes("slide_id,patient_id,path\ns1,Müller,a.svs\n".encode("latin-1"))
    with pytest.raises(ManifestError, match="UTF-8"):
        read_manifest(path)


def test_a_missing_slide_file_is_not_the_manifests_error(tmp_path):
    (row,) = read_manifest(manifest(tmp_path, HEADER, "s1,P1,gone.svs,"))
    assert not row.path.exists()
