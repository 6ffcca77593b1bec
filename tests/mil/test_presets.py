"""Every published table that is at hand, against the counts of its publication and one another."""

from pathlib import Path

import pytest

from mil.cohorts.config import LabelsConfig
from mil.cohorts.label_table import LabelTable, read_label_table
from mil.cohorts.presets import CANONICAL, PRESETS, VITAL
from preprocessing.errors import CohortError, ConfigError


def read(preset: str, *tables: Path, **columns: str) -> LabelTable:
    table, *join = tables
    return read_label_table(
        LabelsConfig(table=table, join=tuple(join), preset=preset, columns=columns)
    )


def patients(table: LabelTable):
    return table.frame.drop_duplicates("patient_id").set_index("patient_id")


def written(tmp_path: Path, text: str, name: str = "labels.csv") -> Path:
    path = tmp_path / name
    path.write_text(text)
    return path


def test_every_preset_says_what_it_reads():
    for name, preset in PRESETS.items():
        assert set(preset.columns) <= {*CANONICAL, *VITAL}, name
        assert {"slide_id", "patient_id"} & set(preset.columns), name
        assert not {"event", "censorship"} <= set(preset.columns), name
        assert set(preset.values) <= set(preset.columns), name
        assert preset.source, name


@pytest.mark.parametrize(
    ("table", "events", "cases"), [("blca", 171, 376), ("luad", 159, 455), ("lusc", 190, 452)]
)
def test_mhim_survival(shared, table, events, cases):
    found = read("mhim_survival", shared / f"tables/mhim/label_{table}_surv.csv")
    each = patients(found)
    assert len(each) == cases
    assert (each["event"] == "1").sum() == events
    assert found.frame["slide_id"].is_unique
    assert (found.frame["slide_id"].str[:12] == found.frame["patient_id"]).all()
    assert not found.frame["slide_id"].str.contains(r"/|\.pt$|;").any()


@pytest.mark.parametrize(("endpoint", "events"), [("", 156), ("_dss", 113), ("_pfi", 158)])
def test_survpath(shared, endpoint, events):
    columns = {"time": f"survival_months{endpoint}", "censorship": f"censorship{endpoint}"}
    path = shared / "tables/survpath/tcga_blca_metadata.csv"
    found = read("survpath", path, **(columns if endpoint else {}))
    assert len(found.frame) == 423
    assert found.frame["slide_id"].str.fullmatch(r"TCGA-.{7}-.*\.[0-9A-Fa-f-]{36}").all()
    each = patients(found)
    assert len(each) == 359
    assert (each["event"] == "1").sum() == events


def test_two_publications_of_one_cohort_agree_who_died(shared):
    """MHIM writes 1 = event, SurvPath 1 = censored: only one reading of both can agree."""
    mhim = patients(read("mhim_survival", shared / "tables/mhim/label_blca_surv.csv"))
    survpath = patients(read("survpath", shared / "tables/survpath/tcga_blca_metadata.csv"))
    both = mhim.join(survpath, rsuffix="_survpath", how="inner")
    assert len(both) == 353
    assert (both["event"] == both["event_survpath"]).all()
    assert both["time"].astype(float).sub(both["time_survpath"].astype(float)).abs().max() < 0.1


def test_survpath_clinical_table_joins_by_case_and_its_repeated_case_stays_one(shared):
    folder = shared / "tables/survpath"
    metadata, clinical = folder / "tcga_blca_metadata.csv", folder / "tcga_blca_clinical.csv"
    found = read("survpath", metadata, clinical)
    assert len(found.frame) == 423
    assert set(found.frame["stage"].dropna()) == {"0", "I", "II", "III", "IV"}  # N/A is empty
    assert found.notes == {
        f"patient_ids of {clinical} without a row in {metadata}": [*absent(found)]
    }


def absent(found: LabelTable) -> list[str]:
    (ids,) = found.notes.values()
    assert len(ids) == 53
    assert not set(ids) & set(found.frame["patient_id"])
    return ids


