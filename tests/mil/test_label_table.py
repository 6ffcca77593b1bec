from pathlib import Path

import openpyxl
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mil.cohorts.label_table import LabelTable, read_label_table
from mil.cohorts.slide_ids import bare_id, near_misses, tissue_source_site
from mil.config import LabelsConfig, validate_study
from preprocessing.errors import CohortError, ConfigError

ENDINGS = [
    *("svs", "ndpi", "mrxs", "tif", "tiff", "h5", "pt", "zarr"),
    *("scn", "bif", "vsi", "dcm", "czi", "isyntax", "SVS"),
]
NAMES = st.from_regex(r"[A-Za-z0-9_-]+(\.[0-9]{1,4}[A-F-]{1,5})?", fullmatch=True)


def read(path: Path, *join: Path, preset: str | None = None, **columns: str) -> LabelTable:
    return read_label_table(LabelsConfig(table=path, join=join, preset=preset, columns=columns))


def written(tmp_path: Path, text: str, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def workbook(path: Path, *sheets: list[list[object]]) -> Path:
    book = openpyxl.Workbook()
    for i, lines in enumerate(sheets):
        sheet = book.worksheets[0] if i == 0 else book.create_sheet(f"more {i}")
        for cells in lines:
            sheet.append(cells)
    book.save(path)
    return path


@given(
    name=NAMES,
    folder=st.sampled_from(["", "/a/b.c/", "C:\\slides\\", "sub/"]),
    endings=st.lists(st.sampled_from(ENDINGS), max_size=2),
)
def test_only_folders_and_file_endings_leave_an_id(name, folder, endings):
    text = folder + ".".join([name, *endings])
    assert bare_id(text) == name
    assert bare_id(bare_id(text)) == bare_id(text)


def test_sites_are_the_second_token_of_tcga_barcodes():
    assert tissue_source_site("TCGA-2F-A9KO-01Z-00-DX1.195576CF") == "2F"
    assert tissue_source_site("TCGA-2F-A9KO") == "2F"
    for other in ("patient_010", "TCGA-2F", "XTCGA-2F-A9KO", "TCGA-2F-A9KOZ"):
        assert tissue_source_site(other) is None


@given(st.lists(st.sampled_from(["0", "1", "0.0", "1.0", ""]), min_size=1, max_size=20))
def test_censorship_is_turned_round_once(tmp_path_factory, cells):
    lines = "".join(f"p{i},{cell}\n" for i, cell in enumerate(cells))
    path = written(tmp_path_factory.mktemp("t"), f"patient_id,c\n{lines}")
    found = read(path, censorship="c").frame["event"].fillna("").tolist()
    assert found == [{"0": "1", "1": "0", "": ""}[cell[:1]] for cell in cells]


def test_censorship_is_zero_or_one(tmp_path):
    path = written(tmp_path, "patient_id,c\na,0\nb,2\nc,yes\nd,1.5\n")
    with pytest.raises(
        CohortError,
        match=r"column 'c': expected 1 \(censored\) or 0 .*'1\.5', '2', 'yes'\] for b, c, d",
    ):
        read(path, censorship="c")


def test_without_a_mapping_nothing_is_turned_round_or_cut(tmp_path):
    path = written(tmp_path, "slide_id,censorship,x\na/s.svs,1,TCGA\n")
    frame = read(path).frame
    assert frame.to_dict("list") == {"slide_id": ["a/s.svs"], "censorship": ["1"], "x": ["TCGA"]}


def test_a_mapped_column_goes_before_the_one_of_its_name(tmp_path):
    path = written(tmp_path, "case_id,slide_id,label,subtype,event,c,time\np,s,a,b,1,1,3\n")
    found = read(path, preset="clam", label="subtype", time="time", censorship="c")
    assert found.frame.loc[:, ["label", "event"]].to_numpy().tolist() == [["b", "0"]]
    assert found.notes == {
        "columns of labels.csv set aside for one read under their name": ["label", "event"]
    }
    assert found.sources["label"] == "subtype"


def test_event_and_censorship_are_one_question():
    study = {
        "output": "x",
        "preprocessing": {"manifest": "m.csv", "grid": {"mpp": 0.5}},
        "mil": {"labels": {"table": "t.csv", "columns": {"event": "e", "censorship": "c"}}},
    }
    with pytest.raises(ConfigError, match=r"give event or censorship \(1 = censored\), not both"):
        validate_study(study, source="test")


def test_one_column_may_be_two_ids(tmp_path):
    path = written(tmp_path, "slide\ns\n")
    frame = read(path, slide_id="slide", patient_id="slide").frame
    assert frame.to_dict("list") == {"slide_id": ["s"], "patient_id": ["s"]}


@pytest.mark.parametrize(
    ("preset", "columns", "message"),
    [
        (None, {"tme": "x"}, r"labels\.columns: tme is no canonical name; these are slide_id"),
        (None, {"time": "tme"}, r"labels\.columns\.time: no column 'tme' in .*there are slide_id"),
        (None, {"event": "censored"}, r"'censored', whose name says 1 = censored; .*censorship: c"),
        ("survpath", {"time": "x"}, r"time is given alone, .* from another endpoint"),
        ("gdc", {"event": "x"}, r"event is given alone"),
        (None, {"days_to_death": "x"}, r"days_to_death is no canonical name"),
    ],
)
def test_mappings_that_cannot_be_meant(tmp_path, preset, columns, message):
    path = written(tmp_path, "slide_id,x,censored\ns,1,1\n")
    with pytest.raises(ConfigError, match=message):
        read(path, preset=preset, **columns)


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("l.csv", "slide_id,y\na,1\nb,1,2\n", r"l\.csv, line 3: expected 2 values, got 3"),
        ("l.csv", "slide_id,y,y\na,1,1\n", r"column\(s\) y appear more than once"),
        ("l.csv", "slide_id;y\na;1\n", r"found one column 'slide_id;y'; save it with"),
        ("l.csv", "slide_id,y\n,,\n", r"expected rows below the header"),
        ("l.csv", "\n\n", r"expected a table, it has no values"),
        ("l.csv", 'slide_id\n"a"b\n', r"expected a CSV, got after line 1:"),
        ("l.tsv", 'slide_id\n"a"b\n', r"expected a TSV, got"),
        ("l.zip", "x", r"ends with \.csv, \.tsv or \.xlsx, got '\.zip'; unpack it"),
        ("l.xlsx", "no workbook", r"l\.xlsx: expected an Excel workbook"),
        ("l.csv", "slide_id,y\na,1\n,2\n,3\n", r"empty slide_id in line\(s\) \[3, 4\]"),
        ("l.csv", "case_id,y\na,1\n", r"expected a column slide_id or patient_id.*clam, mcat"),
        (
            "l.csv",
            "normal_1,0\nnormal_2,0\n",
            r"first line is data already, mhim_slides",
        ),
    ],
)
def test_bad_files_are_refused_by_line(tmp_path, name, text, message):
    with pytest.raises(CohortError, match=message):
        read(written(tmp_path, text, name))


