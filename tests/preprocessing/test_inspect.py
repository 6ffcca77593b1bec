import csv
import io
import json
from pathlib import Path

import archive_files as files
import pytest
import tifffile
from tiff_files import damage_tile, write_tiff

from preprocessing.errors import ConfigError, ManifestError
from preprocessing.inspection.archive import inspect_archive, run_inspect
from preprocessing.inspection.examination import examine
from preprocessing.inspection.output import as_csv, as_json, as_table, manifest_of
from preprocessing.inspection.paths import Candidate
from preprocessing.inspection.report import SlideReport
from preprocessing.manifest import SlideRow, read_manifest

IMAGE = files.tissue()
SAFE_ID = r"[A-Za-z0-9_-][A-Za-z0-9._-]*"


def only(reports):
    (report,) = reports
    return report


class TestOneSlide:
    def test_pyramid_of_a_scanner(self, tmp_path):
        path = files.write_svs(tmp_path / "x.svs", IMAGE, mpp=0.499)
        report = only(inspect_archive([path]))
        assert (report.format, report.width_px0, report.height_px0) == ("aperio", 768, 768)
        assert (report.mpp_x, report.mpp_y, report.mpp_source) == (0.499, 0.499, "openslide.mpp-x")
        assert (report.downsamples, report.objective_power) == ((1.0, 4.0), 20.0)
        assert report.reader.startswith("direct (simplejpeg")
        assert report.bytes == path.stat().st_size
        assert report.notes == ("holds a photograph of its label: see who may have the file",)

    @pytest.mark.parametrize(
        ("write", "note"),
        [
            (lambda p: files.write_deep(p, IMAGE, mpp=0.5), "16 bits a channel, read as 8"),
            (lambda p: files.write_alpha(p, IMAGE, mpp=0.5), "has an alpha channel"),
            (lambda p: write_tiff(p, IMAGE), "one level only"),
            (lambda p: write_tiff(p, IMAGE, mpp=(0.5, 0.4)), "pixels are not square"),
        ],
    )
    def test_what_is_odd_is_noted(self, tmp_path, write, note):
        write(tmp_path / "x.tif")
        report = only(inspect_archive([tmp_path]))
        assert report.state == "ready"
        assert report.reader.startswith("openslide: compression ")
        assert [note in each for each in report.notes].count(True) == 1

    @pytest.mark.parametrize(
        ("start", "said"),
        [
            (b"", "empty: 0 bytes"),
            (b"II*\0", "cut short: part of its index"),
            (b"II*\0\x10\0\0\0", "cut short: part of its index"),
            (b"II*\0\x08\0\0\0" + b"\1\0" + bytes(16), "a TIFF "),
            (b"\x89PNG\r\n", "a plain PNG picture"),
            (b"PK\x03\x04", "a ZIP archive: unpack it"),
            (b"<html>", "as a failed download leaves it"),
            (b"whatever", "no slide format that openslide knows"),
        ],
    )
    def test_what_is_no_slide_is_named(self, tmp_path, start, said):
        (tmp_path / "x.svs").write_bytes(start)
        report = only(inspect_archive([tmp_path]))
        assert report.state == "unreadable"
        assert said in report.problem

    def test_mirax_without_its_folder(self, tmp_path):
        files.write_picture(tmp_path / "x.mrxs", IMAGE)
        report = only(inspect_archive([tmp_path]))
        assert report.problem == "the folder 'x' with Slidedat.ini is missing beside it"

    def test_damage_amid_the_slide(self, tmp_path):
        path = files.write_jpeg(tmp_path / "x.tif", IMAGE, mpp=0.5)
        damage_tile(path, col=1, row=1)
        report = only(inspect_archive([path]))
        assert report.state == "damaged"
        assert report.problem.startswith(
            "1 of 10 places tried cannot be read, the first on level 0"
        )
        for col in range(3):
            for row in range(3):
                damage_tile(path, col=col, row=row)
        report = only(inspect_archive([path]))
        assert "9 of 10 places" in report.problem

    def test_every_length_of_a_stopped_copy(self, tmp_path):
        whole = files.write_svs(tmp_path / "whole.svs", IMAGE, mpp=0.5).read_bytes()
        path = tmp_path / "x.svs"
        seen = set()
        for share in [*range(0, 100, 4), 99]:
            path.write_bytes(whole[: len(whole) * share // 100])
            report = examine(Candidate(SlideRow("x", "p", path)))
            assert report.state in ("unreadable", "damaged"), share
            assert "copy it again" in report.problem, (share, report.problem)
            seen.add(report.state)
        assert seen == {"unreadable", "damaged"}

    def test_a_level_of_another_shape(self, tmp_path):
        path = tmp_path / "x.tif"
        with tifffile.TiffWriter(path) as tiff:
            for n, image in enumerate((IMAGE, IMAGE[:192, :384])):
                tiff.write(image, tile=(64, 64), subfiletype=n, metadata=None)
        report = examine(Candidate(SlideRow("x", "p", path, mpp=0.5)))
        assert report.state == "ready"
        assert report.downsamples == (1.0,)
        (note,) = report.notes
        assert "level 1 of 384 x 192 px, 2 times smaller than level 0 in width" in note

    def test_no_error_gets_out(self, tmp_path, monkeypatch):
        path = write_tiff(tmp_path / "x.tif", IMAGE)
        for error in (RuntimeError("unforeseen"), OSError(5, "Input/output error")):

            def fail(*_, error=error, **__):
                raise error

            monkeypatch.setattr("preprocessing.inspection.examination.DirectSlide", fail)
            report = only(inspect_archive([path]))
            assert report.state == "unreadable"
            assert str(error) in report.problem

    def test_equal_scans_are_pointed_out(self, tmp_path):
        first = write_tiff(tmp_path / "a.tif", IMAGE, factors=(1, 4))
        (tmp_path / "b.tif").write_bytes(first.read_bytes())
        write_tiff(tmp_path / "c.tif", files.tissue(seed=1), factors=(1, 4))
        a, b, c = inspect_archive([tmp_path])
        assert "the same scan as a (equal quickhash)" in b.notes
        assert not any("same scan" in note for note in (*a.notes, *c.notes))


def report_of(number: int, **fields) -> SlideReport:
    known = {"state": "ready", "format": "aperio", "width_px0": 98304, "height_px0": 83968}
    known |= {"mpp_x": 0.2527, "mpp_y": 0.2527, "downsamples": (1.0, 4.0, 16.0), "bytes": 10**9}
    known |= {"objective_power": 40.0, "reader": "direct (simplejpeg 1.9.0)"}
    path = Path(f"/archive/x/slide-{number:03d}.svs")
    return SlideReport(**({"slide_id": path.stem, "path": path} | known | fields))


class TestOutput:
    def test_table_of_a_large_archive(self):
        slides = [report_of(n, notes=("holds a photograph",)) for n in range(180)]
        slides += [
            report_of(n, state="unreadable", format="", problem="empty", reader="", mpp_x=None)
            for n in range(180, 200)
        ]
        lines = as_table(slides, 110).splitlines()
        assert max(map(len, lines)) <= 110
        for report in slides:
            assert sum(line.startswith(f"{report.slide_id} ") for line in lines) == 1
        assert len(lines) < 200 + 25  # what is true of many is told once
        assert "  empty (20 slides)" in lines
        assert "      and 10 more: see the table, or --csv" in lines
        assert "  holds a photograph (180 slides)" in lines
        assert lines[-1] == "200 slide(s), 200 GB: 180 ready, 20 unreadable"

    @pytest.mark.parametrize("width", [100, 120])
    def test_lines_keep_to_the_width_and_names_to_a_line(self, width):
        long = "S" * 60 + "-end"
        evil = "x\n\x1b[2Jready"
        reader = "openslide: compression APERIO_JP2000_RGB"
        text = as_table(
            [
                report_of(1, slide_id=long, mpp_x=0.25271, mpp_y=0.26, reader=reader),
                report_of(2, slide_id=evil, state="no mpp", mpp_problem="none " * 60),
            ],
            width,
        )
        assert "\x1b" not in text
        lines = text.splitlines()
        assert max(map(len, lines)) <= width
        assert lines[1].startswith("SSS")
        assert "~" in lines[1]
        assert "-end " in lines[1]
        assert "0.2527 x 0.26" in lines[1]
        assert lines[2].startswith("x??[2Jready ")
        assert "  compression APERIO_JP2000_RGB" in lines

    def test_csv_and_json_say_the_same(self, tmp_path):
        files.write_svs(tmp_path / "x.svs", IMAGE, mpp=0.5)
        (tmp_path / "y.svs").touch()
        reports = inspect_archive([tmp_path])
        rows = list(csv.DictReader(io.StringIO(as_csv(reports))))
        objects = json.loads(as_json(reports))
        assert [row["slide_id"] for row in rows] == [o["slide_id"] for o in objects] == ["x", "y"]
        assert rows[0].keys() == objects[0].keys()
        assert (rows[0]["mpp_x"], objects[0]["mpp_x"]) == ("0.5", 0.5)
        assert (rows[0]["downsamples"], objects[0]["downsamples"]) == ("1 4", [1.0, 4.0])
        assert (rows[1]["mpp_x"], objects[1]["mpp_x"]) == ("", None)
        assert rows[1]["problem"] == objects[1]["problem"] == "empty: 0 bytes; copy it again"
        said = as_csv(reports) + as_json(reports)
        assert "Jones" not in said  # the operator
        assert "Smith" not in said  # the original file name

    def test_manifest_waits_for_its_patients(self, tmp_path):
        inside, outside = tmp_path / "study" / "a, b.svs", tmp_path / "c.svs"
        reports = [report_of(1, path=inside), report_of(2, path=outside)]
        folder = tmp_path / "study"
        folder.mkdir()
        table = folder / "slides.csv"
        table.write_text(manifest_of(reports, folder))
        with pytest.raises(ManifestError, match="line 2: patient_id is empty"):
            read_manifest(table)
        table.write_text(manifest_of(reports, folder, patient_is_slide=True))
        first, second = read_manifest(table)
        assert (first.slide_id, first.patient_id) == ("slide-001", "slide-001")
        assert (first.path, second.path) == (inside, outside)
        assert "a, b.svs" in table.read_text()
        assert str(inside) not in table.read_text()  # the study's folder can be moved


class TestCommand:
    def test_all_is_well(self, tmp_path, capsys):
        files.write_svs(tmp_path / "x.svs", IMAGE, mpp=0.5)
        assert run_inspect([tmp_path]) == 0
        assert capsys.readouterr().out.endswith("1 slide(s), 69 kB: 1 ready\n")

    @pytest.mark.parametrize("bad", ["unreadable", "no mpp", "nothing"])
    def test_something_is_not(self, tmp_path, capsys, bad):
        if bad == "unreadable":
            (tmp_path / "x.svs").touch()
        elif bad == "no mpp":
            write_tiff(tmp_path / "x.tif", IMAGE, mpp=None)
        assert run_inspect([tmp_path]) == 1
        assert (bad if bad != "nothing" else "no slides found") in capsys.readouterr().out

    def test_files_it_writes(self, tmp_path, capsys, caplog):
        archive = tmp_path / "archive"
        archive.mkdir()
        files.write_svs(archive / "x.svs", IMAGE, mpp=0.5)
        write_tiff(archive / "y.tif", IMAGE, mpp=None)
        (archive / "z.svs").touch()
        table, manifest = tmp_path / "all.csv", tmp_path / "slides.csv"
        code = run_inspect(
            [archive], json=True, csv=table, manifest=manifest, patient_is_slide=True
        )
        assert code == 1
        printed = json.loads(capsys.readouterr().out)
        assert [each["state"] for each in printed] == ["ready", "no mpp", "unreadable"]
        assert len(table.read_text().splitlines()) == 4
        assert [row.slide_id for row in read_manifest(manifest)] == ["x", "y"]
        warned = " ".join(caplog.messages)
        assert "left out 1 slide(s) that cannot be read" in warned
        assert "fill in column mpp of 1 slide(s)" in warned
        with pytest.raises(ConfigError, match="holds a manifest already"):
            run_inspect([manifest], manifest=tmp_path / "again.csv")

    def test_files_are_written_whoever_closes_the_output(self, tmp_path, monkeypatch):
        """`histomil inspect archive --csv table.csv | head`, after hours."""
        write_tiff(tmp_path / "x.tif", IMAGE)
        table, manifest = tmp_path / "all.csv", tmp_path / "slides.csv"

        def close(_):
            raise BrokenPipeError(32, "Broken pipe")

        monkeypatch.setattr("sys.stdout.write", close)
        with pytest.raises(BrokenPipeError):
            run_inspect([tmp_path / "x.tif"], csv=table, manifest=manifest)
        assert table.exists()
        assert manifest.exists()

    def test_the_table_is_shown_whatever_becomes_of_the_files(self, tmp_path, capsys):
        write_tiff(tmp_path / "x.tif", IMAGE)
        with pytest.raises(OSError, match=r"x\.tif"):
            run_inspect([tmp_path], csv=tmp_path / "x.tif" / "all.csv")
        assert "1 ready" in capsys.readouterr().out

    def test_manifest_of_nothing_is_not_written(self, tmp_path, caplog):
        (tmp_path / "x.svs").touch()
        assert run_inspect([tmp_path], manifest=tmp_path / "slides.csv") == 1
        assert not (tmp_path / "slides.csv").exists()
        assert "no slide can be read" in caplog.text


@pytest.mark.parametrize(
    ("name", "state", "reader", "said"),
    [
        ("CMU-1-Small-Region.svs", "ready", "direct", "label"),
        ("TCGA-CR-7395-01A-01-TS1.svs", "no mpp", "openslide: compression", "states no micro"),
        ("camelyon-lowres.dcm", "ready", "openslide: format dicom", "one level"),
        ("fluor-DAPI-387.ndpi", "ready", "openslide: format hamamatsu", ""),
        ("kather_muscle_224.tif", "unreadable", "", "224 x 224 px in strips"),
        ("broken/boxes.tiff", "no mpp", "openslide: compression", "352.778"),
        ("broken/histolab_broken.svs", "unreadable", "", "no slide format"),
        ("broken/openslide-python_unreadable.svs", "unreadable", "", "no pixel can be read"),
        ("broken/pathml_small_dicom.dcm", "unreadable", "", "Couldn't get image flavor"),
    ],
)
def test_real_files(shared, name, state, reader, said):
    report = only(inspect_archive([shared / "slides" / name]))
    assert report.state == state
    assert report.reader.startswith(reader)
    assert bool(report.reader) == bool(reader)
    assert said in " ".join([report.problem, report.mpp_problem, *report.notes])
