"""Who is in the synthetic cohort: patients, their tumour burden, their follow-up, their slides."""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from preprocessing.config import SyntheticConfig

COARSE_MPP = 0.5
FINE_MPP = 0.4  # not a power of two away: a magnification bucket would give itself away
_FINE_SHARE = 1 / 3
_PEN_SHARE = 0.25
_DEFOCUS_SHARE = 0.25
_SLIDES_PER_PATIENT = ([1, 2, 3], [0.5, 0.3, 0.2])
_TUMOUR_SLIDE = 0.75  # chance of a tumour patient's further slides to show tumour, too
_LEAST_FRACTION, _MOST_FRACTION = 0.02, 0.40  # of the tissue's area

# Weibull survival, months: the median of a patient without tumour, the log hazard of full burden.
_MEDIAN_MONTHS = 80.0
_SHAPE = 1.4
_LOG_HAZARD = 4.5
_DROPOUT_MEAN_MONTHS = 170.0
_FOLLOW_UP_QUANTILE = 0.8
_STAGES = 4
_STAGE_ERROR = 0.25  # standard deviation, in units of the burden


@dataclass(frozen=True)
class SlidePlan:
    """`index` counts over the cohort and keys the slide's random stream; `fraction` 0 is normal."""

    slide_id: str
    index: int
    fraction: float
    mpp: float
    pen: bool
    defocus: bool


@dataclass(frozen=True)
class PatientPlan:
    """`burden` in 0..1, 0 without tumour; `time` in months, `event` 1 = death observed.

    `age` in years tells nothing; `stage` 1 to 4 follows the burden, with error.
    """

    patient_id: str
    burden: float
    time: float
    event: int
    age: int
    stage: int
    slides: tuple[SlidePlan, ...]


def plan_cohort(config: SyntheticConfig) -> list[PatientPlan]:
    """Half of the patients have a tumour; everything follows from the seed."""
    rng = np.random.default_rng(np.random.SeedSequence(config.seed, spawn_key=(0,)))
    has_tumour = rng.permutation(np.arange(config.patients) % 2 == 0)
    burden = np.where(has_tumour, rng.random(config.patients), 0.0)
    time, event = draw_survival(rng, burden)
    fractions = [
        _slide_fractions(rng, float(of_patient)) if ill else np.zeros(_slide_count(rng))
        for of_patient, ill in zip(burden, has_tumour, strict=True)
    ]
    slides = _plan_slides(rng, fractions)
    age, stage = _draw_clinic(config.seed, burden)
    return [
        PatientPlan(
            patient_id=_patient_id(number),
            burden=float(burden[number]),
            time=float(time[number]),
            event=int(event[number]),
            age=int(age[number]),
            stage=int(stage[number]),
            slides=tuple(slides[number]),
        )
        for number in range(config.patients)
    ]


def draw_survival(
    rng: np.random.Generator, burden: NDArray[np.float64]
) -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    """Time in months (> 0) and event: Weibull, log hazard linear in the burden.

    Censored by dropout, independent of everything, and by the end of follow-up, placed so that a
    small cohort, too, keeps its share of events; about a third together.
    """
    count = len(burden)
    scale_months = (
        _MEDIAN_MONTHS / np.log(2) ** (1 / _SHAPE) * np.exp(-_LOG_HAZARD / _SHAPE * burden)
    )
    death_months = scale_months * rng.weibull(_SHAPE, count)
    end_months = np.quantile(death_months, _FOLLOW_UP_QUANTILE)
    censored_months = np.minimum(rng.exponential(_DROPOUT_MEAN_MONTHS, count), end_months)
    time = np.minimum(death_months, censored_months)
    return np.maximum(np.round(time, 2), 0.01), (death_months <= censored_months).astype(np.int64)


def _draw_clinic(
    seed: int, burden: NDArray[np.float64]
) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Age in years and stage, from a random stream of their own."""
    rng = np.random.default_rng(np.random.SeedSequence(seed, spawn_key=(2,)))
    age = np.clip(np.round(rng.normal(64, 10, len(burden))), 25, 95)
    staged = np.ceil(_STAGES * (burden + rng.normal(0, _STAGE_ERROR, len(burden))))
    return age.astype(np.int64), np.clip(staged, 1, _STAGES).astype(np.int64)


def _slide_count(rng: np.random.Generator) -> int:
    return int(rng.choice(_SLIDES_PER_PATIENT[0], p=_SLIDES_PER_PATIENT[1]))


def _slide_fractions(rng: np.random.Generator, burden: float) -> NDArray[np.float64]:
    """Tumour share of the tissue per slide, log-linear in the burden; at least one shows it."""
    count = _slide_count(rng)
    level = np.clip(burden + rng.normal(0, 0.1, count), 0, 1)
    shown = rng.random(count) < _TUMOUR_SLIDE
    shown[rng.integers(count)] = True
    return np.where(shown, _LEAST_FRACTION * (_MOST_FRACTION / _LEAST_FRACTION) ** level, 0.0)


def _plan_slides(
    rng: np.random.Generator, fractions: list[NDArray[np.float64]]
) -> list[list[SlidePlan]]:
    """Scanner and artefacts are dealt out within each class, so that neither tells the label."""
    tumour = np.concatenate(fractions) > 0
    fine = _dealt(rng, tumour, _FINE_SHARE)
    pen = _dealt(rng, tumour, _PEN_SHARE)
    defocus = _dealt(rng, tumour, _DEFOCUS_SHARE)
    slides: list[list[SlidePlan]] = []
    index = 0
    for number, of_patient in enumerate(fractions):
        slides.append([])
        for fraction in of_patient:
            plan = SlidePlan(
                slide_id=f"{_patient_id(number)}-{len(slides[-1]) + 1}",
                index=index,
                fraction=float(fraction),
                mpp=FINE_MPP if fine[index] else COARSE_MPP,
                pen=bool(pen[index]),
                defocus=bool(defocus[index]),
            )
            slides[-1].append(plan)
            index += 1
    return slides


def _dealt(rng: np.random.Generator, tumour: NDArray[np.bool_], share: float) -> NDArray[np.bool_]:
    """A random `share` of each class, rounded up."""
    chosen = np.zeros(len(tumour), dtype=bool)
    for label in (False, True):
        members = rng.permutation(np.flatnonzero(tumour == label))
        chosen[members[: int(np.ceil(share * len(members)))]] = True
    return chosen


def _patient_id(number: int) -> str:
    return f"demo-{number + 1:03d}"