def test_text_stays_as_it_is_written(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("\ufeffslide_id , y,\r\n 007 ,NA,5\r\n8,,6\r\n,,\r\n".encode())
    frame = read(path).frame
    assert list(frame.columns) == ["slide_id", "y"]
    assert frame.fillna("empty").to_numpy().tolist() == [["007", "NA"], ["8", "empty"]]


def test_csv_tsv_and_xlsx_read_alike(tmp_path):
    text = "patient_id,time,event\n007,3.5,1\n8,12,\n"
    csv = read(written(tmp_path, text)).frame
    tsv = read(written(tmp_path, text.replace(",", "\t"), "l.tsv")).frame
    cells = [["patient_id", "time", "event"], ["007", 3.5, 1.0], [8, 12.0, None], [None] * 3]
    found = read(workbook(tmp_path / "l.xlsx", cells, [["unread"]]))
    for frame in (tsv, found.frame):
        assert frame.fillna("").to_numpy().tolist() == csv.fillna("").to_numpy().tolist()
    assert found.notes == {"sheets of l.xlsx that were not read": ["more 1"]}


def test_joined_tables_need_not_agree_on_columns_that_nobody_asks_for(tmp_path):
    slides = written(tmp_path, "slide_id,patient_id,y\ns1,p1,a\ns2,p1,b\ns3,,c\n")
    clinical = written(tmp_path, "patient_id,drug,age\np1,x,5\np1,z,5\np2,x,6\n", "c.csv")
    found = read(slides, clinical)
    assert found.frame["slide_id"].tolist() == ["s1", "s1", "s2", "s2", "s3"]
    assert found.frame["age"].fillna("").tolist() == ["5", "5", "5", "5", ""]
    assert found.notes == {f"patient_ids of {clinical} without a row in {slides}": ["p2"]}


def test_joined_tables_that_contradict_each_other(tmp_path):
    one = written(tmp_path, "slide_id,patient_id,y\ns1,p1,a\ns2,p2,\n", "1.csv")
    two = written(tmp_path, "slide_id,y\ns1,a\ns2,b\n", "2.csv")
    assert read(one, two).frame["y"].tolist() == ["a", "b"]
    three = written(tmp_path, "slide_id,patient_id\ns1,p1\ns2,p9\n", "3.csv")
    with pytest.raises(CohortError, match=r"1\.csv and .*3\.csv disagree on patient_id of s2"):
        read(one, three)
    four = written(tmp_path, "slide_id,z\nS1,1\nS2,1\n", "4.csv")
    with pytest.raises(CohortError, match=r"4\.csv: none of its 2 slide_ids is in .*lower case"):
        read(one, four)
    five = written(tmp_path, "patient_id\np1\n", "5.csv")
    with pytest.raises(CohortError, match=r"share neither slide_id nor patient_id"):
        read(two, five)


def test_files_of_one_name_in_two_folders_are_not_one_slide(tmp_path):
    path = written(tmp_path, "case_id,slide_id,label\np,a/1.svs,x\nq,b/1.svs,x\n")
    with pytest.raises(CohortError, match=r"several files become one slide_id.*1 \(a/1\.svs, b/1"):
        read(path, preset="clam")


def test_patients_without_slides_are_listed(tmp_path):
    path = written(tmp_path, "ID,Event,Status,WSI\np,3,1,/a/1.pt; b/2.pt;\nq,4,0,\n")
    found = read(path, preset="mhim_survival")
    assert found.frame["slide_id"].tolist() == ["1", "2"]
    assert found.notes == {"patients without a slide in the label table": ["q"]}


@pytest.mark.parametrize(
    ("label", "slide", "message"),
    [
        ("a/x.svs", "x", r"folder or file ending \('a/x\.svs' in the table, 'x' in the manifest\)"),
        ("X", "x", "upper or lower case"),
        ("TCGA-AA-0001-01Z-00-DX1.F00", "TCGA-AA-0001-01Z-00-DX1", "the UUID behind the barcode"),
        ("TCGA-AA-0001-01A", "TCGA-AA-0001", "what follows the patient in the barcode"),
    ],
)
def test_near_misses_say_what_differs(label, slide, message):
    assert message.replace("\\", "") in near_misses([label, "other"], [slide, "more"])
    assert near_misses([label], ["another"]) == ""


def test_other_encodings_are_told_how_to_be_saved(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_bytes("slide_id,y\ns1,männlich\n".encode("latin-1"))
    with pytest.raises(CohortError, match=r"in UTF-8, got b'\\xe4' .*save it as 'CSV UTF-8'"):
        read_label_table(LabelsConfig(table=path))


def test_columns_that_look_like_ids_are_offered(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("Patient,WSI name,y\np,s,1\n")
    offered = r"say columns: \{slide_id: WSI name, patient_id: Patient\}$"
    with pytest.raises(CohortError, match=offered):
        read_label_table(LabelsConfig(table=path))


def test_a_column_that_is_not_there_is_guessed_at_in_the_message(tmp_path):
    path = tmp_path / "labels.csv"
    path.write_text("patient_id,months\np,1\n")
    with pytest.raises(ConfigError, match=r"no column 'Month' in .*did you mean 'months'\?"):
        read_label_table(LabelsConfig(table=path, columns={"time": "Month"}))
