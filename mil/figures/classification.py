"""Figures of a classification task: ROC, precision and recall, confusion, calibration."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.colors import LinearSegmentedColormap
from matplotlib.figure import Figure
from numpy.typing import NDArray
from sklearn.metrics import precision_recall_curve, roc_curve

from mil.decisions import class_indices, classes_of, positive_class
from mil.figures.common import (
    BLUE,
    COLOURS,
    FAINT,
    INK,
    LINES,
    SMALL_PT,
    SOFT_INK,
    TEXT_PT,
    VERMILLION,
    finish,
    first_tests,
    fold_tables,
    interval_text,
    paper,
    pooling_note,
    tidy,
)
from mil.metrics.classification import confusion, sensitivity_specificity
from mil.metrics.ranking import (
    auprc,
    delong_interval,
    stratified_auroc,
)
from mil.tasks.columns import class_names
from mil.tasks.config import ClassificationConfig

MOST_FOLDS = 10  # more thin lines than this are a tangle
MOST_CLASSES = len(COLOURS)

Truth = NDArray[np.bool_]
Score = NDArray[np.float64]
Trace = tuple[Score, Score]
Area = Callable[[Truth, Score, NDArray], str]


@dataclass(frozen=True)
class _Kind:
    """A family of curves: its line, the number that sums it up, and one operating point on it."""

    trace: Callable[[Truth, Score], Trace]
    area: Area
    point: Callable[[Truth, Truth], tuple[float, float]]
    xlabel: str
    ylabel: str


def _roc_trace(truth: Truth, score: Score) -> Trace:
    false_rate, true_rate, _ = roc_curve(truth, score, drop_intermediate=False)
    return false_rate, true_rate


def _roc_area(truth: Truth, score: Score, folds: NDArray) -> str:
    area = stratified_auroc(truth, score, folds)
    return interval_text(area, *delong_interval(truth, score, strata=folds))


def _roc_point(truth: Truth, called: Truth) -> tuple[float, float]:
    sensitivity, specificity = sensitivity_specificity(truth, called)
    return 1 - specificity, sensitivity


def _recall_trace(truth: Truth, score: Score) -> Trace:
    precision, recall, _ = precision_recall_curve(truth, score)
    return recall, precision


def _recall_area(truth: Truth, score: Score, _: NDArray) -> str:
    return f"{auprc(truth, score):.2f}, prevalence {truth.mean():.2f}"


def _recall_point(truth: Truth, called: Truth) -> tuple[float, float]:
    precision = float(truth[called].mean()) if called.any() else math.nan
    return float(called[truth].mean()), precision


_ROC = _Kind(_roc_trace, _roc_area, _roc_point, "1 − specificity", "sensitivity")
_RECALL = _Kind(
    _recall_trace, _recall_area, _recall_point, "recall (sensitivity)", "precision (PPV)"
)


def roc_figure(test: pd.DataFrame, target: ClassificationConfig, path: Path, *, title: str) -> None:
    """ROC of the test rows (both levels), for the positive class or for each class."""
    figure, axes, below = _curve_page(test, target)
    axes.plot([0, 1], [0, 1], color=FAINT, linewidth=1)
    _draw_curves(axes, test, target, _ROC)
    _legend(axes, below, "AUROC (95 % interval)")
    note = f"{_curve_note(test, target)} Interval: DeLong on patients, logit scale."
    finish(figure, path, title=title, note=note)


def precision_recall_figure(
    test: pd.DataFrame, target: ClassificationConfig, path: Path, *, title: str
) -> None:
    """Precision against recall of the test rows, with the prevalence that chance would reach."""
    figure, axes, below = _curve_page(test, target)
    patients = first_tests(test[test["level"] == "patient"])
    asked = curve_classes(patients, target)
    note = _curve_note(test, target)
    if len(asked) == 1:
        prevalence = float((class_names(patients, target.label) == asked[0]).mean())
        axes.axhline(prevalence, color=FAINT, linewidth=1)
        note += " Horizontal line: prevalence, the precision of chance."
    _draw_curves(axes, test, target, _RECALL)
    _legend(axes, below, "average precision")
    finish(figure, path, title=title, note=note)


def _curve_page(test: pd.DataFrame, target: ClassificationConfig) -> tuple[Figure, Axes, Axes]:
    """A figure, the axes of its curves, and the empty axes below that hold the legend."""
    entries = max(min(len(curve_classes(test, target)), MOST_CLASSES), 3)
    below_in = 0.2 * (entries + 1)
    figure = paper(4.4, 4.9 + below_in)
    axes, below = figure.subplots(2, 1, height_ratios=(4.2, below_in))
    below.set_axis_off()
    return figure, axes, below


def _legend(axes: Axes, below: Axes, title: str) -> None:
    legend = below.legend(
        *axes.get_legend_handles_labels(),
        title=title,
        loc="upper left",
        borderaxespad=0,
        alignment="left",
        fontsize=SMALL_PT,
        title_fontsize=SMALL_PT,
        frameon=False,
    )
    for text in legend.get_texts():
        text.set_parse_math(False)


def curve_classes(table: pd.DataFrame, target: ClassificationConfig) -> list[str]:
    """The classes that are asked about: the positive one, or each against the rest."""
    classes = classes_of(table)
    positive = positive_class(target, classes)
    return [positive] if positive is not None else classes


def _draw_curves(axes: Axes, test: pd.DataFrame, target: ClassificationConfig, kind: _Kind) -> None:
    tidy(axes, xlabel=kind.xlabel, ylabel=kind.ylabel)
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02), aspect="equal")
    patients, slides = (test[test["level"] == level] for level in ("patient", "slide"))
    asked = curve_classes(test, target)
    for colour, line, name in zip(COLOURS, LINES, asked, strict=False):
        alone = len(asked) == 1
        if alone and 1 < len(fold_tables(patients)) <= MOST_FOLDS:
            for fold in fold_tables(patients):
                _curve(axes, fold, target, (name, kind), color="0.6", linewidth=0.7)
        if alone and len(first_tests(slides)) > len(first_tests(patients)):
            style: dict[str, Any] = {"color": SOFT_INK, "linestyle": LINES[1], "linewidth": 1.1}
            _curve(axes, slides, target, (name, kind), label="slides", **style)
        style = {"color": colour, "linestyle": LINES[0] if alone else line, "linewidth": 2}
        _curve(axes, patients, target, (name, kind), label="patients", **style)
        if alone:
            _operating_point(axes, patients, name, target, kind)


def _curve(
    axes: Axes,
    table: pd.DataFrame,
    target: ClassificationConfig,
    what: tuple[str, _Kind],
    *,
    label: str | None = None,
    **style: Any,
) -> None:
    """One curve of a class; none where the rows are all, or none, of it."""
    name, kind = what
    rows = first_tests(table)
    truth = (class_names(rows, target.label) == name).to_numpy()
    score = rows[f"prob_{name}"].to_numpy()
    if not 0 < truth.sum() < len(truth):
        if label is not None:
            axes.plot([], [], label=f"{name}, {label}: undefined, one class only", **style)
        return
    if label is not None:
        area = _area(kind, label)(truth, score, rows["fold"].to_numpy())
        label = f"{name}, {len(truth)} {label}: {area}"
    axes.plot(*kind.trace(truth, score), label=label, drawstyle=_steps(kind), **style)


def _area(kind: _Kind, level: str) -> Area:
    """The slides of a patient are no independent witnesses: their area goes without interval."""
    if kind is _ROC and level == "slides":
        return lambda *rows: f"{stratified_auroc(*rows):.2f}"
    return kind.area


def _steps(kind: _Kind) -> str:
    return "default" if kind is _ROC else "steps-post"


def _operating_point(
    axes: Axes, patients: pd.DataFrame, name: str, target: ClassificationConfig, kind: _Kind
) -> None:
    rows = first_tests(patients)
    truth = (class_names(rows, target.label) == name).to_numpy()
    called = (rows["predicted"] == name).to_numpy()
    if not 0 < truth.sum() < len(truth):
        return
    sensitivity, specificity = sensitivity_specificity(truth, called)
    label = f"operating point: sensitivity {sensitivity:.2f}, specificity {specificity:.2f}"
    axes.plot(
        *kind.point(truth, called),
        "o",
        color=VERMILLION,
        markeredgecolor="white",
        markersize=8,
        label=label,
        zorder=5,
    )


def rule_text(patients: pd.DataFrame, target: ClassificationConfig) -> str:
    """How a class is called: by a threshold fixed on validation patients, or as most probable."""
    thresholds = patients["threshold"].dropna().unique()
    if not len(thresholds):
        return "Called: the most probable class."
    rule, least = target.operating_point.rule, target.operating_point.least
    name = "largest Youden index" if least is None else f"{rule} of at least {least:g}"
    low, high = float(thresholds.min()), float(thresholds.max())
    values = f"{low:.2f}" if high - low < 0.005 else f"{low:.2f} to {high:.2f} over folds"
    positive = positive_class(target, classes_of(patients))
    return (
        f"Called {positive} from a probability of {values}: {name} on the fold's validation "
        "patients."
    )


def _curve_note(test: pd.DataFrame, target: ClassificationConfig) -> str:
    patients = test[test["level"] == "patient"]
    asked = curve_classes(test, target)
    note = pooling_note(patients)
    if len(fold_tables(patients)) > 1:
        note += " Curves pool the folds."
    if len(asked) > 1:
        cut = f" (the first {MOST_CLASSES})" if len(asked) > MOST_CLASSES else ""
        return f"{note} Patients; each class{cut} against the rest."
    if 1 < len(fold_tables(patients)) <= MOST_FOLDS:
        note += " Thin grey: patients of single folds."
    return f"{note} {rule_text(patients, target)}"


def confusion_figure(
    test: pd.DataFrame, target: ClassificationConfig, path: Path, *, title: str
) -> None:
    """True against called class of the test patients: counts, and shares of the true class."""
    patients = test[test["level"] == "patient"]
    rows = first_tests(patients)
    classes = classes_of(rows)
    called = rows["predicted"].map({name: i for i, name in enumerate(classes)}).to_numpy(int)
    counts = confusion(class_indices(rows, target.label), called, len(classes))
    totals = counts.sum(axis=1, keepdims=True)
    shares = np.divide(counts, totals, out=np.zeros(counts.shape), where=totals > 0)
    figure = paper(max(2.2 + 0.7 * len(classes), 4.4), 2.2 + 0.8 * len(classes))
    axes = figure.add_subplot()
    axes.imshow(shares, cmap=_BLUES, vmin=0, vmax=1)
    for (true, call), count in np.ndenumerate(counts):
        axes.text(
            call,
            true,
            f"{count}\n{shares[true, call]:.0%}" if totals[true] else f"{count}",
            ha="center",
            va="center",
            fontsize=TEXT_PT,
            color="white" if shares[true, call] > 0.55 else INK,
        )
    tidy(axes, xlabel="called", ylabel="true")
    axes.set_xticks(range(len(classes)), classes, parse_math=False)
    axes.set_yticks(
        range(len(classes)),
        [f"{name}\nn = {n}" for name, n in zip(classes, totals.ravel(), strict=True)],
        parse_math=False,
    )
    if max(map(len, classes)) > 8:
        axes.tick_params(axis="x", labelrotation=30)
    axes.tick_params(length=0)
    note = f"{pooling_note(patients)} Patients, and their share of the true class. "
    finish(figure, path, title=title, note=note + rule_text(rows, target))


_BLUES = LinearSegmentedColormap.from_list("paper to blue", ["#ffffff", BLUE])
