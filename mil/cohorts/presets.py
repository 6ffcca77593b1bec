"""Layouts of cohort tables as other tools publish them: which column means what, and their traps.

A preset is named by the user (labels.preset), never recognised. What it cannot say about a table
stands in labels.columns, which goes before it. Survival tables come out as `time` and `event`
(1 = observed), whatever they say themselves.
"""

import textwrap
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

CANONICAL = ("slide_id", "patient_id", "label", "time", "event", "site", "censorship")
# What follow-up is derived from where a table gives no time and event of its own.
VITAL = ("vital_status", "days_to_death", "days_to_last_follow_up")


@dataclass(frozen=True)
class Preset:
    """One layout. Columns it names may be absent; only what a task asks for must be there."""

    source: str
    columns: Mapping[str, tuple[str, ...]]  # canonical name -> names it may have in the table
    notes: tuple[str, ...] = ()  # traps of the published tables, and why they are read as they are
    header: bool = True  # False: the first line is data; columns are called 1, 2, ...
    bare_ids: bool = True  # slide ids lose folders and file endings (never another dot)
    slides_in_one_cell: bool = False  # a patient's slides stand in one cell, joined by ;
    patient_in_slide: str | None = None  # the patient is what this pattern finds in the slide id
    values: Mapping[str, Mapping[str, str]] = field(default_factory=dict)  # column -> old -> new
    event_words: Mapping[str, str] = field(default_factory=dict)  # other events are left empty
    missing: tuple[str, ...] = ()  # cells that mean empty
    positive_times: bool = False  # times that are not above 0 are left empty instead of refused


PLAIN = Preset(source="canonical column names", columns={}, bare_ids=False)

_CASE_AND_SLIDE = {"patient_id": ("case_id",), "slide_id": ("slide_id",)}
_CENSORED = "censorship is 1 = censored there; it is read as event = 1 - censorship"
_DEAD = {"0": "0", "1": "1", "alive": "0", "dead": "1"}

