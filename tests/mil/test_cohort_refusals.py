"""What labels and slides that do not go together are told: the file, the key and the remedy."""

import pytest
from cohort_fakes import ROWS, SURVIVAL, labels, rows

from mil.cohorts.cohort import read_cohort
from mil.tasks.config import SurvivalConfig
from preprocessing.errors import CohortError


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("slide,y\ns1,a\n", "expected a column slide_id or patient_id"),
        ("slide_id,z\ns1,a\n", r"no column 'y'; .* has slide_id, z"),
        ("slide_id,y\ns1,a\ns1,b\n", r"rows of one slide_id differ: s1 \(columns \['y'\]\)"),
        ("slide_id,y\n,a\n", r"empty slide_id in line\(s\) \[2\]"),
        ("slide_id,y\nnone,a\n", "none of its 1 rows matches"),
        (
            "slide_id,y\ns1,\ns2,\n",
            "2 slides of the manifest have a row, but in each .* y is empty",
        ),
        ("slide_id,patient_id,y\ns1,9,a\n", r"slide.s. s1 \(table: 9, manifest: 007\)"),
        (
            "slide_id,patient_id,y\ns1,7,a\n",
            r"\(table: 7, manifest: 007\); .*1 would match but for leading zeros \('7' in",
        ),
        (
            "slide_id,y\ns1,a\ns2,b\n",
            r"slides of one patient disagree on y: 007 \(a, b\); .*max .* or aggregate: none",
        ),
        (
            "slide_id,y\ns1,a\ns2,b\ns3,c\n",
            r"disagree on y: .* with aggregate: none \(slides for themselves\)$",
        ),
        (
            "slide_id,y\na/s1.svs,a\ns9,b\n",
            r"1 would match but for folder or file ending \('a/s1.svs' in the table.*: "
            r"set labels\.bare_ids: true, which strips them from the table's slide ids$",
        ),
        ("slide_id,patient_id,y\nt1,007,a\n", r"by slide_id: .*patients do match \(1\)"),
    ],
)
def test_bad_tables_are_refused_by_name(tmp_path, text, message):
    with pytest.raises(CohortError, match=message):
        read_cohort(ROWS, labels(tmp_path, text), ("y",), patient_target=True)


@pytest.mark.parametrize(
    ("text", "preset", "columns", "message"),
    [
        (
            "slide_id,time,censorship_os\ns1,3,1\n",
            None,
            ("time", "event"),
            r"no column event, but censorship_os; if 1 = censored there, set "
            r"labels\.columns\.censorship: censorship_os",
        ),
        (
            "slide_id,time,censored\ns1,3,1\n",
            None,
            ("time", "censored"),
            r"asks for 'censored', whose name says 1 = censored; set labels\.columns\.censorship",
        ),
        (
            "case_id,slide_id,survival_months,censorship\n007,s1,3,1\n",
            "mcat",
            ("survival_months", "event"),
            r"column 'survival_months' is read as time; write that in the task",
        ),
        (
            "case_id,slide_id,survival_months,censorship\n007,s1,3,1\n",
            "mcat",
            ("time", "censorship"),
            r"column 'censorship' is read as event \(1 = observed\)",
        ),
    ],
)
def test_censorship_is_never_taken_for_an_event(tmp_path, text, preset, columns, message):
    with pytest.raises(CohortError, match=message):
        read_cohort(ROWS, labels(tmp_path, text, preset=preset), columns, patient_target=True)


def test_own_table_with_file_names(tmp_path):
    config = labels(tmp_path, "slide_id,y\na/s1.svs,a\ns2.svs,a\ns3,b\n", bare_ids=True)
    cohort = read_cohort(ROWS, config, ("y",), patient_target=True)
    assert cohort.slides["y"].tolist() == ["a", "a", "b"]
    with pytest.raises(CohortError, match=r"'s1.svs' in the manifest.: write slide_id in the man"):
        read_cohort(rows(("s1.svs", "p")), config, ("y",), patient_target=True)


def test_slides_of_a_patient_may_not_differ_in_follow_up(tmp_path):
    config = labels(tmp_path, "slide_id,time,event\ns1,3,1\ns2,4,1\n")
    with pytest.raises(CohortError, match=r"disagree on time: 007 \(3, 4\); .*one value$"):
        read_cohort(ROWS, config, SURVIVAL.columns, patient_target=True)


def test_the_key_that_asks_is_named(tmp_path):
    config = labels(tmp_path, "patient_id,months,dead\n007,3,1\n")
    target = SurvivalConfig(time="month", event="died")
    with pytest.raises(
        CohortError,
        match=r"mil\.tasks\.t\.target\.time: no column 'month'; did you mean 'months'\?; "
        r"mil\.tasks\.t\.target\.event: no column 'died'",
    ):
        read_cohort(
            ROWS,
            config,
            target.columns,
            patient_target=True,
            target=target,
            key="mil.tasks.t.target",
        )
    with pytest.raises(CohortError, match=r"split\.group.*did you mean 'months'\?"):
        read_cohort(ROWS, config, ("months",), patient_target=True, group="Month")


@pytest.mark.parametrize(
    ("row", "message"),
    [
        (
            "3,x,Dead",
            r"column 'event': .* got \['Dead'\] for 007; write 1 for dead .*preset: stamp",
        ),
        ("3,x,2", r"column 'event': .* got \['2'\] for 007; code the event as 1"),
        ("'3,5',x,1", r"column 'time': .* got \['3,5'\] for 007; write a decimal point \(3\.5\)"),
        ("0,x,1", r"column 'time': .* got \['0'\] for 007; a time of 0 or below .* leave the cell"),
        ("long,x,1", r"column 'time': .* got \['long'\] for 007; write numbers"),
    ],
)
def test_follow_up_is_checked_with_file_key_and_remedy(tmp_path, row, message):
    text = f"patient_id,months,x,event\n007,{row}\n".replace("'", '"')
    config = labels(tmp_path, text, columns={"time": "months", "event": "event"})
    where = r"labels\.csv \(mil\.tasks\.t\.target; time is its column months\): "
    with pytest.raises(CohortError, match=where + message):
        read_cohort(
            ROWS,
            config,
            SURVIVAL.columns,
            patient_target=True,
            target=SURVIVAL,
            key="mil.tasks.t.target",
        )


def test_words_are_read_as_the_refusal_says(tmp_path):
    columns = {"patient_id": "pid", "time": "months", "event": "died"}
    config = labels(
        tmp_path, "pid,months,died\n007,3,Dead\n8,4,alive\n", preset="stamp", columns=columns
    )
    cohort = read_cohort(ROWS, config, SURVIVAL.columns, patient_target=True, target=SURVIVAL)
    assert cohort.bags("patient")["event"].tolist() == ["1", "0"]
