"""The demo cohort on disk: slides, manifest, labels, outlines; finished slides are kept."""

import json
from collections.abc import Iterable
from pathlib import Path

import numpy as np
import pandas as pd
from tqdm import tqdm

from preprocessing.artefacts import partials_in, tidy, whole_file
from preprocessing.config import SyntheticConfig
from preprocessing.errors import ConfigError
from preprocessing.outlines import write_outlines
from preprocessing.synthetic import normal
from preprocessing.synthetic.blemishes import defocus, draw_pen
from preprocessing.synthetic.fields import MACRO_UM, MacroGrid
from preprocessing.synthetic.painting import paint
from preprocessing.synthetic.plan import COARSE_MPP, PatientPlan, SlidePlan, plan_cohort
from preprocessing.synthetic.pyramid import write_pyramid
from preprocessing.synthetic.tumour import grow_tumour, invade

_GENERATOR_VERSION = 1  # to be raised when the same settings come to mean other pixels


def make_cohort(config: SyntheticConfig, out_dir: Path) -> Path:
    """Makes what is not there yet and returns the path of slides.csv.

    Beside it: labels.csv (slide_id, patient_id, tumour, time in months, event, age, stage),
    slides/<id>.tiff, truth/<id>.geojson (level-0 px) and cohort.json (the settings). Raises
    ConfigError when the folder holds slides of other settings.
    """
    patients = plan_cohort(config)
    _claim(config, out_dir)
    plans = [slide for patient in patients for slide in patient.slides]
    missing = [plan for plan in plans if not _slide_path(out_dir, plan).exists()]
    for plan in tqdm(missing, desc="synthetic slides", unit="slide", disable=not missing):
        _make_slide(plan, config, out_dir)
    _write_csv(
        out_dir / "labels.csv",
        (
            (slide.slide_id, p.patient_id, _label(slide), p.time, p.event, p.age, p.stage)
            for p, slide in _pairs(patients)
        ),
        columns=["slide_id", "patient_id", "tumour", "time", "event", "age", "stage"],
    )
    manifest = out_dir / "slides.csv"
    _write_csv(
        manifest,
        (
            (slide.slide_id, patient.patient_id, f"slides/{slide.slide_id}.tiff")
            for patient, slide in _pairs(patients)
        ),
        columns=["slide_id", "patient_id", "path"],
    )
    return manifest


def _claim(config: SyntheticConfig, out_dir: Path) -> None:
    """Records the settings in an empty folder, compares them in a used one."""
    wanted = {"generator": _GENERATOR_VERSION, **config.model_dump(mode="json")}
    record = out_dir / "cohort.json"
    if record.exists():
        found = json.loads(record.read_text())
        if found != wanted:
            raise ConfigError(
                f"{record}: the slides there were made with {found}, now wanted: {wanted}; "
                "choose another folder or delete this one"
            )
        return
    tables = [out_dir / name for name in ("slides.csv", "labels.csv")]
    theirs = [path for path in [*tables, *out_dir.glob("slides/*.tiff")] if path.exists()]
    if theirs:
        raise ConfigError(
            f"{theirs[0]} exists, but no {record} that says how it was made: synthetic slides "
            "never overwrite others; choose another folder"
        )
    with whole_file(record) as partial:
        partial.write_text(json.dumps(wanted, indent=1))


def _make_slide(plan: SlidePlan, config: SyntheticConfig, out_dir: Path) -> None:
    """The outline first and the slide last: a slide that exists is complete."""
    path = _slide_path(out_dir, plan)
    tidy(path, partials_in(path.parent))
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(1, plan.index)))
    grid = MacroGrid(config.width_px * COARSE_MPP, config.height_px * COARSE_MPP)
    tissue_um = normal.tissue_depth(rng, grid)
    anatomy = normal.grow_stroma(rng, grid, tissue_um)
    polygons_um = []
    if plan.fraction > 0:
        tumour = grow_tumour(rng, grid, tissue_um, fraction=plan.fraction)
        invade(rng, anatomy, tumour)
        polygons_um = tumour.polygons_um
    normal.grow_normal(rng, anatomy)
    rgb = paint(rng, anatomy, mpp=plan.mpp)
    if plan.defocus:
        rows_columns = np.argwhere(tissue_um > 0)
        centre_um = rows_columns[rng.integers(len(rows_columns)), ::-1] * MACRO_UM
        defocus(rng, rgb, centre_um, mpp=plan.mpp)
    if plan.pen:
        draw_pen(rng, rgb, mpp=plan.mpp)
    truth_path = out_dir / "truth" / f"{plan.slide_id}.geojson"
    write_outlines([[polygon / plan.mpp] for polygon in polygons_um], truth_path, name="Tumor")
    write_pyramid(path, rgb, mpp=plan.mpp)


def _slide_path(out_dir: Path, plan: SlidePlan) -> Path:
    return out_dir / "slides" / f"{plan.slide_id}.tiff"


def _label(slide: SlidePlan) -> str:
    return "tumour" if slide.fraction > 0 else "normal"


def _pairs(patients: list[PatientPlan]) -> Iterable[tuple[PatientPlan, SlidePlan]]:
    return ((patient, slide) for patient in patients for slide in patient.slides)


def _write_csv(path: Path, rows: Iterable[tuple], *, columns: list[str]) -> None:
    with whole_file(path) as partial:
        pd.DataFrame(list(rows), columns=pd.Index(columns)).to_csv(partial, index=False)
