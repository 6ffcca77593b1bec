"""Patient-level stratified folds, saved as a file with a fingerprint and checked whenever read."""

import hashlib
import json
import warnings
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from preprocessing.artefacts import whole_file
from preprocessing.errors import CohortError


@dataclass(frozen=True)
class Fold:
    """Patient ids, sorted, of the three parts of one fold."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def parts(self) -> dict[str, tuple[str, ...]]:
        return {"train": self.train, "validation": self.validation, "test": self.test}


@dataclass(frozen=True)
class Splits:
    folds: tuple[Fold, ...]

    parts: ClassVar = ("train", "validation", "test")

    def __post_init__(self) -> None:
        """Refuses a patient in two parts of one fold, or in the test part of two folds."""
        for number, fold in enumerate(self.folds):
            parts = list(fold.parts().items())
            for i, (name, ids) in enumerate(parts):
                if not ids:
                    raise CohortError(f"fold {number} has no {name} patients")
                for other, other_ids in parts[i + 1 :]:
                    both = sorted(set(ids) & set(other_ids))
                    if both:
                        raise CohortError(
                            f"fold {number}: patient(s) {both[:5]} stand in both {name} and {other}"
                        )
        tested = [patient for fold in self.folds for patient in fold.test]
        if len(tested) != len(set(tested)):
            twice = sorted({p for p in tested if tested.count(p) > 1})
            raise CohortError(f"patient(s) {twice[:5]} are tested in more than one fold")

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(_dump(self).encode()).hexdigest()[:16]

    def fold_testing(self, patient_id: str) -> int | None:
        """The fold that holds the patient out for test, None if no fold does."""
        return next((k for k, fold in enumerate(self.folds) if patient_id in fold.test), None)


def make_splits(
    bags: pd.DataFrame, strata: pd.Series, *, folds: int, validation_share: float, seed: int
) -> Splits:
    """Folds over the patients of `bags` (column patient_id), balanced by `strata`, one per bag."""
    patients_per_stratum = bags["patient_id"].groupby(strata).nunique()
    needed = max(folds, 3)  # one each for train, validation and test at the very least
    scarce = patients_per_stratum[patients_per_stratum < needed]
    if len(scarce):
        raise CohortError(
            f"{folds} folds need at least {needed} patients in every stratum, but "
            + ", ".join(f"{name!r} has {count}" for name, count in scarce.items())
            + "; use fewer folds, or merge or drop the rare class"
        )
    made = []
    for rest, test in _group_folds(bags, strata, n_splits=folds, seed=seed):
        # sklearn refuses more folds than the largest stratum has members
        inner_folds = min(round(1 / validation_share), strata.iloc[rest].value_counts().max())
        inner = _group_folds(bags.iloc[rest], strata.iloc[rest], n_splits=inner_folds, seed=seed)
        train, validation = inner[0]
        made.append(
            Fold(
                train=_patients(bags.iloc[rest].iloc[train]),
                validation=_patients(bags.iloc[rest].iloc[validation]),
                test=_patients(bags.iloc[test]),
            )
        )
    return Splits(tuple(made))


def _group_folds(
    bags: pd.DataFrame, strata: pd.Series, *, n_splits: int, seed: int
) -> list[tuple[np.ndarray, np.ndarray]]:
    splitter = StratifiedGroupKFold(n_splits=n_splits, shuffle=True, random_state=seed)
    with warnings.catch_warnings():
        # Fewer patients of a stratum than inner folds only makes the validation share approximate.
        warnings.filterwarnings("ignore", message="The least populated class", category=UserWarning)
        return list(splitter.split(bags, strata.to_numpy(), groups=bags["patient_id"].to_numpy()))


def _patients(bags: pd.DataFrame) -> tuple[str, ...]:
    return tuple(sorted(bags["patient_id"].unique()))


def refuse_shared_slides(patient_of: dict[str, str], fingerprint_of: dict[str, str]) -> None:
    """Refuses one slide file under two patients: it could stand in training and in test."""
    owners: dict[str, tuple[str, str]] = {}
    for slide_id, fingerprint in fingerprint_of.items():
        first_slide, first_patient = owners.setdefault(
            fingerprint, (slide_id, patient_of[slide_id])
        )
        if patient_of[slide_id] != first_patient:
            raise CohortError(
                f"slides {first_slide!r} (patient {first_patient!r}) and {slide_id!r} (patient "
                f"{patient_of[slide_id]!r}) are the same image: correct the manifest"
            )


def save_splits(splits: Splits, path: Path) -> None:
    content = {"fingerprint": splits.fingerprint, **asdict(splits)}
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1))


def load_splits(path: Path) -> Splits:
    content = json.loads(path.read_text())
    folds = tuple(Fold(**{k: tuple(v) for k, v in fold.items()}) for fold in content["folds"])
    splits = Splits(folds)
    if splits.fingerprint != content["fingerprint"]:
        raise CohortError(
            f"{path} was edited: its folds have fingerprint {splits.fingerprint}, it says "
            f"{content['fingerprint']}; make the splits anew"
        )
    return splits


def _dump(splits: Splits) -> str:
    return json.dumps(asdict(splits), sort_keys=True)