def test_tissue_source_sites_are_survpaths(shared):
    """SurvPath publishes the site: what is read from the barcodes must be the same."""
    published = patients(read("survpath", shared / "tables/survpath/tcga_blca_metadata.csv"))
    filled = patients(read("mhim_survival", shared / "tables/mhim/label_blca_surv.csv"))
    both = published.join(filled, rsuffix="_filled", how="inner")
    assert (both["site"] == both["site_filled"]).all()
    assert both["site"].nunique() > 20


def test_camelyon16_is_one_slide_a_patient(shared):
    acmil = read("acmil_camelyon16", shared / "tables/acmil/camelyon16.csv").frame
    assert len(acmil) == acmil["patient_id"].nunique() == 399
    assert (acmil["label"] == "1").sum() == 160
    assert acmil["case_id"].nunique() == 362  # made up
    mhim = read("mhim_slides", shared / "tables/mhim/label_c16.csv").frame
    assert len(mhim) == 398
    assert set(acmil["slide_id"]) - set(mhim["slide_id"]) == {"test_114"}
    both = acmil.merge(mhim, on="slide_id")
    assert (both["label_x"] == both["label_y"]).all()
    assert "site" not in acmil


def test_camelyon17_patients_are_not_the_ten_cases(shared):
    found = read("acmil_camelyon17", shared / "tables/acmil/camelyon17.csv").frame
    assert len(found) == 164
    assert found["case_id"].nunique() == 10
    assert found["patient_id"].nunique() == 83
    assert (found["label"] == "1").sum() == 50
    assert all(
        s.startswith(f"{p}_node_")
        for s, p in zip(found["slide_id"], found["patient_id"], strict=True)
    )


def test_bracs_labels_are_those_of_its_folders(shared):
    found = read("acmil_bracs", shared / "tables/acmil/bracs.csv").frame
    assert len(found) == 547
    assert (found["label"] == found["full_path"].str.extract(r"/Type_([^/]+)/")[0]).all()
    assert set(found["split_info"]) == {"train", "val", "test"}
    assert "patient_id" not in found  # case_id numbers the slides


@pytest.mark.parametrize(
    ("preset", "file", "slides", "cases", "labels"),
    [
        ("acmil_brca", "acmil/brca_hipt.csv", 1041, 977, {"IDC": 831, "ILC": 210}),
        (
            "clam",
            "clam/tumor_vs_normal_dummy_clean.csv",
            500,
            450,
            {"normal_tissue": 350, "tumor_tissue": 150},
        ),
        ("mhim_patients", "mhim/label_tcga_nsclc.csv", 956, 956, {"LUAD": 478, "LUSC": 478}),
        (
            "slideflow",
            "pathbench/dataset5.csv",
            505,
            471,
            {
                "Squamous cell carcinoma, NOS": 479,
                "Squamous cell carcinoma, keratinizing, NOS": 13,
                "Basaloid squamous cell carcinoma": 13,
            },
        ),
    ],
)
def test_tables_of_classes(shared, preset, file, slides, cases, labels):
    found = read(preset, shared / "tables" / file).frame
    assert len(found) == slides
    assert found["patient_id"].nunique() == cases
    assert found["label"].value_counts().to_dict() == labels


def test_stamp_follows_the_status_words_of_stamp(tmp_path):
    clini = written(
        tmp_path,
        "PATIENT,OS_days,OS_status,isMSIH\n"
        "p1,10,Dead,MSIH\np2,20,0,nonMSIH\np3,30,lost,MSIH\np4,40,,MSIH\np5,50,1.0,MSIH\n",
    )
    slides = written(
        tmp_path, "PATIENT,FILENAME\np1,a/x.1.h5\np1,y.h5\np2,z.h5\np9,q.h5\n", "s.csv"
    )
    found = read("stamp", clini, time="OS_days", event="OS_status", label="isMSIH")
    assert found.frame["event"].fillna("none").tolist() == ["1", "0", "none", "none", "1"]
    (reason,) = found.notes
    assert reason.startswith("no follow-up: OS_status is none of 0, 1, alive, dead")
    assert found.notes[reason] == ["p3"]
    both = read("stamp", clini, slides, label="isMSIH")
    assert both.frame["slide_id"].tolist() == ["x.1", "y", "z"]
    assert both.notes[f"patient_ids of {clini} without a row in {slides}"] == ["p3", "p4", "p5"]
    assert both.notes[f"patient_ids of {slides} without a row in {clini}"] == ["p9"]


