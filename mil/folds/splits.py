"""Patient-level stratified folds, saved as a file with a fingerprint and checked whenever read.

What is dealt to the parts is the patient or, where a group such as the site is given, all patients
of that group together.
"""

import hashlib
import json
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pandas as pd

from mil.config import SplitConfig
from mil.folds.dealing import Units, deal_folds, deal_share, groups_of, refuse_overlap
from mil.folds.split_files import SuppliedFold, to_patients
from mil.tasks.columns import named
from preprocessing.artefacts import whole_file
from preprocessing.errors import CohortError

PARTS = ("train", "validation", "test")
DEALS = 10  # of folds, before classes as rare as some label's are said not to be divisible
OF_SUPPLIED = "correct the split files, or merge or drop the class, or leave the label out"
OF_DEALT = (
    "use another split.seed or fewer folds, or merge or drop the class, or leave the label out"
)


@dataclass(frozen=True)
class Fold:
    """Patient ids, sorted, of the three parts; `repeat` says which division the fold is part of."""

    train: tuple[str, ...]
    validation: tuple[str, ...]
    test: tuple[str, ...]
    repeat: int = 0

    def parts(self) -> dict[str, tuple[str, ...]]:
        return {part: getattr(self, part) for part in PARTS}


@dataclass(frozen=True)
class Splits:
    """`data` is a digest of the labels and tiles that the folds were made for."""

    folds: tuple[Fold, ...]
    data: str = ""

    def __post_init__(self) -> None:
        """Refuses a patient in two parts of a fold, or in two test parts of one repeat."""
        tested: dict[tuple[int, str], int] = {}
        for number, fold in enumerate(self.folds):
            empty = [part for part, ids in fold.parts().items() if not ids]
            if empty:
                raise CohortError(f"fold {number} has no {empty[0]} patients: make the splits anew")
            refuse_overlap(fold.parts(), f"fold {number}: patient(s)")
            again = [p for p in fold.test if (fold.repeat, p) in tested]
            if again:
                raise CohortError(
                    f"patient(s) {named(again)} are tested in more than one fold of repeat "
                    f"{fold.repeat}: {tested[fold.repeat, again[0]]} and {number}"
                )
            tested |= {(fold.repeat, patient): number for patient in fold.test}

    @property
    def fingerprint(self) -> str:
        return hashlib.sha256(_dump(self).encode()).hexdigest()[:16]

    def folds_testing(self, patient_id: str) -> tuple[int, ...]:
        """The folds that hold the patient out for test, at most one of each repeat."""
        return tuple(k for k, fold in enumerate(self.folds) if patient_id in fold.test)

    def fold_testing(self, patient_id: str) -> int | None:
        """The first fold that holds the patient out for test, None if no fold does."""
        return next(iter(self.folds_testing(patient_id)), None)


def make_splits(
    bags: pd.DataFrame,
    candidates: Sequence[pd.Series],
    config: SplitConfig,
    *,
    groups: pd.Series | None = None,
    supplied: Sequence[SuppliedFold] | None = None,
    classes: pd.Series | None = None,
    data: str = "",
) -> tuple[Splits, dict[str, list[str]]]:
    """The folds that `config` asks for, over the patients of `bags` (as Cohort.bags makes them),
    and what of supplied folds did not match, or why folds were dealt anew.

    Each of the `candidates` gives every bag a stratum; the first is taken whose every stratum has
    enough units for all parts. `groups`: patient -> a value that is never divided between parts.
    `classes`: patient -> its classes, which `refuse_unlike_classes` asks for in every fold. Raises
    CohortError where the cohort is too small or a supplied fold leaks.
    """

    def units(patients: Collection[str]) -> Units:
        mine = bags["patient_id"].isin(list(patients)).to_numpy()
        strata = [candidate[mine] for candidate in candidates]
        return Units.of(bags[mine], strata, groups=groups, name=config.group or "patient")

    if config.scheme == "supplied":
        translated, notes = to_patients(supplied or (), bags)
        splits = Splits(tuple(_supplied_folds(units, translated, config)), data)
        if classes is not None:
            refuse_unlike_classes(splits, classes)
    else:
        folds, notes = _dealt(units(bags["patient_id"]), config, classes)
        splits = Splits(tuple(folds), data)
    if groups is not None:
        refuse_shared_groups(splits, groups)
    return splits, notes


def _dealt(
    units: Units, config: SplitConfig, classes: pd.Series | None
) -> tuple[list[Fold], dict[str, list[str]]]:
    """The first deal in which all folds train on the same classes; a note of those before it."""
    deal = _kfolds if config.scheme == "kfold" else _monte_carlo_folds
    refused: list[str] = []
    for number in range(DEALS):
        folds = deal(units, config, number)
        unlike = None if classes is None else _unlike_classes(Splits(tuple(folds)), classes)
        if unlike is None:
            told = "deal(s) of the folds refused, and the folds dealt anew from split.seed"
            return folds, {told: refused} if refused else {}
        refused.append(unlike)
    raise CohortError(f"in none of {DEALS} deals of the folds: {refused[0]}; {OF_DEALT}")


def _kfolds(units: Units, config: SplitConfig, deal: int) -> list[Fold]:
    made = []
    for repeat in range(config.repeats):
        rng = np.random.default_rng((config.seed, repeat, deal))
        tests = deal_folds(units, config.folds, rng)
        made += [_fold(units, test, config, rng=rng, repeat=repeat) for test in tests]
    return made