PRESETS: dict[str, Preset] = {
    "clam": Preset(
        source="CLAM: dataset_csv/*.csv",
        columns={**_CASE_AND_SLIDE, "label": ("label",)},
        notes=(
            "the dummy table has 26 of 450 cases whose slides have different labels: ask it with "
            "aggregate: max and positive: tumor_tissue (a case is positive if one slide is), or "
            "with aggregate: none",
        ),
    ),
    "mcat": Preset(
        source="MCAT, Patch-GCN and PORPOISE: dataset_csv/*.csv",
        columns={
            **_CASE_AND_SLIDE,
            "time": ("survival_months",),
            "censorship": ("censorship",),
            "site": ("site",),
        },
        notes=(_CENSORED, "slide ids carry their file ending"),
    ),
    "survpath": Preset(
        source="SurvPath: datasets_csv/metadata and clinical_data (give the latter in labels.join)",
        columns={
            **_CASE_AND_SLIDE,
            "time": ("survival_months",),
            "censorship": ("censorship",),
            "site": ("site",),
        },
        notes=(
            _CENSORED,
            "other endpoints: columns: {time: survival_months_dss, censorship: censorship_dss}, or "
            "_pfi; the clinical table repeats a case and writes N/A for empty",
        ),
        missing=("N/A",),
    ),
    "panther": Preset(
        source="PANTHER and MMP: splits/survival/*/*.csv",
        columns={
            **_CASE_AND_SLIDE,
            "time": ("os_survival_days",),
            "censorship": ("os_censorship",),
        },
        notes=(
            "os_censorship is 1 = censored there; it is read as event = 1 - os_censorship",
            "other endpoints: columns: {time: dss_survival_days, censorship: dss_censorship}",
        ),
    ),
    "mhim_survival": Preset(
        source="MHIM-MIL: label_*_surv.csv",
        columns={
            "patient_id": ("ID",),
            "slide_id": ("WSI",),
            "time": ("Event",),
            "event": ("Status",),
        },
        notes=("Event is the time (months) and Status is 1 = event; WSI joins paths by ;",),
        slides_in_one_cell=True,
    ),
    "mhim_slides": Preset(
        source="MHIM-MIL: label_c16.csv (slide, label; no header)",
        columns={"slide_id": ("1",), "label": ("2",)},
        notes=("CAMELYON16 has one slide a patient; the table leaves test_114 out",),
        header=False,
    ),
    "mhim_patients": Preset(
        source="MHIM-MIL: label_tcga_nsclc.csv (patient, label; no header)",
        columns={"patient_id": ("1",), "label": ("2",)},
        header=False,
    ),
    "stamp": Preset(
        source="STAMP: clini_table; give the slide_table in labels.join",
        columns={
            "patient_id": ("PATIENT",),
            "slide_id": ("FILENAME",),
            "time": ("time_label",),
            "event": ("status_label",),
        },
        notes=(
            "name the clini_table's own columns: columns: {label: isMSIH} or {time: ..., event: "
            "...}; FILENAME is a feature file (.h5)",
            "status 1, dead, event or yes is an event, 0, alive, censored or no is none; patients "
            "with another status have no follow-up, as in STAMP, and are listed",
        ),
        event_words={**_DEAD, "event": "1", "yes": "1", "censored": "0", "no": "0"},
    ),
    "patho_bench": Preset(
        source="Patho-Bench: <task>/k=all.tsv",
        columns={**_CASE_AND_SLIDE, "time": ("OS_days",), "event": ("OS_event",)},
        notes=(
            "other tasks: columns: {time: PFS_days, event: PFS_event}, or {label: <task's column>}",
        ),
    ),
    "slideflow": Preset(
        source="Slideflow and PathBench: annotations CSV",
        columns={"patient_id": ("patient",), "slide_id": ("slide",), "label": ("category",)},
        notes=("the column dataset (train or test) keeps its name and splits nothing by itself",),
    ),
    "acmil_camelyon16": Preset(
        source="ACMIL: dataset_csv/camelyon16.csv",
        columns={"slide_id": ("slide_id",), "label": ("label",)},
        notes=(
            "the 399 slides are of 399 patients; case_id groups them at random and differs from "
            "that, and published splits put one case_id into train and val: the patient is the "
            "slide",
        ),
        patient_in_slide=r"^.+$",
    ),
    "acmil_camelyon17": Preset(
        source="ACMIL: dataset_csv/camelyon17.csv",
        columns={"slide_id": ("slide_id",), "label": ("label",)},
        notes=(
            "case_id is the patient cut to 10 characters, so that 10 cases hold the slides of 83 "
            "patients: the patient is read from the slide id",
            "32 patients have slides of label 0 and of label 1: ask with aggregate: max and "
            "positive: 1, or with aggregate: none",
        ),
        patient_in_slide=r"^patient_\d{3}(?=_)",
    ),
    "acmil_bracs": Preset(
        source="ACMIL: dataset_csv/bracs.csv",
        columns={"slide_id": ("slide_id",), "label": ("label",)},
        notes=(
            "labels 0..6 are N, PB, UDH, FEA, ADH, DCIS, IC, as the folders in full_path say; "
            "split_info is the official split",
            "case_id only numbers the 547 slides, which are of 189 patients: it is no patient_id; "
            "take the patients of the manifest from BRACS' own table",
            "a patient's slides may have different labels: ask with aggregate: none",
        ),
        values={
            "label": {
                "0": "N",
                "1": "PB",
                "2": "UDH",
                "3": "FEA",
                "4": "ADH",
                "5": "DCIS",
                "6": "IC",
            }
        },
    ),
    "acmil_brca": Preset(
        source="ACMIL: dataset_csv/brca_hipt.csv",
        columns={**_CASE_AND_SLIDE, "label": ("label",)},
    ),
    "nnmil": Preset(
        source="nnMIL: dataset.csv",
        columns={
            "patient_id": ("patient_id",),
            "slide_id": ("slide_id",),
            "label": ("label",),
            "time": ("time",),
            "event": ("event",),
        },
    ),
    "tcga_cdr": Preset(
        source="TCGA-CDR: Liu et al. 2018, table S1 (first sheet)",
        columns={"patient_id": ("bcr_patient_barcode",), "time": ("OS.time",), "event": ("OS",)},
        notes=(
            "times are days; other endpoints: columns: {time: PFI.time, event: PFI}, or DSS, DFI",
            "patients with a time of 0 or below were not followed; they have no follow-up and are "
            "listed",
        ),
        missing=(
            "#N/A",
            "[Not Available]",
            "[Not Applicable]",
            "[Not Evaluated]",
            "[Unknown]",
            "[Discrepancy]",
        ),
        positive_times=True,
    ),
    "gdc": Preset(
        source="GDC data portal: clinical.tsv",
        columns={
            "patient_id": ("case_submitter_id", "cases.submitter_id"),
            "vital_status": ("vital_status", "demographic.vital_status"),
            "days_to_death": ("days_to_death", "demographic.days_to_death"),
            "days_to_last_follow_up": (
                "days_to_last_follow_up",
                "diagnoses.days_to_last_follow_up",
            ),
        },
        notes=(
            "time (days) is days_to_death of the dead, days_to_last_follow_up of the living; "
            "patients with another vital status, or without a time above 0, have no follow-up and "
            "are listed",
        ),
        event_words=_DEAD,
        missing=("'--", "--"),
        positive_times=True,
    ),
}


def preset_lines(width: int) -> Iterator[str]:
    """All presets for a terminal: the name, what it reads, and the notes, none wider than that."""
    for name, preset in PRESETS.items():
        starts = [(f"{name:18} ", preset.source), *((" " * 19 + "- ", n) for n in preset.notes)]
        for start, text in starts:
            hanging = " " * (19 + 2 * start.endswith("- "))
            wrap = textwrap.TextWrapper(
                width, initial_indent=start, subsequent_indent=hanging, break_on_hyphens=False
            )
            yield wrap.fill(text)
