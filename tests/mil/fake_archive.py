"""An archive of feature stores made of random numbers, for tests of all that follows extraction."""

import csv
from pathlib import Path

import numpy as np

from mil.config import StudyConfig, validate_study
from preprocessing.plan import plan_shards
from preprocessing.process_list import write_process_list
from preprocessing.status import SlideStatus
from preprocessing.stores.store import EncoderRecord, Provenance, SlideFeatures, write_store

DIM = 6
TILES = 9
TILE_PX0 = 100.0


def study_of(folder: Path, **mil) -> StudyConfig:
    """A study of two tasks on `folder`; `mil` replaces sections."""
    defaults = {
        "labels": str(folder / "labels.csv"),
        "tasks": {
            "tumour": {
                "aggregate": "max",
                "target": {"name": "classification", "label": "y", "positive": "b"},
            },
            "survival": {
                "bag": "patient",
                "target": {"name": "survival", "time": "t", "event": "e", "bins": 2},
            },
        },
        "methods": {
            "acmil": {"name": "acmil", "hidden_dim": 8, "attention_dim": 4, "branches": 2},
            "mhim": {"name": "mhim", "hidden_dim": 8, "attention_dim": 4},
        },
        "split": {"folds": 2, "validation_share": 0.25},
        "train": {"epochs": 3, "device": "cpu", "learning_rate": 1e-2},
        "bootstrap": 100,
    }
    values = {
        "output": str(folder / "out"),
        "preprocessing": {"manifest": str(folder / "slides.csv"), "grid": {"mpp": 0.5}},
        "mil": {**defaults, **mil},
    }
    return validate_study(values, source="fake archive")


def write_archive(
    folder: Path, *, patients: int = 12, seed: int = 0, prefix: str = "p"
) -> dict[str, str]:
    """Slides p<i>-1 and, for even i, p<i>-2; class b shifts the first tile; slide -> patient."""
    rng = np.random.default_rng(seed)
    slides, labels, patient_of = [], [], {}
    for i in range(patients):
        ill = i % 4 < 2
        time = round(float(rng.exponential(5 if ill else 20)) + 0.01, 3)
        for number in range(1 + (i + 1) % 2):
            patient = f"{prefix}{i}"
            slide_id = f"{patient}-{number + 1}"
            patient_of[slide_id] = patient
            slides.append([slide_id, patient, f"{slide_id}.svs"])
            labels.append([slide_id, "b" if ill and not number else "a", time, int(i % 5 > 0)])
            features = rng.normal(size=(TILES, DIM))
            features[0] += 4 * (ill and not number)
            write_features(folder / "out" / "features", slide_id, patient, features)
    write_rows(folder / "slides.csv", ["slide_id", "patient_id", "path"], slides)
    write_rows(folder / "labels.csv", ["slide_id", "y", "t", "e"], labels)
    done = [SlideStatus(slide_id, "done", TILES, 0.0) for slide_id in patient_of]
    write_process_list(done, folder / "out" / "features")
    assert plan_shards(study_of(folder).preprocessing)
    return patient_of


def write_rows(path: Path, header: list[str], rows: list[list]) -> None:
    with path.open("w", newline="") as stream:
        csv.writer(stream).writerows([header, *rows])


def write_features(
    folder: Path,
    slide_id: str,
    patient_id: str,
    features: np.ndarray,
    *,
    digest: str = "w",
    ink: np.ndarray | float = np.nan,
) -> None:
    """A store of a 3 x 3 grid of tiles on a slide of 400 x 300 px; `ink` is the share of each."""
    columns, rows = np.meshgrid(np.arange(3), np.arange(3))
    tiles = len(features)
    provenance = Provenance.model_validate(
        {
            "slide_id": slide_id,
            "patient_id": patient_id,
            "slide_fingerprint": f"file of {slide_id}",
            "vendor": "fake",
            "level0_width": 400,
            "level0_height": 300,
            "bounds_px0": None,
            "mpp_x": 0.5,
            "mpp_y": 0.5,
            "mpp_source": "manifest",
            "tile_px": 100,
            **dict.fromkeys(["tile_px0_x", "tile_px0_y"], TILE_PX0),
            **dict.fromkeys(["stride_px0_x", "stride_px0_y"], TILE_PX0),
            "requested_mpp": 0.5,
            **dict.fromkeys(["effective_mpp_x", "effective_mpp_y"], 0.5),
            "read_level": 0,
            "tissue": {},
            "grid": {"mpp": 0.5},
            **dict.fromkeys(["thumbnail_px0_per_px_x", "thumbnail_px0_per_px_y"], 4.0),
            **dict.fromkeys(["mask_px0_per_px_x", "mask_px0_per_px_y"], 4.0),
            "versions": {},
            "created": "2025-01-01T00:00:00+00:00",
            "encoders": {
                "lite0": EncoderRecord(
                    dim=features.shape[1],
                    weight_digest=digest,
                    transform="t",
                    precision="float32",
                    licence="MIT",
                )
            },
        }
    )
    contents = SlideFeatures(
        provenance=provenance,
        coords_px0=(np.c_[columns.ravel(), rows.ravel()] * 100).astype(np.int32)[:tiles],
        tissue_fraction=np.ones(tiles, dtype=np.float32),
        read_error=np.zeros(tiles, dtype=bool),
        quality=np.stack(np.broadcast_arrays(9, ink, np.zeros(tiles)), axis=1).astype(np.float32),
        features={"lite0": features.astype(np.float16)},
        thumbnail=np.full((75, 100, 3), 230, dtype=np.uint8),
        tissue_mask=np.ones((75, 100), dtype=bool),
    )
    write_store(folder, contents)