def _monte_carlo_folds(units: Units, config: SplitConfig, deal: int) -> list[Fold]:
    """Every draw is a repeat of its own: their test parts may share patients."""
    made = []
    for draw in range(config.folds):
        rng = np.random.default_rng((config.seed, draw, deal))
        what = f"draws of test_share {config.test_share}"
        test = deal_share(units, config.test_share, leave=2, what=what, rng=rng)
        made.append(_fold(units, test, config, rng=rng, repeat=draw))
    return made


def _fold(
    units: Units,
    test: Collection[str],
    config: SplitConfig,
    *,
    rng: np.random.Generator,
    repeat: int,
) -> Fold:
    """The fold with these units for test, and a validation part cut from the others."""
    rest = units.without(test)
    validation = _validation(rest, config, rng)
    return Fold(
        train=rest.without(validation).patient_ids,
        validation=rest.only(validation).patient_ids,
        test=units.only(test).patient_ids,
        repeat=repeat,
    )


def _validation(rest: Units, config: SplitConfig, rng: np.random.Generator) -> Collection[str]:
    what = f"draws of validation_share {config.validation_share}"
    return deal_share(rest, config.validation_share, leave=1, what=what, rng=rng)


def _supplied_folds(
    units: Callable[[Collection[str]], Units], supplied: Sequence[SuppliedFold], config: SplitConfig
) -> list[Fold]:
    """A fold that tests a patient of the current repeat again begins the next repeat."""
    if len(supplied) != config.folds:
        raise CohortError(
            f"the split files hold {len(supplied)} folds, mil.split.folds is {config.folds}: set "
            f"folds: {len(supplied)}, or name other files"
        )
    made: list[Fold] = []
    repeat, tested = 0, frozenset()
    for number, given in enumerate(supplied):
        if tested & given.test:
            repeat, tested = repeat + 1, frozenset()
        tested |= given.test
        validation: Collection[str] = given.validation
        if not validation:
            training = units(given.train)
            rng = np.random.default_rng((config.seed, number))
            validation = training.only(_validation(training, config, rng)).patient_ids
        made.append(
            Fold(
                train=tuple(sorted(given.train.difference(validation))),
                validation=tuple(sorted(validation)),
                test=tuple(sorted(given.test)),
                repeat=repeat,
            )
        )
    return made


def refuse_shared_groups(splits: Splits, groups: pd.Series) -> None:
    """Refuses a group (patient -> group) of which patients stand in two parts of one fold."""
    for number, fold in enumerate(splits.folds):
        found = {
            part: set(groups_of(pd.Series(ids, dtype=object), groups))
            for part, ids in fold.parts().items()
        }
        refuse_overlap(found, f"fold {number}: patients of {groups.name or 'group'}(s)")


def refuse_unlike_classes(splits: Splits, classes: pd.Series) -> None:
    """Refuses supplied folds that train on different classes, or that judge by a class they do not
    train on. `classes`: patient -> the set of classes of its bags.
    """
    unlike = _unlike_classes(splits, classes)
    if unlike is not None:
        raise CohortError(f"{unlike}; {OF_SUPPLIED}")


def _unlike_classes(splits: Splits, classes: pd.Series) -> str | None:
    """The first fold that trains on other classes than it is judged by, or than fold 0 does."""
    first: set[str] = set()
    for number, fold in enumerate(splits.folds):
        held = {part: set().union(*classes[list(ids)]) for part, ids in fold.parts().items()}
        for part in ("validation", "test"):
            unknown = sorted(held[part] - held["train"])
            if unknown:
                return (
                    f"fold {number}: class(es) {named(unknown)} stand in its {part} part, but no "
                    f"training patient has them, only {named(sorted(held['train']))}"
                )
        first = first or held["train"]
        if held["train"] != first:
            return (
                f"fold {number} trains on the classes {named(sorted(held['train']))}, fold 0 on "
                f"{named(sorted(first))}: one table of results needs the same classes in every fold"
            )
    return None


def copied_slides(patient_of: Mapping[str, str], fingerprint_of: Mapping[str, str]) -> list[str]:
    """Slides whose image is that of an earlier slide of the same patient.

    Raises CohortError for one image under two patients: it could stand in training and in test.
    """
    owners: dict[str, tuple[str, str]] = {}
    copies = []
    for slide_id, fingerprint in fingerprint_of.items():
        first_slide, first_patient = owners.setdefault(
            fingerprint, (slide_id, patient_of[slide_id])
        )
        if patient_of[slide_id] != first_patient:
            raise CohortError(
                f"slides {first_slide!r} (patient {first_patient!r}) and {slide_id!r} (patient "
                f"{patient_of[slide_id]!r}) are the same image: correct the manifest"
            )
        if slide_id != first_slide:
            copies.append(f"{slide_id} (of {first_slide})")
    return copies


def save_splits(splits: Splits, path: Path) -> None:
    content = {"fingerprint": splits.fingerprint, **asdict(splits)}
    with whole_file(path) as partial:
        partial.write_text(json.dumps(content, indent=1))


def load_splits(path: Path) -> Splits:
    try:
        content = json.loads(path.read_text())
        folds = tuple(
            Fold(*(tuple(fold[part]) for part in PARTS), repeat=fold["repeat"])
            for fold in content["folds"]
        )
        splits = Splits(folds, content["data"])
        written = content["fingerprint"]
    except FileNotFoundError as error:
        raise CohortError(f"no splits at {path}: run split first") from error
    except (ValueError, KeyError, TypeError) as error:
        raise CohortError(f"{path} holds no splits ({error!r}): make them anew") from error
    if splits.fingerprint != written:
        raise CohortError(
            f"{path} was edited: its folds have fingerprint {splits.fingerprint}, it says "
            f"{written}; make the splits anew"
        )
    return splits


def _dump(splits: Splits) -> str:
    return json.dumps(asdict(splits), sort_keys=True)