def test_gdc_follow_up_is_that_of_the_vital_status(tmp_path):
    text = (
        "cases.submitter_id\tdemographic.vital_status\tdemographic.days_to_death\t"
        "diagnoses.days_to_last_follow_up\n"
        "TCGA-AA-0001\tDead\t100\t50\nTCGA-BB-0002\tAlive\t'--\t70\n"
        "TCGA-BB-0003\tNot Reported\t'--\t7\nTCGA-BB-0004\tDead\t'--\t90\n"
        "TCGA-BB-0005\tAlive\t'--\t0\nTCGA-BB-0005\tAlive\t'--\t3\n"
    )
    found = read("gdc", written(tmp_path, text, "clinical.tsv"))
    known = found.frame.dropna(subset=["time", "event"])
    assert known[["patient_id", "time", "event", "site"]].to_numpy().tolist() == [
        ["TCGA-AA-0001", "100", "1", "AA"],
        ["TCGA-BB-0002", "70", "0", "BB"],
        ["TCGA-BB-0005", "3", "0", "BB"],
    ]
    assert found.notes == {
        "no follow-up: vital_status is none of 0, 1, alive, dead": ["TCGA-BB-0003"],
        "no follow-up: no time above 0": ["TCGA-BB-0003", "TCGA-BB-0004"],
    }


def test_tcga_cdr_lists_who_was_not_followed(tmp_path):
    text = (
        ",bcr_patient_barcode,OS,OS.time,PFI,PFI.time\n"
        "1,TCGA-AA-0001,1,100,1,50\n2,TCGA-AA-0002,0,0,0,[Not Available]\n"
        "3,TCGA-AA-0003,#N/A,#N/A,0,7\n"
    )
    path = written(tmp_path, text)
    found = read("tcga_cdr", path)
    assert found.frame.dropna()["patient_id"].tolist() == ["TCGA-AA-0001"]
    assert found.notes == {"no follow-up: no time above 0": ["TCGA-AA-0002", "TCGA-AA-0003"]}
    other = read("tcga_cdr", path, time="PFI.time", event="PFI")
    assert other.frame["time"].dropna().tolist() == ["50", "7"]


@pytest.mark.parametrize(
    ("preset", "header", "row"),
    [
        ("mcat", "case_id,slide_id,survival_months,censorship", "p,s.svs,3,1"),
        ("panther", "case_id,slide_id,os_survival_days,os_censorship", "p,s,3,1"),
        ("patho_bench", "case_id,slide_id,OS_days,OS_event", "p,s,3,0"),
        ("nnmil", "patient_id,slide_id,time,event", "p,/x/s.tiff,3.0,0.0"),
        ("mhim_survival", "Study,ID,Event,Status,WSI", "x,p,3,0,/a/s.pt"),
    ],
)
def test_survival_layouts_come_out_the_same(tmp_path, preset, header, row):
    frame = read(preset, written(tmp_path, f"{header}\n{row}\n")).frame
    assert frame[["patient_id", "slide_id"]].to_numpy().tolist() == [["p", "s"]]
    assert float(frame["time"].iloc[0]) == 3
    assert float(frame["event"].iloc[0]) == 0


def test_values_that_a_layout_does_not_know_are_refused(tmp_path):
    path = written(tmp_path, "slide_id,label,full_path\na,3,x\nb,7,x\n")
    with pytest.raises(CohortError, match=r"column 'label': expected 0 \(N\), .*got \['7'\] for b"):
        read("acmil_bracs", path)
    assert read("acmil_bracs", path, label="full_path").frame["label"].tolist() == ["x", "x"]
    path = written(tmp_path, "slide_id,label\npatient_001_node_1,0\nnode_1,0\n")
    with pytest.raises(CohortError, match=r"begin with their patient .*got node_1"):
        read("acmil_camelyon17", path)


def test_two_columns_that_a_layout_could_mean_are_refused(tmp_path):
    path = written(tmp_path, "case_submitter_id,cases.submitter_id\na,b\n")
    with pytest.raises(ConfigError, match=r"could both be patient_id; name one of them"):
        read("gdc", path)
    assert read("gdc", path, patient_id="cases.submitter_id").frame["patient_id"].tolist() == ["b"]
