"""An archive whose slides have several labels, some unknown, and a continuous value."""

from pathlib import Path

import numpy as np
import pandas as pd
from fake_archive import study_of, write_archive

from mil.config import StudyConfig

LABELS = ("EGFR", "KRAS")
TARGETS = {
    "mutations": {"name": "multilabel", "labels": list(LABELS)},
    "score": {"name": "regression", "column": "hrd", "unit": "points"},
}


def write_targets(folder: Path, *, patients: int = 24, prefix: str = "p") -> None:
    """`write_archive` with columns of patients: EGFR as class b (the shifted tile), KRAS by the
    patient's number and unknown for every seventh, hrd high where EGFR is; stage as a covariate.
    """
    write_archive(folder, patients=patients, prefix=prefix)
    table = pd.read_csv(folder / "labels.csv", dtype=str)
    number = table["slide_id"].str.split("-").str[0].str.removeprefix(prefix).astype(int)
    ill = number % 4 < 2
    noise = np.random.default_rng(1).normal(size=patients)[number]
    table["EGFR"] = np.where(ill, "1", "0")
    table["KRAS"] = np.where(number % 7 == 3, "", np.where(number % 3 == 0, "1", "0"))
    table["hrd"] = np.round(20 + 30 * ill + 4 * noise, 2).astype(str)
    table["stage"] = np.where(number % 3 == 0, "II", "I")
    table.to_csv(folder / "labels.csv", index=False)


def targets_study(folder: Path, task: str, **mil) -> StudyConfig:
    """One task of `TARGETS` on slides, asked of one method and both baselines."""
    section = {"target": TARGETS[task], "covariates": ["stage"]}
    given = {
        "tasks": {task: section},
        "methods": {"abmil": {"name": "abmil", "hidden_dim": 8, "attention_dim": 4}},
    }
    return study_of(folder, **(given | mil))


def label_rows(*, patients: int = 120, folds: int = 4, seed: int = 0) -> pd.DataFrame:
    """Test predictions of patients; EGFR is rare and found, KRAS is unknown for every fourth."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"level": "patient", "repeat": 0, "fold": np.arange(patients) % folds})
    table["id"] = table["patient_id"] = [f"p{i:03}" for i in range(patients)]
    for name, share, skill in (("EGFR", 0.25, 1.1), ("KRAS", 0.5, 0.7)):
        yes = rng.random(patients) < share
        logit = skill * (2 * yes - 1) + rng.normal(size=patients)
        table[name] = np.where(yes, "1", "0")
        table[f"prob_{name}"] = 1 / (1 + np.exp(-logit))
        table[f"uncalibrated_{name}"] = 1 / (1 + np.exp(-3 * logit))
        table[f"threshold_{name}"] = 0.4 + 0.05 * table["fold"]
        called = table[f"prob_{name}"] >= table[f"threshold_{name}"]
        table[f"predicted_{name}"] = np.where(called, "1", "0")
    table["KRAS"] = table["KRAS"].where(np.arange(patients) % 4 != 3)
    return table


def value_rows(*, patients: int = 120, folds: int = 4, seed: int = 0) -> pd.DataFrame:
    """Test predictions of patients; every fold's model answers a little higher than the last."""
    rng = np.random.default_rng(seed)
    table = pd.DataFrame({"level": "patient", "repeat": 0, "fold": np.arange(patients) % folds})
    table["id"] = table["patient_id"] = [f"p{i:03}" for i in range(patients)]
    value = rng.normal(50, 10, patients)
    table["hrd"] = value.round(2).astype(str)
    table["value"] = 25 + 0.5 * value + rng.normal(0, 4, patients) + table["fold"]
    return table
