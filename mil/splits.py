"""Patient-level stratified folds, saved as a file with a fingerprint and checked whenever read."""

import hashlib
import json
import warnings
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd
from sklearn.model_selection import StratifiedGroupKFold

from preprocessing.artefacts import whole_file
from preprocessing.errors import CohortError

PARTS = ("train", "validation", "test")


@dataclass(frozen=True)
class Fold:
    """Patient ids, sorted, of the three parts of one fold."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]

    def parts(self) -> dict[str, tuple[str, ...]]:
        return {part: getattr(self, part) for part in PARTS}


@dataclass(frozen=True)
class Splits:
    """`data` is a digest of the labels and tiles that the folds were made for."""

    folds: tuple[Fold, ...]
    data: str = ""

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
    bags: pd.DataFrame,
    candidates: Sequence[pd.Series],
    *,
    folds: int,
    validation_share: float,
    seed: int,
    data: str = "",
) -> Splits:
    """Folds over the patients of `bags` (column patient_id), balanced by strata, one per bag.

    The first of the `candidates` is taken whose every stratum has patients for each fold.
    """
    needed = max(folds, 3)  # one each for train, validation and test at the very least
    strata = _first_that_fits(bags, candidates, needed)
    if strata is None:
        counts = _patients_per_stratum(bags, candidates[-1])
        scarce = counts[counts < needed].items()
        raise CohortError(
            f"{folds} folds need at least {needed} patients in every stratum, but "
            + ", ".join(f"{name!r} has {count}" for name, count in scarce)
            + "; use fewer folds, or merge or drop the rare class"
        )
    made = []
    for rest, test in _group_folds(bags, strata, n_splits=folds, seed=seed):
        remaining = bags.iloc[rest]
        inner = [candidate.iloc[rest] for candidate in candidates]
        train, validation = _inner_fold(remaining, inner, share=validation_share, seed=seed)
        made.append(
            Fold(
                train=_patients(remaining.iloc[train]),
                validation=_patients(remaining.iloc[validation]),
                test=_patients(bags.iloc[test]),
            )
        )
    return Splits(tuple(made), data)


def _inner_fold(
    bags: pd.DataFrame, candidates: Sequence[pd.Series], *, share: float, seed: int
) -> tuple[np.ndarray, np.ndarray]:
    """Rows for training and for validation, about `share` of the patients.

    Where even the coarsest strata have too few patients for that share, validation takes more, so
    that training keeps patients of every stratum.
    """
    wanted = round(1 / share)
    strata = _first_that_fits(bags, candidates, wanted)
    if strata is None:
        strata = candidates[-1]
        wanted = max(2, int(_patients_per_stratum(bags, strata).min()))
    return _group_folds(bags, strata, n_splits=wanted, seed=seed)[0]


def _first_that_fits(
    bags: pd.DataFrame, candidates: Sequence[pd.Series], patients: int
) -> pd.Series | None:
    """The first strata of which each has at least so many patients."""
    fits = (s for s in candidates if _patients_per_stratum(bags, s).min() >= patients)
    return next(fits, None)


def _patients_per_stratum(bags: pd.DataFrame, strata: pd.Series) -> pd.Series:
    return bags["patient_id"].groupby(strata).nunique()


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
    try:
        content = json.loads(path.read_text())
        folds = tuple(Fold(**{k: tuple(v) for k, v in fold.items()}) for fold in content["folds"])
        splits = Splits(folds, content["data"])
    except FileNotFoundError as error:
        raise CohortError(f"no splits at {path}: run split first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CohortError(f"{path} holds no splits ({error!r}): make them anew") from error
    if splits.fingerprint != content["fingerprint"]:
        raise CohortError(
            f"{path} was edited: its folds have fingerprint {splits.fingerprint}, it says "
            f"{content['fingerprint']}; make the splits anew"
        )
    return splits


def _dump(splits: Splits) -> str:
    return json.dumps(asdict(splits), sort_keys=True)
