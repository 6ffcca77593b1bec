"""What every metric of the evaluation tables is, for people who read the report."""

from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Literal

RANKING, CALLS = "Discrimination", "At the operating point"
PROBABILITIES, SETS, VALUES = "Probabilities", "Conformal sets", "Predicted values"
OTHER = "Other"
GROUPS = (RANKING, CALLS, PROBABILITIES, SETS, VALUES, OTHER)
Better = Literal["high", "low", ""]


@dataclass(frozen=True)
class Entry:
    """`better`: which way is better, '' where neither is by itself."""

    name: str
    group: str
    better: Better
    meaning: str


_BEFORE = " Here of the probabilities before temperature scaling."
_ECE = (
    "Expected calibration error: mean gap between the probability of the most probable class and "
    "how often it is true, over ten bins of equal width. Biased upwards in small cohorts, and its "
    "interval more so."
)
_BRIER = (
    "Brier score: mean squared error of the probabilities; 0 is perfect, and always answering the "
    "prevalence p of two classes scores p(1 − p)."
)
_ENTRIES = {
    "auroc": Entry(
        "AUROC",
        RANKING,
        "high",
        "Probability that a case with the class is ranked above one without it; 0.5 is chance. "
        "Pairs are compared within folds: pooled scores of several models would be biased. Several "
        "classes without a positive one: mean of each against the rest. Several labels: of each "
        "where it is known, and their mean.",
    ),
    "auroc_delong": Entry(
        "AUROC, DeLong's interval",
        RANKING,
        "high",
        "The same AUROC with the interval of DeLong's variance on the logit scale.",
    ),
    "auprc": Entry(
        "average precision",
        RANKING,
        "high",
        "Area under the precision-recall curve, folds pooled; chance reaches the prevalence, so "
        "compare it only between cohorts of equal prevalence.",
    ),
    "accuracy": Entry("accuracy", CALLS, "high", "Share of cases called rightly."),
    "balanced_accuracy": Entry(
        "balanced accuracy",
        CALLS,
        "high",
        "Mean over the true classes of the share called rightly.",
    ),
    "macro_f1": Entry(
        "macro F1",
        CALLS,
        "high",
        "Mean over the classes of the harmonic mean of PPV and sensitivity.",
    ),
    "sensitivity": Entry(
        "sensitivity", CALLS, "high", "Share of cases of the positive class that are called so."
    ),
    "specificity": Entry(
        "specificity", CALLS, "high", "Share of all other cases that are not called positive."
    ),
    "kappa": Entry(
        "quadratic κ",
        CALLS,
        "high",
        "Cohen's kappa with quadratic weights: agreement beyond chance, far misses counting more.",
    ),
    "r2": Entry(
        "R²",
        VALUES,
        "high",
        "1 − squared errors / squared deviations from the mean of the test values; 0 is no better "
        "than answering that mean, and below 0 is worse.",
    ),
    "mae": Entry("mean absolute error", VALUES, "low", "Mean distance from the observed value."),
    "rmse": Entry(
        "root mean squared error",
        VALUES,
        "low",
        "Root of the mean squared distance from the observed value: large errors count more.",
    ),
    "bias": Entry(
        "bias", VALUES, "", "Mean of predicted − observed; 0 is right on average, for all together."
    ),
    "pearson": Entry(
        "Pearson's r",
        RANKING,
        "high",
        "Linear correlation of predicted and observed values within folds: with folds pooled, "
        "models without any skill would correlate negatively.",
    ),
    "spearman": Entry(
        "Spearman's ρ",
        RANKING,
        "high",
        "Correlation of the ranks of predicted and observed values within folds.",
    ),
    "calibration_slope": Entry(
        "calibration slope",
        VALUES,
        "",
        "Slope of observed on predicted values within folds: 1 is right, below 1 predictions are "
        "spread too far.",
    ),
    "brier": Entry("Brier score", PROBABILITIES, "low", _BRIER),
    "brier_uncalibrated": Entry("Brier score, unscaled", PROBABILITIES, "low", _BRIER + _BEFORE),
    "ece": Entry("calibration error", PROBABILITIES, "low", _ECE),
    "ece_uncalibrated": Entry("calibration error, unscaled", PROBABILITIES, "low", _ECE + _BEFORE),
    "conformal_coverage": Entry(
        "coverage",
        SETS,
        "",
        "Share of conformal sets that hold the true class; compare with the aim.",
    ),
    "conformal_set_size": Entry(
        "mean set size",
        SETS,
        "",
        "Classes that a conformal set holds: 1 is a definite answer, 0 says that nothing fits.",
    ),
    "abstained": Entry(
        "abstained", SETS, "low", "Share of cases whose conformal set is not exactly one class."
    ),
    "c_index": Entry(
        "Harrell's C",
        RANKING,
        "high",
        "Share of comparable pairs of one fold whose order of risk is right, ties counting half; "
        "0.5 is chance. Depends on the censoring.",
    ),
    "uno_c": Entry(
        "Uno's C",
        RANKING,
        "high",
        "Concordance of the pairs within folds up to a last time, weighted by the inverse "
        "probability of censoring, estimated on training patients.",
    ),
    "td_auc": Entry(
        "AUC at horizon",
        RANKING,
        "high",
        "Cumulative/dynamic AUC: probability that who had the event by then was given a lower "
        "survival than who had not; pairs within folds, censoring weighted.",
    ),
    "brier_at": Entry(
        "Brier score at horizon",
        PROBABILITIES,
        "low",
        "Mean squared error of the predicted survival at that time, censoring weighted. Always "
        "answering 0.5 scores 0.25.",
    ),
    "ibs": Entry(
        "integrated Brier score",
        PROBABILITIES,
        "low",
        "Brier score averaged over time, from the first to the last of the horizons and of the 5 % "
        "to 95 % quantiles of the training event times.",
    ),
    "ibs_skill": Entry(
        "Brier skill",
        PROBABILITIES,
        "high",
        "1 − integrated Brier score / that of one Kaplan-Meier curve given to everyone; "
        "0 or less: no better than knowing nothing of the patient.",
    ),
}
_AT_HORIZON = {"td_auc": "td_auc", "brier": "brier_at"}
_OF_LABELS = ("auroc", "auprc", "sensitivity", "specificity", "brier")


def entry(metric: str) -> Entry:
    """The entry of a column `metric`; td_auc_2 and brier_2 are of the second horizon, auroc_EGFR of
    a label.
    """
    if metric in _ENTRIES:
        return _ENTRIES[metric]
    base, part = _part(metric)
    if base is not None:
        return replace(_ENTRIES[base], name=f"{_ENTRIES[base].name}{part}")
    return Entry(metric.replace("_", " "), OTHER, "", "")


def explained(metrics: Iterable[str]) -> list[Entry]:
    """The entries of `metrics` that have a meaning to tell, each once, horizons and labels
    together.
    """
    names = {metric if metric in _ENTRIES else _part(metric)[0] for metric in metrics}
    return [found for name, found in _ENTRIES.items() if name in names]


def _part(metric: str) -> tuple[str | None, str]:
    """The entry's key of a metric at a horizon or of a label, and what its name ends on; else
    None.
    """
    base, _, place = metric.rpartition("_")
    if base in _AT_HORIZON and place.isdigit():
        return _AT_HORIZON[base], f" {place}"
    base, _, label = metric.partition("_")
    return (base, f", {label}") if base in _OF_LABELS and label else (None, "")
