from pathlib import Path

import pandas as pd
import pytest

from mil.cohort import read_cohort
from preprocessing.errors import CohortError
from preprocessing.manifest import SlideRow


def rows(*pairs: tuple[str, str]) -> list[SlideRow]:
    return [SlideRow(slide_id, patient_id, Path("x.tiff")) for slide_id, patient_id in pairs]


ROWS = rows(("s1", "007"), ("s2", "007"), ("s3", "8"))


def labels(tmp_path: Path, text: str) -> Path:
    path = tmp_path / "labels.csv"
    path.write_text(text)
    return path


def test_ids_and_labels_stay_text(tmp_path):
    path = labels(tmp_path, "slide_id,grade\ns1,1\ns2,1\ns3,01\n")
    cohort = read_cohort(ROWS, path, ("grade",), patient_target=False)
    assert cohort.slides["grade"].tolist() == ["1", "1", "01"]
    assert cohort.slides["patient_id"].tolist() == ["007", "007", "8"]


def test_patient_labels_reach_every_slide_and_form_patient_bags(tmp_path):
    path = labels(tmp_path, "patient_id,time,event\n007,3.5,1\n8,4,0\n")
    cohort = read_cohort(ROWS, path, ("time", "event"), patient_target=True)
    bags = cohort.bags("patient")
    assert bags["slide_ids"].to_dict() == {"007": ("s1", "s2"), "8": ("s3",)}
    assert bags.loc["007", ["time", "event"]].tolist() == ["3.5", "1"]
    assert cohort.bags("slide")["slide_ids"].tolist() == [("s1",), ("s2",), ("s3",)]


def test_what_does_not_match_is_reported(tmp_path):
    path = labels(tmp_path, "slide_id,y\ns1,a\ns3,\nother,b\n")
    cohort = read_cohort(ROWS, path, ("y",), patient_target=False)
    assert cohort.slides.index.tolist() == ["s1"]
    assert cohort.report == {
        "slides without a label": ["s2", "s3"],
        "labels without a slide": ["other"],
    }
    with pytest.raises(
        CohortError, match=r"no labelled slide is left: slides without features \(s1"
    ):
        cohort.only({"s2"}, "slides without features")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,y\ns1,a\n", "expected a column slide_id or patient_id"),
        ("slide_id,z\ns1,a\n", r"no column \['y'\]"),
        ("slide_id,y\ns1,a\ns1,b\n", "rows of one slide_id differ: s1"),
        ("slide_id,y\n,a\n", r"empty slide_id in line\(s\) \[2\]"),
        ("slide_id,y\nnone,a\n", "none of its 1 rows matches"),
        ("slide_id,patient_id,y\ns1,9,a\n", "different patients for slide.s. s1"),
        ("slide_id,y\ns1,a\ns2,b\n", "slides of one patient disagree .*007"),
    ],
)
def test_bad_tables_are_refused_by_name(tmp_path, text, message):
    with pytest.raises(CohortError, match=message):
        read_cohort(ROWS, labels(tmp_path, text), ("y",), patient_target=True)


def test_missing_table(tmp_path):
    with pytest.raises(CohortError, match=r"nothing\.csv does not exist"):
        read_cohort(ROWS, tmp_path / "nothing.csv", ("y",), patient_target=False)


def test_agreeing_repeated_rows_are_one(tmp_path):
    path = labels(tmp_path, "patient_id,y\n007,a\n007,a\n8,b\n")
    cohort = read_cohort(ROWS, path, ("y",), patient_target=True)
    assert isinstance(cohort.slides, pd.DataFrame)
    assert len(cohort.slides) == 3
