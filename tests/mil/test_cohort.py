from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from cohort_fakes import ROWS, SURVIVAL, THREE, labels, rows
from sksurv.nonparametric import kaplan_meier_estimator

from mil.cohorts.cohort import Cohort, read_cohort
from mil.cohorts.config import LabelsConfig
from mil.cohorts.label_table import read_label_table
from mil.tasks.config import ClassificationConfig, SurvivalConfig
from preprocessing.errors import CohortError, ConfigError
from preprocessing.manifest import SlideRow


def rows_of(config: LabelsConfig) -> list[SlideRow]:
    """A manifest of the table's own slides; patients alone get one slide each."""
    frame = read_label_table(config).frame
    slides = frame["slide_id"] if "slide_id" in frame else frame["patient_id"] + "-slide"
    patients = frame.get("patient_id", slides)
    return rows(*zip(slides, patients, strict=True))


def test_ids_and_labels_stay_text(tmp_path):
    config = labels(tmp_path, "slide_id,grade\ns1,1\ns2,1.0\ns3,01\n")
    cohort = read_cohort(ROWS, config, ("grade",), patient_target=False)
    assert cohort.slides["grade"].tolist() == ["1", "1", "01"]
    assert cohort.slides["patient_id"].tolist() == ["007", "007", "8"]


def test_patient_labels_reach_every_slide_and_form_patient_bags(tmp_path):
    config = labels(tmp_path, "patient_id,time,event\n007,3.5,1\n8,4,0\n")
    cohort = read_cohort(ROWS, config, ("time", "event"), patient_target=True)
    bags = cohort.bags("patient")
    assert bags["slide_ids"].to_dict() == {"007": ("s1", "s2"), "8": ("s3",)}
    assert bags.loc["007", ["time", "event"]].tolist() == ["3.5", "1"]
    assert cohort.bags("slide")["slide_ids"].tolist() == [("s1",), ("s2",), ("s3",)]


def test_what_does_not_match_is_reported_with_its_reason(tmp_path):
    config = labels(tmp_path, "slide_id,y\ns1,a\ns3,\nother,b\n")
    cohort = read_cohort(ROWS, config, ("y",), patient_target=False)
    assert cohort.slides.index.tolist() == ["s1"]
    assert cohort.report == {
        "slides without a label": ["s2"],
        "slides whose y is empty": ["s3"],
        "labels without a slide": ["other"],
    }
    with pytest.raises(
        CohortError, match=r"no labelled slide is left: slides without features \(s1"
    ):
        cohort.only({"s2"}, "slides without features")


def test_reasons_of_the_table_reach_the_report(tmp_path):
    text = "PATIENT,time_label,status_label\n007,3,dead\n8,4,lost\n"
    cohort = read_cohort(
        ROWS, labels(tmp_path, text, preset="stamp"), SURVIVAL.columns, patient_target=True
    )
    assert cohort.slides["event"].to_dict() == {"s1": "1", "s2": "1"}
    (reason,) = (r for r in cohort.report if r.startswith("no follow-up: status_label is none of"))
    assert cohort.report[reason] == ["8"]
    assert cohort.report["slides whose time or event is empty"] == ["s3"]


def test_covariates_and_group_ride_along(tmp_path):
    config = labels(tmp_path, "slide_id,y,age,stage\ns1,a,60.0,\ns2,a,60,II\ns3,b,,\n")
    manifest = rows(*THREE, site=["x", "", "z"], age=["1", "2", "3"])
    cohort = read_cohort(
        manifest, config, ("y",), patient_target=True, covariates=("age", "stage"), group="site"
    )
    assert cohort.other_columns == ("age", "stage", "site")
    for unit in ("slide", "patient"):
        bags = cohort.bags(unit)
        first = bags.iloc[0]
        assert (first["age"], first["stage"], first["site"]) == ("60", "II", "x")
        assert bags.iloc[-1][["age", "stage"]].isna().all()
    kept = cohort.only({"s1", "s3"}, "gone")
    assert kept.other_columns == cohort.other_columns
    assert kept.report == {"gone": ["s2"]}
    assert kept.bags("slide")["site"].tolist() == ["x", "z"]


def test_covariates_belong_to_the_patient(tmp_path):
    config = labels(tmp_path, "slide_id,y,age\ns1,a,60\ns2,a,61\ns3,b,\n")
    with pytest.raises(CohortError, match=r"slides of one patient differ in 'age': 007"):
        read_cohort(ROWS, config, ("y",), patient_target=False, covariates=("age",))
    with pytest.raises(CohortError, match=r"slides of one patient differ in 'age': 007"):
        read_cohort(ROWS, config, ("y",), patient_target=False, group="age")


def test_an_empty_group_is_refused_and_an_unknown_column_named(tmp_path):
    config = labels(tmp_path, "slide_id,y,age\ns1,a,60\ns2,a,60\ns3,b,61\n")
    manifest = rows(*THREE, site=["x", "x", ""])
    with pytest.raises(CohortError, match=r"split\.group: 'site' is empty for slide\(s\) s3"):
        read_cohort(manifest, config, ("y",), patient_target=True, group="site")
    with pytest.raises(
        CohortError, match=r"'grade' .*no such column in .*'age'\], nor .*\['site'\]"
    ):
        read_cohort(manifest, config, ("y",), patient_target=True, covariates=("grade",))


def test_a_target_is_no_covariate_and_an_id_no_group(tmp_path):
    config = labels(tmp_path, "slide_id,y\ns1,a\n")
    with pytest.raises(ConfigError, match="y: a target cannot be a covariate"):
        read_cohort(ROWS, config, ("y",), patient_target=False, covariates=("y",))
    with pytest.raises(ConfigError, match=r"patient_id: expected a covariate or a group"):
        read_cohort(ROWS, config, ("y",), patient_target=False, group="patient_id")


def test_missing_table(tmp_path):
    config = LabelsConfig(table=tmp_path / "nothing.csv")
    with pytest.raises(CohortError, match=r"nothing\.csv does not exist"):
        read_cohort(ROWS, config, ("y",), patient_target=False)


def test_agreeing_repeated_rows_are_one(tmp_path):
    config = labels(tmp_path, "patient_id,y,drug\n007,a,p\n007,a,q\n007,,r\n8,b,\n")
    cohort = read_cohort(ROWS, config, ("y",), patient_target=True)
    assert cohort.slides["y"].tolist() == ["a", "a", "b"]


def test_columns_that_are_empty_throughout(tmp_path):
    text = "patient_id,y,status,grade\n007,a,,\n8,b,,\n"
    config = labels(tmp_path, text, preset="stamp", columns={"patient_id": "patient_id"})
    cohort = read_cohort(ROWS, config, ("y",), patient_target=True, covariates=("grade",))
    assert cohort.bags("patient")["grade"].isna().all()
    for name in ("event", "censorship"):
        columns = {"patient_id": "patient_id", "time": "y", name: "status"}
        config = labels(tmp_path, text, preset="stamp", columns=columns)
        with pytest.raises(CohortError, match=r"3 slides .* have a row, .* time or event is empty"):
            read_cohort(ROWS, config, SURVIVAL.columns, patient_target=True)


def test_description_of_classes(shared):
    config = LabelsConfig(
        table=shared / "tables/clam/tumor_vs_normal_dummy_clean.csv", preset="clam"
    )
    cohort = read_cohort(rows_of(config), config, ("label",), patient_target=False)
    assert cohort.describe(ClassificationConfig(label="label")) == [
        "500 slides of 450 patients",
        "label = normal_tissue: 350 slides of 329 patients",
        "label = tumor_tissue: 150 slides of 147 patients",
    ]
    with pytest.raises(CohortError, match=r"slides of one patient disagree .* and 21 more"):
        read_cohort(rows_of(config), config, ("label",), patient_target=True)


def survpath(shared: Path) -> Cohort:
    folder = shared / "tables/survpath"
    config = LabelsConfig(
        table=folder / "tcga_blca_metadata.csv",
        join=(folder / "tcga_blca_clinical.csv",),
        preset="survpath",
    )
    return read_cohort(
        rows_of(config),
        config,
        SURVIVAL.columns,
        patient_target=True,
        covariates=("age", "stage", "grade"),
        group="site",
    )


def test_description_of_follow_up(shared):
    """The median of reverse Kaplan-Meier, against scikit-survival."""
    cohort = survpath(shared)
    bags = cohort.bags("patient")
    times, censored = bags["time"].astype(float).to_numpy(), (bags["event"] == "0").to_numpy()
    at, share = kaplan_meier_estimator(censored, times)
    median = at[np.flatnonzero(share <= 0.5)[0]]
    assert cohort.describe(SURVIVAL) == [
        "423 slides of 359 patients",
        "359 patients: 156 events, 203 censored",
        f"median follow-up (reverse Kaplan-Meier): {median:.4g} (in the unit of survival_months)",
    ]


def test_follow_up_without_censored_patients_has_no_median():
    slides = pd.DataFrame(
        {"patient_id": ["p", "q"], "time": ["1", "2"], "event": ["1", "1"]}, index=["a", "b"]
    )
    lines = Cohort(slides, SURVIVAL.columns).describe(SURVIVAL)
    assert lines[-1].endswith("not reached; the longest is 2 (in the unit of time)")
    months = SurvivalConfig(time="time", event="event", unit="months")
    assert Cohort(slides, SURVIVAL.columns).describe(months)[-1].endswith("longest is 2 (months)")


def test_one_slide_is_counted_in_the_singular():
    slides = pd.DataFrame({"patient_id": ["p", "q"], "y": ["1", "0"]}, index=["a", "b"])
    lines = Cohort(slides, ("y",)).describe(ClassificationConfig(label="y"))
    assert lines[1] == "y = 0: 1 slide of 1 patient"


def test_a_real_cohort_with_clinical_covariates_and_sites(shared):
    bags = survpath(shared).bags("patient")
    assert len(bags) == 359
    assert bags["site"].notna().all()
    assert bags["site"].nunique() == 33
    assert bags["age"].astype(float).between(18, 100).all()
    assert 0 < bags["stage"].isna().sum() < 40
